"""Captioners of UMM-1."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from uae_jax.ckpt import hf, maps_qwen
from uae_jax.models import vlm
from uae_jax.sharding import table_qwen
from uae_jax.types import Batch
from uae_jax.zoo.model import Model


def policy(fields: Mapping[str, Any], tokens: Mapping[str, int], **kw) -> Model:
  """Qwen2.5-VL from its fields; `tokens` are ids for config.json."""
  module = vlm.VLM(
    vision=dict(fields['vision']),
    lm=dict(fields['lm']),
    image_pad=fields['image_pad'],
    **kw,
  )
  patch = fields['vision']['patch']
  group = fields['vision']['merge'] ** 2
  zeros = lambda *shape: jnp.zeros((1, *shape), jnp.int32)
  batch = Batch(
    patches=jnp.zeros((1, group, 3 * 2 * patch * patch)),
    patch_hw=zeros(group, 2),
    patch_window=zeros(group),
    patch_image=zeros(group),
    prefix_ids=zeros(2),
    prefix_positions=zeros(3, 2),
    prefix_mask=jnp.ones((1, 2), bool),
    image=jnp.zeros((1, 1, 1, 3)),
  )
  return Model(
    module=module,
    init=lambda key: module.init(key, batch)['params'],
    table=maps_qwen.table(fields['vision'], fields['lm']),
    rules=table_qwen.rules(tied=fields['lm']['tied']),
    hub_config=maps_qwen.to_hf(fields['vision'], fields['lm'], tokens),
    ignore=maps_qwen.IGNORE,
    rename=maps_qwen.rename,
  )


def policy_from_folder(folder: Path, **kw) -> Model:
  """Qwen2.5-VL from a hub folder's config.json."""
  config = hf.read_config(folder)
  keep = [
    'image_token_id',
    'video_token_id',
    'vision_start_token_id',
    'vision_end_token_id',
  ]
  tokens = {k: config[k] for k in keep if k in config}
  return policy(maps_qwen.from_hf(config), tokens, **kw)
