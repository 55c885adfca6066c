"""Safetensors files, read and written a piece at a time.

The format (huggingface.co/docs/safetensors): eight bytes that give the length
of a JSON header, the header, then the tensors without a gap. Read with plain
reads and not through a memory map, whose pages count as this process's memory
until the whole file is closed; written without holding two tensors at once.
"""

import dataclasses
import json
import math
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

from uae_jax.errors import UserError

Shape = tuple[int, ...]

DTYPES = {
  'F64': np.dtype(np.float64),
  'F32': np.dtype(np.float32),
  'F16': np.dtype(np.float16),
  'BF16': np.dtype(ml_dtypes.bfloat16),
  'F8_E4M3': np.dtype(ml_dtypes.float8_e4m3fn),
  'F8_E5M2': np.dtype(ml_dtypes.float8_e5m2),
  'I64': np.dtype(np.int64),
  'I32': np.dtype(np.int32),
  'I16': np.dtype(np.int16),
  'I8': np.dtype(np.int8),
  'U64': np.dtype(np.uint64),
  'U32': np.dtype(np.uint32),
  'U16': np.dtype(np.uint16),
  'U8': np.dtype(np.uint8),
  'BOOL': np.dtype(np.bool_),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_HEADER_LIMIT = 100 * 2**20  # bytes; the library's own


@dataclasses.dataclass(frozen=True)
class Entry:
  """One tensor of a file.

  Attributes:
    file: where it is.
    dtype: as stored.
    shape: as stored.
    offset: of its first byte in the file.
  """

  file: Path
  dtype: np.dtype
  shape: Shape
  offset: int

  @property
  def nbytes(self) -> int:
    """Its size on disk."""
    return math.prod(self.shape) * self.dtype.itemsize

  def read(self) -> np.ndarray:
    """All of it, read now."""
    return self.rows(0, self.shape[0] if self.shape else 1)

  def rows(self, start: int, stop: int) -> np.ndarray:
    """Rows of the first axis, read now; a scalar has one row.

    Raises:
      UserError: when the file became shorter since its header was read.
    """
    inner = self.shape[1:]
    size = math.prod(inner) * self.dtype.itemsize
    raw = np.fromfile(
      self.file, np.uint8, (stop - start) * size,
      offset=self.offset + start * size,
    )  # fmt: skip
    if raw.size != (stop - start) * size:
      raise UserError(f'{self.file} became shorter while it was read')
    shape = (stop - start, *inner) if self.shape else ()
    return raw.view(self.dtype).reshape(shape)


def read_header(file: Path) -> dict[str, Entry]:
  """The tensors of a file by name; reads the header only.

  Raises:
    UserError: when the file is truncated, corrupt or not safetensors.
  """
  try:
    size = file.stat().st_size
    with file.open('rb') as f:
      start = f.read(8)
      if len(start) < 8:
        raise ValueError(f'{size} bytes')
      (length,) = struct.unpack('<Q', start)
      if length > min(size - 8, _HEADER_LIMIT):
        raise ValueError(f'a header of {length} bytes in {size}')
      header = json.loads(f.read(length), object_pairs_hook=_distinct)
    return _entries(file, header, size - 8 - length, 8 + length)
  except (OSError, ValueError) as e:
    why = str(e)
  except (TypeError, KeyError, AttributeError, RecursionError):
    why = 'its header is not a table of tensors'
  raise UserError(f'{file} is not a whole safetensors file: {why}')


def _distinct(pairs):
  """A JSON object, refused when a key comes twice."""
  out = dict(pairs)
  if len(out) < len(pairs):
    raise ValueError('a name comes twice in the header')
  return out


def _entries(file, header, size, start) -> dict[str, Entry]:
  """Header -> entries, which must cover the `size` bytes after it."""
  out, spans = {}, []
  for name, info in header.items():
    if name == '__metadata__':
      continue
    begin, end = info['data_offsets']
    if info['dtype'] not in DTYPES:
      raise ValueError(f'{name} has the unknown dtype {info["dtype"]}')
    shape = tuple(info['shape'])
    # 1.0 and true are equal to 1 and cannot take its place.
    if {type(n) for n in (begin, end, *shape)} != {int}:
      raise ValueError(f'{name} has a shape or a place that is no number')
    entry = Entry(file, DTYPES[info['dtype']], shape, start + begin)
    # numpy counts the bytes of [0, n], of which there are none, as those of n.
    counted = math.prod(n or 1 for n in shape) * entry.dtype.itemsize
    if min(shape, default=0) < 0 or counted >= 2**63:
      raise ValueError(f'{name} has the shape {list(shape)}')
    if entry.nbytes != end - begin:
      raise ValueError(f'{name} {list(shape)} has {end - begin} bytes')
    out[name] = entry
    spans.append((begin, end))
  reached = 0
  for begin, end in sorted(spans):
    if begin != reached:
      raise ValueError(f'the tensors leave or share bytes at {begin}')
    reached = end
  if reached != size:
    raise ValueError(f'{reached} bytes of tensors in the header, {size} here')
  return out


def write(
  file: Path,
  tensors: Mapping[str, tuple[Shape, np.dtype]],
  make: Callable[[str], np.ndarray],
) -> None:
  """Writes a file, asking for one tensor at a time.

  Args:
    file: to write.
    tensors: shape and dtype by name.
    make: name -> the array, called once for each in order.
  """
  # Wide types first, so that every tensor starts at a multiple of its item.
  order = sorted(tensors, key=lambda n: -np.dtype(tensors[n][1]).itemsize)
  header, offset = {'__metadata__': {'format': 'pt'}}, 0
  for name in order:
    shape, dtype = tensors[name]
    end = offset + math.prod(shape) * np.dtype(dtype).itemsize
    header[name] = {
      'dtype': _NAMES[np.dtype(dtype)],
      'shape': list(shape),
      'data_offsets': [offset, end],
    }
    offset = end
  text = json.dumps(header, separators=(',', ':')).encode()
  text += b' ' * (-len(text) % 8)
  with file.open('wb') as f:
    f.write(struct.pack('<Q', len(text)))
    f.write(text)
    for name in order:
      array = make(name)
      shape, dtype = tensors[name]
      if array.shape != tuple(shape) or array.dtype != dtype:
        raise ValueError(f'{name} is {array.dtype} {array.shape}')
      f.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
