"""MM-DiT against diffusers, through a checkpoint on disk."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import SD3Transformer2DModel

from tests.torch_fixtures import randomise
from uae_jax.ckpt import hf, maps_sd3
from uae_jax.models.mmdit import MMDiT, sincos_2d

CONFIG = dict(
  sample_size=24,
  patch_size=2,
  in_channels=4,
  out_channels=6,
  num_layers=4,
  attention_head_dim=16,
  num_attention_heads=3,
  joint_attention_dim=40,
  caption_projection_dim=48,
  pooled_projection_dim=24,
  pos_embed_max_size=21,
)
# SD3-medium, SD3.5-large, SD3.5-medium, and what no release has.
KINDS = {
  'plain': dict(),
  'qk_norm': dict(qk_norm='rms_norm'),
  'dual': dict(qk_norm='rms_norm', dual_attention_layers=(0, 1)),
  'all_dual_no_norm': dict(dual_attention_layers=(0, 1, 2, 3)),
}


@pytest.fixture(scope='module', params=KINDS.values(), ids=KINDS)
def model(request, tmp_path_factory):
  """A random torch MM-DiT, saved; and ours loaded from its folder."""
  theirs = randomise(SD3Transformer2DModel(**CONFIG, **request.param))
  folder = tmp_path_factory.mktemp('sd3')
  theirs.save_pretrained(folder)
  fields = maps_sd3.from_hf(hf.read_config(folder))
  ours = MMDiT(**fields)
  shapes = jax.eval_shape(ours.init, jax.random.key(0), *inputs(2, 2))
  table = maps_sd3.table(**fields)
  params = hf.load(folder, table, shapes['params'], stem=maps_sd3.STEM)
  return theirs, ours, params, fields


def inputs(high, wide, length=11):
  rng = np.random.default_rng(high * wide)
  normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
  t = np.array([873.25, 12.5], np.float32)
  x, context = normal(2, high, wide, 4), normal(2, length, 40)
  return x, t, context, normal(2, 24)


def theirs_of(model, x, t, context, pooled):
  with torch.no_grad():
    out = model(
      hidden_states=torch.tensor(x).permute(0, 3, 1, 2),
      encoder_hidden_states=torch.tensor(context),
      pooled_projections=torch.tensor(pooled),
      timestep=torch.tensor(t),
    ).sample
  return out.permute(0, 2, 3, 1).numpy()


def ours_of(model, params, *args):
  with jax.default_matmul_precision('highest'):
    return jax.jit(model.apply)({'params': params}, *args)


def close(a, b, tol=1e-5):
  a, b = np.asarray(a), np.asarray(b)
  assert a.shape == b.shape
  assert np.abs(a - b).max() <= tol * np.abs(b).max()


# In patches: 16 x 20 (more than 256 tokens), odd crops, one whole row.
@pytest.mark.parametrize('size', [(32, 40), (14, 26), (2, 42)])
def test_every_resolution(model, size):
  theirs, ours, params, _ = model
  args = inputs(*size)
  close(ours_of(ours, params, *args), theirs_of(theirs, *args))


def test_masked_padding_is_as_if_absent(model):
  theirs, ours, params, _ = model
  x, t, context, pooled = inputs(12, 8)
  mask = np.arange(11) < np.array([[7], [4]])
  got = ours_of(ours, params, x, t, context, pooled, mask)
  for i, length in enumerate([7, 4]):
    row = slice(i, i + 1)
    want = theirs_of(theirs, x[row], t[row], context[row, :length], pooled[row])
    close(got[row], want)
  junk = np.where(mask[..., None], context, 1e3).astype(np.float32)
  close(ours_of(ours, params, x, t, junk, pooled, mask), got)
  # And without a mask padding is attended to, as in diffusers.
  assert np.abs(ours_of(ours, params, x, t, context, pooled) - got).max() > 1e-3


def test_bfloat16_stays_close(model):
  theirs, ours, params, _ = model
  args = inputs(12, 8)
  x = jnp.asarray(args[0], jnp.bfloat16)
  got = ours_of(ours, params, x, *args[1:])
  assert got.dtype == jnp.bfloat16
  close(got.astype(np.float32), theirs_of(theirs, *args), tol=5e-2)


def test_export_is_read_back_by_diffusers(model, tmp_path):
  theirs, _, params, fields = model
  config = maps_sd3.to_hf(fields)
  assert maps_sd3.from_hf(config) == fields
  table = maps_sd3.table(**fields)
  hf.save(tmp_path, table, params, config, stem=maps_sd3.STEM)
  again, info = SD3Transformer2DModel.from_pretrained(
    tmp_path, output_loading_info=True
  )
  assert not info['missing_keys'] and not info['unexpected_keys']
  args = inputs(10, 12)
  np.testing.assert_array_equal(
    theirs_of(again.eval(), *args), theirs_of(theirs, *args)
  )


def test_positions_from_scratch_are_those_of_the_buffer():
  theirs = SD3Transformer2DModel(**CONFIG).pos_embed.pos_embed.numpy()
  np.testing.assert_allclose(sincos_2d(48, 21, 12), theirs, atol=1e-7)
