"""Config -> what the loop runs: state, step, data, evaluation, export.

Three stages share the loop: `encoder` (Unified-GRPO), `pretrain` (captioner
and decoder, supervised) and `tower` (reward and judge towers).
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from uae_jax import trees
from uae_jax.ckpt import peft
from uae_jax.errors import UserError
from uae_jax.eval import scenes_bench
from uae_jax.nn import lora as lora_lib
from uae_jax.nn.lora import LoRA
from uae_jax.rl.grpo import GRPO
from uae_jax.sharding.mesh import check_batch
from uae_jax.train import assemble, optim, stages
from uae_jax.train.state import create, split_policy
from uae_jax.train.step import StepOptions, supervised_step, train_step
from uae_jax.types import TrainState
from uae_jax.zoo import weights


@dataclasses.dataclass
class Task:
  """What one stage gives the loop.

  Attributes:
    state: step 0, placed.
    step: (state, batch, rng) -> (state, metrics), not yet jitted.
    data: an endless, checkpointable iterator of numpy batches.
    evaluate: state -> (rows, gallery), or None.
    export: (state, folder) writes hub folders.
    headline: metrics shown on the terminal.
  """

  state: TrainState
  step: Callable
  data: Any
  evaluate: Callable | None
  export: Callable[[TrainState, Path], None]
  headline: tuple[str, ...]


def build(config, mesh) -> Task:
  """Builds the stage that `config.stage` names.

  Raises:
    UserError: for anything in the config that cannot be built.
  """
  check_batch(config.train.images, mesh)
  builders = dict(encoder=_encoder, pretrain=_pretrain, tower=_tower)
  if config.stage not in builders:
    raise UserError(f'stage={config.stage!r} is none of {sorted(builders)}')
  try:
    return builders[config.stage](config, mesh)
  except ValueError as e:
    raise UserError(f'config: {e}') from None


def _encoder(config, mesh) -> Task:
  parts = assemble.load(config, mesh)
  options = step_options(config)
  params, frozen = _trained(config, parts, options.lora)
  optimizer = optim.make(config)

  def export(state, folder):
    if options.lora is not None and config.lora.export == 'adapter':
      return peft.save(
        folder / 'adapter', state.params, parts.policy.table,
        alpha=options.lora.alpha, base=config.ckpt.policy,
        model_type=parts.policy.hub_config['model_type'],
      )  # fmt: skip
    parts.policy.save(folder / 'policy', options.policy(state))
    parts.copy_processors(folder / 'policy')
    assemble.write_options(config, folder)

  return Task(
    state=create(params, frozen, optimizer, mesh),
    step=functools.partial(
      train_step, umm=parts.umm, optimizer=optimizer, options=options
    ),
    data=parts.train_data(config),
    evaluate=scenes_bench.Evaluator(
      parts.umm, parts.heldout_data(config), parts.decode, mesh,
      options.policy, lambda state: state.frozen, config.eval.gallery,
    ),
    export=export,
    headline=('reward/mean', 'policy/kl', 'caption/length'),
  )  # fmt: skip


def _trained(config, parts, lora) -> tuple[Any, dict[str, Any]]:
  """(what is trained, what is frozen); the reference where it is needed."""
  policy = parts.params['policy']
  if lora is not None:  # adapters off is the reference
    tree = lora.init(
      jax.random.key(config.train.seed), policy, parts.policy.table
    )
    home = jax.tree.map(lambda x: x.sharding, policy)
    params = jax.device_put(tree, lora_lib.shardings(tree, policy, home))
    return params, parts.params
  params, rest = split_policy(policy, config.train.trainable)
  frozen = {**parts.params, 'policy': rest}
  if config.grpo.beta or config.rollout.environment == 'reference':
    frozen['reference'] = jax.tree.map(jnp.copy, params)
  return params, frozen


def step_options(config) -> StepOptions:
  """The config keys that choose among Unified-GRPO's variants.

  Raises:
    UserError: the images do not divide, or a group has one caption.
    ValueError: an unknown choice.
  """
  if config.train.images % config.optim.minibatches:
    raise UserError(
      f'train.images={config.train.images} does not divide into '
      f'optim.minibatches={config.optim.minibatches}'
    )
  if config.train.group_size < 2:
    raise UserError('train.group_size must be at least 2 to compare captions')
  g = config.grpo
  return StepOptions(
    group=config.train.group_size,
    inner_epochs=config.optim.inner_epochs,
    minibatches=config.optim.minibatches,
    scale=g.scale,
    filter_zero_std=g.filter_zero_std,
    mask_truncated=g.mask_truncated,
    loss=GRPO(
      clip_low=g.clip_low,
      clip_high=g.clip_high,
      beta=g.beta,
      kl=g.kl,
      aggregation=g.aggregation,
      ratio=g.ratio,
    ),
    lora=_lora(config),
  )


def _lora(config) -> LoRA | None:
  """The adapters that config.lora asks for."""
  if not config.lora.rank:
    return None
  known = ('merged', 'adapter')
  if config.lora.export not in known:
    raise UserError(f'lora.export={config.lora.export!r} is none of {known}')
  return LoRA(config.lora.rank, config.lora.alpha, config.lora.targets)


def _pretrain(config, mesh) -> Task:
  parts = assemble.load(config, mesh)
  p = config.pretrain
  if p.fresh:  # these leaves start from scratch
    drawn = weights(parts.policy, '', mesh, seed=config.train.seed)
    drawn, _ = split_policy(drawn, p.fresh)
    parts.params['policy'] = trees.merge(parts.params['policy'], drawn)
  params, rest = trees.split(parts.params, p.trainable)
  frozen = {**dict.fromkeys(parts.params, {}), **rest}
  if not params or not set(params) <= {'policy', 'connector', 'decoder'}:
    raise UserError(
      f'pretrain.trainable={list(p.trainable)} must match parameters of '
      'policy/, connector/ or decoder/ and of nothing else'
    )
  optimizer = optim.make(config)
  loss = stages.Pretrain(
    parts.umm,
    p.caption_weight,
    p.flow_weight,
    p.t_mean,
    p.t_std,
    p.noise_rows,
  )

  def whole(state):
    return {**state.frozen, **trees.merge(state.frozen, state.params)}

  folders = {
    'policy': (parts.policy, 'policy'),
    'decoder': (parts.decoder, 'decoder/transformer'),
    'connector': (parts.connector, 'decoder/connector'),
  }

  def export(state, folder):
    for name in state.params:
      model, path = folders[name]
      model.save(folder / path, whole(state)[name], jnp.bfloat16)
    if 'policy' in state.params:
      parts.copy_processors(folder / 'policy')

  return Task(
    state=create(params, frozen, optimizer, mesh),
    step=functools.partial(
      supervised_step, loss_fn=loss, optimizer=optimizer
    ),
    data=parts.train_data(config),
    evaluate=scenes_bench.Evaluator(
      parts.umm, parts.heldout_data(config), parts.decode, mesh,
      lambda state: whole(state)['policy'], whole,
      config.eval.gallery,
    ),
    export=export,
    headline=('optim/loss', 'caption/accuracy', 'optim/grad_norm'),
  )  # fmt: skip


def _tower(config, mesh) -> Task:
  model, tower, tokenizer = assemble.new_tower(config)
  params = weights(model, '', mesh, seed=config.train.seed)
  optimizer = optim.make(config)

  def export(state, folder):
    model.save(folder, state.params, jnp.bfloat16)
    assemble.write_tower_processor(tower, folder)

  return Task(
    state=create(params, {}, optimizer, mesh),
    step=functools.partial(
      supervised_step,
      loss_fn=stages.Contrastive(tower, config.tower.views),
      optimizer=optimizer,
    ),
    data=assemble.tower_data(config, tower, tokenizer),
    evaluate=None,
    export=export,
    headline=('optim/loss', 'tower/accuracy'),
  )
