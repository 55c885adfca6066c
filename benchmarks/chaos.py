"""Runs that are killed, stopped and resumed; is anything lost?

`python -m benchmarks.chaos [--kills=20] [--steps=500] [--seed=0] [--out=DIR]
[--bucket]`

First a run of the embedded default, shortened, is left alone. Another is
killed (SIGKILL) again and again, by turns while it starts, steps, saves and
evaluates, each time after a random while, and the same command goes on. Its
metrics must be those of the first, and every step must have learnt from the
same items, however often it was taken. A third is stopped by SIGTERM and timed.
A longer one says how memory grows and what is compiled on the way. Ends with
one JSON object. With --bucket the workdirs of all but the first are in a
bucket, which an emulator of Google's in this process serves.
"""

import argparse
import json
import logging
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

ROOT = Path(__file__).parent.parent
SMALL = {
  'train.images': 8, 'train.group_size': 2, 'rollout.length': 8,
  'eval.images': 8, 'eval.batch': 8, 'eval.gallery': 2, 'log.every': 0.0,
}  # fmt: skip
MOMENTS = ('step', 'save', 'evaluate', 'begin')  # of a kill, by turns
PATIENCE = 300  # seconds without a sign after which a run hangs


class Run:
  """A workdir, and the process that is at work in it."""

  def __init__(
    self,
    folder: Path,
    config: Mapping[str, Any],
    env: Mapping[str, str] = {},
    bucket: str = '',
  ):
    """Starts nothing.

    Args:
      folder: to be made, for workdir and logs.
      config: what differs from configs/umm1.py and from `SMALL`.
      env: of the processes, beside this one's.
      bucket: an address for the workdir instead.
    """
    folder.mkdir(parents=True, exist_ok=True)
    self.workdir = epath.Path(bucket or folder / 'run')
    self.diary = folder / 'diary.jsonl'
    self.log = folder / 'log.txt'
    self._args = [f'--config.{k}={v}' for k, v in {**SMALL, **config}.items()]
    self._env = {**os.environ, **env, 'PYTHONPATH': str(ROOT)}
    self.process = None

  def start(self, linger: float = 0.0) -> None:
    """Starts, or goes on; see `chaos_run` for `linger`."""
    self.since = len(self.lines())
    with open(self.log, 'a') as log:
      self.process = subprocess.Popen(
        [
          sys.executable, '-m', 'benchmarks.chaos_run', str(self.diary),
          '--config=configs/umm1.py', f'--workdir={self.workdir}',
          *self._args,
        ],
        cwd=ROOT, env={**self._env, 'CHAOS_LINGER': str(linger)},
        stdout=log, stderr=log,
      )  # fmt: skip

  def lines(self) -> list[dict]:
    """What the processes have told so far; a torn line is left out."""
    out = []
    for line in _read(self.diary):
      try:
        out.append(json.loads(line))
      except ValueError:
        pass
    return out

  def wait_for(self, moment: str, times: int = 1) -> bool:
    """Until this process has come to a moment so often; or has ended: False."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
      ended = self.process.poll() is not None
      new = self.lines()[self.since :]
      if sum(moment in (row.get('at'), *row) for row in new) >= times:
        return True
      if ended:
        return False
      time.sleep(0.02)
    raise TimeoutError(f'no {moment} in {PATIENCE} s: {self.said()}')

  def kill(self, number: int = signal.SIGKILL) -> None:
    """Sends a signal."""
    self.process.send_signal(number)

  def end(self, seconds: float = PATIENCE) -> int:
    """Waits for the exit code."""
    return self.process.wait(seconds)

  def finish(self) -> None:
    """Runs to the end.

    Raises:
      RuntimeError: it ends otherwise.
    """
    self.start()
    if self.end():
      raise RuntimeError(self.said())

  def said(self) -> str:
    """The end of the log."""
    return '\n'.join(_read(self.log)[-20:])

  def metrics(self) -> list[dict]:
    """metrics.jsonl, without what a clock says."""
    clock = ('time/', 'throughput/')
    rows = map(json.loads, _read(self.workdir / 'metrics.jsonl'))
    return [
      {k: v for k, v in row.items() if not k.startswith(clock)} for row in rows
    ]

  def items(self) -> dict[int, list[list[int]]]:
    """Step -> the items of it, as often as it was taken."""
    out = {}
    for row in self.lines():
      if 'step' in row:
        out.setdefault(row['step'], []).append(row['items'])
    return out


def _read(path: Path | epath.Path) -> list[str]:
  return path.read_text().splitlines() if path.exists() else []


def kill_often(run: Run, kills: int, rng: random.Random) -> list[str]:
  """Kills a run until it has been so often, or has ended.

  Returns:
    The moments.
  """
  moments = []
  while len(moments) < kills:
    moment = MOMENTS[len(moments) % len(MOMENTS)]
    run.start()
    if not run.wait_for(moment, rng.randint(1, 3) if moment == 'step' else 1):
      break
    # A start takes seconds, the rest a fraction of one.
    time.sleep(rng.uniform(0, 4 if moment == 'begin' else 0.4))
    run.kill()
    if run.end() != -signal.SIGKILL:
      break
    moments.append(moment)
  return moments


def compare(whole: Run, broken: Run) -> dict[str, int]:
  """Counts what was compared.

  Raises:
    AssertionError: the runs differ.
  """
  want, got = whole.items(), broken.items()
  for step, (items,) in want.items():
    for again in got[step]:
      assert again == items, f'step {step}: {again} instead of {items}'
  assert set(want) == set(got)
  rows = whole.metrics()
  for row, other in zip(rows, broken.metrics(), strict=True):
    assert row == other, f'{other} instead of {row}'
  taken = sum(map(len, got.values()))
  return dict(
    steps=len(want), steps_again=taken - len(want), rows=len(rows),
    items=sum(len(x[0]) for x in want.values()),
  )  # fmt: skip


def stop(run: Run, step: int) -> float:
  """Seconds from SIGTERM at a step to the end of a process that has saved.

  Raises:
    AssertionError: it ends otherwise.
  """
  run.start()
  assert run.wait_for('step', step), run.said()
  start = time.monotonic()
  run.kill(signal.SIGTERM)
  code = run.end()
  assert code == 128 + signal.SIGTERM, (code, run.said())
  return time.monotonic() - start


def growth(rows: Sequence[Mapping], after: int) -> dict[str, float]:
  """What a process gains after so many steps.

  Returns:
    `slope` in MiB per 100 steps, the median over all stretches of 50 (an
    operating system may take back at once what was freed long ago); MiB
    `first` and `last`; `programs` compiled.
  """
  rows = [row for row in rows if row.get('step', -1) >= after]
  memory = np.array([row['bytes'] for row in rows]) / 2**20
  gains = memory[50:] - memory[:-50]
  return dict(
    slope=2 * float(np.median(gains)) if len(gains) else np.nan,
    first=memory[0],
    last=memory[-1],
    programs=rows[-1]['programs'] - rows[0]['programs'],
  )


def start_bucket() -> tuple[dict[str, str], str]:
  """What processes need to know of a bucket of this one; a folder in it.

  A holder of its lock that was killed is gone after seconds, not a minute.
  """
  from benchmarks.gcs import Server

  logging.getLogger('gcsfs').setLevel(logging.CRITICAL + 1)
  server = Server()
  server.start()
  os.environ.update(server.environment())
  env = server.environment() | {'CHAOS_STALE': '5'}
  return env, f'gs://{server.BUCKET}/chaos'


def main() -> None:
  """All of it."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--kills', type=int, default=20)
  parser.add_argument('--steps', type=int, default=500)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--out', default=None)
  parser.add_argument('--bucket', action='store_true')
  args = parser.parse_args()
  folder = Path(args.out or tempfile.mkdtemp(prefix='chaos'))
  start = time.monotonic()
  often = {'eval.every': 10, 'ckpt.every': 5}
  short = {'train.steps': max(4 * args.kills, 20), **often}
  env, place = start_bucket() if args.bucket else ({}, '')

  def make(name: str, config: Mapping[str, Any]) -> Run:
    return Run(folder / name, config, env, place and f'{place}/{name}')

  whole, broken = Run(folder / 'whole', short), make('broken', short)
  whole.finish()
  moments = kill_often(broken, args.kills, random.Random(args.seed))
  broken.finish()
  found = dict(kills=len(moments), **compare(whole, broken))
  print(f'{found}: nothing is lost', file=sys.stderr, flush=True)
  found['sigterm_seconds'] = stop(make('stopped', short), 12)
  seldom = {'eval.every': 100, 'ckpt.every': 50}
  long = make('long', {'train.steps': args.steps, **seldom})
  long.finish()
  found |= growth(long.lines(), args.steps // 5)
  found['seconds'] = time.monotonic() - start
  print(json.dumps({k: round(v, 3) for k, v in found.items()}))


if __name__ == '__main__':
  main()
