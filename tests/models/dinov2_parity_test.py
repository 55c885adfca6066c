"""DINOv2 against transformers, with and without registers, off disk."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import (
  Dinov2Config,
  Dinov2Model,
  Dinov2WithRegistersConfig,
  Dinov2WithRegistersModel,
)

from tests.torch_fixtures import randomise
from uae_jax import trees
from uae_jax.ckpt import hf, maps_dinov2
from uae_jax.errors import UserError
from uae_jax.models.dinov2 import VARIANTS, DINOv2, resize_table
from uae_jax.sharding import rules, table_dino

SIZES = dict(
  hidden_size=48,
  num_hidden_layers=2,
  num_attention_heads=3,
  mlp_ratio=3,
  image_size=56,
  patch_size=8,
  layer_norm_eps=1e-5,
)
MODELS = {
  'plain': (Dinov2Model, Dinov2Config(**SIZES)),
  'no_mask': (
    Dinov2Model,
    Dinov2Config(**SIZES, use_mask_token=False, qkv_bias=False),
  ),
  'gated': (Dinov2Model, Dinov2Config(**SIZES, use_swiglu_ffn=True)),
  'registers': (
    Dinov2WithRegistersModel,
    Dinov2WithRegistersConfig(**SIZES, num_register_tokens=3),
  ),
  'gated_registers': (
    Dinov2WithRegistersModel,
    Dinov2WithRegistersConfig(**SIZES, use_swiglu_ffn=True),
  ),
}
# Native; smaller; larger; not square; no multiple of the patch; the grid's
# patch count equal to the table's, its shape not.
PIXELS = [(56, 56), (24, 24), (96, 88), (32, 72), (60, 45), (8, 392)]


def load(folder):
  """(fields, module, parameters) of a hub folder."""
  fields = maps_dinov2.from_hf(hf.read_config(folder))
  module = DINOv2(**fields)
  params = hf.load(folder, maps_dinov2.table(**fields), shapes_of(fields))
  return fields, module, params


def shapes_of(fields):
  side = fields['size']
  pixels = jnp.zeros((1, side, side, 3))
  return jax.eval_shape(DINOv2(**fields).init, jax.random.key(0), pixels)[
    'params'
  ]


@pytest.fixture(scope='module', params=MODELS)
def model(request, tmp_path_factory):
  cls, config = MODELS[request.param]
  theirs = randomise(cls(config))
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
  got = ours.apply({'params': params}, pixels)
  close(got, want.last_hidden_state)
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
  config = maps_dinov2.to_hf(**fields)
  assert maps_dinov2.from_hf(config) == fields
  hf.save(tmp_path, maps_dinov2.table(**fields), params, config)
  got = load_file(tmp_path / 'model.safetensors')
  want = load_file(folder / 'model.safetensors')
  assert got.keys() == want.keys()
  for key in want:
    np.testing.assert_array_equal(got[key], want[key])
  again, info = type(theirs).from_pretrained(tmp_path, output_loading_info=True)
  assert not info['missing_keys'] and not info['unexpected_keys']
  pixels = nchw(pixels_of(32, 72))
  np.testing.assert_array_equal(
    again.eval()(pixels).pooler_output, theirs(pixels).pooler_output
  )


@pytest.mark.parametrize('antialias', [False, True])
@pytest.mark.parametrize('grid', [(16, 16), (37, 37), (50, 11), (74, 40)])
def test_table_is_resized_as_torch_does(antialias, grid):
  """37 x 37 positions of the real checkpoints, 16 x 16 for 224 pixels."""
  table = np.random.default_rng(0).normal(size=(37 * 37, 8)).astype(np.float32)
  want = torch.nn.functional.interpolate(
    torch.tensor(table).reshape(1, 37, 37, 8).permute(0, 3, 1, 2),
    size=grid,
    mode='bicubic',
    align_corners=False,
    antialias=antialias,
  )
  want = want.permute(0, 2, 3, 1).reshape(-1, 8).numpy()
  close(resize_table(jnp.asarray(table), grid, antialias), want, 5e-6)


def on_hub(name):
  """Names in memory of transformers 5 -> names in the file."""
  name = name.replace('attention.o_proj', 'attention.output.dense')
  for short, long in (('q', 'query'), ('k', 'key'), ('v', 'value')):
    name = name.replace(
      f'attention.{short}_proj', f'attention.attention.{long}'
    )
  return name.replace('mlp.down_proj', 'mlp.weights_out')


def names_on_hub(model):
  """Names and shapes that `model` would write, without writing them."""
  found = {}
  for name, p in model.named_parameters():
    shape = tuple(p.shape)
    if 'mlp.gate_proj' in name:
      name = name.replace('gate_proj', 'weights_in')
      shape = (2 * shape[0], *shape[1:])
    if 'mlp.up_proj' not in name:
      found[on_hub(name)] = shape
  return found


# transformers' classes on the meta device; L is also the published count.
COUNTS = {'dinov2-l': 304_368_640}


@pytest.mark.parametrize('name', VARIANTS)
def test_every_name_and_shape_of_transformers(name):
  fields, shapes = VARIANTS[name], shapes_of(VARIANTS[name])
  config = maps_dinov2.to_hf(**fields)
  assert maps_dinov2.from_hf(config) == fields
  with torch.device('meta'):
    if fields['registers']:
      theirs = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**config))
    else:
      theirs = Dinov2Model(Dinov2Config(**config))
  ours = {k: v.shape for k, v in trees.flatten(shapes).items()}
  table = maps_dinov2.table(**fields)
  assert hf.check(table, ours, names_on_hub(theirs)) == []
  count = sum(p.numel() for p in theirs.parameters())
  assert trees.count(shapes) == count == COUNTS.get(name, count)


@pytest.mark.parametrize('name', [*VARIANTS, 'no_mask'])
def test_sharding_table_covers_all_parameters(name):
  fields = VARIANTS.get(name)
  if fields is None:
    fields = maps_dinov2.from_hf(MODELS[name][1].to_dict())
  specs = rules.specs(shapes_of(fields), table_dino.dinov2(**fields))
  assert specs['layers']['block']['q']['kernel'][2] == 'model'


@pytest.mark.parametrize('kind', ['dinov2', 'dinov2_with_registers'])
def test_a_config_without_keys_is_the_class_default(kind):
  classes = {'dinov2': Dinov2Config}
  theirs = classes.get(kind, Dinov2WithRegistersConfig)().to_dict()
  fields = maps_dinov2.from_hf({'model_type': kind})
  assert fields == maps_dinov2.from_hf(theirs)


@pytest.mark.parametrize(
  'key, value', [('hidden_act', 'relu'), ('image_size', [518, 224])]
)
def test_unsupported_config_values_are_user_errors(key, value):
  with pytest.raises(UserError, match=key):
    maps_dinov2.from_hf({'model_type': 'dinov2', key: value})
