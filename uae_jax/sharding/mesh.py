"""The ('data', 'model') device mesh; `data` doubles as the FSDP axis."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from uae_jax.errors import UserError


def cache_folder() -> str:
  """Where compiled programs are kept: ~/.cache/uae_jax if not told."""
  return os.environ.get(
    'JAX_COMPILATION_CACHE_DIR', str(Path.home() / '.cache' / 'uae_jax')
  )


def use_compilation_cache() -> None:
  """Keeps compiled programs between runs, in `cache_folder`."""
  jax.config.update('jax_compilation_cache_dir', cache_folder())
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 2)


def make_mesh(data: int, model: int, devices: Sequence[Any] = ()) -> Mesh:
  """A data x model mesh over all devices; -1 for `data` fills up.

  TPUs are taken in the order of their places on the torus, slices first, so
  that neighbours on the model axis are neighbours there, and the data axis is
  made of straight lines.

  Args:
    data: rows of devices.
    model: devices in a row.
    devices: other than those of this run.

  Raises:
    UserError: when data * model is not the number of devices.
  """
  devices = list(devices or jax.devices())
  n = len(devices)
  if data == -1 and model > 0 and n % model == 0:
    data = n // model
  if data * model != n:
    raise UserError(
      f'mesh.data={data} x mesh.model={model} does not cover {n} devices: '
      f'set mesh.data=-1 or a product of {n}'
    )
  if all(hasattr(d, 'coords') for d in devices):
    devices.sort(key=_place)
  grid = np.asarray(devices).reshape(data, model)
  return Mesh(grid, ('data', 'model'), axis_types=(AxisType.Auto,) * 2)


def _place(device: Any) -> tuple[int, ...]:
  """Slice, coordinates on its torus, core."""
  piece = device.slice_index if hasattr(device, 'slice_index') else 0
  core = device.core_on_chip if hasattr(device, 'core_on_chip') else 0
  return (piece, *device.coords, core)


def lines(mesh: Mesh) -> tuple[tuple[int, ...], bool]:
  """Straight lines of devices that make up the data axis.

  Returns:
    Their lengths, the outermost first, and whether that one leads through
    several slices. One line where there is no torus.
  """
  row = list(mesh.devices[:, 0])
  if not all(hasattr(d, 'coords') for d in row):
    return (len(row),), False
  places = zip(*map(_place, row), strict=True)
  sizes = [len(set(along)) for along in places]
  if np.prod(sizes) != len(row):
    return (len(row),), False
  return tuple(n for n in sizes if n > 1) or (1,), sizes[0] > 1


def check_batch(images: int, mesh: Mesh) -> None:
  """Raises UserError unless the batch divides over the data axis."""
  size = mesh.shape['data']
  if images % size:
    raise UserError(
      f'{images} images do not divide over mesh.data={size}: '
      'change train.images or mesh.data'
    )


def rows_here(n: int, mesh: Mesh) -> list[int]:
  """The rows of a global batch of `n` that this host's devices hold."""
  sharding = NamedSharding(mesh, P('data'))
  cuts = sharding.addressable_devices_indices_map((n,)).values()
  return sorted({i for (cut,) in cuts for i in range(*cut.indices(n))})


def put_batch(batch, mesh: Mesh):
  """This host's rows -> global arrays sharded over `data`.

  The rows are those of `rows_here`, in that order.
  """
  sharding = NamedSharding(mesh, P('data'))

  def put(x):
    x = np.asarray(x)
    if jax.process_count() == 1:
      return jax.device_put(x, sharding)
    n = len(x) * mesh.shape['data'] // rows
    at = {row: i for i, row in enumerate(rows_here(n, mesh))}
    local = lambda index: x[[at[i] for i in range(*index[0].indices(n))]]
    return jax.make_array_from_callback((n, *x.shape[1:]), sharding, local)

  rows = len(rows_here(mesh.shape['data'], mesh))  # of the data axis
  return jax.tree.map(put, batch)


def put_whole(batch, mesh: Mesh):
  """Rows that every host has all of -> global arrays sharded over `data`."""
  sharding = NamedSharding(mesh, P('data'))
  return put_tree(batch, jax.tree.map(lambda _: sharding, batch))


def put_tree(tree, shardings):
  """Places host arrays (the same on every host) under their shardings."""

  def put(x, sharding):
    if jax.process_count() == 1:
      return jax.device_put(x, sharding)
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda i: x[i])

  return jax.tree.map(put, tree, shardings)
