"""Runs that are killed, stopped and started twice lose and repeat nothing."""

import json
import os
import random
import signal
import subprocess
import sys

import pytest

from benchmarks import chaos

CONFIG = {'train.steps': 12, 'eval.every': 4, 'ckpt.every': 2}
# One device, and what the other tests compile with.
FLAGS = ' '.join(
  x for x in os.environ['XLA_FLAGS'].split() if 'device_count' not in x
)


def make(folder, bucket=''):
  cache = os.environ['UAE_JAX_TEST_CACHE']
  env = {'XLA_FLAGS': FLAGS, 'JAX_COMPILATION_CACHE_DIR': cache}
  return chaos.Run(folder, CONFIG, env | {'CHAOS_STALE': '5'}, bucket)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """A run that nobody disturbs."""
  run = make(tmp_path_factory.mktemp('chaos') / 'whole')
  run.finish()
  return run


def test_a_killed_run_is_the_one_that_was_left_alone(whole, tmp_path):
  run = make(tmp_path)
  moments = chaos.kill_often(run, 3, random.Random(0))
  assert moments == ['step', 'save', 'evaluate']
  run.finish()
  found = chaos.compare(whole, run)
  assert found['steps'] == 12 and found['steps_again'] > 0
  assert found['rows'] == 12 + 4 and found['items'] == 12 * 8
  left = {p.name for p in (run.workdir / 'checkpoints').iterdir()}
  assert {'10', '12'} <= left and len(left) <= 3  # the best may be another
  assert all(name.isdigit() for name in left)


@pytest.mark.slow
def test_a_run_in_a_bucket_that_is_killed_is_that_in_a_folder(
  whole, tmp_path, bucket
):
  run = make(tmp_path, bucket)
  assert len(chaos.kill_often(run, 3, random.Random(0))) == 3
  assert 'for a sign of life' in run.log.read_text()
  run.finish()
  found = chaos.compare(whole, run)
  assert found['steps'] == 12 and found['steps_again'] > 0
  assert not (run.workdir / 'lock').exists()


@pytest.mark.slow
def test_a_second_sigterm_does_not_wait_and_a_second_run_is_refused(
  whole, tmp_path
):
  run, other = make(tmp_path), make(tmp_path)
  other.log = tmp_path / 'other.txt'
  run.start(linger=2)
  assert run.wait_for('step', 3), run.said()
  other.start()
  assert other.end() == 2
  assert f'in use by process {run.process.pid} on ' in other.said()
  run.kill(signal.SIGTERM)
  assert run.wait_for('save', 3), run.said()
  run.kill(signal.SIGTERM)
  assert run.end() == -signal.SIGTERM, run.said()
  run.finish()
  assert chaos.compare(whole, run)['steps'] == 12


def test_nothing_is_compiled_after_the_first_evaluation(whole):
  assert chaos.growth(whole.lines(), 5)['programs'] == 0


@pytest.mark.parametrize('change', [dict(items=[]), dict(rows={'step': 3})])
def test_what_is_lost_would_be_seen(whole, tmp_path, change, monkeypatch):
  other = make(tmp_path)
  items, rows = whole.items(), whole.metrics()
  if 'items' in change:
    items[3] = items[3] + [[0] * 8]
  else:
    rows[3] = change['rows']
  monkeypatch.setattr(other, 'items', lambda: items)
  monkeypatch.setattr(other, 'metrics', lambda: rows)
  with pytest.raises(AssertionError):
    chaos.compare(whole, other)


@pytest.mark.slow
@pytest.mark.parametrize('where', [[], ['--bucket']])
def test_twenty_kills_and_flat_memory(where, tmp_path):
  command = [sys.executable, '-m', 'benchmarks.chaos', f'--out={tmp_path}']
  done = subprocess.run([*command, *where], capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert json.loads(done.stdout)['kills'] == 20
