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
from uae_jax.data.sources.bad import BadItems
from uae_jax.errors import UserError
from uae_jax.eval import scenes_bench
from uae_jax.nn import lora as lora_lib
from uae_jax.nn.lora import LoRA
from uae_jax.rl.grpo import GRPO
from uae_jax.sharding import offload
from uae_jax.sharding.fsdp import spreader
from uae_jax.sharding.mesh import check_batch
from uae_jax.train import (
  assemble_umm1,
  assemble_umm2,
  contrastive,
  optim,
  pretrain,
  towers,
)
from uae_jax.train.parts import Loader, Parts
from uae_jax.train.state import (
  create,
  gatherer,
  is_abstract,
  placed,
  reference_of,
  split_policy,
)
from uae_jax.train.step import StepOptions, supervised_step, train_step
from uae_jax.types import TrainState
from uae_jax.zoo import weights

# Of what is frozen: large, and multiplied alone.
FROZEN_MATRICES = (r'(decoder|reference|reward)/.*/kernel',)
# Convolutions, which read their kernel as often as there are drawings.
RENDERERS = (r'(vae|vq)/.*/kernel',)


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
    bad: what the data has that cannot be used.
  """

  state: TrainState
  step: Callable
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
  check_batch(config.train.images, mesh)
  builders = dict(encoder=_encoder, pretrain=_pretrain, tower=_tower)
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


def _encoder(config, mesh) -> Task:
  parts = load(config, Loader(config, mesh))
  options, optimizer, state = encoder(config, parts, mesh)

  def export(state, folder):
    if options.lora is not None and config.lora.export == 'adapter':
      return peft.save(
        folder / 'adapter', state.params, parts.policy_rows,
        alpha=options.lora.alpha, base=config.ckpt.policy,
        model_type=parts.policy.hub_config['model_type'],
      )  # fmt: skip
    whole = {**state.frozen, 'policy': options.policy(state)}
    parts.export(folder, whole, changed={'policy'})
    parts.write_options(folder)

  return Task(
    state=state,
    step=functools.partial(
      train_step, umm=parts.umm, optimizer=optimizer, options=options
    ),
    data=parts.train_data(config, mesh),
    evaluate=scenes_bench.Evaluator(
      parts.umm, parts.heldout_data(config), parts.decode, mesh,
      options.policy, lambda state: state.frozen, config.eval.gallery,
    ),
    export=export,
    headline=('reward/mean', 'policy/kl', 'caption/length'),
    bad=parts.bad,
  )  # fmt: skip


def encoder(config, parts: Parts, mesh) -> tuple[StepOptions, Any, TrainState]:
  """(options, optimizer, step 0) of Unified-GRPO; shapes where parts are."""
  options = step_options(config)
  policy, vlm = parts.params['policy'], parts.umm.vlm
  params, frozen = _trained(config, parts, options.lora)
  options = dataclasses.replace(
    options,
    gathered=gatherer(policy, vlm.DECODES, config.model.dtype),
    spread=spreader(policy, vlm.MATRICES),
    frozen=_frozen_reader(frozen),
    sees_once=not any(trees.flatten(trees.mask(params, vlm.SEES)).values()),
  )
  optimizer = optim.make(config)
  offloaded = 'optimizer' in offload.parse(config.memory.offload)
  state = create(params, frozen, optimizer, mesh, offloaded)
  return options, optimizer, state


def _frozen_reader(frozen) -> Callable[[Any], Any]:
  """Frozen parameters -> as rollouts read them, see `StepOptions.frozen`."""
  spread = spreader(frozen, FROZEN_MATRICES)
  rendering = gatherer(frozen, RENDERERS)
  return lambda frozen: spread(rendering(frozen))


def _trained(config, parts, lora) -> tuple[Any, dict[str, Any]]:
  """(what is trained, what is frozen); the reference where it is needed."""
  policy = parts.params['policy']
  if lora is not None:  # adapters off is the reference
    init = lambda: lora.init(
      jax.random.key(config.train.seed), policy, parts.policy_rows
    )
    home = jax.tree.map(lambda x: x.sharding, policy)
    tree = jax.eval_shape(init)
    homes = lora_lib.shardings(tree, policy, home)
    if is_abstract(policy):
      return jax.tree.map(placed, tree, homes), parts.params
    return jax.device_put(init(), homes), parts.params
  params, rest = split_policy(policy, config.train.trainable)
  frozen = {**parts.params, 'policy': rest}
  if _needs_reference(config):
    frozen['reference'] = reference_of(params, config.model.frozen_dtype)
    if 'reference' in offload.parse(config.memory.offload):
      frozen['reference'] = offload.put(frozen['reference'])
  return params, frozen


def _needs_reference(config) -> bool:
  """Whether a KL or the environment reads the policy as it was."""
  if config.model.umm == 'umm2':
    return bool(config.grpo.beta or config.grpo.image_beta)
  return bool(config.grpo.beta) or config.rollout.environment == 'reference'


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
  return StepOptions(
    group=config.train.group_size,
    inner_epochs=config.optim.inner_epochs,
    minibatches=config.optim.minibatches,
    scale=g.scale,
    filter_zero_std=g.filter_zero_std,
    mask_truncated=g.mask_truncated,
    loss=loss,
    lora=_lora(config),
    rollout_size=config.memory.rollout_images,
    update_size=config.memory.update_images,
    **halves,
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
  parts = load(config, Loader(config, mesh))
  p = config.pretrain
  if p.fresh:  # these leaves start from scratch
    drawn = weights(parts.policy, '', mesh, seed=config.train.seed)
    drawn, _ = split_policy(drawn, p.fresh)
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

  def whole(state):
    return {**state.frozen, **trees.merge(state.frozen, state.params)}

  return Task(
    state=create(params, frozen, optimizer, mesh),
    step=functools.partial(
      supervised_step, loss_fn=_pretrain_loss(config, parts.umm),
      optimizer=optimizer,
    ),
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

  def export(state, folder):
    model.save(folder, state.params, jnp.bfloat16)
    towers.write_processor(tower, folder)

  return Task(
    state=create(params, {}, optimizer, mesh),
    step=functools.partial(
      supervised_step,
      loss_fn=contrastive.Contrastive(tower, config.tower.views),
      optimizer=optimizer,
    ),
    data=towers.data(config, tower, tokenizer, mesh),
    evaluate=None,
    export=export,
    headline=('optim/loss', 'tower/accuracy'),
  )
