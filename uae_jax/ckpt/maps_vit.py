"""Towers on the hub: their image processors, and CLIP's image half alone.

`read_view` reads preprocessor_config.json of every family; the rest is the
config and the names of a `CLIPVisionModelWithProjection`, those of the image
half of a `CLIPModel`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from uae_jax.ckpt import maps_clip
from uae_jax.ckpt.hf import Row, read_config
from uae_jax.errors import UserError

_CLIP = dict(
  size={'shortest_edge': 224},
  crop_size=224,
  do_center_crop=True,
  resample=3,
  image_mean=(0.48145466, 0.4578275, 0.40821073),
  image_std=(0.26862954, 0.26130258, 0.27577711),
)
_HALF = dict(image_mean=(0.5,) * 3, image_std=(0.5,) * 3)
_SQUARE = {'height': 224, 'width': 224}
# What the image processors of transformers assume for a key that
# preprocessor_config.json omits.
DEFAULTS = {
  'CLIPImageProcessor': _CLIP,
  'BitImageProcessor': _CLIP,
  'SiglipImageProcessor': dict(size=_SQUARE, resample=3, **_HALF),
  'Siglip2ImageProcessor': dict(
    patch_size=16, max_num_patches=256, resample=2, **_HALF
  ),
  'DINOv3ViTImageProcessor': dict(
    size=_SQUARE,
    resample=2,
    image_mean=(0.485, 0.456, 0.406),
    image_std=(0.229, 0.224, 0.225),
  ),
}
# Codes of PIL. DINOv3 alone resizes floats.
_RESAMPLE = {2: 'linear', 3: 'cubic'}
_FLOATS = 'DINOv3ViTImageProcessor'
_STEPS = ('do_resize', 'do_rescale', 'do_normalize')


def read_view(folder: str | Path) -> dict[str, Any]:
  """preprocessor_config.json -> fields of `rewards.features.Tower`.

  All but the module: size, mean, std, fit, short, resample, rounded and
  max_patches.

  Raises:
    UserError: when the file is missing, lacks a key, or asks for something
      that no tower does.
  """
  name = 'preprocessor_config.json'
  given = read_config(folder, name)
  kind = given.get('image_processor_type') or given.get(
    'feature_extractor_type', 'CLIPImageProcessor'
  )
  kind = kind.removesuffix('Fast').removesuffix('Pil')
  kind = kind.replace('FeatureExtractor', 'ImageProcessor')
  if kind not in DEFAULTS:
    raise UserError(
      f'{Path(folder) / name}: image_processor_type {kind!r} is none of '
      f'{sorted(DEFAULTS)}'
    )
  given = {k: v for k, v in given.items() if v is not None}
  config = {**dict.fromkeys(_STEPS, True), **DEFAULTS[kind], **given}
  problems = [f'{k} is off' for k in _STEPS if not config[k]]
  if config['resample'] not in _RESAMPLE:
    problems.append(f'resample {config["resample"]}: only 2 and 3 are known')
  if abs(config.get('rescale_factor', 1 / 255) * 255 - 1) > 1e-6:
    problems.append('rescale_factor is not 1/255')
  view, wrong = _geometry(config)
  if problems := problems + wrong:
    raise UserError(f'{Path(folder) / name}: ' + '; '.join(problems))
  return dict(
    **view,
    mean=tuple(config['image_mean']),
    std=tuple(config['image_std']),
    resample=_RESAMPLE[config['resample']],
    rounded=kind != _FLOATS,
  )


def _geometry(config: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
  """(size, fit, short and max_patches; what is wrong with the file)."""
  if 'max_num_patches' in config:
    size, limit = config['patch_size'], config['max_num_patches']
    view = dict(size=size, fit='patches', short=None, max_patches=limit)
    return view, []
  size, crop = config['size'], config.get('crop_size')
  crops = bool(config.get('do_center_crop'))
  sides = set(crop.values()) if isinstance(crop, Mapping) else {crop}
  # Early files hold bare integers: CLIP's is the shortest side.
  short = size.get('shortest_edge') if isinstance(size, Mapping) else size
  if short is None:
    square = {size.get('height'), size.get('width')}
    if len(square) != 1 or None in square:
      return {}, [f'size {size} is not a square']
    if crops and sides != square:
      return {}, [f'crop_size {crop} is not the size {size}']
    view = dict(size=max(square), fit='stretch', short=None, max_patches=None)
    return view, []
  if not crops or len(sides) != 1 or max(sides) > short:
    reason = f'crop_size {crop} must be a square of at most {short} pixels'
    return {}, [reason]
  view = dict(size=max(sides), fit='crop', short=short, max_patches=None)
  return view, []


def from_hf(config: Mapping[str, Any]) -> dict[str, Any]:
  """config.json of the image half -> fields of `models.vit.ImageCLIP`.

  Raises:
    UserError: for a value that the model does not implement, or a tower
      saved without its projection.
  """
  if 'CLIPVisionModel' in config.get('architectures', ()):
    raise UserError(
      'a CLIPVisionModel has no projection, and its embeddings are no '
      'measure: use the folder of a CLIPModel or of a '
      'CLIPVisionModelWithProjection'
    )
  whole = {k: config[k] for k in ('projection_dim',) if k in config}
  fields = maps_clip.from_hf({**whole, 'vision_config': config})
  return {k: fields[k] for k in ('projection', 'vision')}


def to_hf(projection: int, vision: Mapping[str, Any]) -> dict[str, Any]:
  """Fields of `models.vit.ImageCLIP` -> config.json."""
  whole = maps_clip.to_hf(projection, vision, maps_clip.text_fields({}))
  architectures = ['CLIPVisionModelWithProjection']
  return dict(architectures=architectures, **whole['vision_config'])


def table(projection: int, vision: Mapping[str, Any]) -> tuple[Row, ...]:
  """The rows of a `models.vit.ImageCLIP` with these fields."""
  rows = maps_clip.table(projection, vision, maps_clip.text_fields({}))
  return tuple(r for r in rows if r.path.startswith('vision_tower/'))
