"""MM-DiT: real sizes without their memory, gradients, sharding, errors."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import SD3Transformer2DModel

from uae_jax import trees
from uae_jax.ckpt import hf, maps_sd3
from uae_jax.errors import UserError
from uae_jax.models.mmdit import VARIANTS, MMDiT
from uae_jax.sharding import rules, table_sd3

# Trained parameters, without the buffer of positions, and hub tensors.
COUNTS = {
  'sd3-medium': (2_028_328_000, 683),
  'sd3.5-medium': (2_243_171_520, 909),
  'sd3.5-large': (8_056_627_520, 1227),
}


def inputs(fields, batch=2, side=None):
  side = side or fields['patch_size']
  key = iter(jax.random.split(jax.random.key(1), 3))
  x = jax.random.normal(next(key), (batch, side, side, fields['in_channels']))
  context = (batch, 5, fields['joint_attention_dim'])
  pooled = (batch, fields['pooled_projection_dim'])
  return (
    x,
    jnp.linspace(10.0, 900.0, batch),
    jax.random.normal(next(key), context),
    jax.random.normal(next(key), pooled),
  )


def shapes_of(fields):
  init = MMDiT(**fields).init
  return jax.eval_shape(init, jax.random.key(0), *inputs(fields))['params']


@pytest.mark.parametrize('variant', COUNTS)
def test_real_sizes(variant):
  fields = VARIANTS[variant]
  shapes = shapes_of(fields)
  count, tensors = COUNTS[variant]
  table_size = shapes['pos_embed']['table'].size
  assert trees.count(shapes) - table_size == count
  with torch.device('meta'):
    theirs = SD3Transformer2DModel.from_config(maps_sd3.to_hf(fields))
  assert sum(p.numel() for p in theirs.parameters()) == count
  found = {k: tuple(v.shape) for k, v in theirs.state_dict().items()}
  assert len(found) == tensors
  ours = {p: tuple(x.shape) for p, x in trees.flatten(shapes).items()}
  assert hf.check(maps_sd3.table(**fields), ours, found) == []


@pytest.mark.parametrize('variant', VARIANTS)
def test_every_parameter_has_a_place(variant):
  fields = VARIANTS[variant]
  specs = rules.specs(shapes_of(fields), table_sd3.rules(**fields))
  flat = trees.flatten(specs)
  stacked = [s for p, s in flat.items() if '/block/' in p]
  assert stacked and all(s[0] is None for s in stacked)
  kernels = [s for p, s in flat.items() if re.fullmatch('.*/kernel', p)]
  assert all('data' in s for s in kernels)


@pytest.fixture(scope='module')
def tiny():
  """Two joint blocks and the last one, and the gradient of a loss."""
  fields = {**VARIANTS['tiny'], 'num_layers': 3}
  model, args = MMDiT(**fields), inputs(fields, side=8)
  params = jax.jit(model.init)(jax.random.key(0), *args)['params']
  return model, args, params, gradient(model, args)


def gradient(model, args):
  def loss(params):
    v = model.apply({'params': params}, *args)
    return jnp.mean((v - 1) ** 2), v

  return jax.jit(jax.grad(loss, has_aux=True))


def random_like(params):
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda x: jnp.asarray(0.1 * rng.normal(size=x.shape), x.dtype), params
  )


def test_starts_as_zero_velocity_that_can_learn(tiny):
  _, _, params, grad = tiny
  grads, v = grad(params)
  assert jnp.all(v == 0)
  assert jnp.abs(grads['proj_out']['bias']).max() > 0


def test_every_parameter_gets_a_gradient_but_the_fixed_and_the_unread(tiny):
  _, _, params, grad = tiny
  flat = trees.flatten(grad(random_like(params))[0])
  unread = {p for p, g in flat.items() if not jnp.any(g != 0)}
  query = 'last_block/block/text/q'
  assert unread == {
    'pos_embed/table',
    f'{query}/kernel',
    f'{query}/bias',
    f'{query}_norm/scale',
  }


@pytest.mark.parametrize('remat', ['dots', 'full'])
def test_remat_changes_no_number(tiny, remat):
  model, args, params, grad = tiny
  params = random_like(params)
  again = gradient(model.clone(remat=remat), args)
  ours, theirs = grad(params)[0], again(params)[0]
  for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs)):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_bad_latents_are_refused(tiny):
  model, args, params, _ = tiny
  for shape in [(2, 30, 32, 3), (2, 32, 36, 3)]:
    with pytest.raises(ValueError, match='multiple of 4 and at most 32'):
      model.apply({'params': params}, jnp.zeros(shape), *args[1:])


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(_class_name='FluxTransformer2DModel'), 'FluxTransformer2DModel'),
    (dict(dual_attention_layers=[1, 2]), 'without a gap'),
    (dict(dual_attention_layers=list(range(25))), 'without a gap'),
    (dict(qk_norm='layer_norm'), 'qk_norm'),
    (dict(caption_projection_dim=1152), 'caption_projection_dim'),
    (dict(num_layers='24'), 'num_layers'),
  ],
)
def test_configs_that_the_model_cannot_follow(change, message):
  config = {**maps_sd3.to_hf(VARIANTS['sd3-medium']), **change}
  with pytest.raises(UserError, match=message):
    maps_sd3.from_hf(config)


def test_keys_that_sd3_medium_leaves_out():
  """Its config.json is older than dual attention and the norm of q and k."""
  config = maps_sd3.to_hf(VARIANTS['sd3-medium'])
  del config['dual_attention_layers'], config['qk_norm']
  assert maps_sd3.from_hf(config) == VARIANTS['sd3-medium']
