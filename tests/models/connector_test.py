"""Connector against torch's own layers, masks, leading axes, files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from uae_jax import trees
from uae_jax.ckpt import hf, maps_connector
from uae_jax.errors import UserError
from uae_jax.models.connector import VARIANTS, Connector
from uae_jax.sharding import rules, table_connector

FIELDS = dict(
  hidden=24, context_dim=10, pooled_dim=6, act='gelu', pooled='mean'
)
TABLE = maps_connector.table('mean')
WIDTH = 16


def mlp(out):
  return torch.nn.Sequential(
    torch.nn.Linear(WIDTH, 24), torch.nn.GELU(), torch.nn.Linear(24, out)
  )


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  """torch layers under UAE's names, saved; ours loaded from the folder."""
  torch.manual_seed(0)
  theirs = torch.nn.ModuleDict(dict(projector=mlp(10), pooled=mlp(6)))
  folder = tmp_path_factory.mktemp('connector')
  save_file(theirs.state_dict(), folder / 'model.safetensors')
  ours = Connector(**FIELDS)
  params = hf.load(folder, TABLE, shapes_of(ours, WIDTH))
  return theirs, ours, params


def shapes_of(module, width):
  states, mask = jnp.zeros((1, 1, width)), jnp.ones((1, 1), bool)
  return jax.eval_shape(module.init, jax.random.key(0), states, mask)['params']


def inputs():
  rng = np.random.default_rng(0)
  states = 2 * rng.normal(size=(2, 3, 7, WIDTH)).astype(np.float32)
  lengths = np.array([[7, 2, 1], [3, 4, 6]])
  return states, np.arange(7) < lengths[..., None]


def test_both_outputs(model):
  theirs, ours, params = model
  states, mask = inputs()
  with jax.default_matmul_precision('highest'):
    context, pooled = ours.apply({'params': params}, states, mask)
  assert context.shape == (2, 3, 7, 10) and pooled.shape == (2, 3, 6)
  with torch.no_grad():
    want = theirs['projector'](torch.tensor(states)).numpy()
    np.testing.assert_allclose(context, want, atol=1e-6)
    for i, j in np.ndindex(2, 3):
      mean = torch.tensor(states[i, j][mask[i, j]].mean(0))
      want = theirs['pooled'](mean).numpy()
      np.testing.assert_allclose(pooled[i, j], want, atol=1e-6)


def test_padding_leaves_the_mean_and_an_empty_caption_is_finite(model):
  _, ours, params = model
  states, mask = inputs()
  apply = lambda s, m: ours.apply({'params': params}, s, m)[1]
  junk = np.where(mask[..., None], states, 1e4).astype(np.float32)
  np.testing.assert_allclose(apply(junk, mask), apply(states, mask), atol=1e-6)
  nothing = apply(states, np.zeros_like(mask))
  np.testing.assert_allclose(
    nothing, apply(np.zeros_like(states), mask), atol=1e-6
  )


def test_round_trip_of_files(model, tmp_path):
  _, ours, params = model
  config = maps_connector.to_hf(FIELDS)
  assert maps_connector.from_hf(config) == FIELDS
  hf.save(tmp_path, TABLE, params, config)
  assert maps_connector.from_hf(hf.read_config(tmp_path)) == FIELDS
  again = hf.load(tmp_path, TABLE, shapes_of(ours, WIDTH))
  jax.tree.map(np.testing.assert_array_equal, again, params)
  with pytest.raises(UserError, match='hidden_dim'):
    maps_connector.from_hf({**config, 'hidden_dim': '24'})


def test_uniworld_uses_silu_and_a_constant(tmp_path):
  fields = {**FIELDS, 'act': 'silu', 'pooled': 'constant'}
  torch.manual_seed(1)
  theirs = torch.nn.Sequential(
    torch.nn.Linear(WIDTH, 24), torch.nn.SiLU(), torch.nn.Linear(24, 10)
  )
  state = {f'projector.{k}': v for k, v in theirs.state_dict().items()}
  state['pooled.constant'] = torch.arange(6.0)
  save_file(state, tmp_path / 'model.safetensors')
  ours = Connector(**fields)
  params = hf.load(
    tmp_path, maps_connector.table('constant'), shapes_of(ours, WIDTH)
  )
  states, mask = inputs()
  context, pooled = ours.apply({'params': params}, states, mask)
  with torch.no_grad():
    want = theirs(torch.tensor(states)).numpy()
  np.testing.assert_allclose(context, want, atol=1e-5)
  assert pooled.shape == (2, 3, 6)
  np.testing.assert_array_equal(pooled[1, 2], np.arange(6))
  config = maps_connector.to_hf(fields)
  assert maps_connector.from_hf(config) == fields
  with pytest.raises(UserError, match='pooled'):
    maps_connector.from_hf({**config, 'pooled': 'max'})


def test_a_projector_without_a_pooled_vector(model, tmp_path):
  theirs, _, _ = model
  state = theirs['projector'].state_dict()
  save_file({f'projector.{k}': v for k, v in state.items()},
            tmp_path / 'model.safetensors')  # fmt: skip
  fields = {**FIELDS, 'pooled': 'none'}
  assert maps_connector.from_hf(maps_connector.to_hf(fields)) == fields
  ours = Connector(**fields)
  table = maps_connector.table('none')
  params = hf.load(tmp_path, table, shapes_of(ours, WIDTH))
  states, mask = inputs()
  context, pooled = ours.apply({'params': params}, states, mask)
  assert pooled is None
  with torch.no_grad():
    want = theirs['projector'](torch.tensor(states)).numpy()
  np.testing.assert_allclose(context, want, atol=1e-5)


@pytest.mark.parametrize(
  'name, width, count',
  [
    ('uae', 2048, 50_343_936 + 2048),
    ('uniworld', 3584, 94_388_224 + 768),
    ('uniworld-siglip', 1152, 64_503_808),
  ],
)
def test_release_sizes_and_sharding(name, width, count):
  """The sizes of both releases, and one constant."""
  fields = VARIANTS[name]
  shapes = shapes_of(Connector(**fields), width)
  assert trees.count(shapes) == count
  specs = trees.flatten(
    rules.specs(shapes, table_connector.rules(fields['pooled']))
  )
  assert set(specs) == set(trees.flatten(shapes))
  tiny = shapes_of(Connector(**VARIANTS['tiny']), WIDTH)
  rules.specs(tiny, table_connector.rules('mean'))
