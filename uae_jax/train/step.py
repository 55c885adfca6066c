"""The fused step: rollout, reward, advantage, loss and update, one program.

`train_step(state, batch, rng) -> (state, metrics)` is pure and is jitted once
over the mesh. No text is decoded, no image is written and no array visits
the host inside it.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Key

from uae_jax import trees
from uae_jax.nn.lora import LoRA
from uae_jax.rewards.reconstruction import finite_groups, mean_of_valid
from uae_jax.rl import advantage, grpo
from uae_jax.sharding import chunks, offload
from uae_jax.types import Batch, Metrics, Rollout, TrainState
from uae_jax.umm.base import reference

LARGEST = ('ratio_max', 'ratio_gap')  # metrics of which pieces give the most


@dataclasses.dataclass(frozen=True)
class StepOptions:
  """What Unified-GRPO leaves to choose; see configs/umm1.py for each.

  Attributes:
    group: rollouts G per image.
    inner_epochs: passes over one rollout.
    minibatches: updates per pass; the images are split among them.
    scale: advantage scale, 'std' or 'none'.
    filter_zero_std: leave groups without variance out of the average.
    mask_truncated: leave captions without EOS out of the loss.
    loss: the clipped objective's options, of captions.
    image_loss: the same of image codes, where an architecture draws by them.
    caption_weight: of the captions' objective; 0 leaves it out.
    image_weight: of the codes' objective, lambda; 0 leaves it out.
    lora: adapters that are trained in the policy's stead.
    rollout_size: images of a data shard in one rollout; 0 is all. A step
      works through them in pieces, and the loss is that of all together.
    update_size: the same of scoring and of the gradient.
    gathered: policy -> the copy that rollouts read, see `state.gatherer`.
    spread: policy -> as it is scored and learnt, see `sharding.fsdp`.
    frozen: frozen parameters -> as rollouts read them, likewise.
    sees_once: nothing is trained that images are seen with: rollout,
      reference and gradient share their tokens.
  """

  group: int
  inner_epochs: int
  minibatches: int
  scale: str
  filter_zero_std: bool
  mask_truncated: bool
  loss: grpo.GRPO
  image_loss: grpo.GRPO = grpo.GRPO()
  caption_weight: float = 1.0
  image_weight: float = 0.0
  lora: LoRA | None = None
  rollout_size: int = 0
  update_size: int = 0
  gathered: Callable[[Any], Any] = lambda policy: policy
  spread: Callable[[Any], Any] = lambda policy: policy
  frozen: Callable[[Any], Any] = lambda frozen: frozen
  sees_once: bool = False

  def policy(self, state: TrainState, params: Any = None) -> Any:
    """The whole policy of a state, or with other trained parameters."""
    params = state.params if params is None else params
    if self.lora is not None:
      return self.lora.apply(state.frozen['policy'], params)
    return trees.merge(state.frozen['policy'], params)

  def term(self, half: str) -> tuple[float, grpo.GRPO]:
    """Weight and loss of 'policy' (captions) or 'image' (their codes)."""
    if half == 'policy':
      return self.caption_weight, self.loss
    return self.image_weight, self.image_loss


@flax.struct.dataclass
class Half:
  """The captions of a rollout, or the codes after them; L tokens.

  Attributes:
    logp: they were drawn with.
    sampled: False where padded.
    mask: tokens that count in the loss.
    ref: log-probability under the reference, where there is a KL.
    loss_share: of each token in the loss, once it is known what is averaged.
    mean_share: in means over the tokens of `mask`.
    drawn_share: in means over those of `sampled`.
  """

  logp: Float[Array, 'B G L']
  sampled: Bool[Array, 'B G L']
  mask: Bool[Array, 'B G L']
  ref: Float[Array, 'B G L'] | None = None
  loss_share: Float[Array, 'B G L'] | None = None
  mean_share: Float[Array, 'B G L'] | None = None
  drawn_share: Float[Array, 'B G L'] | None = None

  def shared_out(self, aggregation: str) -> 'Half':
    """With the share that each token has in this half as it is."""
    budget = self.mask.shape[-1]
    return self.replace(
      loss_share=grpo.shares(self.mask, aggregation, budget),
      mean_share=grpo.shares(self.mask, 'token', budget),
      drawn_share=grpo.shares(self.sampled, 'token', budget),
    )


def train_step(
  state: TrainState,
  batch: Batch,
  rng: Key[Array, ''],
  *,
  umm: Any,
  optimizer: optax.GradientTransformation,
  options: StepOptions,
) -> tuple[TrainState, Metrics]:
  """One Unified-GRPO step.

  Args:
    state: donated; `params` holds the trained leaves of the policy, or the
      adapters.
    batch: B images.
    rng: this step's key.
    umm: the architecture's five functions.
    optimizer: optax transformation over `params`.
    options: static.

  Returns:
    The next state and scalar metrics. A non-finite update is skipped and
    counted in `state.skipped`.
  """
  draw_rng, order_rng = jax.random.split(rng)
  if options.sees_once:
    batch = umm.see(options.spread(options.policy(state)), batch)
  rollout = roll_out(state, batch, draw_rng, umm=umm, options=options)
  state, batch, rollout = umm.terms.settle((state, batch, rollout))
  return learn(
    state, batch, jax.lax.stop_gradient(rollout), order_rng,
    umm=umm, optimizer=optimizer, options=options,
  )  # fmt: skip


def roll_out(
  state: TrainState,
  batch: Batch,
  rng: Key[Array, ''],
  *,
  umm: Any,
  options: StepOptions,
) -> Rollout:
  """The first half of a step: images to captions, drawings and rewards."""
  policy = options.gathered(options.policy(state))
  frozen = options.frozen(state.frozen)

  def piece(i, batch):
    key = rng if one else jax.random.fold_in(rng, i)
    return umm.rollout(policy, frozen, batch, key, options.group)

  one = chunks.pieces(len(batch.image), options.rollout_size) == 1
  return chunks.map_pieces(piece, options.rollout_size, batch)


def learn(
  state: TrainState,
  batch: Batch,
  rollout: Rollout,
  rng: Key[Array, ''],
  *,
  umm: Any,
  optimizer: optax.GradientTransformation,
  options: StepOptions,
) -> tuple[TrainState, Metrics]:
  """The second half of a step: advantages and updates from one rollout."""
  policy = options.policy(state)
  captions = rollout.captions
  reward, valid = finite_groups(rollout.reward)
  adv, keep, metrics = advantage.group_advantage(
    reward, valid, options.scale, filter_zero_std=options.filter_zero_std
  )
  metrics['reward/failed'] = jnp.sum(~jnp.isfinite(rollout.reward))
  for name, scores in (rollout.scores or {}).items():
    metrics[f'reward/{name}'] = mean_of_valid(scores, valid)
  ended = jnp.any(captions.mask & (captions.tokens == umm.tokens.eos), -1)
  mask = captions.mask & keep[:, None, None]
  if options.mask_truncated:
    mask = mask & ended[..., None]
  halves = {}
  if options.caption_weight:
    halves['policy'] = Half(captions.logp, captions.mask, mask)
  if options.image_weight:
    drawn = jnp.ones(rollout.codes.tokens.shape, bool)
    used = drawn & keep[:, None, None]
    halves['image'] = Half(rollout.codes.logp, drawn, used)
  data = dict(batch=batch, rollout=rollout.replace(images=None), adv=adv)
  score = lambda half, policy, data: _score(umm, half, policy, data)
  for name, half in halves.items():
    if options.term(name)[1].beta:
      start = options.spread(reference(state.frozen, policy))
      with jax.named_scope('reference'):
        ref = chunks.map_pieces(
          lambda _, data, name=name: score(name, start, data)[0],
          options.update_size,
          data,
        )
      halves[name] = half.replace(ref=ref)

  state, updates = _updates(
    state, data | dict(halves=halves), rng, score, optimizer, options
  )
  first = jax.tree.map(lambda x: x[0], updates)
  metrics |= {k: jnp.mean(v) for k, v in updates.items()}
  for name in halves:
    metrics[f'{name}/ratio_max'] = jnp.max(updates[f'{name}/ratio_max'])
  gaps = [first[f'{name}/ratio_gap'] for name in halves]
  metrics['rollout/train_gap'] = jnp.max(jnp.stack(gaps))
  metrics['caption/length'] = jnp.mean(jnp.sum(captions.mask, -1))
  metrics['caption/truncated'] = jnp.mean(~ended)
  metrics['optim/skipped'] = state.skipped  # in a row
  return state.replace(step=state.step + 1), metrics


def _score(umm, half: str, policy, data):
  """Log-probability and entropy of one half's tokens, under its sampler."""
  captions = data['rollout'].captions
  if half == 'policy':
    return umm.score(policy, data['batch'], captions)
  return umm.score_codes(policy, captions, data['rollout'].codes.tokens)


def _updates(state, data, rng, score, optimizer, options):
  """inner_epochs x minibatches updates on one rollout, as one scan."""
  images = data['adv'].shape[0]
  parts = options.minibatches
  keys = jax.random.split(rng, options.inner_epochs)
  order = [jnp.arange(images)] * options.inner_epochs
  if parts > 1:
    order = [jax.random.permutation(k, images) for k in keys]
  order = jnp.stack(order).reshape(options.inner_epochs * parts, -1)

  def loss_of_piece(params, part):
    policy = options.spread(options.policy(state, params))
    total, metrics = 0.0, {}
    for name, half in part['halves'].items():
      weight, loss_options = options.term(name)
      logp, entropy = score(name, policy, part)
      loss, found = grpo.grpo_loss(
        logp, half.logp, half.ref, part['adv'], half.mask, loss_options,
        half.loss_share, half.mean_share,
      )  # fmt: skip
      found['policy/entropy'] = grpo.add_up(
        entropy, half.sampled, half.drawn_share
      )
      total = total + weight * loss
      metrics |= {f'{name}/{k.split("/")[1]}': v for k, v in found.items()}
    return total, metrics

  def update(state, index):
    part = data
    if parts > 1:
      part = jax.tree.map(lambda x: x[index], data)
    part = part | dict(
      halves={
        name: half.shared_out(options.term(name)[1].aggregation)
        for name, half in part['halves'].items()
      }
    )
    return apply_gradient(
      state, loss_of_piece, optimizer, part, options.update_size
    )

  return jax.lax.scan(update, state, order)


def apply_gradient(
  state: TrainState,
  loss_fn: Callable[..., tuple[Array, Metrics]],
  optimizer: optax.GradientTransformation,
  batch: Any,
  size: int = 0,
) -> tuple[TrainState, Metrics]:
  """One optimizer update of `state.params`, skipped when not finite.

  Args:
    state: before.
    loss_fn: (params, batch) -> (loss, metrics); of pieces of the batch where
      there are several, and then losses and metrics add up to those of all,
      but for metrics of `LARGEST`.
    optimizer: over the parameters.
    batch: tree of arrays [B ...].
    size: rows of a data shard in one piece; 0 is all.
  """
  slope = jax.named_scope('gradient')(jax.value_and_grad(loss_fn, has_aux=True))
  n = chunks.pieces(len(jax.tree.leaves(batch)[0]), size)
  if n == 1:
    (loss, metrics), grads = slope(state.params, batch)
  else:

    def add(total, piece):
      (loss, found), grads = slope(state.params, piece)
      total = jax.tree.map(jnp.add, total, (loss, grads))
      return total, found

    zero = (jnp.float32(0), jax.tree.map(jnp.zeros_like, state.params))
    (loss, grads), found = jax.lax.scan(add, zero, chunks.split(batch, n))
    metrics = {
      k: jnp.max(v) if k.endswith(LARGEST) else jnp.sum(v)
      for k, v in found.items()
    }
  with jax.named_scope('optimizer'):
    norm = optax.global_norm(grads)
    ok = jnp.isfinite(loss) & jnp.isfinite(norm)
    old = offload.fetch(state.opt_state)
    updates, opt_state = optimizer.update(grads, old, state.params)
    params = optax.apply_updates(state.params, updates)
    opt_state = trees.select(ok, opt_state, old)
    state = state.replace(
      params=trees.select(ok, params, state.params),
      opt_state=offload.put_back(opt_state, state.opt_state),
      skipped=jnp.where(ok, 0, state.skipped + 1),
    )
  metrics |= {
    'optim/loss': loss,
    'optim/grad_norm': norm,
  }
  return state, metrics


def supervised_step(
  state: TrainState,
  batch: Batch,
  rng: Key[Array, ''],
  *,
  loss_fn: Any,
  optimizer: optax.GradientTransformation,
) -> tuple[TrainState, Metrics]:
  """One gradient step on `loss_fn(params, frozen, batch, rng)`."""
  state, metrics = apply_gradient(
    state,
    lambda params, batch: loss_fn(params, state.frozen, batch, rng),
    optimizer,
    batch,
  )
  metrics['optim/skipped'] = state.skipped  # in a row
  return state.replace(step=state.step + 1), metrics
