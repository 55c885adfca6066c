"""Drawing with chance: some steps of the flow are drawn by the SDE, and scored.

What Flow-GRPO trains, https://arxiv.org/abs/2505.05470; a window of steps
instead of all is its Fast variant, as in MixGRPO,
https://arxiv.org/abs/2507.21802. The step before and after the window follow
the ODE, and so does the last one, which ends without noise. Letters: N images,
T steps, W steps of the window; h, w, C shape of a latent.
"""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from uae_jax.errors import UserError
from uae_jax.rollout.flow import FlowSchedule, ode_step, sde_step
from uae_jax.rollout.paint import Velocity, guided_velocity, joined


@dataclasses.dataclass(frozen=True)
class Walk:
  """How much chance there is, and when.

  Attributes:
    level: of the noise; see `flow.sde_step`.
    window: steps W, of the first T - 1.
  """

  level: float
  window: int

  def check(self, schedule: FlowSchedule) -> None:
    """Raises UserError where the window does not fit the schedule."""
    most = schedule.steps - 1
    if not 1 <= self.window <= most:
      raise UserError(
        f'flow.window={self.window} is not in 1..{most}: the last of '
        f'{schedule.steps} steps has no noise; raise rollout.draw_steps'
      )
    if self.level <= 0:
      raise UserError(f'flow.noise={self.level} must be above 0')


@flax.struct.dataclass
class Trajectory:
  """The window of a drawing, with what it was drawn from.

  Attributes:
    x: at the levels of the window, fp32 [N W+1 h w C].
    logp: each step was drawn with, fp32 [N W].
    start: the first step of the window.
    cond: conditioning, a tree with leading axis N.
    unconditional: likewise, where there is guidance.
  """

  x: Float[Array, 'N W1 h w C']
  logp: Float[Array, 'N W']
  start: Int[Array, 'N']
  cond: Any
  unconditional: Any = None


def draw(
  velocity_fn: Velocity,
  noise: Float[Array, 'N h w C'],
  chance: Float[Array, 'N W h w C'],
  start: Int[Array, 'N'],
  conditioning: Any,
  schedule: FlowSchedule,
  walk: Walk,
  guidance: float = 1.0,
  unconditional: Any = None,
) -> tuple[Float[Array, 'N h w C'], Trajectory]:
  """Follows the flow from `noise` to an image, by chance in the window.

  Args:
    velocity_fn: the model; it sees x in the dtype of `noise`.
    noise: x at level 1.
    chance: unit noise of the window's steps.
    start: the first step of the window.
    conditioning: tree of arrays with leading axis N.
    schedule: noise levels.
    walk: the window and its noise.
    guidance: see `paint.paint`.
    unconditional: likewise.

  Returns:
    x at level 0, fp32, and the window.
  """
  rows = joined(conditioning, unconditional, guidance)
  sigmas = jnp.asarray(schedule.sigmas())
  size = walk.window

  def step(x, i):
    sigma, sigma_next = sigmas[i], sigmas[i + 1]
    v = guided_velocity(
      velocity_fn, x.astype(noise.dtype), sigma, rows, guidance
    )
    eps = _at(chance, jnp.clip(i - start, 0, size - 1))
    drawn = sde_step(
      x, v, sigma, sigma_next, level=walk.level, top=sigmas[1], noise=eps
    )
    inside = (i >= start) & (i < start + size)
    flow = ode_step(x, v, sigma, sigma_next)
    after = jnp.where(_wide(inside, x), drawn.x, flow)
    return after, (x, drawn.logp)

  x = noise.astype(jnp.float32)
  end, (xs, logp) = jax.lax.scan(step, x, jnp.arange(schedule.steps))
  xs = jnp.swapaxes(jnp.concatenate([xs, end[None]]), 0, 1)
  cut = jax.vmap(jax.lax.dynamic_slice_in_dim, (0, 0, None))
  path = Trajectory(
    cut(xs, start, size + 1), cut(jnp.swapaxes(logp, 0, 1), start, size),
    start, conditioning, unconditional,
  )  # fmt: skip
  return end, path


def score(
  velocity_fn: Velocity,
  path: Trajectory,
  schedule: FlowSchedule,
  walk: Walk,
  dtype: Any,
  guidance: float = 1.0,
) -> tuple[Float[Array, 'N W'], Float[Array, 'N W h w C']]:
  """Log-probability of every step of a window, by the formula that drew it.

  Args:
    velocity_fn: the model.
    path: drawn by `draw`.
    schedule: as `draw` had it.
    walk: likewise.
    dtype: the model sees x in it.
    guidance: likewise.

  Returns:
    Log-probabilities, and the means of the steps in units of their standard
    deviations, which `kl` compares.
  """
  rows = joined(path.cond, path.unconditional, guidance)
  sigmas = jnp.asarray(schedule.sigmas())

  def step(_, k):
    sigma, sigma_next = (sigmas[path.start + k + j] for j in (0, 1))
    x, following = (jnp.take(path.x, k + j, axis=1) for j in (0, 1))
    v = guided_velocity(velocity_fn, x.astype(dtype), sigma, rows, guidance)
    found = sde_step(
      x, v, _wide(sigma, x), _wide(sigma_next, x), level=walk.level,
      top=sigmas[1], following=following,
    )  # fmt: skip
    return None, (found.logp, found.mean / found.std)

  _, (logp, mean) = jax.lax.scan(step, None, jnp.arange(walk.window))
  return jnp.swapaxes(logp, 0, 1), jnp.swapaxes(mean, 0, 1)


def _at(x: Array, i: Array) -> Array:
  """x[n, i[n]] for all n."""
  return jax.vmap(lambda row, j: jnp.take(row, j, axis=0))(x, i)


def _wide(value: Array, x: Array) -> Array:
  """A number of each row, beside the dimensions of x."""
  return value.reshape(-1, *[1] * (x.ndim - 1))


def kl(
  mean: Float[Array, 'N W *d'], other: Float[Array, 'N W *d']
) -> Float[Array, 'N W']:
  """KL of steps of one variance, the mean over the dimensions *d.

  Args:
    mean: in units of the standard deviation.
    other: of the reference, likewise.
  """
  axes = tuple(range(2, mean.ndim))
  return jnp.mean((mean - other) ** 2, axes) / 2
