"""What a source leaves out, counted by reason and listed once."""

import collections
import json
import logging
import threading
from pathlib import Path

from uae_jax.errors import UserError

TRIED = 100  # items before a share of them says anything


class BadItems:
  """Items that cannot be used, by name; several sources may share one list.

  Attributes:
    counts: items listed, by reason; those of an earlier start included.
  """

  def __init__(self):
    self.counts: collections.Counter[str] = collections.Counter()
    self._lock = threading.Lock()
    self._names: set[str] = set()  # since this start
    self._listed: set[str] = set()  # in the file
    self._good = 0
    self._file: Path | None = None
    self._max_share = 1.0

  def __len__(self) -> int:
    return len(self._names)

  def __contains__(self, name: str) -> bool:
    return name in self._names

  def keep(self, file: Path, max_share: float) -> None:
    """Lists what is bad in a file from now on.

    Args:
      file: of JSON lines; what an earlier start has listed is not repeated.
      max_share: of the items tried that may be bad.
    """
    self._file, self._max_share = file, max_share
    text = file.read_text('utf-8') if file.exists() else ''
    for line in text.splitlines():
      try:
        row = json.loads(line)
      except ValueError:
        continue  # torn by a kill
      self._listed.add(row['name'])
      self.counts[row['reason']] += 1
    if text and not text.endswith('\n'):
      with file.open('a') as f:
        f.write('\n')

  def metrics(self) -> dict[str, float]:
    """Items listed, by `data/bad/REASON`."""
    with self._lock:
      return {f'data/bad/{k}': float(n) for k, n in self.counts.items()}

  def good(self) -> None:
    """An item could be used.

    Raises:
      UserError: as `add`.
    """
    with self._lock:
      self._good += 1
      self._check()

  def add(self, name: str, reason: str, why: str) -> None:
    """An item cannot be used.

    Args:
      name: of the item, with the file or folder that it is in.
      reason: a word.
      why: a sentence.

    Raises:
      UserError: too many of those tried are bad.
    """
    with self._lock:
      if name not in self._names:
        self._names.add(name)
        logging.warning('skipped (%d so far): %s', len(self._names), why)
        if name not in self._listed:
          self._listed.add(name)
          self.counts[reason] += 1
          self._write(dict(name=name, reason=reason, why=why))
      self._check()

  def _write(self, row: dict[str, str]) -> None:
    if self._file is not None:
      self._file.parent.mkdir(parents=True, exist_ok=True)
      with self._file.open('a', encoding='utf-8') as f:
        f.write(json.dumps(row, ensure_ascii=False) + '\n')

  def _check(self) -> None:
    tried, bad = self._good + len(self._names), len(self._names)
    if tried >= TRIED and bad > self._max_share * tried:
      most = ', '.join(f'{k} {n}' for k, n in self.counts.most_common(3))
      raise UserError(
        f'{bad} of {tried} items cannot be used, more than data.max_bad='
        f'{self._max_share:g} allows ({most}): look at {self._file}'
      )
