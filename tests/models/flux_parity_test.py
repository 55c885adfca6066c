"""FLUX against diffusers, through a checkpoint on disk; real sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel

from tests.torch_fixtures import close, close_rms, randomise
from uae_jax import trees
from uae_jax.ckpt import hf, maps_flux
from uae_jax.errors import UserError
from uae_jax.models import flux
from uae_jax.sharding import rules, table_flux

CONFIG = dict(
  patch_size=1, in_channels=16, num_layers=2, num_single_layers=3,
  attention_head_dim=16, num_attention_heads=3, joint_attention_dim=24,
  pooled_projection_dim=20, axes_dims_rope=(4, 6, 6),
)  # fmt: skip


def inputs(high, wide, length=9):
  rng = np.random.default_rng(high * wide)
  normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
  t = np.array([873.25, 12.5], np.float32)
  return normal(2, high, wide, 4), t, normal(2, length, 24), normal(2, 20)


def shapes_of(fields):
  d = fields
  zeros = (
    jnp.zeros((1, 2, 2, d['in_channels'] // 4)),
    jnp.zeros((1,)),
    jnp.zeros((1, 1, d['joint_attention_dim'])),
    jnp.zeros((1, d['pooled_projection_dim'])),
  )
  module = flux.Flux(**fields)
  return jax.eval_shape(module.init, jax.random.key(0), *zeros)['params']


KINDS = {
  'dev': dict(guidance_embeds=True),
  'schnell': dict(guidance_embeds=False),
  'fill': dict(guidance_embeds=True, out_channels=8),
}


@pytest.fixture(scope='module', params=KINDS)
def model(request, tmp_path_factory):
  """A random torch FLUX, saved; and ours loaded from its folder."""
  theirs = randomise(FluxTransformer2DModel(**CONFIG, **KINDS[request.param]))
  folder = tmp_path_factory.mktemp('flux')
  theirs.save_pretrained(folder)
  fields = maps_flux.from_hf(hf.read_config(folder))
  table = maps_flux.table(**fields)
  params = hf.load(folder, table, shapes_of(fields), stem=maps_flux.STEM)
  return theirs, flux.Flux(**fields), params, fields


def theirs_of(model, x, t, context, pooled):
  b, h, w, c = x.shape
  latents = torch.tensor(x).permute(0, 3, 1, 2)
  packed = FluxPipeline._pack_latents(latents, b, c, h, w)
  ids = FluxPipeline._prepare_latent_image_ids(
    b, h // 2, w // 2, 'cpu', torch.float32
  )
  guidance = torch.full((b,), 3.5) if model.config.guidance_embeds else None
  with torch.no_grad():
    out = model(
      hidden_states=packed,
      encoder_hidden_states=torch.tensor(context),
      pooled_projections=torch.tensor(pooled),
      timestep=torch.tensor(t) / 1000,
      guidance=guidance,
      img_ids=ids,
      txt_ids=torch.zeros(context.shape[1], 3),
    ).sample
  out = FluxPipeline._unpack_latents(out, h, w, 1)
  return out.permute(0, 2, 3, 1).numpy()


def ours_of(model, params, *args):
  with jax.default_matmul_precision('highest'):
    return jax.jit(model.apply)({'params': params}, *args)


# In tokens: 16 x 20 (more than 256), one row, a tall one.
@pytest.mark.parametrize('size', [(32, 40), (2, 34), (22, 6)])
def test_every_resolution(model, size):
  theirs, ours, params, _ = model
  args = inputs(*size)
  close(ours_of(ours, params, *args), theirs_of(theirs, *args))


def test_masked_padding_is_as_if_absent(model):
  theirs, ours, params, _ = model
  x, t, context, pooled = inputs(6, 8)
  mask = np.arange(9) < np.array([[7], [4]])
  got = ours_of(ours, params, x, t, context, pooled, mask)
  for i, length in enumerate([7, 4]):
    row = slice(i, i + 1)
    want = theirs_of(theirs, x[row], t[row], context[row, :length], pooled[row])
    close(got[row], want)
  assert np.abs(ours_of(ours, params, x, t, context, pooled) - got).max() > 1e-3


def test_bfloat16_stays_close(model):
  theirs, ours, params, _ = model
  args = inputs(12, 8)
  got = ours_of(ours, params, jnp.asarray(args[0], jnp.bfloat16), *args[1:])
  assert got.dtype == jnp.bfloat16
  close_rms(got, theirs_of(theirs, *args))


def test_export_is_read_back_by_diffusers(model, tmp_path):
  theirs, _, params, fields = model
  config = maps_flux.to_hf(fields)
  assert maps_flux.from_hf(config) == fields
  table = maps_flux.table(**fields)
  hf.save(tmp_path, table, params, config, stem=maps_flux.STEM)
  again, info = FluxTransformer2DModel.from_pretrained(
    tmp_path, output_loading_info=True
  )
  assert not info['missing_keys'] and not info['unexpected_keys']
  state = again.state_dict()
  for name, tensor in theirs.state_dict().items():
    assert torch.equal(tensor, state[name]), name


@pytest.mark.parametrize(
  'name, count',
  [('flux-dev', 11_901_408_320), ('flux-schnell', 11_891_178_560)],
)
def test_real_sizes(name, count):
  fields = flux.VARIANTS[name]
  shapes = shapes_of(fields)
  assert trees.count(shapes) == count
  config = maps_flux.to_hf(fields)
  del config['_class_name']
  with torch.device('meta'):
    theirs = FluxTransformer2DModel(**config)
  hub = {k: tuple(v.shape) for k, v in theirs.state_dict().items()}
  ours = {p: x.shape for p, x in trees.flatten(shapes).items()}
  assert not hf.check(maps_flux.table(**fields), ours, hub)
  specs = trees.flatten(rules.specs(shapes, table_flux.RULES))
  big = [p for p, x in ours.items() if np.prod(x) > 1e7 and not any(specs[p])]
  assert not big


def test_odd_latents_and_other_layouts_are_refused(model):
  _, ours, params, fields = model
  x, *rest = inputs(6, 8)
  with pytest.raises(ValueError, match='even'):
    ours.apply({'params': params}, x[:, :5], *rest)
  config = maps_flux.to_hf(fields)
  with pytest.raises(UserError, match='axes_dims_rope'):
    maps_flux.from_hf({**config, 'axes_dims_rope': [4, 4, 4]})
  with pytest.raises(UserError, match='SD3Transformer2DModel'):
    maps_flux.from_hf({**config, '_class_name': 'SD3Transformer2DModel'})
