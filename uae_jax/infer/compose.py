"""A UMM-1 folder put together from the parts of other folders.

`decoder/transformer` and the like are written tensor by tensor, or copied as
they are. The folder appears whole or not at all; until then its parts wait in
a hidden folder beside it, where the next try finds those that are done.
"""

import dataclasses
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from uae_jax.ckpt import export
from uae_jax.ckpt.export import Tensor
from uae_jax.errors import UserError
from uae_jax.infer.options import FILE

SHARD = 5 * 10**9  # bytes in one safetensors file, as on the hub


@dataclasses.dataclass(frozen=True)
class Piece:
  """One hub folder that is written.

  Attributes:
    tensors: its weights, by name.
    config: contents of config.json.
    stem: of its safetensors.
    files: copied in beside them.
  """

  tensors: Mapping[str, Tensor]
  config: Mapping[str, Any]
  stem: str = 'model'
  files: Sequence[Path] = ()


@dataclasses.dataclass(frozen=True)
class Contents:
  """A UMM-1 folder before it is written.

  Attributes:
    pieces: what is written, by subfolder.
    copies: files that other subfolders consist of.
    options: umm.json.
  """

  pieces: Mapping[str, Piece]
  copies: Mapping[str, Sequence[Path]]
  options: Mapping[str, Any]


def write(
  contents: Contents,
  out: Path,
  settings: Mapping[str, Any],
  dtype: Any = None,
  max_shard: int = SHARD,
) -> Iterator[str]:
  """Writes the folder; goes on where it was stopped.

  Args:
    contents: of the folder.
    out: the folder, which is empty or not there.
    settings: what decides the contents; parts that were made with others are
      made again.
    dtype: of what is written; None keeps that of each tensor.
    max_shard: bytes in one safetensors file.

  Yields:
    The subfolders, when each is done.

  Raises:
    UserError: `out` holds something.
  """
  if out.exists() and (not out.is_dir() or any(out.iterdir())):
    raise UserError(f'--to={out} is not an empty folder')
  out = out.absolute()
  partial = out.parent / f'.{out.name}.partial'
  note = partial / 'settings.json'
  text = json.dumps(dict(settings), indent=2) + '\n'
  if not note.exists() or note.read_text() != text:
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    note.write_text(text)
  for name, piece in contents.pieces.items():
    if not (partial / name).exists():
      tensors = {key: _cast(x, dtype) for key, x in piece.tensors.items()}
      export.save_tensors(
        partial / name, tensors, piece.config, stem=piece.stem,
        max_shard=max_shard, files=piece.files,
      )  # fmt: skip
    yield name
  for name, files in contents.copies.items():
    if not (partial / name).exists():
      _copy(files, partial / name)
    yield name
  options = json.dumps(dict(contents.options), indent=2) + '\n'
  (partial / FILE).write_text(options)
  note.unlink()
  os.replace(partial, out)


def _cast(tensor: Tensor, dtype: Any) -> Tensor:
  return tensor if dtype is None else dataclasses.replace(tensor, dtype=dtype)


def _copy(files: Sequence[Path], folder: Path) -> None:
  """A folder of these files, whole or not at all."""
  part = folder.parent / f'.{folder.name}.partial'
  shutil.rmtree(part, ignore_errors=True)
  part.mkdir(parents=True)
  for file in files:
    shutil.copy(file, part / file.name)
  os.replace(part, folder)
