"""A run's folder: claimed by one config, refused to any other."""

import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from uae_jax.errors import UserError
from uae_jax.train import lock as lock_lib
from uae_jax.train.lock import Lock

# Keys that change nothing in what is learnt.
FREE = (
  'log.', 'ckpt.every', 'ckpt.keep', 'ckpt.export', 'eval.gallery', 'mesh.',
  'memory.', 'data.cache', 'data.threads', 'data.max_bad',
)  # fmt: skip
CONFIG, PART = 'config.json', 'config.part'
# What a run that was killed while it began may leave.
OURS = {lock_lib.FILE, PART}
BAD_ITEMS = 'bad_items.jsonl'


class Workdir:
  """A run's folder on a disk that every host sees.

  `bucket.Bucket` has the same attributes and methods.

  Attributes:
    name: as messages say it.
    files: where a host reads and writes what grows in place.
    place: where all hosts write checkpoints.
  """

  def __init__(self, folder: Path, process: int):
    """Reads and writes nothing.

    Args:
      folder: which need not exist.
      process: of this host; the first one, 0, holds the folder for all.
    """
    self.name, self.files, self.place = str(folder), folder, folder
    self._process, self._lock = process, Lock(folder)

  def enter(self, config: Mapping[str, Any]) -> None:
    """Checks the folder and holds it if it is there; makes nothing.

    Raises:
      UserError: as `check`, or another process holds it.
    """
    if self._process == 0:
      check(self.files, config)
      if self.files.is_dir():
        self._lock.take()

  def claim(self, config: Mapping[str, Any]) -> None:
    """Makes, holds and marks the folder, once the run is known to be built.

    Raises:
      UserError: as `claim` below.
    """
    if self._process == 0:
      claim(self.files, config, self._lock)

  def send(self, every: float = 0.0) -> None:
    """Nothing is elsewhere."""

  def leave(self) -> None:
    """Lets go."""
    self._lock.release()


def flat(config: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """Nested config -> {'train.lr': ...}."""
  out = {}
  for key, value in config.items():
    if isinstance(value, Mapping):
      out.update(flat(value, f'{prefix}{key}.'))
    else:
      out[prefix + key] = list(value) if isinstance(value, tuple) else value
  return out


def bad_items(folder: Path, process: int) -> Path:
  """Where a process lists what its data has that cannot be used."""
  return folder / (f'bad_items.{process}.jsonl' if process else BAD_ITEMS)


def compare(
  name: str,
  config: Mapping[str, Any],
  text: str | None,
  there: Collection[str] = (),
) -> None:
  """May a run go on here, or begin?

  Args:
    name: of the folder.
    config: of the run.
    text: config.json of the folder; None: it has none.
    there: names of what it holds.

  Raises:
    UserError: it holds something else or was made with another config.
  """
  if text is None:
    if set(there) - OURS:
      raise UserError(
        f'{name} is not empty and holds no config.json: use another --workdir'
      )
    return
  try:
    old = flat(json.loads(text))
  except (ValueError, AttributeError):
    raise UserError(
      f'{name}/{CONFIG} is not JSON: use another --workdir'
    ) from None
  new = flat(config)
  keys = [k for k in sorted(set(old) | set(new)) if not k.startswith(FREE)]
  changed = [
    f'{k} {old.get(k)!r} -> {new.get(k)!r}'
    for k in keys
    if old.get(k) != new.get(k)
  ]
  if changed:
    raise UserError(
      f'{name} was made with another config ({"; ".join(changed)}): use '
      'another --workdir or the same config'
    )


def check(folder: Path, config: Mapping[str, Any]) -> None:
  """`compare` of a folder; writes nothing.

  Raises:
    UserError: as `compare`.
  """
  file, names = folder / CONFIG, []
  try:
    text = file.read_text() if file.exists() else None
  except ValueError:
    text = ''  # no text at all, so no JSON
  if folder.is_dir():
    names = [p.name for p in folder.iterdir()]
  compare(str(folder), config, text, names)


def to_text(config: Mapping[str, Any]) -> str:
  """What config.json holds."""
  return json.dumps(dict(config), indent=2) + '\n'


def claim(folder: Path, config: Mapping[str, Any], lock: Lock) -> None:
  """Locks and checks the folder; writes config.json where there is none.

  Raises:
    UserError: as `check`, or another process holds the folder, or it cannot
      be written.
  """
  file = folder / CONFIG
  try:
    folder.mkdir(parents=True, exist_ok=True)
    check(folder, config)
    lock.take()
    check(folder, config)  # another process may have been here
    if not file.exists():
      part = folder / PART
      part.write_text(to_text(config))
      os.replace(part, file)
  except OSError as e:
    raise UserError(f'workdir {folder} cannot be written: {e}') from None
