"""Building a TrainState: split the weights, add the optimizer's moments."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, UInt32

from uae_jax import trees
from uae_jax.sharding import offload
from uae_jax.sharding.fsdp import Spread, spreader
from uae_jax.train.optim import ByPart
from uae_jax.train.parts import MATRICES
from uae_jax.types import TrainState


def create(
  params: Any,
  frozen: Mapping[str, Any],
  optimizer: optax.GradientTransformation | ByPart,
  mesh: Mesh,
  offloaded: bool = False,
  averages: bool = False,
) -> TrainState:
  """Step 0; the optimizer's moments lie where their parameters lie.

  Of shapes alone (`zoo.structs`) it is the shapes of step 0.

  Args:
    params: what is trained.
    frozen: the rest.
    optimizer: over `params`.
    mesh: of both.
    offloaded: the moments wait in the host's memory.
    averages: an average of the parameters is kept, too.
  """
  everywhere = NamedSharding(mesh, P())
  if isinstance(optimizer, ByPart):
    opt_state = {
      part: _moments(params[part], one, everywhere, offloaded)
      for part, one in optimizer.parts.items()
    }
  else:
    opt_state = _moments(params, optimizer, everywhere, offloaded)
  if is_abstract(params):
    zero = lambda: jax.ShapeDtypeStruct((), jnp.int32, sharding=everywhere)
  else:
    zero = lambda: jax.device_put(jnp.int32(0), everywhere)
  ema = None
  if averages:
    ema = params if is_abstract(params) else jax.tree.map(jnp.copy, params)
  return TrainState(zero(), params, opt_state, zero(), dict(frozen), ema)


def _moments(params, optimizer, everywhere, offloaded) -> Any:
  """The optimizer's state, where its parameters are."""
  shapes = jax.eval_shape(optimizer.init, params)
  shardings = optax.tree_map_params(
    optimizer,
    lambda _, sharding: offload.home(sharding) if offloaded else sharding,
    shapes,
    jax.tree.map(lambda x: x.sharding, params),
    transform_non_params=lambda _: everywhere,
  )
  if is_abstract(params):
    return jax.tree.map(placed, shapes, shardings)
  return jax.jit(optimizer.init, out_shardings=shardings)(params)


def is_abstract(tree: Any) -> bool:
  """Are these shapes and no arrays?"""
  return isinstance(jax.tree.leaves(tree)[0], jax.ShapeDtypeStruct)


def placed(x: Any, sharding: Any) -> jax.ShapeDtypeStruct:
  """The shape of `x` under a sharding."""
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


@jax.jit
def digest(state: Any) -> UInt32[Array, '']:
  """A number that is another one if any bit of the state is.

  A sum of all bits by place, modulo 2^32: the same however the arrays are
  spread over devices.
  """
  total = jnp.uint32(0)
  for i, x in enumerate(jax.tree.leaves(offload.fetch(state))):
    bits = jax.lax.bitcast_convert_type(x, f'uint{8 * x.dtype.itemsize}')
    place, stride = jnp.uint32(i), 1
    for axis in reversed(range(x.ndim)):
      along = jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
      place += along * jnp.uint32(stride % 2**32)
      stride *= x.shape[axis]
    # An odd factor loses no bit.
    total += jnp.sum(bits.astype(jnp.uint32) * (2 * place + 1), dtype='uint32')
  return total


def reference_of(params: Any, dtype: Any) -> Any:
  """A copy of what will be trained, its matrices in `dtype`."""

  def one(path, x):
    kind = dtype if re.fullmatch(MATRICES, path) else x.dtype
    if is_abstract(x):
      return jax.ShapeDtypeStruct(x.shape, kind, sharding=x.sharding)
    return jnp.array(x, kind, copy=True)

  return trees.map_with_path(one, params)


def gatherer(
  params: Any, patterns: Sequence[str], dtype: Any = None
) -> Callable[[Any], Any]:
  """What makes the copy of parameters that are read many times in a rollout.

  Sampling runs a language model once per token, a VAE once per few drawings.
  Where matrices are spread over the data axis they would travel every time;
  so they are put together once per rollout, and only the model axis still
  splits them.

  Args:
    params: placed parameters (arrays or shapes).
    patterns: regexes of the parameters that are read so often.
    dtype: of the activations; None leaves every matrix in its own.
  """
  matrices = [f'(?={MATRICES}$){pattern}' for pattern in patterns]
  chosen = trees.flatten(trees.mask(params, matrices))
  mesh = jax.tree.leaves(params)[0].sharding.mesh
  spread = spreader(params, matrices)

  def gather(path, x):
    if isinstance(x, Spread):
      return x.everywhere(mesh, dtype or x.value.dtype)
    return x.astype(dtype or x.dtype) if chosen[path] else x

  return lambda params: trees.map_with_path(gather, spread(params))


def split_part(
  tree: Any, key: str, trainable: Sequence[str]
) -> tuple[Any, Any]:
  """(trained leaves, the rest) of the policy or the decoder.

  Raises:
    ValueError: when the patterns, of the config's `key`, match nothing.
  """
  params, rest = trees.split(tree, trainable)
  if not params:
    raise ValueError(f'{key}={list(trainable)} matches no parameter')
  return params, rest
