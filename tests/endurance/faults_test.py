"""Disks, data and numbers that fail under a run."""

import contextlib
import json
import os
import resource
import tempfile
from pathlib import Path

import numpy as np
import pytest

from benchmarks import stores
from tests.train.data_run_test import items
from tests.train.loop_test import config, rows
from uae_jax.errors import UserError
from uae_jax.train import loop, workdir
from uae_jax.train.lock import Lock

NOBODY = 65534


def tower(**changes):
  """A run that compiles quickly: a tower, which draws nothing."""
  return config(
    'coldstart', 'reward', **{'train.steps': 6, 'data.threads': 1, **changes}
  )


class Batches:
  """In the place of `loop.to_batch`: something happens at some calls."""

  def __init__(self, monkeypatch, at, what):
    self.calls, self._at, self._what = 0, at, what
    self._to_batch = loop.to_batch
    monkeypatch.setattr(loop, 'to_batch', self)

  def __call__(self, host, mesh):
    self.calls += 1
    if self.calls in self._at:
      host = self._what(host) or host
    return self._to_batch(host, mesh)


def broken(host):
  return {**host, 'image': np.full_like(host['image'], np.nan)}


def test_a_run_goes_back_and_on_with_other_data(tmp_path, monkeypatch, capsys):
  batches = Batches(monkeypatch, (2, 6, 7, 8), broken)
  programs = []
  compile_step = loop.compile_step
  monkeypatch.setattr(
    loop,
    'compile_step',
    lambda *a: programs.append(compile_step(*a)) or programs[-1],
  )
  c = tower(**{
    'train.steps': 8, 'train.max_skipped': 2, 'guard.rollbacks': 1,
    'guard.spike': 100.0,
  })  # fmt: skip
  assert loop.run(c, tmp_path / 'run') == 0
  # Step 2 is left out. So are 6 and 7, which is seen at 8: back to 4.
  assert batches.calls == 8 + 4
  got = rows(tmp_path / 'run', 'optim/')
  assert [r['step'] for r in got] == [*range(1, 9)]
  assert [r['guard/rollbacks'] for r in got] == [0] * 4 + [1] * 4
  assert [r['guard/not_finite'] for r in got] == [0, 1, 0, 0, 0, 0, 0, 0]
  assert [r['optim/skipped'] for r in got] == [0, 1, 0, 0, 0, 0, 0, 0]
  assert got[1]['optim/loss'] is None and got[2]['optim/loss'] is not None
  assert 'back to step 4, on other data' in capsys.readouterr().out
  assert [p._cache_size() for p in programs] == [1]


@pytest.mark.slow
def test_a_run_that_fails_for_good_keeps_what_was_good(tmp_path, monkeypatch):
  folder = tmp_path / 'run'
  batches = Batches(monkeypatch, range(4, 99), broken)
  c = tower(**{'train.max_skipped': 2, 'train.steps': 9})
  for _ in range(2):  # the same again
    batches.calls = 0
    with pytest.raises(UserError, match='newest checkpoint is of step 2'):
      loop.run(c, folder)
    batches._at = range(2, 99)  # resumed at 2, of which 3 is good
  steps = {p.name for p in (folder / 'checkpoints').iterdir()}
  assert steps == {'0', '2'}


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_nothing_is_lost(tmp_path, monkeypatch):
  whole, folder = tmp_path / 'whole', tmp_path / 'run'
  assert loop.run(tower(), whole) == 0
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

  def full(_):
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, hard))

  Batches(monkeypatch, (3,), full)
  try:
    with pytest.raises(UserError, match='cannot be written') as e:
      loop.run(tower(), folder)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert 'too large' in str(e.value).lower() and '\n' not in str(e.value)
  monkeypatch.undo()
  assert loop.run(tower(), folder) == 0
  assert rows(folder) == rows(whole)
  names = {p.name for p in (folder / 'checkpoints').iterdir()}
  assert names == {'4', '6'}


@pytest.mark.slow
def test_a_shard_that_vanishes_is_left_out(tmp_path, monkeypatch):
  uri = stores.write('webdataset', tmp_path / 'a', items(12), shard=4)
  gone = sorted((tmp_path / 'a').glob('*.tar'))[1]
  Batches(monkeypatch, (2,), lambda _: gone.unlink())
  c = config(**{
    'data.source': uri, 'data.cache': str(tmp_path / 'cache'),
    'eval.every': 99,
  })  # fmt: skip
  folder = tmp_path / 'run'
  assert loop.run(c, folder) == 0
  assert [r['step'] for r in rows(folder, 'reward/')] == [1, 2, 3, 4]
  listed = (folder / 'bad_items.jsonl').read_text().splitlines()
  listed = [json.loads(line) for line in listed]
  assert {r['reason'] for r in listed} <= {'unreadable', 'missing'}
  assert {r['name'].split('.tar')[0] for r in listed} == {
    str(gone).removesuffix('.tar')
  }


@contextlib.contextmanager
def nobody():
  """Somebody who may not write everywhere."""
  root = not os.geteuid()
  if root:
    os.seteuid(NOBODY)
  try:
    yield
  finally:
    if root:
      os.seteuid(0)


@pytest.mark.parametrize('made', [True, False])
def test_a_workdir_that_cannot_be_written(made):
  # Below pytest's own folder nobody may look.
  with tempfile.TemporaryDirectory() as parent:
    folder = Path(parent) / 'run'
    if made:
      folder.mkdir()
      folder.chmod(0o555)
    Path(parent).chmod(0o555)
    with nobody():
      with pytest.raises(UserError, match='cannot be written.*denied'):
        workdir.claim(folder, {'a': 1}, Lock(folder))
    Path(parent).chmod(0o755)


@pytest.mark.parametrize('left', ['lock', 'config.part'])
def test_a_start_that_was_killed_does_not_use_up_the_folder(tmp_path, left):
  (tmp_path / left).write_text('{"ho')
  workdir.claim(tmp_path, {'a': 1}, Lock(tmp_path))
  assert json.loads((tmp_path / 'config.json').read_text()) == {'a': 1}
