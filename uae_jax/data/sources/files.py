"""Files that a pattern names, and what is made of each once and kept."""

import glob
import hashlib
import logging
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from uae_jax.errors import UserError

CACHE = '~/.cache/uae_jax/data'


def files_of(pattern: str) -> list[Path]:
  """Files of `a/{000..099}.tar`, `a/{x,y}.tar`, `a/*.tar` or a plain path.

  Braces keep their order, `*`, `?` and `**` are sorted.

  Raises:
    UserError: there is none, or one that braces spell out is missing.
  """
  out = []
  for name in expand(os.path.expanduser(pattern)):
    found = sorted(glob.glob(name, recursive=True))
    found = [Path(path) for path in found if os.path.isfile(path)]
    if not found:
      raise UserError(f'no file {name}; check the pattern {pattern}')
    out += found
  return out


def expand(pattern: str) -> list[str]:
  """`{000..012}` -> thirteen names; `{a,b}` -> two; several multiply."""
  match = re.search(r'\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}', pattern)
  if match is None:
    return [pattern]
  first, last, listed = match.groups()
  if listed is None:
    numbers = range(int(first), int(last) + 1)
    parts = [f'{i:0{len(first)}d}' for i in numbers]
  else:
    parts = listed.split(',')
  head, tail = pattern[: match.start()], pattern[match.end() :]
  return [head + part + rest for part in parts for rest in expand(tail)]


def kept(
  files: Sequence[Path],
  cache: str,
  suffix: str,
  make: Callable[[Path, Path], None],
) -> list[Path]:
  """What `make(file, to)` writes of each file, in the cache folder.

  It is made anew when a file's path, size or time changes.

  Raises:
    UserError: the cache folder cannot be written.
  """
  folder = Path(cache).expanduser()
  out = [folder / f'{file.stem}-{_digest(file)}{suffix}' for file in files]
  todo = [pair for pair in zip(files, out) if not pair[1].exists()]
  if todo:
    size = sum(file.stat().st_size for file, _ in todo) / 1e9
    logging.warning(
      'preparing %d files (%.1f GB) for random access, in %s',
      len(todo), size, folder,
    )  # fmt: skip
  for file, to in todo:
    part = to.with_name(f'{to.name}.{os.getpid()}.part')
    try:
      folder.mkdir(parents=True, exist_ok=True)
      make(file, part)
      os.replace(part, to)
    except OSError as e:
      raise UserError(f'data.cache={folder} cannot be written: {e}') from None
    finally:
      part.unlink(missing_ok=True)
  return out


def _digest(file: Path) -> str:
  stat = file.stat()
  text = f'{file.absolute()} {stat.st_size} {stat.st_mtime_ns}'
  return hashlib.sha256(text.encode()).hexdigest()[:16]
