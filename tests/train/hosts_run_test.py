"""Two processes of four devices each: one run, killed, stopped and resumed."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from etils import epath

ROOT = Path(__file__).parent.parent.parent
STEPS = 16
ARGS = (
  '--config=configs/umm1.py', f'--config.train.steps={STEPS}',
  '--config.train.images=8', '--config.train.group_size=2',
  '--config.eval.images=8', '--config.eval.batch=8',
  '--config.eval.every=1000', '--config.ckpt.every=1',
)  # fmt: skip
TOWER = (
  '--config=configs/coldstart.py:reward', '--config.train.steps=8',
  '--config.train.images=8', '--config.ckpt.every=2', '--config.ckpt.keep=9',
  '--config.train.max_skipped=2', '--config.guard.rollbacks=1',
)  # fmt: skip


class Hosts:
  """`count` processes of one run; its workdir may be in a bucket."""

  def __init__(
    self,
    folder: Path,
    count: int,
    cache: Path,
    workdir: str = '',
    args: tuple[str, ...] = ARGS,
    faults: tuple[str, ...] = ('', ''),
  ):
    devices = f'device_count={8 // count}'
    flags = re.sub(r'device_count=\d+', devices, os.environ['XLA_FLAGS'])
    env = {
      **os.environ,
      'XLA_FLAGS': flags,
      'JAX_COMPILATION_CACHE_DIR': str(cache),
    }
    with socket.socket() as s:
      s.bind(('127.0.0.1', 0))
      port = s.getsockname()[1]
    self.metrics = epath.Path(workdir or folder) / 'metrics.jsonl'
    self.logs = [folder.parent / f'{folder.name}.{i}.log' for i in range(count)]
    self.processes = []
    for i in range(count):
      joined = (f'--coordinator=127.0.0.1:{port}', f'--processes={count}',
                f'--process={i}')  # fmt: skip
      joined = joined if count > 1 else ()
      module = ['uae_jax.main']
      if faults[i]:
        module = ['tests.train.faulty_host', faults[i]]
      with open(self.logs[i], 'w') as log:
        self.processes.append(
          subprocess.Popen(
            [
              sys.executable,
              '-m',
              *module,
              *args,
              *joined,
              f'--workdir={workdir or folder}',
            ],
            cwd=ROOT,
            env=env,
            stdout=log,
            stderr=subprocess.STDOUT,
          )  # fmt: skip
        )

  def steps(self) -> list[int]:
    """Steps that are written."""
    return [r['step'] for r in rows(self.metrics)]

  def until(self, step: int) -> None:
    """Waits for a step."""
    while max(self.steps(), default=-1) < step:
      time.sleep(0.2)
      assert all(p.poll() is None for p in self.processes), self.said()

  def resumed(self) -> None:
    """Waits for a step of its own."""
    while 'resuming' not in self.said():
      time.sleep(0.2)
    self.until(max(self.steps()) + 1)

  def codes(self, seconds: float) -> list[int]:
    """Exit codes, which must be there within some time."""
    end = time.monotonic() + seconds
    return [p.wait(max(end - time.monotonic(), 0.1)) for p in self.processes]

  def said(self) -> str:
    return '\n'.join(log.read_text() for log in self.logs)

  def __enter__(self):
    return self

  def __exit__(self, *_):
    for p in self.processes:
      p.kill()
      p.wait()


def rows(metrics: Path | epath.Path):
  """Rows of training steps."""
  if not metrics.exists():
    return []
  found = [json.loads(line) for line in metrics.read_text().splitlines()]
  return [row for row in found if 'optim/skipped' in row]


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
  return tmp_path_factory.mktemp('cache')


@pytest.fixture(scope='module')
def alone(tmp_path_factory, cache):
  """Rows of the run of one process on eight devices."""
  folder = tmp_path_factory.mktemp('alone') / 'run'
  with Hosts(folder, 1, cache) as one:
    assert one.codes(600) == [0], one.said()
  return rows(folder / 'metrics.jsonl')


def test_two_processes_are_one_run_that_is_not_lost(tmp_path, cache, alone):
  folder = tmp_path / 'run'
  with Hosts(folder, 2, cache) as two:
    two.until(4)
    two.processes[1].send_signal(signal.SIGKILL)
    start = time.monotonic()
    assert two.codes(60) == [3, -signal.SIGKILL], two.said()
    assert time.monotonic() - start < 60
    assert 'stopping; run the same command on every host' in two.said()
  # The same numbers as on one process, to the first three steps.
  for mine, other in list(zip(rows(folder / 'metrics.jsonl'), alone))[:3]:
    for key in ('reward/mean', 'optim/grad_norm', 'caption/length'):
      np.testing.assert_allclose(mine[key], other[key], rtol=1e-5, err_msg=key)

  with Hosts(folder, 2, cache) as two:  # resumes; the first host is lost
    two.resumed()
    two.processes[0].send_signal(signal.SIGKILL)
    assert two.codes(60) == [-signal.SIGKILL, 3], two.said()
    assert 'process 0 of 2 is gone' in two.said()

  with Hosts(folder, 2, cache) as two:  # resumes; one host is taken away
    two.resumed()
    two.processes[1].send_signal(signal.SIGTERM)
    assert two.codes(120) == [143, 143], two.said()
    assert 'run the same command to resume' in two.said()
  stopped = two.steps()
  assert stopped == [*range(1, len(stopped) + 1)] and len(stopped) < STEPS

  with Hosts(folder, 1, cache) as one:  # on another number of hosts
    assert one.codes(300) == [0], one.said()
    assert f'at step {stopped[-1]}' in one.said()
  assert one.steps() == [*range(1, STEPS + 1)]
  assert (folder / 'export' / 'policy' / 'config.json').exists()


def test_a_checkpoint_that_one_host_cannot_read_is_left_by_all(tmp_path, cache):
  folder = tmp_path / 'run'
  with Hosts(folder, 1, cache, args=TOWER) as one:
    assert one.codes(300) == [0], one.said()
  want = rows(one.metrics)
  faults = ('', 'unreadable=8')
  with Hosts(folder, 2, cache, args=TOWER, faults=faults) as two:
    assert two.codes(300) == [0, 0], two.said()
  assert 'step 8 cannot be read (another host cannot' in two.said()
  assert 'going on from step 6' in two.said()
  assert (folder / 'unreadable' / '8').is_dir()
  assert [p.name for p in (folder / 'checkpoints').glob('8')] == ['8']
  got = rows(two.metrics)
  assert [r['step'] for r in got] == [r['step'] for r in want] == [*range(1, 9)]
  for mine, other in zip(got[6:], want[6:]):  # taken again, on two hosts
    np.testing.assert_allclose(
      mine['optim/loss'], other['optim/loss'], rtol=1e-4
    )


def test_several_hosts_go_back_together(tmp_path, cache):
  folder = tmp_path / 'run'
  faults = ('nan=6,7,8', 'nan=6,7,8')
  with Hosts(folder, 2, cache, args=TOWER, faults=faults) as two:
    assert two.codes(300) == [0, 0], two.said()
  assert 'back to step 4, on other data' in two.said()
  got = rows(two.metrics)
  assert [r['step'] for r in got] == [*range(1, 9)]
  assert [r['guard/rollbacks'] for r in got] == [0] * 4 + [1] * 4
  assert not any(r['optim/skipped'] for r in got)


@pytest.mark.slow
def test_two_processes_in_a_bucket(tmp_path, cache, alone, bucket):
  hosts = lambda count: Hosts(tmp_path / 'run', count, cache, bucket)
  with hosts(2) as two:
    two.until(4)
    for process in two.processes:
      process.send_signal(signal.SIGKILL)
    two.codes(60)
  with hosts(2) as two:  # resumes when the lock has been silent for a minute
    two.resumed()
    assert 'waiting up to 60 s' in two.said()
    two.processes[1].send_signal(signal.SIGTERM)
    assert two.codes(120) == [143, 143], two.said()
  with hosts(1) as one:  # on another number of hosts; nobody holds the lock
    assert one.codes(300) == [0], one.said()
    assert 'waiting' not in one.said()
  assert one.steps() == [*range(1, STEPS + 1)]
  for mine, other in list(zip(rows(one.metrics), alone))[:3]:
    for key in ('reward/mean', 'optim/grad_norm', 'caption/length'):
      np.testing.assert_allclose(mine[key], other[key], rtol=1e-5, err_msg=key)
  place = epath.Path(bucket)
  assert (place / 'export' / 'policy' / 'config.json').exists()
  assert not (place / 'lock').exists()


def test_a_mistake_that_one_host_finds_ends_all(tmp_path, cache):
  folder = tmp_path / 'run'
  folder.mkdir()
  (folder / 'diary.txt').write_text('of another program')
  with Hosts(folder, 2, cache) as two:
    assert two.codes(120) == [2, 3], two.said()
    assert 'is not empty' in two.said()
    assert 'process 0 of 2 is gone' in two.said()
