"""CLIP's image half alone, and LongCLIP, against transformers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import (
  CLIPConfig,
  CLIPModel,
  CLIPVisionConfig,
  CLIPVisionModel,
  CLIPVisionModelWithProjection,
)

from tests.torch_fixtures import randomise
from uae_jax import trees
from uae_jax.ckpt import hf, maps_clip, maps_vit
from uae_jax.errors import UserError
from uae_jax.models.clip import CLIP, VARIANTS
from uae_jax.models.vit import ImageCLIP, whole_patches
from uae_jax.sharding import rules, table_vit

VISION = dict(
  hidden_size=48,
  intermediate_size=64,
  num_hidden_layers=2,
  num_attention_heads=3,
  image_size=28,
  patch_size=7,
  projection_dim=24,
)


def close(a, b, tol=1e-5):
  a, b = np.asarray(a, np.float32), np.asarray(b)
  assert a.shape == b.shape
  assert np.abs(a - b).max() <= tol * np.abs(b).max()


def image_shapes(fields):
  side = fields['vision']['size']
  return jax.eval_shape(
    ImageCLIP(**fields).init,
    jax.random.key(0),
    jnp.zeros((1, side, side, 3)),
  )['params']


@torch.no_grad()
def test_image_half(tmp_path):
  theirs = randomise(CLIPVisionModelWithProjection(CLIPVisionConfig(**VISION)))
  theirs.save_pretrained(tmp_path)
  fields = maps_vit.from_hf(hf.read_config(tmp_path))
  params = hf.load(tmp_path, maps_vit.table(**fields), image_shapes(fields))
  pixels = np.random.default_rng(0).normal(size=(2, 28, 28, 3))
  pixels = pixels.astype(np.float32)
  nchw = torch.tensor(pixels).permute(0, 3, 1, 2)
  want = theirs(nchw).image_embeds
  ours = ImageCLIP(**fields)
  close(ours.apply({'params': params}, pixels, method='image'), want)
  half = ours.apply({'params': params}, jnp.asarray(pixels, jnp.bfloat16))
  close(half, want, 2e-2)

  again = tmp_path / 'again'
  config = maps_vit.to_hf(**fields)
  assert maps_vit.from_hf(config) == fields
  hf.save(again, maps_vit.table(**fields), params, config)
  file = 'model.safetensors'
  assert (again / file).stat().st_size > 0
  back, info = CLIPVisionModelWithProjection.from_pretrained(
    again, output_loading_info=True
  )
  assert not info['missing_keys'] and not info['unexpected_keys']
  np.testing.assert_array_equal(back.eval()(nchw).image_embeds, want)


def test_a_tower_without_projection_is_a_user_error(tmp_path):
  CLIPVisionModel(CLIPVisionConfig(**VISION)).save_pretrained(tmp_path)
  with pytest.raises(UserError, match='projection'):
    maps_vit.from_hf(hf.read_config(tmp_path))


@pytest.mark.parametrize('name', VARIANTS)
def test_image_half_of_every_size(name):
  fields = {k: VARIANTS[name][k] for k in ('projection', 'vision')}
  with torch.device('meta'):
    config = CLIPVisionConfig(**maps_vit.to_hf(**fields))
    theirs = CLIPVisionModelWithProjection(config)
  found = {k: tuple(v.shape) for k, v in theirs.named_parameters()}
  shapes = image_shapes(fields)
  ours = {k: v.shape for k, v in trees.flatten(shapes).items()}
  assert hf.check(maps_vit.table(**fields), ours, found) == []
  rules.specs(shapes, table_vit.RULES)


# https://arxiv.org/abs/2403.15378: CLIP with 248 text positions in place of
# 77, so 171 rows more.
LONG = {
  'vit-b-16': 149_620_737 + 171 * 512,
  'vit-l-14': 427_616_513 + 171 * 768,
}


@pytest.mark.parametrize('name', LONG)
def test_longclip_is_clip_with_more_positions(name):
  fields = VARIANTS[name]
  fields = {**fields, 'language': {**fields['language'], 'ctx': 248}}
  side = fields['vision']['size']
  shapes = jax.eval_shape(
    CLIP(**fields).init,
    jax.random.key(0),
    jnp.zeros((1, side, side, 3)),
    jnp.zeros((1, 248), jnp.int32),
  )['params']
  config = maps_clip.to_hf(**fields)
  assert config['text_config']['max_position_embeddings'] == 248
  with torch.device('meta'):
    theirs = CLIPModel(CLIPConfig(**config))
  found = {k: tuple(v.shape) for k, v in theirs.named_parameters()}
  ours = {k: v.shape for k, v in trees.flatten(shapes).items()}
  assert hf.check(maps_clip.table(**fields), ours, found) == []
  assert trees.count(shapes) == LONG[name]


@torch.no_grad()
def test_longclip_reads_captions_of_248_tokens(tmp_path):
  text = dict(
    vocab_size=100,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=248,
    bos_token_id=98,
    eos_token_id=2,
  )
  config = CLIPConfig(text_config=text, vision_config=VISION, projection_dim=24)
  theirs = randomise(CLIPModel(config))
  theirs.save_pretrained(tmp_path)
  fields = maps_clip.from_hf(hf.read_config(tmp_path))
  ours = CLIP(**fields)
  ids = np.random.default_rng(0).integers(3, 97, (2, 248))
  # LongCLIP pads with 0 and pools where the largest id is.
  ids[0, 199:], ids[0, 199], ids[1, 247] = 0, 99, 99
  shapes = jax.eval_shape(
    ours.init, jax.random.key(0), jnp.zeros((1, 28, 28, 3)), jnp.asarray(ids)
  )
  params = hf.load(tmp_path, maps_clip.table(**fields), shapes['params'])
  got = ours.apply({'params': params}, ids, method='text')
  close(got, theirs.get_text_features(torch.tensor(ids)).pooler_output)


def test_what_no_whole_patch_covers_is_dropped():
  x = np.arange(2 * 7 * 9 * 3, dtype=np.float32).reshape(2, 7, 9, 3)
  np.testing.assert_array_equal(
    whole_patches(x, 4), whole_patches(x[:, :4, :8], 4)
  )
  assert whole_patches(x, 4).shape == (2, 2, 48)
