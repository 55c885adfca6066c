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
  reinforce,
  supervise,
  towers,
)
from uae_jax.train import parts as parts_lib
from uae_jax.train.parts import Loader, Parts
from uae_jax.train.state import create
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
  turns = parts_lib.TURNS.get(config.stage, ())
  if any('decoder' in turn for turn in turns) and config.model.umm != 'umm1':
    raise UserError(f'stage={config.stage!r} needs a decoder of flow: a UMM-1')
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
    changed = _save_adapters(config, parts, state.params, folder)
    if changed:
      whole = {**state.frozen, **options.parts(state)}
      parts.export(folder, whole, changed=changed)
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


def _save_adapters(config, parts: Parts, params, folder: Path) -> list[str]:
  """Writes what is exported as adapters; returns the other trained parts."""
  bases = dict(
    policy=config.ckpt.policy, decoder=f'{config.ckpt.decoder}/transformer'
  )
  homes = dict(policy='adapter', decoder='decoder/adapter')
  asked, rest = parts_lib.adapted_parts(config), []
  for part, tree in params.items():
    if part not in asked or asked[part].export != 'adapter':
      rest.append(part)
      continue
    kind = parts.model(part).hub_config.get('model_type', '')
    peft.save(
      folder / homes[part], tree, parts.rows(part), alpha=asked[part].alpha,
      base=bases[part], model_type=kind,
    )  # fmt: skip
  return rest


def _pretrain(config, mesh) -> Task:
  parts = load(config, Loader(config, mesh))
  loss, step, state = supervise.build(config, parts, mesh)

  def whole(state):
    return loss.whole(state.frozen, state.shown().params)

  def export(state, folder):
    changed = _save_adapters(config, parts, state.shown().params, folder)
    parts.export(folder, whole(state), changed=changed, dtype=jnp.bfloat16)

  return Task(
    state=state,
    steps=[step],
    data=parts.train_data(config, mesh),
    evaluate=scenes_bench.Evaluator(
      parts.umm, parts.heldout_data(config), parts.decode, mesh,
      lambda state: whole(state)['policy'], whole,
      config.eval.gallery, loss.heldout if loss.flow_weight else None,
    ),
    export=export,
    headline=('optim/loss', 'caption/accuracy', 'optim/grad_norm'),
    bad=parts.bad,
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
