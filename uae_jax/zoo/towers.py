"""Reward and judge towers, by the model_type of their config.json."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from uae_jax.ckpt import (
  hf,
  maps_clip,
  maps_dinov2,
  maps_dinov3,
  maps_siglip,
  maps_vit,
)
from uae_jax.errors import UserError
from uae_jax.models import clip, dinov2, dinov3, siglip, vit
from uae_jax.sharding import table_clip, table_dino, table_siglip, table_vit
from uae_jax.zoo.model import Model


def tower(fields: Mapping[str, Any]) -> Model:
  """CLIP (or LongCLIP) from the fields of `models.clip.CLIP`."""
  return _model(
    clip.CLIP(**fields),
    fields['vision'],
    jnp.zeros((1, 1), jnp.int32),
    table=maps_clip.table(**fields),
    rules=table_clip.RULES,
    hub_config=maps_clip.to_hf(**fields),
    ignore=maps_clip.IGNORE,
  )


def image_clip(fields: Mapping[str, Any]) -> Model:
  """CLIP without its text tower, of the fields of `models.vit.ImageCLIP`."""
  return _model(
    vit.ImageCLIP(**fields),
    fields['vision'],
    table=maps_vit.table(**fields),
    rules=table_vit.RULES,
    hub_config=maps_vit.to_hf(**fields),
    ignore=maps_clip.IGNORE,
  )


def siglip_tower(fields: Mapping[str, Any]) -> Model:
  """SigLIP or SigLIP 2 from the fields of `models.siglip.SigLIP`."""
  module = siglip.SigLIP(**fields)
  words = () if fields['language'] is None else (jnp.zeros((1, 1), jnp.int32),)
  return _model(
    module,
    fields['vision'],
    *words,
    table=maps_siglip.table(**fields),
    rules=table_siglip.rules(**fields),
    hub_config=maps_siglip.to_hf(**fields),
    ignore=maps_siglip.ignore(fields['language']),
    rename=maps_siglip.rename,
  )


def dinov2_tower(fields: Mapping[str, Any]) -> Model:
  """DINOv2, with or without registers."""
  return _model(
    dinov2.DINOv2(**fields),
    fields,
    table=maps_dinov2.table(**fields),
    rules=table_dino.dinov2(**fields),
    hub_config=maps_dinov2.to_hf(**fields),
  )


def dinov3_tower(fields: Mapping[str, Any]) -> Model:
  """A DINOv3 ViT."""
  return _model(
    dinov3.DINOv3(**fields),
    fields,
    table=maps_dinov3.table(**fields),
    rules=table_dino.dinov3(**fields),
    hub_config=maps_dinov3.to_hf(**fields),
    rename=maps_dinov3.rename,
  )


def _model(module, vision, *rest, **tables) -> Model:
  """The zoo model of a module called with a square image, then `rest`."""
  pixels = jnp.zeros((1, vision['size'], vision['size'], 3))
  init = lambda key: module.init(key, pixels, *rest)['params']
  return Model(module=module, init=init, **tables)


def _image_siglip(config):
  return maps_siglip.from_hf(config, text=False)


# model_type -> (fields of a config.json, model of the fields)
TOWERS = {
  'clip': (maps_clip.from_hf, tower),
  'clip_vision_model': (maps_vit.from_hf, image_clip),
  'siglip': (_image_siglip, siglip_tower),
  'siglip_vision_model': (_image_siglip, siglip_tower),
  'siglip2': (_image_siglip, siglip_tower),
  'siglip2_vision_model': (_image_siglip, siglip_tower),
  'dinov2': (maps_dinov2.from_hf, dinov2_tower),
  'dinov2_with_registers': (maps_dinov2.from_hf, dinov2_tower),
  'dinov3_vit': (maps_dinov3.from_hf, dinov3_tower),
}


def tower_from_folder(folder: Path) -> Model:
  """An image tower from a hub folder's config.json.

  Raises:
    UserError: when the folder holds no tower.
  """
  kind = hf.kind(folder)
  if kind not in TOWERS:
    raise UserError(
      f'{folder} is a {kind!r}, which is no tower; known are {sorted(TOWERS)}'
    )
  fields, build = TOWERS[kind]
  return build(fields(hf.read_config(folder)))
