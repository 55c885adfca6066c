"""Painting: noise -> image, a scan of ODE steps with or without guidance.

Classifier-free guidance: Ho & Salimans 2022,
https://arxiv.org/abs/2207.12598. Letters: N images, T steps; h, w, C shape of
a latent.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from uae_jax.rollout.flow import TIMES, FlowSchedule, ode_step

# (x [N h w C], t [N] in 0..1000, conditioning) -> velocity [N h w C]
Velocity = Callable[[Array, Array, Any], Array]


def paint(
  velocity_fn: Velocity,
  noise: Float[Array, 'N h w C'],
  conditioning: Any,
  schedule: FlowSchedule,
  guidance: float = 1.0,
  unconditional: Any = None,
) -> Float[Array, 'N h w C']:
  """Follows the flow from `noise` to an image.

  Args:
    velocity_fn: the model; it sees x in the dtype of `noise`.
    noise: x at level 1.
    conditioning: tree of arrays with leading axis N.
    schedule: noise levels.
    guidance: w in v_u + w (v_c - v_u); 1 is off and costs one pass.
    unconditional: tree like `conditioning`; needed unless guidance is 1.

  Returns:
    x at level 0, fp32.

  Raises:
    ValueError: guidance without `unconditional`.
  """
  conditioning = joined(conditioning, unconditional, guidance)
  sigmas = jnp.asarray(schedule.sigmas())

  def step(x, levels):
    sigma, sigma_next = levels
    v = guided_velocity(
      velocity_fn, x.astype(noise.dtype), sigma, conditioning, guidance
    )
    return ode_step(x, v, sigma, sigma_next), None

  start = noise.astype(jnp.float32)
  return jax.lax.scan(step, start, (sigmas[:-1], sigmas[1:]))[0]


def joined(conditioning: Any, unconditional: Any, guidance: float) -> Any:
  """Rows for `guided_velocity`.

  Raises:
    ValueError: guidance without `unconditional`.
  """
  if guidance == 1:
    return conditioning
  if unconditional is None:
    raise ValueError('guidance needs the unconditional conditioning')
  return jax.tree.map(
    lambda u, c: jnp.concatenate([u, c]), unconditional, conditioning
  )


def guided_velocity(
  velocity_fn: Velocity,
  x: Float[Array, 'N h w C'],
  sigma: Float[Array, '*N'],
  conditioning: Any,
  guidance: float,
) -> Float[Array, 'N h w C']:
  """Velocity at one level for all images, or at one for each.

  Guided in one batched pass: with guidance the leading axis of `conditioning`
  is 2N, unconditional rows first.
  """
  t = jnp.broadcast_to(sigma * TIMES, len(x))
  if guidance == 1:
    return velocity_fn(x, t, conditioning)
  v = velocity_fn(
    jnp.concatenate([x, x]), jnp.concatenate([t, t]), conditioning
  )
  without, with_ = jnp.split(v.astype(jnp.float32), 2)
  return without + guidance * (with_ - without)
