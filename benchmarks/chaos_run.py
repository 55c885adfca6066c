"""A run that says what it is at, for `benchmarks.chaos` to disturb.

`python -m benchmarks.chaos_run LOG ARGUMENTS` is `python -m uae_jax.main
ARGUMENTS`, and appends JSON lines to LOG: `at` (begin, evaluate, save) when it
starts on something, and for every step the items that it learnt from, the
memory of the process and the programs compiled so far. With CHAOS_LINGER it
waits so many seconds where it starts on something; with CHAOS_STALE whoever
held a bucket is gone after so many without a sign of life.
"""

import json
import os
import re
import sys
import time
import zlib
from pathlib import Path

import jax
import numpy as np

from uae_jax import main
from uae_jax.ckpt.orbax_io import Checkpoints
from uae_jax.train import bucket_lock, loop

LINGER = float(os.environ.get('CHAOS_LINGER', 0))
STALE = float(os.environ.get('CHAOS_STALE', bucket_lock.STALE))
COMPILED = '/jax/core/compile/backend_compile_duration'


def own_memory() -> int:
  """Bytes that this process has written; pages of files come and go."""
  status = Path('/proc/self/status').read_text()
  return int(re.search(r'RssAnon:\s*(\d+) kB', status)[1]) * 1024


class Diary:
  """Lines of what happens, each written at once."""

  def __init__(self, path: Path):
    self._path, self._items, self.programs = path, [], 0

  def write(self, **row) -> None:
    """One line."""
    row |= dict(pid=os.getpid(), time=time.time())
    with open(self._path, 'a') as f:
      f.write(json.dumps(row) + '\n')

  def before(self, function, at: str):
    """The function, announced."""

    def told(*args, **kw):
      self.write(at=at)
      time.sleep(LINGER)
      return function(*args, **kw)

    return told

  def batch(self, to_batch):
    """`loop.to_batch`, the items noted."""

    def noted(host, mesh):
      self._items = [zlib.crc32(np.ascontiguousarray(x)) for x in host['image']]
      return to_batch(host, mesh)

    return noted

  def step(self, log_step):
    """`Log.step`, which is called once for each step."""

    def noted(log, step, metrics):
      self.write(
        step=step, items=self._items, bytes=own_memory(), programs=self.programs
      )
      return log_step(log, step, metrics)

    return noted

  def compiled(self, event: str, seconds: float, **_) -> None:
    """A listener of jax.monitoring."""
    del seconds
    self.programs += event == COMPILED


def cli() -> None:
  """Wraps what the loop calls, then runs it."""
  diary = Diary(Path(sys.argv.pop(1)))
  bucket_lock.STALE, bucket_lock.BEAT = STALE, STALE / 6
  jax.monitoring.register_event_duration_secs_listener(diary.compiled)
  loop.to_batch = diary.batch(loop.to_batch)
  loop.Log.step = diary.step(loop.Log.step)
  loop.evaluate = diary.before(loop.evaluate, 'evaluate')
  Checkpoints.save = diary.before(Checkpoints.save, 'save')
  diary.write(at='begin')
  main.cli()


if __name__ == '__main__':
  cli()
