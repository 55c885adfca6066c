"""Building a TrainState: split the weights, add the optimizer's moments."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from uae_jax import trees
from uae_jax.types import TrainState


def create(
  params: Any,
  frozen: Mapping[str, Any],
  optimizer: optax.GradientTransformation,
  mesh: Mesh,
) -> TrainState:
  """Step 0; the optimizer's moments lie where their parameters lie."""
  everywhere = NamedSharding(mesh, P())
  shardings = optax.tree_map_params(
    optimizer,
    lambda _, sharding: sharding,
    jax.eval_shape(optimizer.init, params),
    jax.tree.map(lambda x: x.sharding, params),
    transform_non_params=lambda _: everywhere,
  )
  opt_state = jax.jit(optimizer.init, out_shardings=shardings)(params)
  zero = lambda: jax.device_put(jnp.int32(0), everywhere)
  return TrainState(zero(), params, opt_state, zero(), dict(frozen))


def split_policy(policy: Any, trainable: Sequence[str]) -> tuple[Any, Any]:
  """(trained leaves, the rest).

  Raises:
    ValueError: when the patterns match nothing.
  """
  params, rest = trees.split(policy, trainable)
  if not params:
    raise ValueError(f'train.trainable={list(trainable)} matches no parameter')
  return params, rest
