"""Two processes of two devices each: one run, killed, stopped and resumed."""

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
UMM1 = (
  '--config=configs/umm1.py', '--config.train.steps=3',
  '--config.train.images=8', '--config.train.group_size=2',
  '--config.eval.images=8', '--config.eval.batch=8',
  '--config.eval.every=1000',
)  # fmt: skip
# What is lost or not does not hang on what is trained: a tower starts sooner.
TOWER = (
  '--config=configs/coldstart.py:reward', '--config.train.images=8',
)  # fmt: skip
LONG = (*TOWER, f'--config.train.steps={STEPS}', '--config.ckpt.every=1')
SHORT = (
  *TOWER, '--config.train.steps=8', '--config.ckpt.every=2',
  '--config.ckpt.keep=9', '--config.train.max_skipped=2',
  '--config.guard.rollbacks=1',
)  # fmt: skip


class Hosts:
  """`count` processes of one run; its workdir may be in a bucket."""

  def __init__(
    self,
    folder: Path,
    count: int,
    cache: Path,
    workdir: str = '',
    args: tuple[str, ...] = LONG,
    faults: tuple[str, ...] = ('', ''),
  ):
    devices = f'device_count={4 // count}'
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


def test_two_processes_compute_what_one_does(tmp_path, cache):
  found = []
  for count in (1, 2):
    with Hosts(tmp_path / str(count), count, cache, args=UMM1) as run:
      assert run.codes(600) == [0] * count, run.said()
    assert run.steps() == [1, 2, 3]
    found.append(rows(run.metrics))
    policy = tmp_path / str(count) / 'export' / 'policy'
    assert (policy / 'config.json').exists()
  for mine, other in zip(*found):
    for key in ('reward/mean', 'optim/grad_norm', 'caption/length'):
      np.testing.assert_allclose(mine[key], other[key], rtol=1e-5, err_msg=key)


def test_two_processes_are_one_run_that_is_not_lost(tmp_path, cache):
  folder = tmp_path / 'run'
  with Hosts(folder, 2, cache) as two:
    two.until(4)
    two.processes[1].send_signal(signal.SIGKILL)
    start = time.monotonic()
    assert two.codes(60) == [3, -signal.SIGKILL], two.said()
    assert time.monotonic() - start < 60
    assert 'stopping; run the same command on every host' in two.said()

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
  assert (folder / 'export' / 'config.json').exists()


def test_hosts_go_back_together_and_leave_what_one_cannot_read(tmp_path, cache):
  folder = tmp_path / 'run'
  faults = ('nan=6,7,8',) * 2
  with Hosts(folder, 2, cache, args=SHORT, faults=faults) as two:
    assert two.codes(300) == [0, 0], two.said()
  assert 'back to step 4, on other data' in two.said()
  before = rows(two.metrics)
  assert [r['step'] for r in before] == [*range(1, 9)]
  assert [r['guard/rollbacks'] for r in before] == [0] * 4 + [1] * 4
  assert not any(r['optim/skipped'] for r in before)

  faults = ('', 'unreadable=8')
  with Hosts(folder, 2, cache, args=SHORT, faults=faults) as two:
    assert two.codes(300) == [0, 0], two.said()
  assert 'step 8 cannot be read (another host cannot' in two.said()
  assert 'going on from step 6' in two.said()
  assert (folder / 'unreadable' / '8').is_dir()
  assert (folder / 'checkpoints' / '8').is_dir()  # taken and saved again
  after = rows(two.metrics)
  assert [r['step'] for r in after] == [*range(1, 9)]
  for mine, other in zip(after, before):
    np.testing.assert_allclose(mine['optim/loss'], other['optim/loss'], 1e-5)


@pytest.mark.slow
def test_two_processes_in_a_bucket(tmp_path, cache, bucket):
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
  stopped = two.steps()
  with hosts(1) as one:  # on another number of hosts; nobody holds the lock
    assert one.codes(300) == [0], one.said()
    assert 'waiting' not in one.said()
    assert f'at step {stopped[-1]}' in one.said()
  assert one.steps() == [*range(1, STEPS + 1)]
  place = epath.Path(bucket)
  assert (place / 'export' / 'config.json').exists()
  assert not (place / 'lock').exists()


def test_a_mistake_that_one_host_finds_ends_all(tmp_path, cache):
  folder = tmp_path / 'run'
  folder.mkdir()
  (folder / 'diary.txt').write_text('of another program')
  with Hosts(folder, 2, cache) as two:
    assert two.codes(120) == [2, 3], two.said()
    assert 'is not empty' in two.said()
    assert 'process 0 of 2 is gone' in two.said()
