"""A tower from scratch: module, processor, data."""

import json
from pathlib import Path
from typing import Any

from uae_jax import zoo
from uae_jax.data import pipeline, tokenize
from uae_jax.models import clip
from uae_jax.rewards.features import Tower
from uae_jax.sharding import hosts
from uae_jax.sharding.mesh import rows_here


def new_tower(config) -> tuple[zoo.Model, Tower, Any]:
  """A tower to train from scratch, with the word tokenizer."""
  tokenizer = tokenize.load_tokenizer(zoo.resolve('bundled:umm1/processors'))
  fields = clip.VARIANTS[config.model.variant]
  eos = tokenizer.id('<|im_end|>')
  fields = {**fields, 'language': {**fields['language'], 'eos': eos}}
  model = zoo.tower(fields)
  half = (0.5, 0.5, 0.5)
  side = fields['vision']['size']
  return model, Tower(model.module, side, half, half), tokenizer


def write_processor(tower: Tower, folder: Path) -> None:
  """preprocessor_config.json of a trained tower."""
  side = tower.size
  config = {
    'image_processor_type': 'CLIPImageProcessor',
    'size': {'shortest_edge': side},
    'crop_size': {'height': side, 'width': side},
    'image_mean': list(tower.mean),
    'image_std': list(tower.std),
    'resample': 3,
  }
  text = json.dumps(config, indent=2) + '\n'
  if hosts.is_first():
    (folder / 'preprocessor_config.json').write_text(text)


def data(config, tower: Tower, tokenizer, mesh) -> Any:
  """Endless batches of scenes beside their edits, with full captions."""
  return pipeline.make_loader(
    pipeline.make_source(
      config.data.source, seed=config.train.seed, side=tower.size
    ),
    pipeline.PairExample(tokenizer, config.rollout.length),
    batch=config.train.images,
    seed=config.train.seed,
    mine=rows_here(config.train.images, mesh),
    shuffle=False,
  )
