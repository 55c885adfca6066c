"""An output folder that a command fills item by item, and may come back to.

`settings.json` says how its items are made, `results.jsonl` has one object
for each that is done; where several processes fill a folder, each has a file
of its own, such as `results.1.jsonl`. A folder of other settings is refused,
so that no folder ever mixes two.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from uae_jax.errors import UserError

MAIN = 'results.jsonl'


class Results:
  """Rows by name, in the order of their making."""

  def __init__(
    self, folder: Path, settings: Mapping[str, Any], process: int = 0
  ):
    """Opens a folder, new or half done.

    Args:
      folder: to fill.
      settings: how items are made.
      process: which of those that fill the folder this is; the first one
        has to open it before the others.

    Raises:
      UserError: it cannot be written, is of something else, or was made with
        other settings.
    """
    self.folder = folder
    self.file = folder / (f'results.{process}.jsonl' if process else MAIN)
    settings = json.loads(json.dumps(dict(settings)))
    try:
      folder.mkdir(parents=True, exist_ok=True)
      self._claim(folder / 'settings.json', settings)
      self.rows = self._read()
    except OSError as e:
      raise UserError(f'--out={folder} cannot be written: {e}') from None

  def _claim(self, file: Path, settings: Mapping[str, Any]) -> None:
    if not file.exists():
      if any(self.folder.iterdir()):
        raise UserError(
          f'--out={self.folder} is neither empty nor of this tool'
        )
      part = file.with_suffix('.part')
      part.write_text(json.dumps(settings, indent=2) + '\n')
      os.replace(part, file)
      return
    try:
      before = json.loads(file.read_text())
    except ValueError:
      raise UserError(f'{file} is not JSON: choose another --out') from None
    differ = sorted(
      key
      for key in {*before, *settings}
      if key not in before
      or key not in settings
      or before[key] != settings[key]
    )
    if differ:
      raise UserError(
        f'--out={self.folder} was made with other {differ}: choose another'
      )

  def read(self) -> None:
    """Takes up what other processes have done by now."""
    self.rows = self._read()

  def _read(self) -> dict[str, dict[str, Any]]:
    """What is done; a line that was cut short is done again."""
    rows = {}
    files = self.folder.glob('results.[0-9]*.jsonl')
    for file in sorted({self.folder / MAIN, *files}):
      if not file.exists():
        continue
      kept, text = [], file.read_text('utf-8')
      # Not splitlines(), which also cuts at characters that JSON may hold.
      for line in text.split('\n')[:-1]:
        try:
          row = json.loads(line)
          rows[row['name']] = row
        except (ValueError, KeyError, TypeError):
          break
        kept.append(line + '\n')
      if file == self.file and ''.join(kept) != text:
        part = file.with_suffix('.part')
        part.write_text(''.join(kept), 'utf-8')
        os.replace(part, file)
    return rows

  def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
    """Appends rows, each with its `name`; what they name is on disk by now."""
    with self.file.open('a', encoding='utf-8') as f:
      for row in rows:
        self.rows[row['name']] = dict(row)
        f.write(json.dumps(dict(row), ensure_ascii=False) + '\n')
