"""A run's folder: claimed by one config, refused to any other."""

import json
import os
from collections.abc import Mapping
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


def check(folder: Path, config: Mapping[str, Any]) -> None:
  """Writes nothing.

  Raises:
    UserError: the folder holds something else or was made with another
      config.
  """
  file = folder / CONFIG
  if file.exists():
    try:
      old = flat(json.loads(file.read_text()))
    except (ValueError, AttributeError):
      raise UserError(f'{file} is not JSON: use another --workdir') from None
    new = flat(config)
    keys = [k for k in sorted(set(old) | set(new)) if not k.startswith(FREE)]
    changed = [
      f'{k} {old.get(k)!r} -> {new.get(k)!r}'
      for k in keys
      if old.get(k) != new.get(k)
    ]
    if changed:
      raise UserError(
        f'{folder} was made with another config ({"; ".join(changed)}): use '
        'another --workdir or the same config'
      )
  elif folder.is_dir() and {p.name for p in folder.iterdir()} - OURS:
    raise UserError(
      f'{folder} is not empty and holds no config.json: use another --workdir'
    )


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
      part.write_text(json.dumps(dict(config), indent=2) + '\n')
      os.replace(part, file)
  except OSError as e:
    raise UserError(f'workdir {folder} cannot be written: {e}') from None
