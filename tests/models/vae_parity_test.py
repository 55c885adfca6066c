"""AutoencoderKL against diffusers, through a checkpoint on disk."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from tests.torch_fixtures import close, close_rms, randomise
from uae_jax import trees
from uae_jax.ckpt import hf, maps_vae
from uae_jax.errors import UserError
from uae_jax.models.vae import VAE, VARIANTS
from uae_jax.sharding import rules, table_vae

# SD3 and FLUX (no quant convs), and the layout of older releases.
KINDS = {
  'sd3': dict(
    block_out_channels=(16, 32, 32), layers_per_block=2, latent_channels=6,
    norm_num_groups=8, scaling_factor=1.5305, shift_factor=0.0609,
    use_quant_conv=False, use_post_quant_conv=False,
  ),
  'quant': dict(
    block_out_channels=(8, 16), layers_per_block=1, latent_channels=4,
    norm_num_groups=4, scaling_factor=0.18215,
  ),
}  # fmt: skip


def shapes_of(ours):
  side = 8 * ours.factor
  pixels = jnp.zeros((1, side, side, 3))
  return jax.eval_shape(ours.init, jax.random.key(0), pixels)['params']


@pytest.fixture(scope='module', params=KINDS.values(), ids=KINDS)
def model(request, tmp_path_factory):
  """A random torch VAE, saved; and ours loaded from its folder."""
  levels = len(request.param['block_out_channels'])
  theirs = randomise(
    AutoencoderKL(
      down_block_types=['DownEncoderBlock2D'] * levels,
      up_block_types=['UpDecoderBlock2D'] * levels,
      **request.param,
    )
  )
  folder = tmp_path_factory.mktemp('vae')
  theirs.save_pretrained(folder)
  fields = maps_vae.from_hf(hf.read_config(folder))
  ours = VAE(**fields)
  table = maps_vae.table(**fields)
  params = hf.load(folder, table, shapes_of(ours), stem=maps_vae.STEM)
  return theirs, ours, params, fields


def chw(x):
  return torch.tensor(np.asarray(x)).permute(0, 3, 1, 2)


def hwc(x):
  return x.permute(0, 2, 3, 1).numpy()


def apply(model, params, x, method):
  with jax.default_matmul_precision('highest'):
    return model.apply({'params': params}, x, method=method)


@pytest.mark.parametrize('size', [(32, 32), (16, 40), (24, 8)])
def test_moments_and_reconstruction(model, size):
  theirs, ours, params, fields = model
  rng = np.random.default_rng(0)
  pixels = rng.uniform(-1, 1, (2, *size, 3)).astype(np.float32)
  with torch.no_grad():
    want = theirs.encode(chw(pixels)).latent_dist
  mean, logvar = apply(ours, params, pixels, 'moments')
  close(mean, hwc(want.mean))
  close(logvar, hwc(want.logvar))
  latents = apply(ours, params, pixels, 'encode')
  close(latents, (hwc(want.mean) - fields['shift']) * fields['scaling'])
  with torch.no_grad():
    z = chw(latents) / fields['scaling'] + fields['shift']
    want = theirs.decode(z).sample
  close(apply(ours, params, latents, 'decode'), hwc(want))


def test_bfloat16_stays_close(model):
  _, ours, params, fields = model
  rng = np.random.default_rng(1)
  z = rng.normal(size=(1, 4, 6, fields['latent'])).astype(np.float32)
  full = apply(ours, params, z, 'decode')
  half = apply(ours, params, jnp.asarray(z, jnp.bfloat16), 'decode')
  assert half.dtype == jnp.bfloat16
  close_rms(half, full, tol=3e-2)  # diffusers' own bf16 is off by 1.7e-2


def test_export_is_read_back_by_diffusers(model, tmp_path):
  theirs, _, params, fields = model
  config = maps_vae.to_hf(fields)
  assert maps_vae.from_hf(config) == fields
  table = maps_vae.table(**fields)
  hf.save(tmp_path, table, params, config, stem=maps_vae.STEM)
  again, info = AutoencoderKL.from_pretrained(
    tmp_path, output_loading_info=True
  )
  assert not info['missing_keys'] and not info['unexpected_keys']
  state = again.state_dict()
  for name, tensor in theirs.state_dict().items():
    assert torch.equal(tensor, state[name]), name


@pytest.mark.parametrize('name', VARIANTS)
def test_real_sizes(name):
  fields = VARIANTS[name]
  shapes = shapes_of(VAE(**fields))
  rules.specs(shapes, table_vae.rules(**fields))
  levels = len(fields['channels'])
  with torch.device('meta'):
    theirs = AutoencoderKL(
      down_block_types=['DownEncoderBlock2D'] * levels,
      up_block_types=['UpDecoderBlock2D'] * levels,
      block_out_channels=fields['channels'],
      layers_per_block=fields['layers'],
      latent_channels=fields['latent'],
      norm_num_groups=fields['groups'],
      use_quant_conv=False,
      use_post_quant_conv=False,
    )
  hub = {k: tuple(v.shape) for k, v in theirs.state_dict().items()}
  ours = {p: x.shape for p, x in trees.flatten(shapes).items()}
  assert not hf.check(maps_vae.table(**fields), ours, hub)
  if name != 'tiny':
    assert trees.count(shapes) == 83_819_683


def test_other_layouts_are_refused():
  config = maps_vae.to_hf(VARIANTS['sd3'])
  with pytest.raises(UserError, match='AsymmetricAutoencoderKL'):
    maps_vae.from_hf({**config, '_class_name': 'AsymmetricAutoencoderKL'})
  with pytest.raises(UserError, match='mid_block_add_attention'):
    maps_vae.from_hf({**config, 'mid_block_add_attention': False})
