"""Janus-Pro: a policy and its image tokenizer, one folder on the hub."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from uae_jax.ckpt import hf, maps_janus
from uae_jax.models.janus import Janus
from uae_jax.models.vq import VQ
from uae_jax.sharding import table_janus, table_vae
from uae_jax.types import Batch
from uae_jax.zoo.model import Model

PARTS = ('policy', 'vq')


def janus(
  fields: Mapping[str, Any], image_pad: int, tokens: Mapping[str, int], **kw
) -> tuple[Model, VQ]:
  """Both halves as one model, with parameters {'policy': …, 'vq': …}.

  Args:
    fields: `vision`, `lm` and `draw` of `models.janus.Janus`, `vq` of
      `models.vq.VQ`. The checkpoint's layout is that of the tower.
    image_pad: id that image tokens replace.
    tokens: further ids for config.json, see `maps_janus.tokens_of`.
    **kw: further fields of `Janus`.
  """
  vision, lm = fields['vision'], fields['lm']
  policy = Janus(vision, lm, fields['draw'], image_pad=image_pad, **kw)
  vq = VQ(**fields['vq'])
  patches = (vision['size'] // vision['patch']) ** 2
  batch = Batch(
    image=None,
    patches=jnp.zeros((1, patches, 3 * vision['patch'] ** 2)),
    prefix_ids=jnp.full((1, 1), image_pad, jnp.int32),
    prefix_positions=jnp.zeros((1, 3, 1), jnp.int32),
    prefix_mask=jnp.ones((1, 1), bool),
  )

  def init(key):
    one, two = jax.random.split(key)
    pixels = jnp.zeros((1, vq.factor, vq.factor, 3))
    return {
      'policy': policy.init(one, batch)['params'],
      'vq': vq.init(two, pixels)['params'],
    }

  tables = {
    'policy': maps_janus.table(vision, lm),
    'vq': maps_janus.vq_table(vision, fields['vq']),
  }
  rules = {
    'policy': table_janus.rules(fused=vision['fused'], tied=lm['tied']),
    'vq': table_vae.VQ,
  }
  model = Model(
    module=policy,
    init=init,
    table=tuple(
      dataclasses.replace(row, path=f'{part}/{row.path}')
      for part in PARTS
      for row in tables[part]
    ),
    rules=tuple(
      (f'{part}/({pattern})', spec)
      for part in PARTS
      for pattern, spec in rules[part]
    ),
    hub_config=maps_janus.to_hf(**fields, image_pad=image_pad, tokens=tokens),
    ignore=maps_janus.UNUSED,
  )
  return model, vq


def janus_from_folder(
  folder: Path, image_pad: int = -1, **kw
) -> tuple[Model, VQ]:
  """Janus-Pro from a hub folder's config.json.

  Args:
    folder: in either layout.
    image_pad: id that image tokens replace; what config.json says, if it
      does, goes before (DeepSeek's does not).
    **kw: further fields of `Janus`.
  """
  config = hf.read_config(folder)
  if 'image_token_id' in config:
    image_pad = config['image_token_id']
  fields, tokens = maps_janus.from_hf(config), maps_janus.tokens_of(config)
  return janus(fields, image_pad, tokens, **kw)
