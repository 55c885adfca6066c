"""A UMM-2 from the folders that a config names."""

import dataclasses
from pathlib import Path
from typing import Any

from uae_jax import zoo
from uae_jax.ckpt import hf, maps_janus
from uae_jax.data import tokenize
from uae_jax.data.janus import BOS, IMAGE, JanusTemplate, JanusView
from uae_jax.errors import UserError
from uae_jax.infer.janus import KINDS, load_detokenizer
from uae_jax.infer.painters import PARTS
from uae_jax.models import detokenizer as detokenizers
from uae_jax.models import janus, mmdit, vq
from uae_jax.rollout.flow import FlowSchedule
from uae_jax.rollout.sampler import Sampler
from uae_jax.train import parts as parts_lib
from uae_jax.train import rewards
from uae_jax.train.parts import (
  CONNECTOR,
  DECODER,
  POLICY,
  Loader,
  Parts,
  Piece,
)
from uae_jax.umm.painter import Painter
from uae_jax.umm.umm2 import UMM2, Tokens

CHOICES = dict(model=dict(renderer=('vq', 'flow')))
NEW = 'bundled:umm2/processors'  # of a model from scratch


def load(config, weights: Loader) -> Parts:
  """Builds a UMM-2; `weights` loads or draws them."""
  parts_lib.check_choices(config, CHOICES)
  kw = dict(dtype=config.model.dtype, remat=config.model.remat)
  both, tokenizer_of_images, processors = model(config, **kw)
  towers, judges, params = parts_lib.towers(config, weights)
  seed = config.train.seed
  params |= weights('', both, config.ckpt.policy, seed)
  tokenizer = tokenize.load_tokenizer(processors)
  terms, more = rewards.load(config, weights, towers, tokenizer)
  params['reward'] |= more
  vision, rows = both.module.vision, code_rows(both.module)
  template = JanusTemplate.from_tokenizer(
    tokenizer, config.data.prompt, rows**2, config.data.system
  )
  view = JanusView.from_config(
    hf.read_config(processors, 'preprocessor_config.json'), vision['patch']
  )
  prefix = template.prefix()
  pieces = {POLICY: Piece(both, ('policy', 'vq'))}
  painter = connector = None
  if config.model.renderer == 'flow':
    drawing, conditioner, painter = detokenizer(config, rows**2)
    painter = dataclasses.replace(painter, size=config.memory.drawings)
    connector = conditioner.module
    folders = {**PARTS, 'connector': 'connector'}
    parts = {**drawing, 'connector': conditioner}
    for i, (name, one) in enumerate(parts.items(), 1):
      at = config.ckpt.decoder and f'{config.ckpt.decoder}/{folders[name]}'
      params[name] = weights(name, one, at, seed + i)
    pieces |= {
      DECODER: Piece(drawing['decoder'], ('decoder',)),
      CONNECTOR: Piece(conditioner, ('connector',)),
    }
  umm = architecture(
    config, both.module, tokenizer_of_images, template, towers, judges,
    terms=terms, painter=painter, connector=connector,
  )  # fmt: skip
  return Parts(
    umm=umm,
    params=params,
    pieces=pieces,
    policy_rows=maps_janus.table(vision, both.module.lm),
    options=options(config),
    processors=processors,
    tokenizer=tokenizer,
    read=lambda image: {**view(image), **prefix},
  )


def architecture(
  config, policy, images, template, towers, judges, **kw
) -> UMM2:
  """The modules and options of a config, without any weights.

  Args:
    config: of configs/umm2.py.
    policy: the Janus.
    images: its image tokenizer.
    template: around images and captions.
    towers: rewards by name.
    judges: by name.
    **kw: of the reward and of a detokenizer.
  """
  r, rows = config.rollout, code_rows(policy)
  return UMM2(
    vlm=policy,
    vq=images,
    towers=towers,
    judges=judges,
    tokens=Tokens(
      template.draw_before, template.draw_after, template.eos, template.pad
    ),
    sampler=Sampler(r.temperature, r.top_k, r.top_p),
    code_sampler=Sampler(r.image_temperature, r.image_top_k, r.image_top_p),
    guidance=r.guidance,
    length=r.length,
    rows=rows,
    codes=rows**2,
    weights=rewards.tower_weights(config, towers),
    chunk=config.model.chunk,
    size=config.memory.drawings,
    **kw,
  )


def code_rows(policy: janus.Janus) -> int:
  """Rows of the code grid: as many codes are drawn as tokens are read."""
  return policy.vision['size'] // policy.vision['patch']


def model(config, **kw) -> tuple[zoo.Model, vq.VQ, Path]:
  """Policy with image tokenizer, the latter's module, and the processors."""
  if config.ckpt.policy:
    folder = zoo.resolve(config.ckpt.policy)
    if hf.kind(folder) not in KINDS:
      raise UserError(
        f'ckpt.policy: {folder} is a {hf.kind(folder)!r}, none of {KINDS}'
      )
    pad = tokenize.load_tokenizer(folder).id(IMAGE)
    return *zoo.janus_from_folder(folder, pad, **kw), folder
  folder = zoo.resolve(NEW)
  tokenizer = tokenize.load_tokenizer(folder)
  variant = config.model.variant
  fields = {**janus.VARIANTS[variant], 'vq': vq.VARIANTS[variant]}
  special = {
    'bos_token_id': tokenizer.id(BOS),
    'eos_token_id': tokenizer.eos,
    'pad_token_id': tokenizer.pad,
  }
  return *zoo.janus(fields, tokenizer.id(IMAGE), special, **kw), folder


def detokenizer(
  config, codes: int
) -> tuple[dict[str, zoo.Model], zoo.Model, Painter]:
  """What turns codes into pixels by flow matching, as `painter_models`."""
  r, side = config.rollout, config.data.side
  kw = dict(remat=config.model.remat)
  if config.ckpt.decoder:
    return load_detokenizer(
      zoo.resolve(config.ckpt.decoder), codes, side, steps=r.draw_steps,
      shift=r.shift or None, dtype=config.model.dtype, **kw,
    )  # fmt: skip
  variant = config.model.variant
  fields, of_codes = mmdit.VARIANTS[variant], detokenizers.VARIANTS[variant]
  channels = fields['in_channels'] + of_codes['code_dim']
  decoder = zoo.decoder({**fields, 'in_channels': channels}, **kw)
  painter = Painter(
    decoder.module, FlowSchedule(r.draw_steps, r.shift), side, side,
    dtype=config.model.dtype,
  )  # fmt: skip
  conditioner = zoo.code_conditioner(of_codes)
  return {'decoder': decoder}, conditioner, painter


def options(config) -> dict[str, Any]:
  """umm.json of an exported policy."""
  r = config.rollout
  out = {
    'policy': POLICY,
    'prompt': config.data.prompt,
    'system': config.data.system,
    'length': r.length,
    'guidance': r.guidance,
    'image_temperature': r.image_temperature,
    'image_top_k': r.image_top_k,
    'image_top_p': r.image_top_p,
  }
  if config.model.renderer == 'flow':
    out |= {
      'decoder': parts_lib.place(config.ckpt.decoder),
      'steps': r.draw_steps,
      'shift': r.shift or None,
    }
  return out
