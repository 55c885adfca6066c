"""Learned queries: the language model's side and the connector's.

There is no reference class: the encoder is compared with torch's own
`TransformerEncoder`, the queries with embeddings that are words.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tests.tiny_umm import parts
from tests.torch_fixtures import close, randomise
from uae_jax import trees, zoo
from uae_jax.ckpt import hf, maps_metaquery
from uae_jax.errors import UserError
from uae_jax.models import metaquery
from uae_jax.models.metaquery import QueryConnector
from uae_jax.sharding import rules, table_metaquery
from uae_jax.types import Captions

FIELDS = dict(
  queries=5, width=32, layers=2, heads=4, mlp=48, context_dim=24,
  pooled_dim=16,
)  # fmt: skip


def connector(**changes):
  """(zoo model, random parameters)."""
  model = zoo.query_conditioner({**FIELDS, **changes})
  params = model.init(jax.random.key(0))
  leaves, tree = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(1), len(leaves))
  noise = [0.1 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves)]
  return model, jax.tree.unflatten(tree, [a + b for a, b in zip(leaves, noise)])


class Reference(torch.nn.Module):
  """Encoder, then projections, of torch's own layers."""

  def __init__(self):
    super().__init__()
    layer = torch.nn.TransformerEncoderLayer(
      32, 4, 48, 0.0, torch.nn.functional.gelu, 1e-6, True, norm_first=True
    )
    self.encoder = torch.nn.TransformerEncoder(
      layer, 2, torch.nn.LayerNorm(32, 1e-6), enable_nested_tensor=False
    )
    mlp = lambda out: torch.nn.Sequential(
      torch.nn.Linear(32, 24), torch.nn.GELU(), torch.nn.Linear(24, out)
    )
    self.projector, self.pooled = mlp(24), mlp(16)

  def forward(self, x):
    x = self.encoder(x)
    return self.projector(x), self.pooled(x.mean(1))

  def hub(self):
    """Its tensors by the hub's names."""
    out = {'queries': torch.randn(5, 32)}
    names = {'linear1': 'mlp.fc1', 'linear2': 'mlp.fc2',
             'norm1': 'layer_norm1', 'norm2': 'layer_norm2'}  # fmt: skip
    for name, x in self.state_dict().items():
      if 'in_proj' in name:
        for part, piece in zip('qkv', x.chunk(3)):
          end = name.rsplit('_', 1)[1]
          where = name[: name.index('in_proj')]
          out[f'{where}{part}_proj.{end}'] = piece
        continue
      for old, new in names.items():
        name = name.replace(old, new)
      name = name.replace('encoder.norm.', 'encoder.final_layer_norm.')
      out[name] = x
    return {name: x.contiguous().clone() for name, x in out.items()}


def test_encoder_and_projections_are_torchs(tmp_path):
  from safetensors.torch import load_file, save_file

  theirs = randomise(Reference())
  hub = theirs.hub()
  save_file(hub, tmp_path / 'model.safetensors')
  model, _ = connector()
  (tmp_path / 'config.json').write_text('{}')
  params = model.load(tmp_path)
  x = np.random.default_rng(0).normal(size=(6, 5, 32)).astype(np.float32)
  with torch.no_grad():
    want = theirs(torch.tensor(x))
  with jax.default_matmul_precision('highest'):
    got = model.module.apply({'params': params}, x.reshape(2, 3, 5, 32))
  for ours, other in zip(got, want):
    close(ours.reshape(other.shape), other)
  model.save(tmp_path / 'out', params)
  again = load_file(tmp_path / 'out' / 'model.safetensors')
  assert again.keys() == hub.keys()
  assert all(torch.equal(again[name], hub[name]) for name in hub)
  assert maps_metaquery.from_hf(hf.read_config(tmp_path / 'out')) == FIELDS


def test_queries_are_read_like_words_after_the_text():
  umm, frozen, _ = parts()
  apply = lambda *a, method: umm.vlm.apply(
    {'params': frozen['policy']}, *a, method=method
  )
  ids = jnp.arange(6, 15).reshape(1, 1, 9)
  words = apply(ids[0, 0, 5:], method='embed')
  want = apply(ids, jnp.ones(ids.shape, bool), method='read')[:, :, 5:]
  ones = jnp.ones((1, 1, 5), bool)
  close(apply(ids[..., :5], ones, words, method='ask'), want)
  # Padding between text and queries changes nothing.
  padded = jnp.concatenate([ids[..., :5], jnp.full((1, 1, 3), 7)], -1)
  mask = jnp.arange(8)[None, None] < 5
  close(apply(padded, mask, words, method='ask'), want)


def test_a_drawing_through_queries_depends_on_the_caption():
  umm, frozen, _ = parts()
  model, params = connector()
  umm = dataclasses.replace(umm, connector=model.module)
  frozen = {**frozen, 'connector': params}
  draw = jax.jit(
    lambda captions: umm.draw_from_text(
      frozen['policy'], frozen, captions, jax.random.key(0)
    )
  )
  ids = jnp.array([[[9, 10, 11, 12]], [[9, 10, 13, 12]]])
  one = draw(Captions(ids, jnp.ones(ids.shape, bool), jnp.zeros(ids.shape)))
  assert one.shape == (2, 1, 32, 32, 3) and jnp.isfinite(one).all()
  twin = jnp.broadcast_to(ids[:1], ids.shape)
  same = draw(Captions(twin, jnp.ones(ids.shape, bool), jnp.zeros(ids.shape)))
  noise = jnp.abs(same[0] - same[1]).max()  # each row has its own noise
  assert jnp.abs(one[0] - same[0]).max() < 1e-6
  assert jnp.abs(one[1] - same[1]).max() > 1e-4 and noise > 1e-3
  with pytest.raises(UserError, match='bottleneck'):
    dataclasses.replace(umm, bottleneck='hidden')


@pytest.mark.parametrize('layers', [0, 2])
def test_every_parameter_has_a_place_and_a_gradient(layers):
  model, params = connector(layers=layers)
  rules.specs(params, table_metaquery.rules(layers=layers))
  states = jnp.ones((1, 5, 32)) * jnp.arange(5)[:, None]

  def loss(params):
    apply = lambda *a, **kw: model.module.apply({'params': params}, *a, **kw)
    context, pooled = apply(states * apply(method='learned'))
    return jnp.sum(context**2) + jnp.sum(pooled**2)

  for path, g in trees.flatten(jax.grad(loss)(params)).items():
    assert path.endswith('/k/bias') or np.abs(g).max() > 0, path


def test_real_size():
  model = zoo.query_conditioner(metaquery.VARIANTS['sd35'])
  # 24 blocks of 12 D^2 + 13 D, the queries, the norm, two MLPs.
  d, e = 2048, 4096
  want = 24 * (12 * d * d + 13 * d) + 64 * d + 2 * d
  want += (d * e + e) + (e * e + e) + (d * e + e) + (e * 2048 + 2048)
  assert trees.count(model.shapes()) == want
  rules.specs(model.shapes(), model.rules)


def test_mistakes_are_one_line(tmp_path):
  model, params = connector()
  model.save(tmp_path, params)
  assert isinstance(zoo.from_folder(tmp_path).module, QueryConnector)
  with pytest.raises(UserError, match='width 32'):
    zoo.conditioner_from_folder(tmp_path, 64)
  with pytest.raises(UserError, match='queries'):
    maps_metaquery.from_hf({**FIELDS, 'queries': 0})
  with pytest.raises(UserError, match='divide'):
    maps_metaquery.from_hf({**FIELDS, 'heads': 3})
