"""The fused step: rollout, reward, advantage, loss and update, one program.

`train_step(state, batch, rng) -> (state, metrics)` is pure and is jitted once
over the mesh. No text is decoded, no image is written and no array visits
the host inside it.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Key

from uae_jax import trees
from uae_jax.nn import lora as lora_lib
from uae_jax.nn.lora import LoRA
from uae_jax.rewards.reconstruction import finite_groups, mean_of_valid
from uae_jax.rl import advantage, grpo
from uae_jax.rollout import walk
from uae_jax.sharding import chunks
from uae_jax.train.guard import Guard
from uae_jax.train.update import apply_gradient
from uae_jax.types import Batch, Metrics, Rollout, TrainState
from uae_jax.umm.base import reference


@dataclasses.dataclass(frozen=True)
class StepOptions:
  """What Unified-GRPO leaves to choose; see configs/umm1.py for each.

  Attributes:
    group: rollouts G per image.
    inner_epochs: passes over one rollout.
    minibatches: updates per pass; the images are split among them.
    images: that are learnt from, of more that are sampled; those of groups
      without variance are the first to go (DAPO); 0 is all.
    scale: advantage scale, 'std' or 'none'.
    filter_zero_std: leave groups without variance out of the average.
    mask_truncated: leave captions without EOS out of the loss.
    loss: the clipped objective's options, of captions.
    image_loss: the same of image codes, where an architecture draws by them.
    path_loss: the same of denoising steps, where the decoder is trained.
    caption_weight: of the captions' objective; 0 leaves it out.
    image_weight: of the codes' objective, lambda; 0 leaves it out.
    path_weight: of the denoising steps' objective; likewise.
    kl_target: the KL per token that its weight is steered to; 0: it is fixed.
    entropy: weight of the entropy of what is sampled, in its objective.
    ema: decay of the average of the parameters; 0 keeps none.
    guard: which updates are made.
    lora: adapters that are trained in the stead of a part, by part.
    rollout_size: images of a data shard in one rollout; 0 is all. A step
      works through them in pieces, and the loss is that of all together.
    update_size: the same of scoring and of the gradient.
    gathered: policy -> the copy that rollouts read, see `state.gatherer`.
    spread: parts -> as they are scored and learnt, see `sharding.fsdp`.
    frozen: parts that rollouts only read -> as they read them, likewise.
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
  path_loss: grpo.GRPO = grpo.GRPO()
  caption_weight: float = 1.0
  image_weight: float = 0.0
  path_weight: float = 0.0
  images: int = 0
  kl_target: float = 0.0
  entropy: float = 0.0
  ema: float = 0.0
  guard: Guard = Guard()
  lora: Mapping[str, LoRA] = dataclasses.field(default_factory=dict, hash=False)
  rollout_size: int = 0
  update_size: int = 0
  gathered: Callable[[Any], Any] = lambda policy: policy
  spread: Callable[[Any], Any] = lambda parts: parts
  frozen: Callable[[Any], Any] = lambda frozen: frozen
  sees_once: bool = False

  @property
  def trains(self) -> tuple[str, ...]:
    """The parts that a step changes."""
    policy = ('policy',) if self.caption_weight or self.image_weight else ()
    return policy + (('decoder',) if self.path_weight else ())

  def parts(self, state: TrainState, params: Any = None) -> dict[str, Any]:
    """Whole trained parts of a state, or with other trained parameters.

    The policy is always among them.
    """
    params = {'policy': {}, **state.params, **(params or {})}
    return lora_lib.whole(state.frozen, params, self.lora)

  def policy(self, state: TrainState, params: Any = None) -> Any:
    """The whole policy; see `parts`."""
    return self.parts(state, params)['policy']

  def read(self, state: TrainState) -> dict[str, Any]:
    """What is frozen, with the decoder as it is by now."""
    parts = self.parts(state)
    del parts['policy']
    return {**state.frozen, **parts}

  def terms(self) -> dict[str, tuple[float, grpo.GRPO]]:
    """Weight and loss of captions ('policy'), codes and denoising steps."""
    terms = {
      'policy': (self.caption_weight, self.loss),
      'image': (self.image_weight, self.image_loss),
      'decoder': (self.path_weight, self.path_loss),
    }
    return {name: term for name, term in terms.items() if term[0]}


@flax.struct.dataclass
class Half:
  """Captions, the codes after them, or steps of a decoder; L of them.

  Attributes:
    logp: they were drawn with.
    sampled: False where padded.
    mask: tokens that count in the loss.
    ref: log-probability under the reference, where there is a KL; of a
      decoder its means.
    loss_share: of each token in the loss, once it is known what is averaged.
    mean_share: in means over the tokens of `mask`.
    drawn_share: in means over those of `sampled`.
  """

  logp: Float[Array, 'B G L']
  sampled: Bool[Array, 'B G L']
  mask: Bool[Array, 'B G L']
  ref: Array | None = None
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
    state: donated; `params` holds the trained leaves of the policy (or its
      adapters) and of the decoder, by part.
    batch: B images.
    rng: this step's key.
    umm: the architecture's five functions.
    optimizer: optax transformation over `params`.
    options: static.

  Returns:
    The next state and scalar metrics. An update that `options.guard` does
    not let through is counted in `state.skipped`.
  """
  draw_rng, order_rng = jax.random.split(rng)
  if options.sees_once:
    batch = umm.see(options.spread(options.parts(state))['policy'], batch)
  rollout = roll_out(state, batch, draw_rng, umm=umm, options=options)
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
  umm = umm.sized(*batch.image.shape[1:3])
  policy = options.gathered(options.policy(state))
  frozen = options.frozen(options.read(state))

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
  captions = rollout.captions
  reward, valid = finite_groups(rollout.reward)
  adv, keep, metrics = advantage.group_advantage(
    reward, valid, options.scale, filter_zero_std=options.filter_zero_std
  )
  metrics['reward/failed'] = jnp.sum(~jnp.isfinite(rollout.reward))
  for name, scores in (rollout.scores or {}).items():
    metrics[f'reward/{name}'] = mean_of_valid(scores, valid)
  if 0 < options.images < len(adv):
    batch, rollout, adv, keep = telling(
      (batch, rollout, adv, keep), jnp.any(adv != 0, -1), options.images
    )
    captions = rollout.captions
  ended = jnp.any(captions.mask & (captions.tokens == umm.tokens.eos), -1)
  halves = {}
  for name in options.terms():
    half = _half(name, rollout)
    mask = half.mask & keep[:, None, None]
    if name == 'policy' and options.mask_truncated:
      mask = mask & ended[..., None]
    halves[name] = half.replace(mask=mask)
  data = dict(batch=batch, rollout=rollout.replace(images=None), adv=adv)
  score = lambda half, parts, data: _score(umm, half, parts, data)
  parts = options.parts(state)
  for name, half in halves.items():
    if options.terms()[name][1].beta:
      start = options.spread(_reference(name, state.frozen, parts))
      with jax.named_scope('reference'):
        logp, more = chunks.map_pieces(
          lambda _, data, name=name, start=start: score(name, start, data),
          options.update_size,
          data,
        )
      halves[name] = half.replace(ref=more if name == 'decoder' else logp)

  state, updates = _updates(
    state, data | dict(halves=halves), rng, score, optimizer, options
  )
  first = jax.tree.map(lambda x: x[0], updates)
  metrics |= {k: jnp.mean(v) for k, v in updates.items()}
  for name in halves:
    metrics[f'{name}/ratio_max'] = jnp.max(updates[f'{name}/ratio_max'])
  gaps = [first[f'{name}/ratio_gap'] for name in halves]
  metrics['rollout/train_gap'] = jnp.max(jnp.stack(gaps))
  if options.kl_target:
    state = state.replace(
      kl_scale=steered(state.kl_scale, metrics['policy/kl'], options.kl_target)
    )
    metrics['policy/kl_scale'] = state.kl_scale
  metrics['caption/length'] = jnp.mean(jnp.sum(captions.mask, -1))
  metrics['caption/truncated'] = jnp.mean(~ended)
  metrics['optim/skipped'] = state.skipped  # in a row
  return state.replace(step=state.step + 1), metrics


def telling(trees: Any, useful: Bool[Array, 'B'], n: int) -> Any:
  """n images of all, useful ones first, else in their order."""
  chosen = jnp.argsort(~useful, stable=True)[:n]
  return jax.tree.map(lambda x: x[chosen], trees)


def steered(scale: Array, kl: Array, target: float) -> Array:
  """The KL's weight, a little larger where the KL is above its target.

  Ziegler et al. 2019, https://arxiv.org/abs/1909.08593, section 2.2. A KL that
  is not finite leaves it as it is.
  """
  steered = scale * (1 + 0.1 * jnp.clip(kl / target - 1, -0.2, 0.2))
  return jnp.where(jnp.isfinite(kl), steered, scale)


def _half(name: str, rollout: Rollout) -> Half:
  """What was drawn of one half, all of which counts."""
  if name == 'policy':
    return Half(rollout.captions.logp, *[rollout.captions.mask] * 2)
  logp = rollout.codes.logp if name == 'image' else rollout.path.logp
  return Half(logp, *[jnp.ones(logp.shape, bool)] * 2)


def _reference(name: str, frozen, parts) -> dict[str, Any]:
  """The parts as they were before training, as far as a half reads them."""
  if name == 'decoder':
    start = frozen['decoder']  # without its adapters, where it has some
    if 'reference_decoder' in frozen:
      start = trees.merge(parts['decoder'], frozen['reference_decoder'])
    return {**parts, 'decoder': start}
  return {**parts, 'policy': reference(frozen, parts['policy'])}


def _score(umm, half: str, parts, data) -> tuple[Array, Array]:
  """Log-probability of what was drawn; entropy, or a decoder's means."""
  captions, path = data['rollout'].captions, data['rollout'].path
  if half == 'policy':
    return umm.score(parts['policy'], data['batch'], captions)
  if half == 'decoder':
    return umm.score_path(parts['decoder'], path)
  codes = data['rollout'].codes.tokens
  return umm.score_codes(parts['policy'], captions, codes)


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
    parts = options.spread(options.parts(state, params))
    total, metrics = 0.0, {}
    for name, half in part['halves'].items():
      weight, loss_options = options.terms()[name]
      logp, more = score(name, parts, part)
      ref, kl = half.ref, None
      if name == 'decoder' and ref is not None:
        ref, kl = None, jax.vmap(walk.kl)(more, ref)
      loss, found = grpo.grpo_loss(
        logp, half.logp, ref, part['adv'], half.mask, loss_options,
        half.loss_share, half.mean_share, kl,
        state.kl_scale if name == 'policy' and options.kl_target else 1.0,
      )  # fmt: skip
      if name != 'decoder':
        entropy = grpo.add_up(more, half.sampled, half.drawn_share)
        found['policy/entropy'] = jax.lax.stop_gradient(entropy)
        if options.entropy:
          loss = loss - options.entropy * entropy
      total = total + weight * loss
      metrics |= {f'{name}/{k.split("/")[1]}': v for k, v in found.items()}
    return total, metrics

  def update(state, index):
    part = data
    if parts > 1:
      part = jax.tree.map(lambda x: x[index], data)
    part = part | dict(
      halves={
        name: half.shared_out(options.terms()[name][1].aggregation)
        for name, half in part['halves'].items()
      }
    )
    return apply_gradient(
      state, loss_of_piece, optimizer, part, options.update_size,
      options.trains, options.ema, options.guard,
    )  # fmt: skip

  return jax.lax.scan(update, state, order)
