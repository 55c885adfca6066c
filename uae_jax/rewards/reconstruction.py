"""The reward: how close a reconstruction is to its source, in a tower's eyes.

R[b, g] = sum_k w_k cos(f_k(x[b]), f_k(x~[b, g])), all in fp32.
"""

from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from uae_jax.errors import UserError
from uae_jax.rewards.features import unit


def similarity(
  source: Float[Array, 'B E'], recon: Float[Array, 'B G E']
) -> Float[Array, 'B G']:
  """Cosine of each reconstruction's embedding with its source's.

  A sum of products, not a matmul: accelerators round matmul inputs.
  """
  return jnp.sum(unit(source)[:, None] * unit(recon), -1)


def ensemble(
  scores: Mapping[str, Float[Array, 'B G']], weights: Mapping[str, float]
) -> Float[Array, 'B G']:
  """Weighted sum of the towers' scores.

  Raises:
    UserError: when the towers and the weights do not have the same names.
  """
  if not scores or set(scores) != set(weights):
    raise UserError(
      f'reward weights are for {sorted(weights)} but the towers are '
      f'{sorted(scores)}: give every tower one weight'
    )
  return sum(weights[k] * scores[k] for k in sorted(scores))


def standardised(
  scores: Float[Array, 'B G'], zero: float = 1e-5
) -> Float[Array, 'B G']:
  """(score - group mean) / group std; 0 in a group without variance.

  Args:
    scores: of a tower.
    zero: as for advantages, a std of so little of the largest |score| is
      rounding.
  """
  centred = scores - jnp.mean(scores, -1, keepdims=True)
  std = jnp.sqrt(jnp.mean(centred**2, -1, keepdims=True))
  flat = std <= zero * jnp.max(jnp.abs(scores), -1, keepdims=True)
  return jnp.where(flat, 0.0, centred / jnp.where(flat, 1.0, std))


def finite_groups(
  reward: Float[Array, 'B G'],
) -> tuple[Float[Array, 'B G'], Bool[Array, 'B']]:
  """Zeros every group that holds a NaN or an infinity.

  Returns:
    The reward, and True where the whole group is finite.
  """
  valid = jnp.all(jnp.isfinite(reward), -1)
  return jnp.where(valid[:, None], reward, 0.0), valid


def mean_of_valid(
  scores: Float[Array, 'B G'], valid: Bool[Array, 'B']
) -> Float[Array, '']:
  """Mean over the groups that are valid; 0 where none is."""
  kept = jnp.where(valid[:, None], scores, 0.0)
  return jnp.sum(kept) / jnp.maximum(jnp.sum(valid) * scores.shape[-1], 1)
