"""The ('data', 'model') device mesh; `data` doubles as the FSDP axis."""

import os
from pathlib import Path

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from uae_jax.errors import UserError


def use_compilation_cache() -> None:
  """Keeps compiled programs between runs, in ~/.cache/uae_jax if not told."""
  cache = os.environ.get(
    'JAX_COMPILATION_CACHE_DIR', str(Path.home() / '.cache' / 'uae_jax')
  )
  jax.config.update('jax_compilation_cache_dir', cache)
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 2)


def make_mesh(data: int, model: int) -> Mesh:
  """A data x model mesh over all devices; -1 for `data` fills up.

  Raises:
    UserError: when data * model is not the number of devices.
  """
  devices = jax.devices()
  if data == -1 and model > 0 and len(devices) % model == 0:
    data = len(devices) // model
  if data * model != len(devices):
    raise UserError(
      f'mesh.data={data} x mesh.model={model} does not cover '
      f'{len(devices)} devices: set mesh.data=-1 or a product of '
      f'{len(devices)}'
    )
  grid = np.asarray(devices).reshape(data, model)
  return Mesh(grid, ('data', 'model'), axis_types=(AxisType.Auto,) * 2)


def check_batch(images: int, mesh: Mesh) -> None:
  """Raises UserError unless the batch divides over the data axis."""
  size = mesh.shape['data']
  if images % size:
    raise UserError(
      f'{images} images do not divide over mesh.data={size}: '
      'change train.images or mesh.data'
    )


def put_batch(batch, mesh: Mesh):
  """This host's rows -> global arrays sharded over `data`.

  The first host's rows come first.
  """
  sharding = NamedSharding(mesh, P('data'))

  def put(x):
    x = np.asarray(x)
    if jax.process_count() == 1:
      return jax.device_put(x, sharding)
    return jax.make_array_from_process_local_data(sharding, x)

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
