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
from uae_jax.rollout.paint import Velocity, guided_velocity


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
    start: the first step of the window, [N], the same for all.
  """

  x: Float[Array, 'N W1 h w C']
  logp: Float[Array, 'N W']
  start: Int[Array, 'N']


def draw(
  velocity_fn: Velocity,
  noise: Float[Array, 'N h w C'],
  chance: Float[Array, 'N W h w C'],
  start: Int[Array, 'N'],
  conditioning: Any,
  schedule: FlowSchedule,
  walk: Walk,
  guidance: float = 1.0,
) -> tuple[Float[Array, 'N h w C'], Trajectory]:
  """Follows the flow from `noise` to an image, by chance in the window.

  Args:
    velocity_fn: the model; it sees x in the dtype of `noise`.
    noise: x at level 1.
    chance: unit noise of the window's steps.
    start: the first step of the window, the same for all.
    conditioning: tree of arrays with leading axis N; 2N with guidance,
      unconditional rows first.
    schedule: noise levels.
    walk: the window and its noise.
    guidance: see `paint.guided_velocity`.

  Returns:
    x at level 0, fp32, and the window.
  """
  sigmas = jnp.asarray(schedule.sigmas())
  top = float(schedule.sigmas()[1])
  first, size = start[0], walk.window

  def step(x, i):
    sigma, sigma_next = sigmas[i], sigmas[i + 1]
    v = guided_velocity(
      velocity_fn, x.astype(noise.dtype), sigma, conditioning, guidance
    )
    inside = (i >= first) & (i < first + size)
    eps = jnp.take(chance, jnp.clip(i - first, 0, size - 1), axis=1)
    drawn = sde_step(
      x, v, sigma, sigma_next, level=walk.level, top=top, noise=eps
    )
    after = jnp.where(inside, drawn.x, ode_step(x, v, sigma, sigma_next))
    return after, (x, drawn.logp)

  x = noise.astype(jnp.float32)
  end, (xs, logp) = jax.lax.scan(step, x, jnp.arange(schedule.steps))
  xs = jnp.concatenate([xs, end[None]])
  cut = lambda x, n: jnp.swapaxes(
    jax.lax.dynamic_slice_in_dim(x, first, n), 0, 1
  )
  return end, Trajectory(cut(xs, size + 1), cut(logp, size), start)


def score(
  velocity_fn: Velocity,
  path: Trajectory,
  conditioning: Any,
  schedule: FlowSchedule,
  walk: Walk,
  dtype: Any,
  guidance: float = 1.0,
) -> tuple[Float[Array, 'N W'], Float[Array, 'N W h w C']]:
  """Log-probability of every step of a window, by the formula that drew it.

  Args:
    velocity_fn: the model.
    path: drawn by `draw`.
    conditioning: as `draw` had it.
    schedule: likewise.
    walk: likewise.
    dtype: the model sees x in it.
    guidance: likewise.

  Returns:
    Log-probabilities, and the means of the steps in units of their standard
    deviations: half the squared distance of two models' is their KL.
  """
  sigmas = jnp.asarray(schedule.sigmas())
  top = float(schedule.sigmas()[1])

  def step(_, k):
    i = path.start[0] + k
    sigma, sigma_next = sigmas[i], sigmas[i + 1]
    x, following = (jnp.take(path.x, j, axis=1) for j in (k, k + 1))
    v = guided_velocity(
      velocity_fn, x.astype(dtype), sigma, conditioning, guidance
    )
    found = sde_step(
      x, v, sigma, sigma_next, level=walk.level, top=top, following=following
    )
    return None, (found.logp, found.mean / found.std)

  _, (logp, mean) = jax.lax.scan(step, None, jnp.arange(walk.window))
  return jnp.swapaxes(logp, 0, 1), jnp.swapaxes(mean, 0, 1)


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
