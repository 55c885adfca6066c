"""Weights between the hub's layout and Orbax.

Orbax weights are a folder with `state/`, a tree whose `params` are the
parameters: a step of a run's `checkpoints/` is one, and so is what
`write_orbax` leaves (with config.json beside it). A run's step holds the
trained parameters only; the others come from the hub folder it started from.
`model` is a `zoo.Model` throughout.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from uae_jax import trees
from uae_jax.ckpt import export, hf, orbax_io
from uae_jax.errors import UserError

# What lies beside weights: processors, tokenizers, generation settings.
_BESIDE = ('.json', '.txt', '.model', '.jinja')


def read(
  model: Any, folder: Path, *, base: Path | None = None, dtype: Any = None
) -> dict[str, Any]:
  """All parameters of a hub or Orbax folder, on the host.

  Args:
    model: what the folder holds.
    folder: to read.
    base: hub folder of parameters that an Orbax folder lacks.
    dtype: of the parameters; None keeps what is stored.

  Raises:
    UserError: listing everything that does not fit the model.
  """
  if not orbax_io.is_params(folder):
    return _read_hub(model, folder, dtype)
  stored = _stored(model, folder, base)
  host = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  like = {
    path: jax.ShapeDtypeStruct(shape, dtype or kind, sharding=host)
    for path, (shape, kind) in stored.items()
  }
  params = orbax_io.load_params(folder, trees.unflatten(like))
  if base is None:
    return params
  return trees.merge(_read_hub(model, base, dtype), params)


def describe(
  model: Any, folder: Path, base: Path | None = None
) -> Iterator[str]:
  """The table of tensors, a line each, without reading any.

  Args and errors are those of `read`.
  """
  stored = {}
  if orbax_io.is_params(folder):
    stored = _stored(model, folder, base)
    folder = base
  entries = {} if folder is None else _find(model, folder)
  shapes, total = trees.flatten(model.shapes()), 0
  for row in model.table:
    ours = tuple(shapes[row.path].shape)
    for name in row.names():
      kind = stored[row.path][1] if row.path in stored else entries[name].dtype
      shape = row.shape_on_hub(ours)
      total += int(np.prod(shape)) * kind.itemsize
      yield f'{name} {list(shape)} {kind} -> {row.path} {list(ours)}'
  yield f'{trees.count(model.shapes()):,} parameters, {total:,} bytes'


def write_hub(
  model: Any,
  out: Path,
  params: Mapping[str, Any],
  source: Path,
  *,
  dtype: Any = None,
  max_shard: int | None = None,
) -> None:
  """Writes a hub folder with the configuration files of `source`.

  Args:
    model: what `params` belong to.
    out: folder to write.
    params: its parameters.
    source: folder whose config.json and processors are kept.
    dtype: dtype on disk; None keeps that of each parameter.
    max_shard: bytes in one file; None writes a single file.
  """
  export.save(
    out,
    model.table,
    params,
    _config(source, dtype),
    stem=model.stem,
    dtype=dtype,
    max_shard=max_shard,
    files=beside(source),
  )


def write_orbax(
  out: Path, params: Mapping[str, Any], source: Path, *, dtype: Any = None
) -> None:
  """Writes an Orbax folder with the configuration files of `source`.

  The weights come last: a folder with `state/` is whole.
  """
  out.mkdir(parents=True, exist_ok=True)
  for file in beside(source):
    shutil.copy(file, out / file.name)
  text = json.dumps(_config(source, dtype), indent=2) + '\n'
  (out / 'config.json').write_text(text)
  orbax_io.save_params(out, params)


def _read_hub(model, folder, dtype):
  return hf.load(
    folder, model.table, model.shapes(), stem=model.stem, dtype=dtype,
    ignore=model.ignore, rename=model.rename,
  )  # fmt: skip


def _find(model, folder):
  return hf.find(
    folder, model.table, model.shapes(), stem=model.stem,
    ignore=model.ignore, rename=model.rename,
  )  # fmt: skip


def _stored(model, folder, base):
  """Path -> (shape, dtype) of an Orbax folder that fits the model."""
  stored = orbax_io.read_shapes(folder)
  ours = {p: x.shape for p, x in trees.flatten(model.shapes()).items()}
  problems = [
    f'{p} is {list(shape)}, expected {list(ours[p])}'
    for p, (shape, _) in stored.items()
    if p in ours and shape != ours[p]
  ]
  problems += [f'unknown {p}' for p in stored if p not in ours]
  missing = [f'missing {p}' for p in ours if p not in stored]
  if missing and base is None:
    problems += [*missing, 'name the hub folder that has the missing ones']
  if problems:
    raise UserError(f'{folder} does not fit the model: {"; ".join(problems)}')
  return stored


def beside(folder: Path) -> list[Path]:
  """Configuration files other than config.json."""
  return [
    file
    for file in sorted(folder.iterdir())
    if file.suffix in _BESIDE
    and file.name != 'config.json'
    and not file.name.endswith('.index.json')
  ]


def _config(source, dtype):
  """config.json, which says the dtype of the weights where it did before."""
  config = hf.read_config(source)
  for key in ('dtype', 'torch_dtype'):
    if dtype is not None and key in config:
      config[key] = np.dtype(dtype).name
  return config
