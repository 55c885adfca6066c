"""Parameters -> a hub folder, one tensor on the host at a time."""

import dataclasses
import json
import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from uae_jax import trees
from uae_jax.ckpt import safetensors_io
from uae_jax.ckpt.rows import Row, Shape


@dataclasses.dataclass(frozen=True)
class Tensor:
  """One tensor to be written, made when its turn comes.

  Attributes:
    shape: on disk.
    dtype: on disk.
    read: makes it, perhaps in another dtype.
  """

  shape: Shape
  dtype: np.dtype
  read: Callable[[], np.ndarray]


def save(
  folder: str | Path,
  table: Sequence[Row],
  params: Mapping[str, Any],
  config: Mapping[str, Any],
  *,
  stem: str = 'model',
  dtype: Any = None,
  max_shard: int | None = None,
  files: Sequence[Path] = (),
  config_name: str = 'config.json',
) -> None:
  """Writes `params` in the hub's layout.

  Every host must call it; the first one writes.

  Args:
    folder: to write.
    table: the model's rows.
    params: the parameters, on any devices.
    config: contents of the JSON file beside the weights.
    stem: file stem, 'model' or 'diffusion_pytorch_model'.
    dtype: dtype on disk; None keeps that of each parameter.
    max_shard: bytes in one file; see `save_tensors`.
    files: further files to copy in.
    config_name: of that JSON file.
  """
  flat = trees.flatten(params)

  def tensor(row, i):
    x = flat[row.path]
    return Tensor(
      row.shape_on_hub(x.shape),
      np.dtype(x.dtype if dtype is None else dtype),
      lambda: row.to_hub(to_host(x[i] if row.layers else x), x.shape),
    )

  tensors = {
    name: tensor(row, i) for row in table for i, name in enumerate(row.names())
  }
  save_tensors(
    folder, tensors, config, stem=stem, max_shard=max_shard, files=files,
    config_name=config_name,
  )  # fmt: skip


def save_tensors(
  folder: str | Path,
  tensors: Mapping[str, Tensor],
  config: Mapping[str, Any],
  *,
  stem: str = 'model',
  max_shard: int | None = None,
  files: Sequence[Path] = (),
  config_name: str = 'config.json',
) -> None:
  """Writes a hub folder, one tensor on the host at a time.

  Every host must call it; the first one writes. A new folder appears whole or
  not at all. Where the folder has files already, its weights of that stem go
  before the new ones move in, so that two models are never mixed.

  Args:
    folder: to write.
    tensors: by name.
    config: contents of the JSON file beside the weights.
    stem: file stem, 'model' or 'diffusion_pytorch_model'.
    max_shard: bytes in one file, exceeded by a larger tensor only; None
      writes a single file.
    files: further files to copy in.
    config_name: of that JSON file.
  """
  folder = Path(folder).absolute()
  partial = folder.parent / f'.{folder.name}.partial'
  writes = jax.process_index() == 0
  try:
    if writes:
      shutil.rmtree(partial, ignore_errors=True)
      partial.mkdir(parents=True)
      for file in files:
        shutil.copy(file, partial / file.name)
      _write_json(partial / config_name, config)
    _write_weights(partial, tensors, stem, max_shard, writes)
    if writes:
      _move(partial, folder, stem)
  finally:
    if writes:
      shutil.rmtree(partial, ignore_errors=True)
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(f'saved {folder.name}')


def _write_weights(folder, tensors, stem, max_shard, writes):
  """The safetensors files and, where there are several, their index."""
  sizes = {name: (x.shape, x.dtype) for name, x in tensors.items()}

  def make(name):
    return tensors[name].read().astype(tensors[name].dtype, copy=False)

  groups = shards(sizes, max_shard)
  weight_map = {}
  for i, names in enumerate(groups):
    file = f'{stem}.safetensors'
    if len(groups) > 1:
      file = f'{stem}-{i + 1:05d}-of-{len(groups):05d}.safetensors'
    weight_map |= dict.fromkeys(names, file)
    # The other hosts take part in gathering and write nothing.
    target = folder / file if writes else Path(os.devnull)
    safetensors_io.write(target, {n: sizes[n] for n in names}, make)
  if writes and len(groups) > 1:
    total = sum(_nbytes(x) for x in sizes.values())
    index = {'metadata': {'total_size': total}, 'weight_map': weight_map}
    _write_json(folder / f'{stem}.safetensors.index.json', index)


def shards(
  tensors: Mapping[str, tuple], max_shard: int | None
) -> list[list[str]]:
  """Names in order, cut where a file would exceed `max_shard` bytes."""
  out, size = [[]], 0
  for name, tensor in tensors.items():
    n = _nbytes(tensor)
    if max_shard is not None and out[-1] and size + n > max_shard:
      out.append([])
      size = 0
    out[-1].append(name)
    size += n
  return out


def to_host(x: Any) -> np.ndarray:
  """The whole array on every host, not kept by `x` afterwards."""
  if not isinstance(x, jax.Array):
    return np.asarray(x)
  if not x.is_fully_addressable:
    return multihost_utils.process_allgather(x, tiled=True)
  # A jax.Array remembers the numpy copy it was asked for; this one goes.
  return np.asarray(jnp.copy(x))


def _nbytes(tensor):
  shape, dtype = tensor
  return math.prod(shape) * dtype.itemsize


def _write_json(file, value):
  file.write_text(json.dumps(dict(value), indent=2) + '\n')


def _move(partial, folder, stem):
  """Puts the finished files in their place, the index last."""
  if not folder.exists() or not any(folder.iterdir()):
    os.replace(partial, folder)
    return
  stale = [f'{stem}.safetensors.index.json', f'{stem}.safetensors']
  stale += [f.name for f in folder.glob(f'{stem}-*-of-*.safetensors')]
  for name in stale:
    (folder / name).unlink(missing_ok=True)
  is_index = lambda file: file.name.endswith('.index.json')
  for file in sorted(partial.iterdir(), key=is_index):
    os.replace(file, folder / file.name)
