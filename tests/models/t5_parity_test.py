"""The T5 encoder against transformers, through a checkpoint on disk."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import T5Config, T5EncoderModel
from transformers.models.t5.modeling_t5 import T5Attention

from tests.torch_fixtures import close, close_rms, randomise
from uae_jax import trees
from uae_jax.ckpt import hf, maps_t5
from uae_jax.errors import UserError
from uae_jax.models import t5
from uae_jax.sharding import rules, table_t5

CONFIG = dict(
  vocab_size=100, d_model=32, d_kv=8, d_ff=48, num_layers=3, num_heads=4,
  feed_forward_proj='gated-gelu', tie_word_embeddings=False,
)  # fmt: skip


def shapes_of(fields):
  ids = jnp.zeros((1, 1), jnp.int32)
  return jax.eval_shape(t5.T5(**fields).init, jax.random.key(0), ids)['params']


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  """A random torch encoder, saved; and ours loaded from its folder."""
  theirs = randomise(T5EncoderModel(T5Config(**CONFIG)))
  folder = tmp_path_factory.mktemp('t5')
  theirs.save_pretrained(folder)
  fields = maps_t5.from_hf(hf.read_config(folder))
  params = hf.load(
    folder, maps_t5.table(**fields), shapes_of(fields), ignore=maps_t5.IGNORE
  )
  return theirs, t5.T5(**fields), params, fields


def both(model, length, dtype=jnp.float32):
  theirs, ours, params, _ = model
  ids = np.random.default_rng(length).integers(2, 100, (2, length))
  ids[1, length // 2 :] = 0  # padding is attended
  with torch.no_grad():
    want = theirs(torch.tensor(ids)).last_hidden_state.numpy()
  with jax.default_matmul_precision('highest'):
    return ours.apply({'params': params}, jnp.asarray(ids), dtype), want


@pytest.mark.parametrize('length', [1, 7, 300])
def test_states_of_every_token(model, length):
  close(*both(model, length))


def test_bfloat16_stays_close(model):
  got, want = both(model, 40, jnp.bfloat16)
  assert got.dtype == jnp.bfloat16
  close_rms(got, want)


def test_buckets_of_every_distance():
  place = torch.arange(400)
  far = place[None] - place[:, None]
  want = T5Attention._relative_position_bucket(far).numpy()
  np.testing.assert_array_equal(t5.bucket(far.numpy(), 32, 128), want)


def test_export_is_read_back_by_transformers(model, tmp_path):
  theirs, _, params, fields = model
  config = maps_t5.to_hf(fields)
  assert maps_t5.from_hf(config) == fields
  hf.save(tmp_path, maps_t5.table(**fields), params, config)
  again = T5EncoderModel.from_pretrained(tmp_path).state_dict()
  for name, tensor in theirs.state_dict().items():
    assert torch.equal(tensor, again[name]), name


def test_real_size():
  fields = t5.VARIANTS['t5-v1.1-xxl']
  shapes = shapes_of(fields)
  assert trees.count(shapes) == 4_762_310_656
  rules.specs(shapes, table_t5.RULES)
  config = {k: v for k, v in maps_t5.to_hf(fields).items()}
  with torch.device('meta'):
    theirs = T5EncoderModel(T5Config(**config))
  hub = {k: tuple(v.shape) for k, v in theirs.state_dict().items()}
  ours = {p: x.shape for p, x in trees.flatten(shapes).items()}
  table = maps_t5.table(**fields)
  assert not hf.check(table, ours, hub, maps_t5.IGNORE)


def test_what_is_not_t5_v1_1_is_refused():
  config = maps_t5.to_hf(t5.VARIANTS['tiny'])
  with pytest.raises(UserError, match='v1.1'):
    maps_t5.from_hf({**config, 'feed_forward_proj': 'relu'})
  with pytest.raises(UserError, match='epsilon'):
    maps_t5.from_hf({**config, 'layer_norm_epsilon': 1e-3})
