"""A run's folder in a bucket: gs://BUCKET/FOLDER."""

import contextlib
import importlib.util
import logging
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from etils import epath

from uae_jax.errors import UserError
from uae_jax.train import workdir
from uae_jax.train.bucket_lock import FILE, HELP, BucketLock
from uae_jax.train.workdir import Workdir

SCHEME = 'gs://'
# What a run reads of what it has written, at a start.
KEPT = ('config.json', 'metrics.jsonl', 'wandb.json', 'bad_items.jsonl')
GALLERY = 'gallery'
OWN = ('wandb',)  # W&B sends these itself
BESIDE = ('.part', '.partial')  # ends of names of what is being written


def at(where: str | Path, process: int) -> 'Workdir | Bucket':
  """The workdir at a path or an address.

  Args:
    where: a folder, or gs://BUCKET/FOLDER.
    process: of this host.

  Raises:
    UserError: it can be neither.
  """
  if '://' in str(where):
    return Bucket(str(where), process)
  return Workdir(Path(where), process)


class Bucket:
  """Has the attributes and methods of `Workdir`.

  An object of a bucket cannot grow. What a run writes in place (metrics,
  galleries, the report, the export) lies in a folder of this host's disk, new
  at every start, and is sent: before each checkpoint, which so never is ahead
  of its metrics, and every now and then. Checkpoints go to the bucket
  straight, from every host.
  """

  def __init__(self, url: str, process: int):
    """Asks the bucket nothing.

    Args:
      url: gs://BUCKET/FOLDER.
      process: of this host.

    Raises:
      UserError: it is none, or what reads buckets is not installed.
    """
    bucket, _, folder = url.removeprefix(SCHEME).strip('/').partition('/')
    if not url.startswith(SCHEME) or not bucket or not folder:
      raise UserError(
        f'--workdir={url} is neither a folder nor {SCHEME}BUCKET/FOLDER'
      )
    if importlib.util.find_spec('gcsfs') is None:
      raise UserError(f"{url} needs gcsfs: pip install 'uae_jax[gcs]'")
    _set_up_gcsfs()
    self.name = f'{SCHEME}{bucket}/{folder}'
    self.place = epath.Path(self.name)
    self._process, self._lock = process, BucketLock(bucket, folder)
    self._disk = tempfile.TemporaryDirectory(prefix='uae_jax-')
    self.files = Path(self._disk.name) / self.place.name
    self.files.mkdir()
    self._sent: dict[Path, tuple[int, int]] = {}  # file -> size, time
    self._when, self._entered = time.monotonic(), False

  def enter(self, config: Mapping[str, Any]) -> None:
    """Checks the folder, holds it, and fetches what a run reads.

    Raises:
      UserError: as `workdir.compare`, another process holds it, or the bucket
        does not answer.
    """
    if self._process:
      self._fetch([workdir.bad_items(self.place, self._process)])
    else:
      self._check(config)
      self._lock.take()
      self._check(config)  # another process may have been here
      self._fetch([*map(self.place.joinpath, KEPT), *self._galleries()])
    self._entered = True

  def claim(self, config: Mapping[str, Any]) -> None:
    """Writes config.json where there is none.

    Raises:
      UserError: it cannot be written.
    """
    file = self.files / workdir.CONFIG
    if self._process == 0 and not file.exists():
      file.write_text(workdir.to_text(config))
      self.send()

  def send(self, every: float = 0.0) -> None:
    """Sends the files that have changed.

    Args:
      every: seconds that must have passed since the last time; what fails
        then is sent the next time.

    Raises:
      UserError: the folder was lost to another process, or, if `every` is 0,
        the bucket does not take them.
    """
    self._lock.check()
    if time.monotonic() - self._when < every:
      return
    try:
      with self._asking('is not written'):
        for file in sorted(self.files.rglob('*')):
          self._send(file)
    except UserError as e:
      if not every:
        raise
      logging.warning('%s', e)
    self._when = time.monotonic()

  def leave(self) -> None:
    """Sends what it can, such as the metrics of a run that failed; lets go."""
    try:
      if self._entered:
        self.send()
    except UserError as e:
      logging.warning('%s', e)
    self._lock.release()
    self._disk.cleanup()

  def _send(self, file: Path) -> None:
    """Sends a file unless it is there as it is."""
    name = file.relative_to(self.files)
    hidden = name.parts[0] in OWN or any(x.endswith(BESIDE) for x in name.parts)
    if hidden or not file.is_file():
      return
    about = file.stat()
    state = (about.st_size, about.st_mtime_ns)
    if self._sent.get(name) != state:
      epath.Path(file).copy(self.place / name, overwrite=True)
      self._sent[name] = state

  def _check(self, config: Mapping[str, Any]) -> None:
    """Raises UserError as `workdir.compare`."""
    with self._asking('cannot be read'):
      there = {path.name: path for path in _listed(self.place)}
      there.pop(FILE, None)
      file = there.get(workdir.CONFIG)
      text = file.read_text() if file is not None else None
    workdir.compare(self.name, config, text, there)

  def _galleries(self) -> list[epath.Path]:
    """Pictures of evaluations that the report shows."""
    with self._asking('cannot be read'):
      return _listed(self.place / GALLERY)

  def _fetch(self, files) -> None:
    """Copies those files of the bucket that are there."""
    with self._asking('cannot be read'):
      for file in files:
        name = file.relative_to(self.place)
        if file.exists():
          to = self.files / name
          to.parent.mkdir(exist_ok=True)
          file.copy(to, overwrite=True)
          about = to.stat()
          self._sent[Path(name)] = (about.st_size, about.st_mtime_ns)

  @contextlib.contextmanager
  def _asking(self, what: str):
    """Says in one line that the bucket does not do as asked."""
    try:
      yield
    except Exception as e:  # of sockets, of HTTP, of Google's credentials
      why = str(e).splitlines()[0] if str(e) else type(e).__name__
      raise UserError(f'{self.name} {what}: {why}; {HELP}') from None


def _set_up_gcsfs() -> None:
  """To be called before anything in this process uses it."""
  import fsspec

  # It would remember what a folder held, whatever other hosts write there.
  fsspec.config.conf.setdefault('gcs', {})['use_listings_cache'] = False
  # Its log tells every try with a traceback.
  logging.getLogger('gcsfs').setLevel(logging.CRITICAL + 1)


def _listed(folder: epath.Path) -> list[epath.Path]:
  """What a folder holds; nothing where there is none."""
  try:
    return sorted(folder.iterdir())
  except FileNotFoundError:
    return []
