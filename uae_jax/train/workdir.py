"""A run's folder: claimed by one config, refused to any other."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from uae_jax.errors import UserError

# Keys that change nothing in what is learnt.
FREE = (
  'log.', 'ckpt.every', 'ckpt.keep', 'eval.gallery', 'mesh.', 'memory.',
  'data.cache', 'data.threads', 'data.max_bad',
)  # fmt: skip
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
  file = folder / 'config.json'
  if file.exists():
    try:
      old = flat(json.loads(file.read_text()))
    except ValueError:
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
  elif folder.exists() and any(folder.iterdir()):
    raise UserError(
      f'{folder} is not empty and holds no config.json: use another --workdir'
    )


def claim(folder: Path, config: Mapping[str, Any]) -> None:
  """Checks the folder, then writes config.json where there is none.

  Raises:
    UserError: as `check`, or the folder cannot be written.
  """
  check(folder, config)
  file = folder / 'config.json'
  try:
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / '.writable'
    probe.touch()
    probe.unlink()
    if not file.exists():
      part = file.with_suffix('.part')
      part.write_text(json.dumps(dict(config), indent=2) + '\n')
      os.replace(part, file)
  except OSError as e:
    raise UserError(f'workdir {folder} cannot be written: {e}') from None
