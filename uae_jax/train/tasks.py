"""Config -> what the loop runs: state, step, data, evaluation, export.

The stages share the loop: Unified-GRPO of the captioner (`encoder`), of what
draws (`decoder`), of both by turns or at once (`alternate`, `joint`),
`pretrain` (captioner and decoder, supervised) and `tower` (reward and judge
towers).
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from uae_jax import trees
from uae_jax.ckpt import peft
from uae_jax.data.sources.bad import BadItems
from uae_jax.errors import UserError
from uae_jax.eval import scenes_bench
from uae_jax.sharding.mesh import check_batch
from uae_jax.train import (
  assemble_umm1,
  assemble_umm2,
  contrastive,
  guard,
  keeper,
  limits,
  optim,
  pretrain,
  reinforce,
  towers,
)
from uae_jax.train import parts as parts_lib
from uae_jax.train.parts import Loader, Parts
from uae_jax.train.state import create, split_part
from uae_jax.train.step import train_step
from uae_jax.train.update import supervised_step
from uae_jax.types import TrainState
from uae_jax.zoo import weights


@dataclasses.dataclass
class Task:
  """What one stage gives the loop.

  Attributes:
    state: step 0, placed.
    steps: functions (state, batch, rng) -> (state, metrics), not yet jitted,
      that take turns.
    data: an endless, checkpointable iterator of numpy batches.
    evaluate: state -> (rows, gallery), or None.
    export: (state, folder) writes hub folders.
    headline: metrics shown on the terminal.
    bad: what the data has that cannot be used.
  """

  state: TrainState
  steps: Sequence[Callable]
  data: Any
  evaluate: Callable | None
  export: Callable[[TrainState, Path], None]
  headline: tuple[str, ...]
  bad: BadItems = dataclasses.field(default_factory=BadItems)


def build(config, mesh) -> Task:
  """Builds the stage that `config.stage` names.

  Raises:
    UserError: for anything in the config that cannot be built.
  """
  limits.check(config)
  check_batch(config.train.images, mesh)
  optim.check(config)
  guard.check(config)
  keeper.check(config)
  builders = dict.fromkeys(parts_lib.TURNS, _reinforce)
  builders |= dict(pretrain=_pretrain, tower=_tower)
  if config.stage not in builders:
    raise UserError(f'stage={config.stage!r} is none of {sorted(builders)}')
  try:
    return builders[config.stage](config, mesh)
  except ValueError as e:
    raise UserError(f'config: {e}') from None


def load(config, weights: Loader) -> Parts:
  """The architecture that `config.model.umm` names.

  Raises:
    UserError: it is none.
  """
  known = dict(umm1=assemble_umm1, umm2=assemble_umm2)
  if config.model.umm not in known:
    raise UserError(f'model.umm={config.model.umm!r} is none of {[*known]}')
  return known[config.model.umm].load(config, weights)


def _reinforce(config, mesh) -> Task:
  parts = load(config, Loader(config, mesh))
  turns, optimizer, state = reinforce.build(config, parts, mesh)
  options = turns[0][1]
  umm = reinforce.evaluated(config, parts.umm)

  def export(state, folder):
    state = state.shown()
    if options.lora is not None and config.lora.export == 'adapter':
      return peft.save(
        folder / 'adapter', state.params['policy'], parts.policy_rows,
        alpha=options.lora.alpha, base=config.ckpt.policy,
        model_type=parts.policy.hub_config['model_type'],
      )  # fmt: skip
    whole = {**state.frozen, **options.parts(state)}
    parts.export(folder, whole, changed=state.params)
    parts.write_options(folder)

  return Task(
    state=state,
    steps=[
      functools.partial(
        train_step, umm=umm, optimizer=optimizer, options=options
      )
      for umm, options in turns
    ],
    data=parts.train_data(config, mesh),
    evaluate=scenes_bench.Evaluator(
      umm, parts.heldout_data(config), parts.decode, mesh,
      lambda state: options.policy(state.shown()),
      lambda state: options.read(state.shown()), config.eval.gallery,
    ),
    export=export,
    headline=('reward/mean', 'policy/kl', 'caption/length'),
    bad=parts.bad,
  )  # fmt: skip


def _pretrain(config, mesh) -> Task:
  parts = load(config, Loader(config, mesh))
  p = config.pretrain
  if p.fresh:  # these leaves start from scratch
    drawn = weights(parts.policy, '', mesh, seed=config.train.seed)
    drawn, _ = split_part(drawn, 'pretrain.fresh', p.fresh)
    parts.params['policy'] = trees.merge(parts.params['policy'], drawn)
  params, rest = trees.split(parts.params, p.trainable)
  frozen = {**dict.fromkeys(parts.params, {}), **rest}
  known = {part for piece in parts.pieces.values() for part in piece.parts}
  if not params or not set(params) <= known:
    raise UserError(
      f'pretrain.trainable={list(p.trainable)} must match parameters of '
      f'{sorted(known)} and of nothing else'
    )
  optimizer = optim.make(config)
  watch = guard.Guard(config.guard.spike)

  def whole(state):
    params = state.shown().params
    return {**state.frozen, **trees.merge(state.frozen, params)}

  return Task(
    state=watch.watch(
      create(
        params, frozen, optimizer, mesh, averages=bool(config.optim.ema)
      ),
      [guard.turn(None)],
    ),
    steps=[
      functools.partial(
        supervised_step, loss_fn=_pretrain_loss(config, parts.umm),
        optimizer=optimizer, ema=config.optim.ema, guard=watch,
      )
    ],
    data=parts.train_data(config, mesh),
    evaluate=scenes_bench.Evaluator(
      parts.umm, parts.heldout_data(config), parts.decode, mesh,
      lambda state: whole(state)['policy'], whole,
      config.eval.gallery,
    ),
    export=lambda state, folder: parts.export(
      folder, whole(state), changed=state.params, dtype=jnp.bfloat16
    ),
    headline=('optim/loss', 'caption/accuracy', 'optim/grad_norm'),
    bad=parts.bad,
  )  # fmt: skip


def _pretrain_loss(config, umm):
  """The supervised loss of the architecture."""
  p = config.pretrain
  t = pretrain.Times(p.t_mean, p.t_std, p.noise_rows)
  if config.model.umm == 'umm1':
    return pretrain.Pretrain(umm, p.caption_weight, p.flow_weight, t)
  if p.flow_weight and umm.painter is None:
    raise UserError('pretrain.flow_weight: there is no detokenizer to train')
  return pretrain.TokenPretrain(
    umm, p.caption_weight, p.code_weight, p.pixel_weight, p.flow_weight,
    p.full_rows, p.drop_rows, t,
  )  # fmt: skip


def _tower(config, mesh) -> Task:
  model, tower, tokenizer = towers.new_tower(config)
  params = weights(model, '', mesh, seed=config.train.seed)
  optimizer = optim.make(config)
  watch = guard.Guard(config.guard.spike)

  def export(state, folder):
    model.save(folder, state.shown().params, jnp.bfloat16)
    towers.write_processor(tower, folder)

  return Task(
    state=watch.watch(
      create(params, {}, optimizer, mesh, averages=bool(config.optim.ema)),
      [guard.turn(None)],
    ),
    steps=[
      functools.partial(
        supervised_step,
        loss_fn=contrastive.Contrastive(tower, config.tower.views),
        optimizer=optimizer,
        ema=config.optim.ema,
        guard=watch,
      )
    ],
    data=towers.data(config, tower, tokenizer, mesh),
    evaluate=None,
    export=export,
    headline=('optim/loss', 'tower/accuracy'),
  )
