"""A tower of every family, from its hub folder to embeddings of photographs.

The reference is transformers end to end: its processor, then its model.
"""

import json

import jax
import numpy as np
import pytest
import torch
import transformers as hub

from tests.data.tower_preprocess_test import (
  CLIP,
  FILES,
  HALF,
  IMAGENET,
  SQUARE,
  reference,
  write,
)
from tests.photographs import photographs
from tests.torch_fixtures import randomise
from uae_jax import zoo
from uae_jax.ckpt import hf, maps_vit
from uae_jax.errors import UserError
from uae_jax.rewards.features import Tower

SIZES = dict(
  hidden_size=48,
  intermediate_size=64,
  num_hidden_layers=2,
  num_attention_heads=3,
)
DINO2 = {k: v for k, v in SIZES.items() if k != 'intermediate_size'}
VISION = dict(image_size=56, patch_size=8, **SIZES)
TEXT = dict(vocab_size=64, bos_token_id=0, eos_token_id=1, **SIZES)
CROP = dict(
  crop_size=SQUARE(56),
  size={'shortest_edge': 64},
  resample=3,
  image_processor_type='BitImageProcessor',
)
STRETCH = dict(
  size=SQUARE(56), resample=2, image_processor_type='SiglipImageProcessor'
)
# Config, model, processor file, name of the reference processor.
FAMILIES = {
  'clip': (
    hub.CLIPConfig(vision_config=VISION, text_config=TEXT, projection_dim=24),
    hub.CLIPModel,
    FILES['clip'] | {'crop_size': 56, 'size': 56},
    'clip',
  ),
  'clip_vision_model': (
    hub.CLIPVisionConfig(projection_dim=24, **VISION),
    hub.CLIPVisionModelWithProjection,
    CROP | CLIP | {'image_processor_type': 'CLIPImageProcessor'},
    'clip',
  ),
  'siglip': (
    hub.SiglipConfig(vision_config=VISION, text_config=TEXT),
    hub.SiglipModel,
    STRETCH | HALF,
    'siglip',
  ),
  'siglip_vision_model': (
    hub.SiglipVisionConfig(**VISION),
    hub.SiglipVisionModel,
    STRETCH | HALF,
    'siglip',
  ),
  'siglip2': (
    hub.Siglip2Config(
      vision_config=dict(num_patches=16, patch_size=16, **SIZES),
      text_config=TEXT,
    ),
    hub.Siglip2Model,
    FILES['naflex'] | {'max_num_patches': 20},
    'naflex',
  ),
  'dinov2': (
    hub.Dinov2Config(image_size=70, patch_size=8, **DINO2),
    hub.Dinov2Model,
    CROP | IMAGENET,
    'dinov2',
  ),
  'dinov2_with_registers': (
    hub.Dinov2WithRegistersConfig(image_size=70, patch_size=8, **DINO2),
    hub.Dinov2WithRegistersModel,
    CROP | IMAGENET,
    'dinov2',
  ),
  'dinov3_vit': (
    hub.DINOv3ViTConfig(**SIZES, patch_size=32, num_register_tokens=4),
    hub.DINOv3ViTModel,
    FILES['dinov3'],
    'dinov3',
  ),
}


def embedding(model, pixels):
  """What the family calls the embedding of an image."""
  x = torch.tensor(pixels).permute(2, 0, 1)[None]
  if isinstance(model, hub.Siglip2Model):
    rows, cols = (n // 16 for n in pixels.shape[:2])
    patches = pixels.reshape(rows, 16, cols, 16, 3).swapaxes(1, 2)
    patches = torch.tensor(patches.reshape(1, rows * cols, -1))
    mask = torch.ones((1, rows * cols)).int()
    return model.vision_model(
      patches, mask, torch.tensor([[rows, cols]])
    ).pooler_output
  if isinstance(model, hub.CLIPModel):
    return model.get_image_features(x).pooler_output
  if isinstance(model, hub.CLIPVisionModelWithProjection):
    return model(x).image_embeds
  if isinstance(model, hub.SiglipModel):
    return model.vision_model(x).pooler_output
  return model(x).pooler_output


@pytest.mark.parametrize('kind', FAMILIES)
@torch.no_grad()
def test_embeddings_of_photographs(kind, tmp_path):
  config, cls, file, name = FAMILIES[kind]
  theirs = randomise(cls(config))
  theirs.save_pretrained(tmp_path)
  write(tmp_path, file)
  assert hf.read_config(tmp_path)['model_type'] == kind
  model = zoo.tower_from_folder(tmp_path)
  tower = Tower(model.module, **maps_vit.read_view(tmp_path))
  params = model.load(tmp_path)
  process = reference(name, tmp_path)
  embed = jax.jit(tower.embed)
  photos = photographs()
  for label in ('coffee', 'thin', 'small'):
    photo = photos[label]
    want = embedding(theirs, process(photo)).numpy()
    got = np.asarray(embed(params, photo[None] / np.float32(255)))
    assert got.shape == want.shape
    # A few bytes differ by one between PIL and the device.
    assert np.abs(got - want).max() <= 4e-4 * np.abs(want).max(), label
    cosine = np.sum(got * want) / np.linalg.norm(got) / np.linalg.norm(want)
    assert cosine > 1 - 1e-5


def test_other_models_are_no_towers(tmp_path):
  (tmp_path / 'config.json').write_text(json.dumps({'model_type': 'bert'}))
  with pytest.raises(UserError, match='bert'):
    zoo.tower_from_folder(tmp_path)
