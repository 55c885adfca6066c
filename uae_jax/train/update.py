"""One optimizer update: gradient in pieces, skipped where it would harm."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Key

from uae_jax import trees
from uae_jax.sharding import chunks, offload
from uae_jax.train.guard import FINITE, Guard, turn
from uae_jax.types import Batch, Metrics, TrainState

LARGEST = ('ratio_max', 'ratio_gap')  # metrics of which pieces give the most


def apply_gradient(
  state: TrainState,
  loss_fn: Callable[..., tuple[Array, Metrics]],
  optimizer: optax.GradientTransformation,
  batch: Any,
  size: int = 0,
  chosen: Sequence[str] | None = None,
  ema: float = 0.0,
  guard: Guard = FINITE,
) -> tuple[TrainState, Metrics]:
  """One optimizer update of `state.params`, skipped where `guard` says so.

  Args:
    state: before.
    loss_fn: (params, batch) -> (loss, metrics); of pieces of the batch where
      there are several, and then losses and metrics add up to those of all,
      but for metrics of `LARGEST`.
    optimizer: over the parameters.
    batch: tree of arrays [B ...].
    size: rows of a data shard in one piece; 0 is all.
    chosen: parts of the parameters that change; None is all there is.
    ema: decay of the average in `state.ema`, where there is one.
    guard: which updates are made.
  """
  before = state.params
  if chosen is not None:
    before = {part: before[part] for part in chosen}
  slope = jax.named_scope('gradient')(jax.value_and_grad(loss_fn, has_aux=True))
  n = chunks.pieces(len(jax.tree.leaves(batch)[0]), size)
  if n == 1:
    (loss, metrics), grads = slope(before, batch)
  else:

    def add(total, piece):
      (loss, found), grads = slope(before, piece)
      total = jax.tree.map(jnp.add, total, (loss, grads))
      return total, found

    zero = (jnp.float32(0), jax.tree.map(jnp.zeros_like, before))
    (loss, grads), found = jax.lax.scan(add, zero, chunks.split(batch, n))
    metrics = {
      k: jnp.max(v) if k.endswith(LARGEST) else jnp.sum(v)
      for k, v in found.items()
    }
  with jax.named_scope('optimizer'):
    norm = optax.global_norm(grads)
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    seen, name = state.norms, turn(chosen)
    ok, after, found = guard.judge(norm, finite, seen and seen[name])
    old = offload.fetch(state.opt_state)
    updates, opt_state = optimizer.update(grads, old, before)
    params = trees.select(ok, optax.apply_updates(before, updates), before)
    opt_state = trees.select(ok, opt_state, old)
    if chosen is not None:
      params = {**state.params, **params}
    state = state.replace(
      params=params,
      opt_state=offload.put_back(opt_state, state.opt_state),
      skipped=jnp.where(ok, 0, state.skipped + 1),
      norms=seen and {**seen, name: after},
    )
    if state.ema is not None:
      state = state.replace(ema=averaged(state.ema, params, ema))
  metrics |= found | {
    'optim/loss': loss,
    'optim/grad_norm': norm,
  }
  return state, metrics


def averaged(average: Any, params: Any, decay: float) -> Any:
  """decay * average + (1 - decay) * params, in fp32."""
  return jax.tree.map(
    lambda a, p: decay * a + (1 - decay) * p.astype(a.dtype), average, params
  )


def supervised_step(
  state: TrainState,
  batch: Batch,
  rng: Key[Array, ''],
  *,
  loss_fn: Any,
  optimizer: optax.GradientTransformation,
  ema: float = 0.0,
  guard: Guard = FINITE,
) -> tuple[TrainState, Metrics]:
  """One gradient step on `loss_fn(params, frozen, batch, rng)`."""
  state, metrics = apply_gradient(
    state,
    lambda params, batch: loss_fn(params, state.frozen, batch, rng),
    optimizer,
    batch,
    ema=ema,
    guard=guard,
  )
  metrics['optim/skipped'] = state.skipped  # in a row
  return state.replace(step=state.step + 1), metrics
