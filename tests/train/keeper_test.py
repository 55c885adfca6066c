"""What a run keeps, and how it finds its way back."""

import json
import resource
import shutil
import sys
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.train.loop_test import config
from uae_jax.ckpt.orbax_io import Checkpoints
from uae_jax.errors import UserError
from uae_jax.train import keeper as keeper_lib
from uae_jax.train.keeper import Keeper
from uae_jax.train.state import digest
from uae_jax.train.workdir import Workdir
from uae_jax.types import TrainState


class Data:
  """An iterator whose place is a number."""

  def __init__(self):
    self.place = 0

  def get_state(self):
    return {'place': self.place}

  def set_state(self, state):
    self.place = state['place']


class Log:
  """In the place of the loop's."""

  def __init__(self):
    self.skipped, self.sound, self.said = 0, 0, []
    self.writer = SimpleNamespace(flush=lambda: None)

  def settle(self):
    pass

  def went_back(self, step, why):
    self.skipped, self.sound = 0, step
    self.said.append(why)


def state(value):
  """A state in which everything is of a value."""
  x = lambda: jax.device_put(jnp.full((3, 5), value, jnp.float32))
  n = lambda: jax.device_put(jnp.int32(value))
  return TrainState(
    n(), {'policy': x()}, {'mu': x(), 'n': n()}, n(), {'tower': x()},
    ema={'policy': x()}, kl_scale=jax.device_put(jnp.float32(value)),
  )  # fmt: skip


class Runs:
  """Starts on one workdir."""

  def __init__(self, folder, **changes):
    self.folder, self.config = folder, config(**changes)
    self.checkpoints = None

  def start(self):
    """(keeper, its data, log), as a new process has them."""
    self.end()
    self.checkpoints = Checkpoints(
      self.folder / 'checkpoints', self.config.ckpt.keep
    )
    self.data, self.log = Data(), Log()
    home = Workdir(self.folder, 0)
    return Keeper(self.config, home, self.checkpoints, self.data)

  def end(self):
    if self.checkpoints is not None:
      self.checkpoints.close()

  def evaluated(self, keeper, step, value):
    """Evaluates a step and saves what is due."""
    with open(self.folder / 'metrics.jsonl', 'a') as f:
      f.write(json.dumps({'step': step, 'eval/unified_score': value}) + '\n')
    keeper.evaluated(step)
    keeper.save_if_due(step, state(step), self.log)

  def steps(self):
    """What is on the disk."""
    self.checkpoints.wait()
    return sorted(int(p.name) for p in (self.folder / 'checkpoints').iterdir())


@pytest.fixture
def runs(tmp_path):
  made = []

  def make(**changes):
    made.append(Runs(tmp_path, **changes))
    return made[-1]

  yield make
  for run in made:
    run.end()


def save(run, keeper, *steps):
  for step in steps:
    run.data.place = 10 * step
    keeper.save(step, state(step), run.log)


def test_a_checkpoint_has_all_that_a_run_goes_on_with(runs):
  run = runs()
  keeper = run.start()
  keeper.rollbacks = 2
  key = jax.random.key_data(keeper.rng)
  save(run, keeper, 7)
  keeper = run.start()
  got, step = keeper.resume(state(0))
  assert step == 7 and run.data.place == 70 and keeper.rollbacks == 2
  assert (jax.random.key_data(keeper.rng) == key).all()
  want = state(7)
  assert jax.tree.structure(got) == jax.tree.structure(want)
  jax.tree.map(np.testing.assert_array_equal, got.saved(), want.saved())
  np.testing.assert_array_equal(got.frozen['tower'], 0)  # not saved


def test_nothing_to_resume(runs):
  keeper = runs().start()
  got, step = keeper.resume(state(3))
  assert step is None
  np.testing.assert_array_equal(got.params['policy'], 3)


def damage(folder, how):
  """Damages every file of a checkpoint, or the largest."""
  files = [p for p in folder.rglob('*') if p.is_file()]
  if how == 'gone':
    shutil.rmtree(folder / 'state')
  elif how == 'empty':
    for file in files:
      file.write_bytes(b'')
  elif how == 'half':
    for file in files:
      file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
  elif how == 'no run':
    (folder / 'run' / 'metadata').write_text('null')
  elif how == 'place':
    file = folder / 'run' / 'metadata'
    text = file.read_text()
    assert '30' in text
    file.write_text(text.replace('30', '31'))
  elif how == 'metadata':
    (folder / '_CHECKPOINT_METADATA').write_text('[3]')
  elif how == 'bit':
    file = max(files, key=lambda p: p.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)


@pytest.mark.parametrize(
  'how', ['gone', 'empty', 'half', 'no run', 'place', 'metadata', 'bit']
)
def test_the_step_before_a_damaged_one_goes_on(runs, how, capsys):
  run = runs(**{'ckpt.keep': 3})
  save(run, run.start(), 1, 2, 3)
  run.end()
  run.checkpoints = None
  damage(run.folder / 'checkpoints' / '3', how)
  keeper = run.start()
  got, step = keeper.resume(state(0))
  said = capsys.readouterr().out
  if step == 3:  # what was damaged is not needed
    assert how == 'metadata'
    return
  assert step == 2 and run.data.place == 20
  np.testing.assert_array_equal(got.opt_state['mu'], 2)
  assert len(said.splitlines()) == 1
  assert said.startswith('warning: step 3 cannot be read')
  assert (run.folder / 'unreadable' / '3').is_dir()
  save(run, keeper, 3)  # its place is free again
  assert run.steps() == [1, 2, 3]
  keeper = run.start()
  assert keeper.resume(state(0))[1] == 3


def test_a_damaged_step_is_one_line_and_no_traceback(runs, monkeypatch):
  run, told = runs(**{'ckpt.keep': 3}), []
  many = {  # which are read at once
    str(i): jax.random.normal(jax.random.key(i), (512, 64)) for i in range(99)
  }
  keeper = run.start()
  for step in (1, 2):
    keeper.save(step, state(step).replace(params=many), run.log)
  run.end()
  run.checkpoints = None
  for file in (run.folder / 'checkpoints' / '2').rglob('d/*'):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
  monkeypatch.setattr(sys, 'unraisablehook', told.append)
  assert run.start().resume(state(0).replace(params=many))[1] == 1
  time.sleep(0.5)  # its other reads end later
  assert not told


def test_several_damaged_steps_are_one_warning(runs, capsys):
  run = runs(**{'ckpt.keep': 3})
  save(run, run.start(), 1, 2, 3)
  run.end()
  run.checkpoints = None
  for step in '32':
    damage(run.folder / 'checkpoints' / step, 'half')
  assert run.start().resume(state(0))[1] == 1
  said = capsys.readouterr().out
  assert len(said.splitlines()) == 1 and 'step 3, 2 cannot' in said


def test_if_no_step_can_be_read_nothing_is_touched(runs):
  run = runs()
  save(run, run.start(), 1, 2)
  run.end()
  run.checkpoints = None
  for step in '12':
    damage(run.folder / 'checkpoints' / step, 'half')
  before = sorted(p for p in run.folder.rglob('*'))
  with pytest.raises(UserError, match=r'none of the checkpoints \[2, 1\]'):
    run.start().resume(state(0))
  run.end()
  run.checkpoints = None
  assert sorted(p for p in run.folder.rglob('*')) == before


def test_a_full_disk_is_one_line_and_leaves_what_was_there(runs):
  run = runs()
  keeper = run.start()
  save(run, keeper, 1)
  run.checkpoints.wait()
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (40, hard))
  try:
    with pytest.raises(UserError, match='cannot be written') as e:
      save(run, keeper, 2)
      run.checkpoints.close()
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert 'too large' in str(e.value).lower()
  run.checkpoints = None
  keeper = run.start()
  assert keeper.resume(state(0))[1] == 1
  save(run, keeper, 2)
  assert run.steps() == [1, 2]


def test_what_a_killed_write_leaves_is_removed(runs):
  run = runs()
  save(run, run.start(), 1)
  run.end()
  torn = run.folder / 'checkpoints' / '2.orbax-checkpoint-tmp'
  shutil.copytree(run.folder / 'checkpoints' / '1', torn)
  keeper = run.start()
  assert keeper.resume(state(0))[1] == 1
  save(run, keeper, 2)
  assert run.steps() == [1, 2] and not torn.exists()


def test_the_best_step_stays_beside_the_newest(runs):
  run = runs(**{'ckpt.keep': 1, 'ckpt.every': 100, 'ckpt.export': 'best'})
  keeper = run.start()
  save(run, keeper, 0)
  for step, value in ((1, 2.0), (2, 9.0), (3, None), (4, 9.0), (5, 1.0)):
    run.evaluated(keeper, step, value)
  assert run.steps() == [2] and keeper.best == 2  # others were not due
  save(run, keeper, 6, 7)
  assert run.steps() == [2, 7]
  keeper = run.start()
  assert keeper.resume(state(0))[1] == 7 and keeper.best == 2
  run.evaluated(keeper, 8, 10.0)
  assert run.steps() == [8] and keeper.best == 8
  save(run, keeper, 9)
  assert run.steps() == [8, 9]
  got, step = keeper.exported(state(9), 9)
  assert step == 8
  np.testing.assert_array_equal(got.params['policy'], 8)


def test_the_last_step_is_exported_unless_told(runs):
  run = runs()
  keeper = run.start()
  run.evaluated(keeper, 1, 5.0)
  run.evaluated(keeper, 2, 4.0)
  got, step = keeper.exported(state(2), 2)
  assert step == 2
  np.testing.assert_array_equal(got.params['policy'], 2)


def test_without_a_watched_figure_there_is_no_best(runs):
  run = runs(**{'eval.watch': 'beauty'})
  keeper = run.start()
  run.evaluated(keeper, 1, 5.0)
  assert keeper.best is None and run.steps() == []


def test_a_rollback_goes_to_before_what_was_skipped(runs):
  run = runs(**{'ckpt.keep': 2, 'ckpt.every': 2, 'guard.rollbacks': 1})
  keeper = run.start()
  keeper.resume(state(0))
  save(run, keeper, 2, 4)
  run.log.skipped, run.log.sound = 3, 5
  keeper.stepped(6)
  keeper.save_if_due(6, state(6), run.log)
  assert run.steps() == [2, 4]  # nothing is kept of a bad time
  run.data.place, key = 80, jax.random.key_data(keeper.rng)
  got, step = keeper.roll_back(state(8), 8, run.log)
  assert step == 4 and run.data.place == 80
  np.testing.assert_array_equal(got.params['policy'], 4)
  np.testing.assert_array_equal(got.frozen['tower'], 8)
  assert (jax.random.key_data(keeper.rng) != key).any()
  (said,) = run.log.said
  assert '3 updates in a row' in said and 'rollback 1 of 1' in said
  run.log.skipped = 3
  with pytest.raises(UserError, match='newest checkpoint is of step 4'):
    keeper.roll_back(state(7), 7, run.log)


def test_a_checkpoint_of_a_bad_time_goes_when_the_run_goes_back(runs):
  run = runs(**{'guard.rollbacks': 3})
  keeper = run.start()
  save(run, keeper, 2, 5)  # the latter when it was stopped
  run.log.skipped, run.log.sound = 4, 3
  assert keeper.roll_back(state(7), 7, run.log)[1] == 2
  assert run.steps() == [2]


def test_a_digest_is_of_every_bit():
  first = digest(state(1))
  assert first == digest(state(1))
  other = state(1)
  params = other.params['policy'].at[2, 3].set(np.nextafter(np.float32(1), 2))
  assert first != digest(other.replace(params={'policy': params}))
  swapped = other.params['policy'].at[0, 0].set(2.0).at[0, 1].set(3.0)
  turned = swapped[:, jnp.array([1, 0, 2, 3, 4])]
  a, b = (other.replace(params={'policy': x}) for x in (swapped, turned))
  assert digest(a) != digest(b)


def test_a_digest_is_the_same_on_any_number_of_devices():
  x = jax.random.normal(jax.random.key(0), (16, 3))
  mesh = jax.make_mesh((8,), ('data',))
  spec = jax.sharding.PartitionSpec('data')
  spread = jax.device_put(x, jax.sharding.NamedSharding(mesh, spec))
  assert digest({'x': x}) == digest({'x': spread})


def test_an_export_of_something_else_is_refused():
  with pytest.raises(UserError, match=r"'worst' is none of \('last', 'best'\)"):
    keeper_lib.check(config(**{'ckpt.export': 'worst'}))


def test_the_best_cannot_be_exported_where_it_is_not_kept():
  c = config(**{'ckpt.export': 'best', 'ckpt.keep_best': False})
  with pytest.raises(UserError, match='needs ckpt.keep_best'):
    keeper_lib.check(c)
