"""Strict safetensors engine: a table of rows maps hub names to our paths.

One `Row` per kind of tensor. `{i}` in the hub name runs over the layers that
are stacked on the leading axis of our parameter. The same table loads and
exports. Nothing is guessed: unknown, missing, duplicate and misshapen
tensors are all listed in one error, from the files' headers alone. Pickle
files are refused. Tensors are read in pieces, straight into the shards of
one parameter, which leave for their devices before the next is read.
"""

import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, SingleDeviceSharding

from uae_jax import trees
from uae_jax.ckpt import safetensors_io
from uae_jax.ckpt.export import save
from uae_jax.ckpt.rows import Box, Row, Shape, conv, linear, norm
from uae_jax.ckpt.safetensors_io import Entry
from uae_jax.errors import UserError

__all__ = [
  'Row', 'conv', 'linear', 'norm', 'check', 'find', 'find_files', 'headers',
  'kind', 'load', 'read_config', 'save',
]  # the tables of all models take their rows from here  # fmt: skip

PIECE = 16 * 2**20  # bytes read at once
STORED = tuple(
  safetensors_io.DTYPES[name] for name in ('F64', 'F32', 'F16', 'BF16')
)
_PICKLES = ('bin', 'pt', 'pth', 'ckpt')


def read_config(folder: str | Path, name: str = 'config.json') -> dict:
  """Parses a JSON file of a hub folder.

  Raises:
    UserError: when the folder or file is missing or not JSON.
  """
  file = Path(folder) / name
  try:
    return json.loads(file.read_text())
  except FileNotFoundError:
    raise UserError(f'{file} is missing: is {folder} a hub folder?') from None
  except (ValueError, OSError) as e:
    raise UserError(f'{file} cannot be read: {e}') from None


def kind(folder: str | Path) -> str | None:
  """What config.json calls the model: diffusers' class, or its type."""
  config = read_config(folder)
  return config.get('_class_name') or config.get('model_type')


def find_files(
  folder: str | Path, stem: str = 'model'
) -> dict[Path, list[str]]:
  """The safetensors files of a hub folder, single or sharded.

  Returns:
    File -> the tensors that the index places there; [] without an index.

  Raises:
    UserError: no safetensors (with the conversion command when only pickle
      files are there), a broken index, or shards are missing.
  """
  folder = Path(folder)
  index = folder / f'{stem}.safetensors.index.json'
  if index.exists():
    try:
      weight_map = dict(read_config(folder, index.name)['weight_map'])
      files = {folder / n: [] for n in sorted(set(weight_map.values()))}
    except (KeyError, TypeError, ValueError):
      raise UserError(
        f'{index} is not an index: it lacks a weight_map of file names'
      ) from None
    gone = sorted(f.name for f in files if not f.exists())
    if gone:
      raise UserError(
        f'{folder}: shards named in the index are missing: {gone}'
      )
    for name, file in weight_map.items():
      files[folder / file].append(name)
    return files
  single = folder / f'{stem}.safetensors'
  if single.exists():
    return {single: []}
  if shards := _shards(folder, stem):
    return {file: [] for file in shards}
  pickles = sorted(p.name for s in _PICKLES for p in folder.glob(f'*.{s}'))
  if pickles:
    raise UserError(
      f'{folder}: {pickles} are pickle files and are refused; convert them '
      f'once with: {conversion(folder)}'
    )
  others = sorted(p.name for p in folder.glob('*.safetensors'))
  has = f'; the folder has {others}' if others else ''
  raise UserError(f'{single} is missing{has}')


def _shards(folder: Path, stem: str) -> list[Path]:
  """The numbered files of a folder without an index.

  Raises:
    UserError: one of them is missing.
  """
  found = sorted(folder.glob(f'{stem}-*-of-*.safetensors'))
  if not found:
    return []
  total = found[0].stem.rpartition('-of-')[2]
  names = (
    [f'{stem}-{i + 1:05d}-of-{total}.safetensors' for i in range(int(total))]
    if total.isdecimal()
    else []
  )
  here = {file.name for file in found}
  if here != set(names):
    raise UserError(
      f'{folder} has no index, and its shards {sorted(here)} are not all of '
      f'them: missing {sorted(set(names) - here)}'
    )
  return found


def conversion(folder: Path) -> str:
  """The command that rewrites a folder's pickle files as safetensors."""
  if (folder / 'adapter_config.json').exists():
    return plain_conversion(folder)
  library, name = 'transformers', 'AutoModel'
  if (folder / 'config.json').exists():
    config = read_config(folder)
    if '_class_name' in config:
      library, name = 'diffusers', config['_class_name']
    elif config.get('architectures'):
      name = config['architectures'][0]
  return (
    f'python -c "from {library} import {name}; '
    f"{name}.from_pretrained('{folder}').save_pretrained('{folder}', "
    'safe_serialization=True)"'
  )


def plain_conversion(folder: Path) -> str:
  """The command for files whose tensors keep their names, of any class."""
  return (
    'python -c "import glob, torch; from safetensors.torch import save_file; '
    '[save_file({k: v.contiguous().clone() for k, v in torch.load(f, '
    "weights_only=True).items()}, f[:-3].replace('pytorch_model', 'model') + "
    "'safetensors') "
    f"for f in glob.glob('{folder}/*.bin')]\""
  )


def headers(folder: str | Path, stem: str = 'model') -> dict[str, Entry]:
  """Every tensor of a hub folder by its name in the files."""
  out = {}
  for file in find_files(folder, stem):
    out |= safetensors_io.read_header(file)
  return out


def find(
  folder: str | Path,
  table: Sequence[Row],
  shapes: Mapping[str, Any],
  *,
  stem: str = 'model',
  ignore: Sequence[str] = (),
  rename: Callable[[str], str] = lambda name: name,
  over: Sequence[str | Path] = (),
) -> dict[str, Entry]:
  """Where each tensor of the table is; reads headers only.

  Args and errors are those of `load`.
  """
  ours = {p: tuple(x.shape) for p, x in trees.flatten(shapes).items()}
  found, problems = {}, []
  base = find_files(folder, stem)
  files = base.items()
  for above in over:
    files = [*files, *find_files(above, stem).items()]
  for file, listed in files:
    header = safetensors_io.read_header(file)
    problems += [
      f'the index names {name} in {file.name}, which lacks it'
      for name in listed
      if name not in header
    ]
    for raw, entry in header.items():
      name = rename(raw)
      if name in found and file in base:
        problems.append(f'duplicate {name}')
      found[name] = entry
  problems += check(
    table, ours, {name: x.shape for name, x in found.items()}, ignore
  )
  wanted = [name for row in table for name in row.names() if name in found]
  problems += [
    f'{name} is stored as {found[name].dtype}, not as a plain float'
    for name in wanted
    if found[name].dtype not in STORED
  ]
  if problems:
    shown = '; '.join(problems[:20])
    more = f'; and {len(problems) - 20} more' if len(problems) > 20 else ''
    raise UserError(f'{folder} does not fit the model: {shown}{more}')
  return {name: found[name] for name in wanted}


def load(
  folder: str | Path,
  table: Sequence[Row],
  shapes: Mapping[str, Any],
  *,
  stem: str = 'model',
  dtype: Any = np.float32,
  ignore: Sequence[str] = (),
  rename: Callable[[str], str] = lambda name: name,
  over: Sequence[str | Path] = (),
  shardings: Any = None,
) -> dict[str, Any]:
  """Loads a hub folder, one parameter at a time.

  Host memory beyond the result is at most one parameter as this host holds
  it (a stack of layers is one) and one piece of a file.

  Args:
    folder: the hub folder.
    table: the model's rows.
    shapes: tree of our parameters (anything with `.shape`), from eval_shape.
    stem: file stem, 'model' or 'diffusion_pytorch_model'.
    dtype: dtype of the loaded parameters; None keeps what is stored; or a
      function of their paths.
    ignore: regexes of hub tensors that are known and not used.
    rename: normalises a file's tensor name to the table's (prefixes that
      some exporters add or drop).
    over: folders whose tensors replace those of `folder`; a later file wins.
    shardings: tree of NamedShardings; without it host arrays are returned.

  Returns:
    The parameters, nested like `shapes`.

  Raises:
    UserError: one message with every unknown, missing, duplicate and
      misshapen tensor, or a file that is not valid safetensors.
  """
  entries = find(
    folder, table, shapes, stem=stem, ignore=ignore, rename=rename, over=over
  )
  ours = {p: tuple(x.shape) for p, x in trees.flatten(shapes).items()}
  places = {} if shardings is None else trees.flatten(shardings)
  out = {}
  for row in table:
    shape = ours[row.path]
    files = [entries[name] for name in row.names()]
    wanted = dtype(row.path) if inspect.isfunction(dtype) else dtype
    kind = stored_dtype(files) if wanted is None else np.dtype(wanted)
    if shardings is None:
      whole = tuple((0, n) for n in shape)
      out[row.path] = _read(row, files, shape, kind, [whole])[whole]
    else:
      out[row.path] = _place(row, files, shape, kind, places[row.path])
  return trees.unflatten(out)


def stored_dtype(entries: Sequence[Entry]) -> np.dtype:
  """The dtype that holds all of these tensors."""
  out = entries[0].dtype
  for entry in entries[1:]:
    out = np.dtype(jnp.promote_types(out, entry.dtype))
  return out


def _place(row, files, shape, dtype, sharding: NamedSharding) -> jax.Array:
  """One parameter, its shards filled on the host and sent to their devices."""
  devices = {}  # region -> devices that hold it
  places = sharding.addressable_devices_indices_map(shape)
  for device, index in places.items():
    box = tuple(s.indices(n)[:2] for s, n in zip(index, shape))
    devices.setdefault(box, []).append(device)
  blocks = _read(row, files, shape, dtype, list(devices))
  arrays = []
  for box, where in devices.items():
    block = blocks.pop(box)
    kind = sharding.memory_kind
    copies = [
      jax.device_put(block, SingleDeviceSharding(d, memory_kind=kind))
      for d in where
    ]
    arrays += jax.block_until_ready(copies)
    del block  # freed before the next shard is sent
  return jax.make_array_from_single_device_arrays(shape, sharding, arrays)


def _read(row, files, shape, dtype, boxes) -> dict[Box, np.ndarray]:
  """Regions of one parameter; every file is read once and in pieces."""
  out = {box: np.empty([b - a for a, b in box], dtype) for box in boxes}
  for layer, entry in enumerate(files):
    limit = PIECE // entry.dtype.itemsize
    for start, stop, region in row.pieces(shape, limit):
      if row.layers:
        region = ((layer, layer + 1), *region)
      hits = [(box, _overlap(region, box)) for box in boxes]
      hits = [(box, common) for box, common in hits if common is not None]
      if not hits:
        continue
      raw = entry.rows(start, stop)
      part = row.to_ours(raw, [b - a for a, b in region])
      for box, common in hits:
        out[box][_within(common, box)] = part[_within(common, region)]
  return out


def _overlap(a: Box, b: Box) -> Box | None:
  """What two regions share."""
  out = tuple((max(x, u), min(y, v)) for (x, y), (u, v) in zip(a, b))
  return None if any(x >= y for x, y in out) else out


def _within(box: Box, outer: Box) -> tuple[slice, ...]:
  """A region as slices of an array that holds `outer`."""
  return tuple(slice(a - x, b - x) for (a, b), (x, _) in zip(box, outer))


def check(
  table: Sequence[Row],
  ours: Mapping[str, Shape],
  found: Mapping[str, Shape],
  ignore: Sequence[str] = (),
) -> list[str]:
  """Every way in which a file's tensors and the table disagree."""
  problems = []
  paths = [row.path for row in table]
  for path in sorted(set(ours) - set(paths)):
    problems.append(f'parameter {path} has no row')
  for path in sorted(set(paths) - set(ours)):
    problems.append(f'row {path} has no parameter')
  wanted = {}
  for row in table:
    if row.path in ours:
      for name in row.names():
        wanted[name] = row.shape_on_hub(ours[row.path])
  for name, shape in wanted.items():
    if name not in found:
      problems.append(f'missing {name} {list(shape)}')
    elif found[name] != shape:
      problems.append(f'{name} is {list(found[name])}, expected {list(shape)}')
  skip = [re.compile(p) for p in ignore]
  for name in sorted(set(found) - set(wanted)):
    if not any(r.fullmatch(name) for r in skip):
      problems.append(f'unknown {name} {list(found[name])}')
  return problems
