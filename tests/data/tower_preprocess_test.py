"""What towers see of real photographs, against Hugging Face's processors."""

import json

import numpy as np
import pytest
import torch
import transformers

from tests.photographs import photographs
from uae_jax.ckpt import maps_vit
from uae_jax.data.tower_preprocess import tower_pixels
from uae_jax.errors import UserError
from uae_jax.rewards.features import Tower

CLIP = dict(
  image_mean=[0.48145466, 0.4578275, 0.40821073],
  image_std=[0.26862954, 0.26130258, 0.27577711],
)
IMAGENET = dict(
  image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225]
)
HALF = dict(image_mean=[0.5] * 3, image_std=[0.5] * 3)
SQUARE = lambda n: {'height': n, 'width': n}
# preprocessor_config.json as the hub's folders hold it.
FILES = {
  'clip': dict(
    crop_size=224, do_center_crop=True, do_normalize=True, do_resize=True,
    feature_extractor_type='CLIPFeatureExtractor', resample=3, size=224, **CLIP,
  ),
  'clip-336': dict(
    crop_size=SQUARE(336), do_center_crop=True, do_convert_rgb=True,
    image_processor_type='CLIPImageProcessor', resample=3,
    size={'shortest_edge': 336}, **CLIP,
  ),
  'dinov2': dict(
    crop_size=SQUARE(224), do_center_crop=True, do_convert_rgb=True,
    image_processor_type='BitImageProcessor', resample=3,
    rescale_factor=1 / 255, size={'shortest_edge': 256}, **IMAGENET,
  ),
  'siglip': dict(
    image_processor_type='SiglipImageProcessor', resample=3, size=SQUARE(384),
    **HALF,
  ),
  'siglip2': dict(
    image_processor_type='SiglipImageProcessor', resample=2, size=SQUARE(512),
    **HALF,
  ),
  'naflex': dict(
    image_processor_type='Siglip2ImageProcessor', resample=2, patch_size=16,
    max_num_patches=256, **HALF,
  ),
  'dinov3': dict(
    image_processor_type='DINOv3ViTImageProcessorFast', resample=2,
    size=SQUARE(224), crop_size=None, do_center_crop=None,
    rescale_factor=1 / 255, **IMAGENET,
  ),
}  # fmt: skip


def write(folder, config):
  text = json.dumps(config)
  (folder / 'preprocessor_config.json').write_text(text)
  return folder


def reference(name, folder):
  """Photograph -> HWC pixels of the reference processor."""
  if name == 'dinov3':
    return dinov3
  cls = {
    'dinov2': transformers.BitImageProcessorPil,
    'siglip': transformers.SiglipImageProcessorPil,
    'siglip2': transformers.SiglipImageProcessorPil,
    'naflex': transformers.Siglip2ImageProcessorPil,
  }.get(name, transformers.CLIPImageProcessorPil)
  processor = cls.from_pretrained(folder)

  def run(photo):
    out = processor(images=photo, return_tensors='np')
    pixels = out['pixel_values'][0]
    if name != 'naflex':
      return pixels.transpose(1, 2, 0)
    rows, cols = out['spatial_shapes'][0].tolist()
    pixels = pixels[: rows * cols].reshape(rows, cols, 16, 16, 3)
    return pixels.swapaxes(1, 2).reshape(rows * 16, cols * 16, 3)

  return run


def dinov3(photo):
  """DINOv3's processor needs torchvision; this is what it calls in torch."""
  x = torch.tensor(photo).permute(2, 0, 1)[None] * (1 / 255)
  x = torch.nn.functional.interpolate(
    x, (224, 224), mode='bilinear', antialias=True, align_corners=False
  )
  x = x[0].permute(1, 2, 0).numpy()
  mean, std = IMAGENET['image_mean'], IMAGENET['image_std']
  return (x - np.float32(mean)) / np.float32(std)


@pytest.mark.parametrize('name', FILES)
def test_photographs_are_those_of_the_hub(name, tmp_path):
  write(tmp_path, FILES[name])
  tower = Tower(None, **maps_vit.read_view(tmp_path))
  run = reference(name, tmp_path)
  for label, photo in photographs().items():
    got, want = tower_pixels(photo, tower), run(photo)
    assert got.shape == want.shape, label
    assert got.dtype == np.float32
    # In units of the pixels before the normalisation.
    apart = np.abs(got - want) * np.float32(tower.std)
    # torch finds the centres of DINOv3's filter in fp32, PIL in fp64.
    assert apart.max() <= (3e-5 if name == 'dinov3' else 1e-6), label


@pytest.mark.parametrize(
  'kind, name',
  [
    ('CLIPImageProcessor', 'CLIPImageProcessorPil'),
    ('BitImageProcessor', 'BitImageProcessorPil'),
    ('SiglipImageProcessor', 'SiglipImageProcessorPil'),
    ('Siglip2ImageProcessor', 'Siglip2ImageProcessorPil'),
  ],
)
def test_a_file_without_keys_is_the_class_default(kind, name, tmp_path):
  bare = maps_vit.read_view(write(tmp_path, {'image_processor_type': kind}))
  full = tmp_path / 'full'
  getattr(transformers, name)().save_pretrained(full)
  assert maps_vit.read_view(full) == bare


@pytest.mark.parametrize(
  'name, change, what',
  [
    ('clip-336', {'crop_size': 448}, 'crop_size'),
    ('clip-336', {'crop_size': {'height': 336, 'width': 224}}, 'crop_size'),
    ('clip-336', {'do_center_crop': False}, 'crop_size'),
    ('dinov2', {'resample': 1}, 'resample'),
    ('dinov2', {'rescale_factor': 1.0}, 'rescale_factor'),
    ('dinov2', {'do_normalize': False}, 'do_normalize'),
    ('siglip', {'size': {'height': 384, 'width': 224}}, 'square'),
    ('siglip', {'size': {'longest_edge': 384}}, 'square'),
    ('siglip', {'do_center_crop': True, 'crop_size': 224}, 'crop_size'),
    ('siglip', {'image_processor_type': 'ViTImageProcessor'}, 'none of'),
  ],
)
def test_other_processors_are_user_errors(name, change, what, tmp_path):
  write(tmp_path, FILES[name] | change)
  with pytest.raises(UserError, match=what):
    maps_vit.read_view(tmp_path)


def test_any_mode_is_read_as_rgb():
  tower = Tower(None, 32, (0.0,) * 3, (1.0,) * 3)
  from PIL import Image

  photo = Image.fromarray(photographs()['coffee'])
  grey = tower_pixels(photo.convert('L'), tower)
  assert grey.shape == (32, 32, 3)
  np.testing.assert_array_equal(grey[..., 0], grey[..., 2])
  np.testing.assert_array_equal(
    tower_pixels(photo, tower), tower_pixels(photo.convert('RGBA'), tower)
  )
