"""Rectified flow: schedules of noise levels, ODE and SDE steps, targets.

x_t = (1 - t) x_0 + t noise, velocity v = noise - x_0, t in [0, 1]
(Esser et al. 2024, https://arxiv.org/abs/2403.03206). Noise levels are those
of diffusers `FlowMatchEulerDiscreteScheduler`; the SDE that has the ODE's
marginals is Flow-GRPO's, https://arxiv.org/abs/2505.05470, eq. 9 and 10.
Letters: N images, T steps.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from uae_jax.errors import UserError

TIMES = 1000  # the models read t * TIMES
KINDS = ('uniform', 'sd3', 'flux')


@dataclasses.dataclass(frozen=True)
class FlowSchedule:
  """The noise levels of T Euler steps.

  Attributes:
    steps: T.
    shift: time shift; more than 1 spends more steps at high noise.
    kind: 'uniform' shifts T equal steps once; 'sd3' shifts twice, as the SD3
      pipelines of diffusers do; 'flux' shifts by `tokens` instead of `shift`.
    tokens: image tokens P of a drawing, for 'flux'.
  """

  steps: int
  shift: float = 1.0
  kind: str = 'uniform'
  tokens: int = 4096

  def __post_init__(self):
    if self.steps < 1 or self.shift <= 0:
      raise UserError(f'{self}: set steps >= 1 and shift > 0')
    if self.kind not in KINDS:
      raise UserError(f'{self}: kind is one of {KINDS}')

  def sigmas(self) -> Float[np.ndarray, 'T1']:
    """T + 1 levels from 1 down to 0, float32."""
    if self.kind == 'sd3':
      return sigmas_sd3(self.steps, self.shift)
    if self.kind == 'flux':
      levels = np.append(np.linspace(1.0, 1 / self.steps, self.steps), 0.0)
      return shifted(levels, dynamic_shift(self.tokens)).astype(np.float32)
    levels = np.linspace(1.0, 0.0, self.steps + 1)
    return shifted(levels, self.shift).astype(np.float32)


def shifted(t, shift: float):
  """Moves times towards 1 where shift > 1; keeps 0 and 1."""
  return shift * t / (1 + (shift - 1) * t)


def dynamic_shift(tokens: int) -> float:
  """FLUX.1-dev's shift: exp(0.5) at 256 image tokens, exp(1.15) at 4096."""
  slope = (1.15 - 0.5) / (4096 - 256)
  return float(np.exp(0.5 + slope * (tokens - 256)))


def sigmas_sd3(steps: int, shift: float = 3.0) -> Float[np.ndarray, 'T1']:
  """T + 1 levels of SD3: shifted at construction and once more when set."""
  first, last = shifted(1.0, shift), shifted(1.0 / TIMES, shift)
  levels = np.linspace(first * TIMES, last * TIMES, steps) / TIMES
  return np.append(shifted(levels, shift), 0.0).astype(np.float32)


def ode_step(
  x: Float[Array, 'N *d'],
  v: Float[Array, 'N *d'],
  sigma: Float[Array, ''],
  sigma_next: Float[Array, ''],
) -> Float[Array, 'N *d']:
  """One Euler step from level `sigma` to `sigma_next`, in fp32."""
  f32 = jnp.float32
  return x.astype(f32) + (sigma_next - sigma) * v.astype(f32)


class SDEStep(NamedTuple):
  """A step as drawn or scored: N(mean, std^2) at each dimension.

  Attributes:
    x: where it leads, fp32 [N *d].
    logp: of x, the mean over the dimensions *d, fp32 [N].
    mean: fp32 [N *d].
    std: fp32, as sigma.
  """

  x: Array
  logp: Array
  mean: Array
  std: Array


def sde_step(
  x: Float[Array, 'N *d'],
  v: Float[Array, 'N *d'],
  sigma: Float[Array, '*N'],
  sigma_next: Float[Array, '*N'],
  *,
  level: float,
  top: float | Float[Array, ''],
  noise: Float[Array, 'N *d'] | None = None,
  following: Float[Array, 'N *d'] | None = None,
) -> SDEStep:
  """One step that is drawn with `noise`, or scored at what is `following`.

  With s = level sqrt(t / (1 - t)) the drift is
  v + s^2 / (2 t) (x + (1 - t) v), and s^2 (t - t') the variance. At t = 1,
  where s diverges, `top` stands for t in s; the drift keeps the marginals for
  any s. A step to t' = 0 leaves noise in the image: take `ode_step` there.

  Args:
    x: at level `sigma`.
    v: the velocity there.
    sigma: t, in (0, 1]; one for all, or [N 1 1 ...].
    sigma_next: t' < t, likewise.
    level: 0 would be the ODE; Flow-GRPO uses 0.7.
    top: the largest t < 1 of the schedule.
    noise: of unit variance.
    following: x at level `sigma_next`.
  """
  x, v = x.astype(jnp.float32), v.astype(jnp.float32)
  below = jnp.minimum(sigma, top)
  s = level * jnp.sqrt(below / (1 - below))
  drift = v + s**2 / (2 * sigma) * (x + (1 - sigma) * v)
  step = sigma - sigma_next
  mean, std = x - step * drift, s * jnp.sqrt(step)
  if following is None:
    following = jax.lax.stop_gradient(mean + std * noise)
  z = (following - mean) / std
  axes = tuple(range(1, x.ndim))
  logp = jnp.mean(-(z**2) / 2 - jnp.log(std * np.sqrt(2 * np.pi)), axes)
  return SDEStep(following, logp, mean, std)


def noised(
  x0: Float[Array, 'N *d'], noise: Float[Array, 'N *d'], t: Float[Array, 'N']
) -> Float[Array, 'N *d']:
  """x_t = (1 - t) x_0 + t noise."""
  t = t.reshape(-1, *[1] * (x0.ndim - 1))
  return (1 - t) * x0 + t * noise


def velocity_target(
  x0: Float[Array, 'N *d'], noise: Float[Array, 'N *d']
) -> Float[Array, 'N *d']:
  """dx/dt along the straight line from x_0 to the noise."""
  return noise - x0


def sample_t(
  rng: Key[Array, ''],
  n: int,
  *,
  mean: float = 0.0,
  std: float = 1.0,
  shift: float = 1.0,
) -> Float[Array, 'N']:
  """Training times in (0, 1): logit(t) ~ N(mean, std^2), then shifted."""
  t = jax.nn.sigmoid(mean + std * jax.random.normal(rng, (n,)))
  return shifted(t, shift)
