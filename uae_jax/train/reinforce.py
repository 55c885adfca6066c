"""What Unified-GRPO trains, and how: config -> options, optimizer, step 0."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from uae_jax import trees
from uae_jax.errors import UserError
from uae_jax.nn import lora as lora_lib
from uae_jax.nn.lora import LoRA
from uae_jax.rl.grpo import GRPO
from uae_jax.rollout.walk import Walk
from uae_jax.sharding import offload
from uae_jax.sharding.fsdp import spreader
from uae_jax.train import guard, optim
from uae_jax.train import parts as parts_lib
from uae_jax.train.parts import TURNS, Parts
from uae_jax.train.state import (
  create,
  gatherer,
  is_abstract,
  placed,
  reference_of,
  split_part,
)
from uae_jax.train.step import StepOptions
from uae_jax.types import TrainState
from uae_jax.umm.umm1 import UMM1

# Of what is frozen: large, and multiplied alone.
FROZEN_MATRICES = (r'(decoder|reference\w*|reader|reward)/.*/kernel',)
# Convolutions, which read their kernel as often as there are drawings.
RENDERERS = (r'(vae|vq)/.*/kernel',)


def build(
  config, parts: Parts, mesh
) -> tuple[list[tuple[Any, StepOptions]], optim.ByPart, TrainState]:
  """([(architecture, options) of each turn], optimizer, step 0) of a stage.

  The state is of shapes where the parts are.
  """
  policy, vlm = parts.params['policy'], parts.umm.vlm
  params, frozen = _trained(config, parts)
  matrices = [f'policy/{p}' for p in vlm.MATRICES]
  shared = dict(
    gathered=gatherer(policy, vlm.DECODES, config.model.dtype),
    spread=spreader(parts.params, [*matrices, *FROZEN_MATRICES]),
    frozen=_frozen_reader({**frozen, **_whole_decoder(parts)}),
  )
  turns, share = [], 1 / len(TURNS[config.stage])
  for trained in TURNS[config.stage]:
    options = step_options(config, trained)
    sees = vlm.SEES if 'policy' in trained else ()
    seen = trees.mask(params.get('policy', {}), sees)
    options = dataclasses.replace(
      options, sees_once=not any(trees.flatten(seen).values()), **shared
    )
    turns.append((_walking(config, parts.umm, trained), options))
  rates = dict(policy=config.train.lr)
  if 'decoder' in params:
    rates['decoder'] = config.flow.lr
  optimizer = optim.ByPart(
    {part: optim.make(config, rates[part], share) for part in params}
  )
  offloaded = 'optimizer' in offload.parse(config.memory.offload)
  state = create(
    params, frozen, optimizer, mesh, offloaded, bool(config.optim.ema)
  )
  if config.grpo.kl_target:
    state = state.replace(kl_scale=_one(state))
  state = guard.Guard(config.guard.spike).watch(
    state, [guard.turn(options.trains) for _, options in turns]
  )
  return turns, optimizer, state


def _walking(config, umm, trained) -> Any:
  """The architecture with drawings that train the decoder, where they do."""
  if 'decoder' not in trained:
    return umm
  walk = Walk(config.flow.noise, config.flow.window)
  walk.check(umm.painter.schedule)
  return dataclasses.replace(
    umm,
    painter=dataclasses.replace(umm.painter, walk=walk),
    one_caption=config.flow.one_caption and 'policy' not in trained,
  )


def _one(state: TrainState) -> Any:
  """1.0 where the state's numbers are, or its shape."""
  home = state.skipped.sharding
  if is_abstract(state.params):
    return jax.ShapeDtypeStruct((), jnp.float32, sharding=home)
  return jax.device_put(jnp.float32(1), home)


def evaluated(config, umm) -> Any:
  """The architecture as held-out images see it."""
  if not isinstance(umm, UMM1) or not config.eval.draw_steps:
    return umm
  schedule = dataclasses.replace(
    umm.painter.schedule, steps=config.eval.draw_steps
  )
  painter = dataclasses.replace(umm.painter, schedule=schedule)
  return dataclasses.replace(umm, painter=painter)


def _whole_decoder(parts: Parts) -> dict[str, Any]:
  return {k: v for k, v in parts.params.items() if k == 'decoder'}


def _frozen_reader(frozen) -> Callable[[Any], Any]:
  """Frozen parameters -> as rollouts read them, see `StepOptions.frozen`."""
  spread = spreader(frozen, FROZEN_MATRICES)
  rendering = gatherer(frozen, RENDERERS)
  return lambda frozen: spread(rendering(frozen))


def _trained(config, parts) -> tuple[dict[str, Any], dict[str, Any]]:
  """(what is trained, by part; what is frozen, references too)."""
  trained = {part for turn in TURNS[config.stage] for part in turn}
  params, frozen = {}, dict(parts.params)
  for part, lora in parts_lib.adapters(config).items():
    params[part] = adapted(config, parts, part, lora)
  # Adapters off is the reference.
  if 'policy' in trained and 'policy' not in params:
    params['policy'], frozen['policy'] = split_part(
      parts.params['policy'], 'train.trainable', config.train.trainable
    )
    if _needs_reference(config, parts):
      frozen['reference'] = _reference(config, params['policy'])
  if 'decoder' in trained and 'decoder' not in params:
    params['decoder'], frozen['decoder'] = split_part(
      parts.params['decoder'], 'flow.trainable', config.flow.trainable
    )
    if config.flow.beta:
      frozen['reference_decoder'] = _reference(config, params['decoder'])
  return params, frozen


def adapted(config, parts: Parts, part: str, lora: LoRA) -> Any:
  """New adapters of a part, or their shapes."""
  base = parts.params[part]
  init = lambda: lora.init(
    jax.random.key(config.train.seed), base, parts.rows(part)
  )
  home = jax.tree.map(lambda x: x.sharding, base)
  tree = jax.eval_shape(init)
  homes = lora_lib.shardings(tree, base, home)
  if is_abstract(base):
    return jax.tree.map(placed, tree, homes)
  return jax.device_put(init(), homes)


def _reference(config, params) -> Any:
  kept = reference_of(params, config.model.frozen_dtype)
  if 'reference' in offload.parse(config.memory.offload):
    return offload.put(kept)
  return kept


def _needs_reference(config, parts: Parts) -> bool:
  """Whether a KL or the environment reads the policy as it was."""
  if config.model.umm == 'umm2':
    return bool(config.grpo.beta or config.grpo.image_beta)
  read = config.rollout.environment == 'reference'
  return bool(config.grpo.beta) or read and 'reader' not in parts.params


def step_options(config, trained: Sequence[str]) -> StepOptions:
  """The config keys that choose among Unified-GRPO's variants.

  Args:
    config: of the run.
    trained: 'policy', 'decoder' or both.

  Raises:
    UserError: the images do not divide, or a group has one caption.
    ValueError: an unknown choice.
  """
  if config.train.images % config.optim.minibatches:
    raise UserError(
      f'train.images={config.train.images} does not divide into '
      f'optim.minibatches={config.optim.minibatches}'
    )
  if config.train.oversample < 1:
    raise UserError(
      f'train.oversample={config.train.oversample} must be at least 1'
    )
  if config.grpo.kl_target and not config.grpo.beta:
    raise UserError('grpo.kl_target steers grpo.beta: set that above 0')
  if config.train.group_size < 2:
    raise UserError('train.group_size must be at least 2 to compare captions')
  g = config.grpo
  loss = GRPO(
    clip_low=g.clip_low,
    clip_high=g.clip_high,
    beta=g.beta,
    kl=g.kl,
    aggregation=g.aggregation,
    ratio=g.ratio,
  )
  halves = {}
  if config.model.umm == 'umm2':
    if min(g.caption_weight, g.image_weight) < 0 or not (
      g.caption_weight or g.image_weight
    ):
      raise UserError(
        'grpo.caption_weight and grpo.image_weight: neither may be negative, '
        'and one must be positive'
      )
    halves = dict(
      image_loss=dataclasses.replace(loss, beta=g.image_beta),
      caption_weight=g.caption_weight,
      image_weight=g.image_weight,
    )
  if 'decoder' in trained:
    f = config.flow
    halves = dict(
      caption_weight=float('policy' in trained),
      path_weight=f.weight if 'policy' in trained else 1.0,
      path_loss=GRPO(
        clip_low=f.clip, clip_high=f.clip, beta=f.beta, aggregation='token'
      ),
    )
  return StepOptions(
    group=config.train.group_size,
    inner_epochs=config.optim.inner_epochs,
    minibatches=config.optim.minibatches,
    scale=g.scale,
    filter_zero_std=g.filter_zero_std,
    mask_truncated=g.mask_truncated,
    images=config.train.images if config.train.oversample > 1 else 0,
    kl_target=g.kl_target if halves.get('caption_weight', 1.0) else 0.0,
    entropy=g.entropy,
    ema=config.optim.ema,
    guard=guard.Guard(config.guard.spike),
    loss=loss,
    lora=parts_lib.adapters(config),
    rollout_size=config.memory.rollout_images,
    update_size=config.memory.update_images,
    **halves,
  )
