"""Strict safetensors engine: a table of rows maps hub names to our paths.

One `Row` per kind of tensor. `{i}` in the hub name runs over the layers that
are stacked on the leading axis of our parameter. The same table loads and
exports. Nothing is guessed: unknown, missing, duplicate and misshapen
tensors are all listed in one error. Pickle files are refused.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from uae_jax import trees
from uae_jax.errors import UserError

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Row:
  """One kind of tensor.

  Attributes:
    path: our parameter path, such as 'layers/block/q/kernel'.
    hub: the hub's tensor name, with `{i}` where layers are stacked.
    op: 'same'; 'flat' (the hub's is one axis, a bias with heads); 'linear'
      (torch [out, in...] -> [in, out]); or 'conv' (torch [out, in, k, k] ->
      [k, k, in, out]).
    n_in: number of leading axes of our (unstacked) kernel that torch flattens
      into `in`; for 'linear' only.
    hub_shape: the hub's shape where it cannot be derived (convolutions).
    layers: the hub's layer numbers in stacking order; () when not stacked.
  """

  path: str
  hub: str
  op: str = 'same'
  n_in: int = 1
  hub_shape: Shape | None = None
  layers: tuple[int, ...] = ()

  def names(self) -> list[str]:
    """Hub names in stacking order."""
    if self.layers:
      return [self.hub.format(i=i) for i in self.layers]
    return [self.hub]

  def shape_on_hub(self, ours: Shape) -> Shape:
    """The shape that one hub tensor must have for our parameter's shape."""
    if self.hub_shape is not None:
      return self.hub_shape
    one = ours[1:] if self.layers else ours
    if self.op == 'same':
      return one
    if self.op == 'flat':
      return (int(np.prod(one)),)
    if self.op == 'conv':
      return (one[3], one[2], one[0], one[1])
    rows = int(np.prod(one[: self.n_in]))
    return (int(np.prod(one[self.n_in :])), rows)

  def to_ours(self, x: np.ndarray, ours: Shape) -> np.ndarray:
    """One hub tensor -> one (unstacked) parameter."""
    one = ours[1:] if self.layers else ours
    if self.op == 'linear':
      x = x.reshape(x.shape[0], -1).T
    if self.op == 'conv':
      x = x.transpose(2, 3, 1, 0)
    return x.reshape(one)

  def to_hub(self, x: np.ndarray, ours: Shape) -> np.ndarray:
    """Inverse of `to_ours`."""
    shape = self.shape_on_hub(ours)
    if self.op == 'linear':
      x = x.reshape(-1, shape[0]).T
    if self.op == 'conv':
      x = x.transpose(3, 2, 0, 1)
    return np.ascontiguousarray(x).reshape(shape)  # a scalar stays one


def linear(path: str, hub: str, *, bias: bool = True, **kw) -> list[Row]:
  """Rows of a Linear: `path/kernel`, `path/bias` <- `hub.weight`, `.bias`."""
  rows = [Row(f'{path}/kernel', f'{hub}.weight', 'linear', **kw)]
  if bias:
    layers = kw.get('layers', ())
    rows.append(Row(f'{path}/bias', f'{hub}.bias', 'flat', layers=layers))
  return rows


def conv(path: str, hub: str) -> list[Row]:
  """Rows of a convolution with a bias."""
  kernel = Row(f'{path}/kernel', f'{hub}.weight', 'conv')
  return [kernel, Row(f'{path}/bias', f'{hub}.bias')]


def norm(path: str, hub: str, *, bias: bool, **kw) -> list[Row]:
  """Rows of a norm: `path/scale`[, `path/bias`]."""
  rows = [Row(f'{path}/scale', f'{hub}.weight', **kw)]
  if bias:
    rows.append(Row(f'{path}/bias', f'{hub}.bias', **kw))
  return rows


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


def find_files(folder: str | Path, stem: str = 'model') -> list[Path]:
  """The safetensors files of a hub folder, single or sharded.

  Raises:
    UserError: no safetensors (with the conversion command when only pickle
      files are there) or a shard named in the index is missing.
  """
  folder = Path(folder)
  index = folder / f'{stem}.safetensors.index.json'
  if index.exists():
    names = sorted(set(read_config(folder, index.name)['weight_map'].values()))
    gone = [n for n in names if not (folder / n).exists()]
    if gone:
      raise UserError(
        f'{folder}: shards named in the index are missing: {gone}'
      )
    return [folder / n for n in names]
  single = folder / f'{stem}.safetensors'
  if single.exists():
    return [single]
  pickles = [
    p.name for s in ('bin', 'pt', 'pth') for p in folder.glob(f'*.{s}')
  ]
  if pickles:
    raise UserError(
      f'{folder}: {pickles} are pickle files and are refused; convert them '
      'once with transformers: from_pretrained(folder).save_pretrained('
      'folder, safe_serialization=True)'
    )
  raise UserError(f'{single} is missing')


def load(
  folder: str | Path,
  table: Sequence[Row],
  shapes: Mapping[str, Any],
  *,
  stem: str = 'model',
  dtype: Any = np.float32,
  ignore: Sequence[str] = (),
  rename: Callable[[str], str] = lambda name: name,
) -> dict[str, Any]:
  """Loads a hub folder into a nested dict of host arrays.

  Args:
    folder: the hub folder.
    table: the model's rows.
    shapes: tree of our parameters (anything with `.shape`), from eval_shape.
    stem: file stem, 'model' or 'diffusion_pytorch_model'.
    dtype: dtype of the loaded parameters.
    ignore: regexes of hub tensors that are known and not used.
    rename: normalises a file's tensor name to the table's (prefixes that
      some exporters add or drop).

  Returns:
    The parameters, nested like `shapes`.

  Raises:
    UserError: one message with every unknown, missing, duplicate and
      misshapen tensor, or a file that is not valid safetensors.
  """
  ours = {p: tuple(x.shape) for p, x in trees.flatten(shapes).items()}
  where, found, problems = {}, {}, []
  handles = []
  for file in find_files(folder, stem):
    try:
      handle = safe_open(file, framework='np')
    except (SafetensorError, OSError) as e:
      raise UserError(f'{file} is not a whole safetensors file: {e}') from None
    handles.append(handle)
    for raw in handle.keys():
      name = rename(raw)
      if name in where:
        problems.append(f'duplicate {name}')
      where[name] = (handle, raw)
      found[name] = tuple(handle.get_slice(raw).get_shape())
  problems += check(table, ours, found, ignore)
  if problems:
    shown = '; '.join(problems[:20])
    more = f'; and {len(problems) - 20} more' if len(problems) > 20 else ''
    raise UserError(f'{folder} does not fit the model: {shown}{more}')

  out = {}
  for row in table:
    shape = ours[row.path]
    target = np.empty(shape, dtype)
    for i, name in enumerate(row.names()):
      handle, raw = where[name]
      part = row.to_ours(handle.get_tensor(raw), shape)
      target[i if row.layers else ...] = part.astype(dtype)
    out[row.path] = target
  return trees.unflatten(out)


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


def save(
  folder: str | Path,
  table: Sequence[Row],
  params: Mapping[str, Any],
  config: Mapping[str, Any],
  *,
  stem: str = 'model',
  dtype: Any = None,
) -> None:
  """Writes `params` as one safetensors file and config.json, hub layout."""
  folder = Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  flat = trees.flatten(params)
  out = {}
  for row in table:
    x = np.asarray(flat[row.path])
    for i, name in enumerate(row.names()):
      part = row.to_hub(x[i] if row.layers else x, x.shape)
      out[name] = part if dtype is None else part.astype(dtype)
  save_file(out, folder / f'{stem}.safetensors', metadata={'format': 'pt'})
  (folder / 'config.json').write_text(json.dumps(dict(config), indent=2) + '\n')
