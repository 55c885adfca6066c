"""DINOv3 ViT against transformers, through a checkpoint on disk."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import DINOv3ViTConfig, DINOv3ViTModel

from tests.torch_fixtures import randomise
from uae_jax import trees
from uae_jax.ckpt import hf, maps_dinov3
from uae_jax.errors import UserError
from uae_jax.models.dinov3 import VARIANTS, DINOv3
from uae_jax.sharding import rules, table_dino

SIZES = dict(
  hidden_size=48,
  intermediate_size=80,
  num_hidden_layers=2,
  num_attention_heads=3,
  image_size=64,
  patch_size=8,
)
CONFIGS = {
  'plain': DINOv3ViTConfig(**SIZES, num_register_tokens=4),
  'gated': DINOv3ViTConfig(
    **SIZES,
    num_register_tokens=3,
    use_gated_mlp=True,
    hidden_act='silu',
    rope_theta=50.0,
    layer_norm_eps=1e-4,
  ),
  'few_biases': DINOv3ViTConfig(
    **SIZES, use_gated_mlp=True, query_bias=False, value_bias=False
  ),
  'other_biases': DINOv3ViTConfig(
    **SIZES, num_register_tokens=1, key_bias=True, proj_bias=False
  ),
}
# Native; smaller; not square; no multiple of the patch.
PIXELS = [(64, 64), (24, 24), (48, 96), (90, 45)]


def load(folder):
  """(fields, module, parameters) of a hub folder."""
  fields = maps_dinov3.from_hf(hf.read_config(folder))
  params = hf.load(
    folder,
    maps_dinov3.table(**fields),
    shapes_of(fields),
    rename=maps_dinov3.rename,
  )
  return fields, DINOv3(**fields), params


def shapes_of(fields):
  side = fields['size']
  pixels = jnp.zeros((1, side, side, 3))
  return jax.eval_shape(DINOv3(**fields).init, jax.random.key(0), pixels)[
    'params'
  ]


@pytest.fixture(scope='module', params=CONFIGS)
def model(request, tmp_path_factory):
  theirs = randomise(DINOv3ViTModel(CONFIGS[request.param]))
  folder = tmp_path_factory.mktemp(request.param)
  theirs.save_pretrained(folder)
  return theirs, folder


def pixels_of(*shape):
  rng = np.random.default_rng(0)
  return rng.normal(size=(2, *shape, 3)).astype(np.float32)


def nchw(pixels):
  return torch.tensor(pixels).permute(0, 3, 1, 2)


def close(a, b, tol=1e-5):
  a, b = np.asarray(a, np.float32), np.asarray(b)
  assert a.shape == b.shape
  assert np.abs(a - b).max() <= tol * np.abs(b).max()


@pytest.mark.parametrize('shape', PIXELS)
@torch.no_grad()
def test_states_and_embedding(model, shape):
  theirs, folder = model
  _, ours, params = load(folder)
  pixels = pixels_of(*shape)
  want = theirs(nchw(pixels))
  close(ours.apply({'params': params}, pixels), want.last_hidden_state)
  image = ours.apply({'params': params}, pixels, method='image')
  close(image, want.pooler_output)


@torch.no_grad()
def test_bfloat16(model):
  theirs, folder = model
  _, ours, params = load(folder)
  pixels = pixels_of(48, 64)
  got = ours.apply(
    {'params': params}, jnp.asarray(pixels, jnp.bfloat16), method='image'
  )
  assert got.dtype == jnp.bfloat16
  close(got, theirs(nchw(pixels)).pooler_output, 2e-2)


@torch.no_grad()
def test_export_is_read_back_by_transformers(model, tmp_path):
  theirs, folder = model
  fields, _, params = load(folder)
  config = maps_dinov3.to_hf(**fields)
  assert maps_dinov3.from_hf(config) == fields
  hf.save(tmp_path, maps_dinov3.table(**fields), params, config)
  got = load_file(tmp_path / 'model.safetensors')
  want = load_file(folder / 'model.safetensors')
  assert got.keys() == want.keys()
  for key in want:
    np.testing.assert_array_equal(got[key], want[key])
  again, info = DINOv3ViTModel.from_pretrained(
    tmp_path, output_loading_info=True
  )
  assert not info['missing_keys'] and not info['unexpected_keys']
  pixels = nchw(pixels_of(32, 72))
  np.testing.assert_array_equal(
    again.eval()(pixels).pooler_output, theirs(pixels).pooler_output
  )


def test_names_with_the_encoder_prefix_are_the_same(model, tmp_path):
  _, folder = model
  (tmp_path / 'config.json').write_text((folder / 'config.json').read_text())
  tensors = load_file(folder / 'model.safetensors')
  prefixed = {
    f'model.{k}' if k.startswith('layer.') else k: v for k, v in tensors.items()
  }
  assert prefixed.keys() != tensors.keys()
  save_file(prefixed, tmp_path / 'model.safetensors')
  jax.tree.map(
    np.testing.assert_array_equal, load(tmp_path)[2], load(folder)[2]
  )


# transformers' class on the meta device, L is also the published count.
COUNTS = {'dinov3-l': 303_129_600}


@pytest.mark.parametrize('name', VARIANTS)
def test_every_name_and_shape_of_transformers(name):
  fields, shapes = VARIANTS[name], shapes_of(VARIANTS[name])
  config = maps_dinov3.to_hf(**fields)
  assert maps_dinov3.from_hf(config) == fields
  with torch.device('meta'):
    theirs = DINOv3ViTModel(DINOv3ViTConfig(**config))
  found = {
    maps_dinov3.rename(k): tuple(v.shape) for k, v in theirs.named_parameters()
  }
  ours = {k: v.shape for k, v in trees.flatten(shapes).items()}
  assert hf.check(maps_dinov3.table(**fields), ours, found) == []
  count = sum(p.numel() for p in theirs.parameters())
  assert trees.count(shapes) == count == COUNTS.get(name, count)


@pytest.mark.parametrize('name', [*VARIANTS, *CONFIGS])
def test_sharding_table_covers_all_parameters(name):
  fields = VARIANTS.get(name)
  if fields is None:
    fields = maps_dinov3.from_hf(CONFIGS[name].to_dict())
  specs = rules.specs(shapes_of(fields), table_dino.dinov3(**fields))
  assert specs['layers']['block']['q']['kernel'][2] == 'model'


def test_a_config_without_keys_is_the_class_default():
  fields = maps_dinov3.from_hf({'model_type': 'dinov3_vit'})
  assert fields == maps_dinov3.from_hf(DINOv3ViTConfig().to_dict())


@pytest.mark.parametrize(
  'key, value',
  [('hidden_act', 'relu'), ('mlp_bias', False), ('patch_size', [16, 8])],
)
def test_unsupported_config_values_are_user_errors(key, value):
  with pytest.raises(UserError, match=key):
    maps_dinov3.from_hf({'model_type': 'dinov3_vit', key: value})
