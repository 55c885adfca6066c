"""Which updates are made: those that are finite and no larger than usual."""

import dataclasses
from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from uae_jax.errors import UserError
from uae_jax.train.state import is_abstract
from uae_jax.types import Metrics, TrainState

FIRST = 10  # updates before an average says what is usual
RATE = 0.05  # of an update in the average, later on


@flax.struct.dataclass
class Norms:
  """The gradient norms of the updates so far."""

  mean: Float[Array, '']
  count: Int[Array, '']


@dataclasses.dataclass(frozen=True)
class Guard:
  """Skips updates inside of a step; costs no program and no wait of its own.

  Attributes:
    spike: an update whose gradient norm is more than so many times the
      average is skipped; 0: only what is not finite.
  """

  spike: float = 0.0

  def watch(self, state: TrainState, turns: Sequence[str]) -> TrainState:
    """A state that counts norms, of each turn by itself, where they count.

    Args:
      state: step 0, or its shapes.
      turns: names, see `turn`.
    """
    if not self.spike:
      return state
    home = state.skipped.sharding

    def zero(dtype):
      if is_abstract(state.params):
        return jax.ShapeDtypeStruct((), dtype, sharding=home)
      return jax.device_put(jnp.zeros((), dtype), home)

    norms = {
      name: Norms(zero(jnp.float32), zero(jnp.int32)) for name in set(turns)
    }
    return state.replace(norms=norms)

  def judge(
    self, norm: Array, finite: Array, seen: Norms | None
  ) -> tuple[Bool[Array, ''], Norms | None, Metrics]:
    """Is an update made?

    A spike counts in the average as the largest norm that is none, so that
    gradients that stay large are let through after a while.

    Args:
      norm: of the gradient.
      finite: whether loss and norm are.
      seen: norms before.

    Returns:
      The answer, the norms with this one, metrics.
    """
    spike = jnp.zeros((), bool)
    if seen is not None:
      most = jnp.where(seen.count >= FIRST, self.spike * seen.mean, jnp.inf)
      spike = finite & (norm > most)
      counts = finite & (norm > 0)  # no group had any variance
      rate = jnp.maximum(1 / (seen.count + 1), RATE)
      mean = seen.mean + rate * (jnp.minimum(norm, most) - seen.mean)
      seen = Norms(
        jnp.where(counts, mean, seen.mean), seen.count + counts.astype(int)
      )
    metrics = {
      'guard/not_finite': 1.0 - finite.astype(jnp.float32),
      'guard/spike': spike.astype(jnp.float32),
    }
    return finite & ~spike, seen, metrics


FINITE = Guard()  # skips nothing else


def turn(parts: Sequence[str] | None) -> str:
  """The name of a turn that changes these parts; None: all there are."""
  return 'all' if parts is None else '+'.join(parts)


def check(config) -> None:
  """Raises UserError for a guard that makes no sense."""
  if config.guard.spike and not config.guard.spike > 1:
    raise UserError(
      f'guard.spike={config.guard.spike} must be above 1, or 0 for none'
    )
