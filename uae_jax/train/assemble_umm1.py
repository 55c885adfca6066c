"""A UMM-1 from the folders that a config names."""

import dataclasses
from pathlib import Path
from typing import Any

from uae_jax import zoo
from uae_jax.data import buckets, tokenize
from uae_jax.data.preprocess import prefix_of
from uae_jax.errors import UserError
from uae_jax.infer import options as options_lib
from uae_jax.infer.load import policy_view
from uae_jax.infer.painters import PARTS, load_painter
from uae_jax.models import connector, metaquery, mmdit, vlm
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
from uae_jax.umm.umm1 import UMM1, Tokens

CHOICES = dict(
  rollout=dict(
    bottleneck=('text', 'hidden'), environment=('policy', 'reference')
  ),
  model=dict(connector=('mlp', 'queries')),
)


def load(config, weights: Loader) -> Parts:
  """Builds a UMM-1; `weights` loads or draws them."""
  parts_lib.check_choices(config, CHOICES)
  seed, dtype = config.train.seed, config.model.dtype
  kw = dict(remat=config.model.remat)
  policy, processors = policy_model(config, dtype=dtype, **kw)
  drawing, conditioner, painter = painter_models(config, policy, **kw)
  towers, judges, params = parts_lib.towers(config, weights)
  params['policy'] = weights('policy', policy, config.ckpt.policy, seed)
  if other := reader_of(config, processors):
    params['reader'] = weights('reader', policy, other)
  folders = {**PARTS, 'connector': 'connector'}
  for i, (name, model) in enumerate(
    {**drawing, 'connector': conditioner}.items(), 1
  ):
    at = config.ckpt.decoder and f'{config.ckpt.decoder}/{folders[name]}'
    params[name] = weights(name, model, at, seed + i)
  painter = dataclasses.replace(painter, size=config.memory.drawings)
  tokenizer = tokenize.load_tokenizer(processors)
  terms, more = rewards.load(config, weights, towers, tokenizer)
  params['reward'] |= more
  template = tokenize.Template.from_tokenizer(
    tokenizer, config.data.prompt, config.data.system
  )
  view = policy_view(processors, policy.module, config.data.max_pixels)
  r = config.rollout
  umm = UMM1(
    vlm=policy.module,
    connector=conditioner.module,
    painter=painter,
    towers=towers,
    judges=judges,
    tokens=Tokens(
      draw_before=template.draw_before,
      draw_after=template.draw_after,
      eos=template.eos,
      pad=template.pad,
    ),
    sampler=Sampler(r.temperature, r.top_k, r.top_p),
    length=r.length,
    bottleneck=r.bottleneck,
    environment=r.environment,
    share_noise=r.share_noise,
    weights=rewards.tower_weights(config, towers),
    terms=terms,
    chunk=config.model.chunk,
    size=config.memory.drawings,
  )
  shapes = buckets.parse(config.data.buckets)
  for shape in shapes:
    umm.sized(*shape)
  return Parts(
    umm=umm,
    params=params,
    pieces={
      POLICY: Piece(policy, ('policy',)),
      DECODER: Piece(drawing['decoder'], ('decoder',)),
      CONNECTOR: Piece(conditioner, ('connector',)),
    },
    policy_rows=policy.table,
    options=options(config, other),
    processors=processors,
    tokenizer=tokenizer,
    read=lambda image: prefix_of(image, view, template),
    decoder=zoo.resolve(config.ckpt.decoder) if config.ckpt.decoder else None,
    shapes=shapes,
  )


def policy_model(config, **kw) -> tuple[zoo.Model, Path]:
  """The captioner, and the folder of its tokenizer and preprocessor."""
  if config.ckpt.policy:
    folder = zoo.resolve(config.ckpt.policy)
    return zoo.policy_from_folder(folder, **kw), folder
  folder = zoo.resolve('bundled:umm1/processors')
  tokenizer = tokenize.load_tokenizer(folder)
  tokens = {
    'image_token_id': tokenizer.id('<|image_pad|>'),
    'vision_start_token_id': tokenizer.id('<|vision_start|>'),
    'vision_end_token_id': tokenizer.id('<|vision_end|>'),
  }
  fields = dict(
    vlm.VARIANTS[config.model.variant], image_pad=tokens['image_token_id']
  )
  return zoo.policy(fields, tokens, **kw), folder


def painter_models(
  config, policy, **kw
) -> tuple[dict[str, zoo.Model], zoo.Model, Painter]:
  """What draws, the connector, and the painter of both.

  They are of the folder ckpt.decoder, or of the named variant.
  """
  width, variant = policy.module.lm['width'], config.model.variant
  r, side, dtype = config.rollout, config.data.side, config.model.dtype
  size = dict(height=side, width=side, guidance=r.guidance, dtype=dtype)
  if config.ckpt.decoder:
    folder = zoo.resolve(config.ckpt.decoder)
    models, painter = load_painter(
      folder, steps=r.draw_steps, shift=r.shift or None, **size, **kw
    )
    conditioner = zoo.conditioner_from_folder(folder / 'connector', width)
    return models, conditioner, painter
  decoder = zoo.decoder(mmdit.VARIANTS[variant], **kw)
  schedule = FlowSchedule(r.draw_steps, r.shift)
  painter = Painter(decoder.module, schedule, **size)
  if config.model.connector == 'queries':
    conditioner = zoo.query_conditioner(metaquery.VARIANTS[variant])
  else:
    conditioner = zoo.conditioner(connector.VARIANTS[variant], width)
  return {'decoder': decoder}, conditioner, painter


def reader_of(config, policy: Path) -> str:
  """What re-encodes captions where it is not the policy as it starts; or ''.

  A policy that an earlier run has trained with `environment=reference` draws
  by the reader that its umm.json names, not by itself.

  Args:
    config: of the run; `ckpt.reader` comes first.
    policy: its folder.

  Raises:
    UserError: `ckpt.reader` is set where nothing would read by it.
  """
  if config.stage == 'pretrain' or config.rollout.environment == 'policy':
    if config.ckpt.reader:
      raise UserError(
        'ckpt.reader is read with rollout.environment=reference, and by no '
        'stage=pretrain: leave it empty'
      )
    return ''
  if not config.ckpt.reader and 'reader' not in options_lib.read(policy.parent):
    return ''
  other = config.ckpt.reader or options_lib.place(policy.parent, 'reader')
  return '' if zoo.resolve(other) == policy else other


def options(config, reader: str = '') -> dict[str, Any]:
  """umm.json where nothing has changed; `reader` re-encodes captions."""
  r = config.rollout
  start = parts_lib.place(config.ckpt.policy)
  by = parts_lib.place(reader) if reader else start
  return {
    'policy': start,
    **({'reader': by} if r.environment == 'reference' else {}),
    'decoder': parts_lib.place(config.ckpt.decoder),
    'prompt': config.data.prompt,
    'system': config.data.system,
    'max_pixels': config.data.max_pixels,
    'length': r.length,
    'height': config.data.side,
    'width': config.data.side,
    'steps': config.eval.draw_steps or r.draw_steps,
    'shift': r.shift or None,
    'guidance': r.guidance,
  }
