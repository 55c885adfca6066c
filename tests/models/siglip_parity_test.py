"""SigLIP and SigLIP 2 against transformers, through a checkpoint on disk."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import (
  Siglip2Config,
  Siglip2Model,
  SiglipConfig,
  SiglipModel,
  SiglipVisionModel,
)

from tests.torch_fixtures import randomise
from uae_jax import trees
from uae_jax.ckpt import hf, maps_siglip
from uae_jax.errors import UserError
from uae_jax.models.siglip import VARIANTS, SigLIP
from uae_jax.sharding import rules, table_siglip

TEXT = dict(
  vocab_size=100,
  hidden_size=32,
  intermediate_size=48,
  num_hidden_layers=3,
  num_attention_heads=4,
  max_position_embeddings=12,
  projection_size=48,
  bos_token_id=0,
  eos_token_id=1,
)
VISION = dict(
  hidden_size=48,
  intermediate_size=64,
  num_hidden_layers=2,
  num_attention_heads=3,
  layer_norm_eps=1e-5,
)
# 70 is no multiple of 16: six rows and columns are not seen.
FIXED = dict(image_size=70, patch_size=16, **VISION)
# Grids that shrink, stretch and distort the 4 x 4 table.
GRIDS = [(3, 5), (4, 4), (7, 2)]


def load(folder, *, text=True, dtype=np.float32):
  """(fields, module, parameters) of a hub folder."""
  fields = maps_siglip.from_hf(hf.read_config(folder), text=text)
  module = SigLIP(**fields)
  ids = jnp.zeros((1, 1), int) if fields['language'] else None
  side = fields['vision']['size']
  pixels = jnp.zeros((1, side, side, 3))
  shapes = jax.eval_shape(module.init, jax.random.key(0), pixels, ids)
  params = hf.load(
    folder,
    maps_siglip.table(**fields),
    shapes['params'],
    ignore=maps_siglip.ignore(fields['language']),
    rename=maps_siglip.rename,
    dtype=dtype,
  )
  return fields, module, params


@pytest.fixture(scope='module')
def fixed(tmp_path_factory):
  theirs = randomise(
    SiglipModel(SiglipConfig(text_config=TEXT, vision_config=FIXED))
  )
  folder = tmp_path_factory.mktemp('siglip')
  theirs.save_pretrained(folder)
  return theirs, folder


@pytest.fixture(scope='module')
def naflex(tmp_path_factory):
  vision = dict(num_patches=16, patch_size=6, **VISION)
  theirs = randomise(
    Siglip2Model(Siglip2Config(text_config=TEXT, vision_config=vision))
  )
  folder = tmp_path_factory.mktemp('siglip2')
  theirs.save_pretrained(folder)
  return theirs, folder


def pixels_of(*shape):
  rng = np.random.default_rng(0)
  return rng.normal(size=(2, *shape, 3)).astype(np.float32)


def ids_of(length=12):
  return np.random.default_rng(1).integers(2, 99, (2, length))


def nchw(pixels):
  return torch.tensor(pixels).permute(0, 3, 1, 2)


def close(a, b, tol=1e-5):
  a, b = np.asarray(a, np.float32), np.asarray(b)
  assert a.shape == b.shape
  assert np.abs(a - b).max() <= tol * np.abs(b).max()


@torch.no_grad()
def test_both_towers(fixed):
  theirs, folder = fixed
  _, ours, params = load(folder)
  pixels, ids = pixels_of(70, 70), ids_of()
  image, text, scale, bias = ours.apply({'params': params}, pixels, ids)
  want = theirs.vision_model(nchw(pixels))
  close(image, want.pooler_output)
  states = ours.apply({'params': params}, pixels, method='image_states')
  close(states.hidden, want.last_hidden_state)
  close(text, theirs.get_text_features(torch.tensor(ids)).pooler_output)
  close(scale, theirs.logit_scale)
  close(bias, theirs.logit_bias)
  logits = lambda a, b: a @ b.T * np.exp(scale) + bias
  unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
  both = theirs(torch.tensor(ids), nchw(pixels))
  close(logits(unit(image), unit(text)), both.logits_per_image)


@torch.no_grad()
def test_short_captions_pool_their_own_last_token(fixed):
  theirs, folder = fixed
  _, ours, params = load(folder)
  got = ours.apply({'params': params}, ids_of(7), method='text')
  want = theirs.get_text_features(torch.tensor(ids_of(7))).pooler_output
  close(got, want)


@pytest.mark.parametrize('grid', GRIDS)
@torch.no_grad()
def test_any_aspect_ratio(naflex, grid):
  """The hub's padding changes nothing, so we never make it."""
  theirs, folder = naflex
  fields, ours, params = load(folder)
  patch, most = fields['vision']['patch'], 16
  rows, cols = grid
  pixels = pixels_of(rows * patch, cols * patch)
  x = pixels.reshape(2, rows, patch, cols, patch, 3).swapaxes(2, 3)
  x = x.reshape(2, rows * cols, -1)
  padded = np.full((2, most, x.shape[-1]), 3.0, np.float32)
  padded[:, : rows * cols] = x
  mask = (np.arange(most) < rows * cols)[None].repeat(2, 0)
  want = theirs.vision_model(
    torch.tensor(padded), torch.tensor(mask).int(), torch.tensor([grid] * 2)
  )
  got = ours.apply({'params': params}, pixels, method='image_states')
  close(got.pooled, want.pooler_output)
  close(got.hidden, want.last_hidden_state[:, : rows * cols])
  text = ours.apply({'params': params}, ids_of(), method='text')
  ids = torch.tensor(ids_of())
  close(text, theirs.get_text_features(ids).pooler_output)


@torch.no_grad()
def test_image_half_of_a_whole_model_and_alone(fixed, tmp_path):
  """Both leave out the text; a file of the tower alone has no prefix."""
  theirs, folder = fixed
  fields, ours, params = load(folder, text=False)
  assert fields['language'] is None
  pixels = pixels_of(70, 70)
  want = theirs.vision_model(nchw(pixels)).pooler_output
  (got,) = ours.apply({'params': params}, pixels)
  close(got, want)
  theirs.vision_model.save_pretrained(tmp_path)
  same, _, alone = load(tmp_path)
  assert same == fields
  for path, x in trees.flatten(alone).items():
    np.testing.assert_array_equal(x, trees.flatten(params)[path])
  exported = tmp_path / 'again'
  hf.save(
    exported, maps_siglip.table(**fields), params, maps_siglip.to_hf(**fields)
  )
  again, info = SiglipVisionModel.from_pretrained(
    exported, output_loading_info=True
  )
  assert not info['missing_keys'] and not info['unexpected_keys']
  got = again.eval()(nchw(pixels)).pooler_output
  np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize('name', ['fixed', 'naflex'])
@torch.no_grad()
def test_export_is_read_back_by_transformers(name, request, tmp_path):
  theirs, folder = request.getfixturevalue(name)
  fields, _, params = load(folder)
  config = maps_siglip.to_hf(**fields)
  assert maps_siglip.from_hf(config) == fields
  hf.save(tmp_path, maps_siglip.table(**fields), params, config)
  got = load_file(tmp_path / 'model.safetensors')
  want = load_file(folder / 'model.safetensors')
  assert got.keys() == want.keys()
  for key in want:
    np.testing.assert_array_equal(got[key], want[key])
  again, info = type(theirs).from_pretrained(tmp_path, output_loading_info=True)
  assert not info['missing_keys'] and not info['unexpected_keys']
  text = lambda m: m.get_text_features(torch.tensor(ids_of())).pooler_output
  np.testing.assert_array_equal(text(again.eval()), text(theirs))


@torch.no_grad()
def test_bfloat16(fixed):
  theirs, folder = fixed
  _, ours, params = load(folder)
  pixels = pixels_of(70, 70)
  got, text, *_ = ours.apply(
    {'params': params}, jnp.asarray(pixels, jnp.bfloat16), ids_of()
  )
  assert got.dtype == text.dtype == jnp.bfloat16
  close(got, theirs.vision_model(nchw(pixels)).pooler_output, 2e-2)


# Image towers: google/siglip2-so400m-patch16-512 and the same with a table
# for 729 patches of 14.
COUNTS = {
  'siglip2-so400m-16-512': 428_772_800,
  'siglip2-so400m-14-384': 428_225_600,
}


def shapes_of(fields):
  side = fields['vision']['size']
  ids = jnp.zeros((1, 1), int) if fields['language'] else None
  return jax.eval_shape(
    SigLIP(**fields).init,
    jax.random.key(0),
    jnp.zeros((1, side, side, 3)),
    ids,
  )['params']


@pytest.mark.parametrize('name', VARIANTS)
def test_every_name_and_shape_of_transformers(name):
  fields = VARIANTS[name]
  config = maps_siglip.to_hf(**fields)
  assert maps_siglip.from_hf(config) == fields
  with torch.device('meta'):
    if fields['vision']['naflex']:
      theirs = Siglip2Model(Siglip2Config(**config))
    else:
      theirs = SiglipModel(SiglipConfig(**config))
  found = {k: tuple(v.shape) for k, v in theirs.named_parameters()}
  shapes = shapes_of(fields)
  ours = {k: v.shape for k, v in trees.flatten(shapes).items()}
  assert hf.check(maps_siglip.table(**fields), ours, found) == []
  assert trees.count(shapes) == sum(np.prod(s) for s in found.values())
  tower = trees.count(shapes['vision_tower'])
  assert tower == COUNTS.get(name, tower)
  alone = dict(fields, language=None)
  skip = maps_siglip.ignore(None)
  ours = {k: v.shape for k, v in trees.flatten(shapes_of(alone)).items()}
  assert hf.check(maps_siglip.table(**alone), ours, found, skip) == []


@pytest.mark.parametrize('name', VARIANTS)
@pytest.mark.parametrize('text', [True, False])
def test_sharding_table_covers_all_parameters(name, text):
  fields = dict(VARIANTS[name])
  if not text:
    fields['language'] = None
  specs = rules.specs(shapes_of(fields), table_siglip.rules(**fields))
  assert ('text_tower' in specs) == text


def test_a_config_without_keys_is_siglip_base():
  want = VARIANTS['siglip-b-16-224']
  assert maps_siglip.from_hf({'model_type': 'siglip'}) == want
  theirs = SiglipConfig().to_dict()
  assert maps_siglip.from_hf(theirs) == want


@pytest.mark.parametrize(
  'vision', [{'hidden_act': 'relu'}, {'vision_use_head': False}]
)
def test_unsupported_config_values_are_user_errors(vision):
  with pytest.raises(UserError, match=next(iter(vision))):
    maps_siglip.from_hf({'model_type': 'siglip', 'vision_config': vision})
