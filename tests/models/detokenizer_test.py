"""The connector of image codes: places matter, and folders are read back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uae_jax import trees, zoo
from uae_jax.errors import UserError
from uae_jax.models.detokenizer import VARIANTS
from uae_jax.sharding.mesh import make_mesh
from uae_jax.sharding.rules import shardings

SMALL = dict(codes=4, code_dim=3, context_dim=8, pooled_dim=6)


def test_a_folder_is_read_back(tmp_path):
  model = zoo.code_conditioner(SMALL)
  params = jax.jit(model.init)(jax.random.key(0))
  model.save(tmp_path, params)
  again = zoo.from_folder(tmp_path)
  assert again.module == model.module
  got = again.load(tmp_path)
  for path, x in trees.flatten(params).items():
    np.testing.assert_array_equal(trees.flatten(got)[path], x)
  (tmp_path / 'config.json').write_text(
    '{"_class_name": "CodeConnector", "codes": 4}'
  )
  with pytest.raises(UserError, match='code_dim'):
    zoo.from_folder(tmp_path)


def test_the_same_code_elsewhere_is_another_token():
  model = zoo.code_conditioner(SMALL)
  params = jax.jit(model.init)(jax.random.key(0))
  apply = lambda x: model.module.apply({'params': params}, x)
  context, pooled = apply(jnp.ones((2, 4, 3)))
  assert context.shape == (2, 4, 8) and pooled.shape == (2, 6)
  assert np.abs(context[0, 0] - context[0, 1]).max() > 1e-4
  np.testing.assert_array_equal(context[0], context[1])


@pytest.mark.parametrize('name', VARIANTS)
def test_every_size_has_a_place_for_every_tensor(name):
  model = zoo.code_conditioner(VARIANTS[name])
  shardings(model.shapes(), model.rules, make_mesh(4, 2))
  assert {row.path for row in model.table} == set(trees.flatten(model.shapes()))
