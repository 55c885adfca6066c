"""What a supervised stage trains, and how: config -> loss, step, step 0."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

from uae_jax import trees
from uae_jax.errors import UserError
from uae_jax.nn.lora import LoRA
from uae_jax.train import guard, optim, pretrain, reinforce
from uae_jax.train import parts as parts_lib
from uae_jax.train.parts import Parts
from uae_jax.train.state import create, is_abstract
from uae_jax.train.update import supervised_step
from uae_jax.types import TrainState
from uae_jax.zoo import weights

Loss = pretrain.Pretrain | pretrain.TokenPretrain


def build(config, parts: Parts, mesh) -> tuple[Loss, Callable, TrainState]:
  """(loss, step, step 0) of stage 'pretrain'; of shapes where the parts are.

  Raises:
    UserError: what is to be trained is not there, or is frozen.
    ValueError: times that flow matching cannot have.
  """
  p, adapters = config.pretrain, parts_lib.adapters(config)
  _draw_anew(config, parts, mesh)
  params, rest = trees.split(parts.params, p.trainable)
  frozen = {**dict.fromkeys(parts.params, {}), **rest}
  for part, lora in adapters.items():
    if part in params:
      raise UserError(
        f'pretrain.trainable={list(p.trainable)} matches parameters of the '
        f'{part}, which pretrain.lora_rank adapts: choose one'
      )
    params[part] = reinforce.adapted(config, parts, part, lora)
  known = {part for piece in parts.pieces.values() for part in piece.parts}
  if not params or not set(params) <= known:
    raise UserError(
      f'pretrain.trainable={list(p.trainable)} must match parameters of '
      f'{sorted(known)} and of nothing else'
    )
  optimizer = optim.make(config)
  loss = _loss(config, parts.umm, adapters)
  watch = guard.Guard(config.guard.spike)
  step = functools.partial(
    supervised_step, loss_fn=loss, optimizer=optimizer, ema=config.optim.ema,
    guard=watch,
  )  # fmt: skip
  averages = bool(config.optim.ema)
  state = create(params, frozen, optimizer, mesh, averages=averages)
  return loss, step, watch.watch(state, [guard.turn(None)])


def _draw_anew(config, parts: Parts, mesh) -> None:
  """Draws the parameters that `pretrain.fresh` names from scratch."""
  fresh, found = config.pretrain.fresh, False
  for piece in parts.pieces.values():
    held = {part: parts.params[part] for part in piece.parts}
    if not trees.split(held, fresh)[0]:
      continue
    found = True
    if is_abstract(held):
      continue
    drawn = weights(piece.model, '', mesh, seed=config.train.seed)
    drawn = {piece.parts[0]: drawn} if len(piece.parts) == 1 else drawn
    parts.params |= trees.merge(held, trees.split(drawn, fresh)[0])
  if fresh and not found:
    raise UserError(f'pretrain.fresh={list(fresh)} matches no parameter')


def _loss(config, umm: Any, adapters: Mapping[str, LoRA]) -> Loss:
  """The loss of the architecture."""
  p = config.pretrain
  if config.model.umm == 'umm1' and p.captions not in ('full', 'partial'):
    raise UserError(f'pretrain.captions={p.captions!r} is not full or partial')
  t = pretrain.Times(p.t_mean, p.t_std, p.noise_rows, p.min_snr)
  if config.model.umm == 'umm1':
    return pretrain.Pretrain(
      umm, p.caption_weight, p.flow_weight, t, p.captions == 'partial', adapters
    )
  if p.flow_weight and umm.painter is None:
    raise UserError('pretrain.flow_weight: there is no detokenizer to train')
  return pretrain.TokenPretrain(
    umm, p.caption_weight, p.code_weight, p.pixel_weight, p.flow_weight,
    p.full_rows, p.drop_rows, t, adapters,
  )  # fmt: skip
