"""Trees that lie in the memory of the host until they are needed.

`memory.offload` names them. A step fetches what it reads and puts back what it
writes; on a device they take no room in between.
"""

from typing import Any

import jax
from jax.sharding import NamedSharding

from uae_jax.errors import UserError

KNOWN = ('optimizer', 'reference')
HOST = 'pinned_host'


def parse(names: str) -> tuple[str, ...]:
  """'optimizer,reference' -> its parts.

  Raises:
    UserError: one of them is none of `KNOWN`.
  """
  found = tuple(filter(None, names.split(',')))
  bad = [name for name in found if name not in KNOWN]
  if bad:
    raise UserError(f'memory.offload={names!r}: {bad} is none of {KNOWN}')
  return found


def home(sharding: NamedSharding) -> NamedSharding:
  """The same sharding, in the host's memory.

  Raises:
    UserError: these devices cannot reach it.
  """
  try:
    return sharding.with_memory_kind(HOST)
  except ValueError:
    kind = sharding.mesh.devices.flat[0].device_kind
    raise UserError(f"memory.offload: {kind} has no '{HOST}' memory") from None


def put(tree: Any) -> Any:
  """Arrays or shapes, moved to the host."""

  def one(x):
    if isinstance(x, jax.ShapeDtypeStruct):
      return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=home(x.sharding))
    return jax.device_put(x, home(x.sharding))

  return jax.tree.map(one, tree)


def fetch(tree: Any) -> Any:
  """Onto the device, inside of a program; what is there stays."""
  device = jax.memory.Space.Device
  return jax.tree.map(
    lambda x: x if _space(x) == device else jax.device_put(x, device), tree
  )


def put_back(tree: Any, like: Any) -> Any:
  """Where `like` lies, inside of a program."""
  return jax.tree.map(
    lambda x, old: (
      x if _space(x) == _space(old) else jax.device_put(x, _space(old))
    ),
    tree,
    like,
  )


def _space(x: Any) -> Any:
  return jax.typeof(x).memory_space
