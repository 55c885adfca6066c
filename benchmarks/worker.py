"""A process that does one thing when it is told to, and says how long it took.

The sides of a comparison run in processes of their own: each has the memory
and the threads to itself, and is idle while the other works.
"""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


class Worker:
  """The parent's end of `python -m MODULE ARGUMENTS`."""

  def __init__(self, module: str, *arguments: str, env: Mapping[str, str]):
    """Starts it and waits until it is ready."""
    self.process = subprocess.Popen(
      [sys.executable, '-m', module, *arguments], cwd=ROOT, env=dict(env),
      stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    self.about = self._read()

  def __call__(self, stage: str) -> dict[str, Any]:
    """Runs a stage once: `seconds` and what else the stage tells."""
    self.process.stdin.write(stage + '\n')
    self.process.stdin.flush()
    return self._read()

  def close(self) -> None:
    """Ends it."""
    self.process.stdin.close()
    self.process.wait()

  def _read(self) -> dict[str, Any]:
    for line in self.process.stdout:
      if line.startswith('{'):
        return json.loads(line)
    raise SystemExit(f'a side ended early: {" ".join(self.process.args)}')


def peak() -> int:
  """The most memory that this process has had, in bytes."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def serve(
  stages: Mapping[str, Callable[[], Mapping[str, Any] | None]],
  most: Callable[[], int] = peak,
  **about: Any,
) -> None:
  """The child's end: runs `stages` by name, as lines on stdin ask for them.

  A stage returns when its work is done, with whatever is to be told of it;
  `most` tells the bytes of memory that were in use at most until then.
  """
  say = lambda **row: print(json.dumps(row), flush=True)
  say(**about)
  for line in sys.stdin:
    start = time.perf_counter()
    found = stages[line.strip()]() or {}
    seconds = time.perf_counter() - start
    say(**{'seconds': seconds, 'peak_bytes': most(), **found})
