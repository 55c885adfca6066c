"""Workdirs in a bucket, which an emulator of Google's serves."""

import importlib.util
import json
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from etils import epath

from tests.endurance.faults_test import Batches, tower
from tests.train.keeper_test import Data, Log, state
from tests.train.loop_test import rows
from uae_jax.ckpt.orbax_io import Checkpoints
from uae_jax.errors import UserError
from uae_jax.train import bucket as bucket_lib
from uae_jax.train import bucket_lock, loop, workdir
from uae_jax.train.bucket import Bucket
from uae_jax.train.bucket_lock import BucketLock
from uae_jax.train.keeper import Keeper

CONFIG = {'train': {'lr': 1.0}}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
  """Holders that are gone are so after a second."""
  monkeypatch.setattr(bucket_lock, 'BEAT', 0.1)
  monkeypatch.setattr(bucket_lock, 'STALE', 1.0)


def lock_at(url):
  return BucketLock(*url.removeprefix('gs://').split('/', 1))


def names(url):
  """Of all objects below an address."""
  found = []
  for path in epath.Path(url).iterdir():
    below = names(path) if path.is_dir() else []
    found += [f'{path.name}/{x}' for x in below] or [path.name]
  return sorted(found)


def test_one_process_at_a_time_has_a_lock(bucket, capsys):
  one, two = lock_at(bucket), lock_at(bucket)
  one.take()
  with pytest.raises(UserError, match=r'in use by process \d+ on .*--workdir'):
    two.take()
  assert 'for a sign of life' in capsys.readouterr().out
  one.check()
  one.release()
  assert not epath.Path(bucket).exists()
  two.take()
  two.check()
  two.release()
  two.release()


def test_a_lock_whose_holder_is_gone_is_taken(bucket):
  gone = lock_at(bucket)
  gone.take()
  gone._over.set()  # as if killed: no more signs of life
  gone._beats.join()
  two = lock_at(bucket)
  start = time.monotonic()
  two.take()
  assert time.monotonic() - start >= 1.0
  # The first one was only silent. It finds out, and touches nothing.
  gone._over.clear()
  gone._beat()
  with pytest.raises(UserError, match='taken by another process'):
    gone.check()
  gone.release()
  two.check()
  two.release()


def test_of_many_that_want_a_lock_one_gets_it(bucket):
  got, refused = [], []

  def want():
    lock = lock_at(bucket)
    try:
      lock.take()
      got.append(lock)
    except UserError:
      refused.append(lock)

  threads = [threading.Thread(target=want) for _ in range(6)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert len(got) == 1 and len(refused) == 5
  got[0].check()
  got[0].release()


def test_a_write_whose_answer_got_lost_counts(bucket, monkeypatch):
  lock = lock_at(bucket)
  lock.take()
  lock._over.set()
  lock._beats.join()
  before = lock._generation
  assert lock._put(lock._me)
  lock._generation = before  # as if that had failed, and is tried again
  assert lock._put(lock._me) and lock._generation != before
  lock.check()
  lock.release()
  assert not epath.Path(bucket).exists()


def enter(url, process=0):
  home = Bucket(url, process)
  home.enter(CONFIG)
  home.claim(CONFIG)
  return home


def test_files_go_there_and_come_back(bucket):
  home = enter(bucket)
  (home.files / 'gallery').mkdir()
  for name in ('metrics.jsonl', 'gallery/step_000001.npz', 'report.html',
               'tensorboard.part', 'wandb/log'):  # fmt: skip
    (home.files / name).parent.mkdir(exist_ok=True)
    (home.files / name).write_text(name)
  home.send(60)
  assert 'metrics.jsonl' not in names(bucket)  # not yet
  home.send()
  want = ['config.json', 'gallery/step_000001.npz', 'lock', 'metrics.jsonl']
  assert names(bucket) == [*want, 'report.html']
  with (home.files / 'metrics.jsonl').open('a') as f:
    f.write(' and more')
  home.send()
  epath.Path(bucket, 'report.html').unlink()
  home.send()  # what has not changed is not sent again
  (home.files / 'bad_items.jsonl').write_text('late')
  disk = home.files
  home.leave()  # sends what was not
  assert not disk.exists()
  want = ['bad_items.jsonl', *(x for x in want if x != 'lock')]
  assert names(bucket) == want

  home = enter(bucket)
  found = {str(p.relative_to(home.files)) for p in home.files.rglob('*.*')}
  assert found == {*want}
  text = (home.files / 'metrics.jsonl').read_text()
  assert text == 'metrics.jsonl and more'
  home.leave()


def test_other_hosts_send_and_fetch_their_own_list_of_bad_items(bucket):
  first = enter(bucket)
  for _ in range(2):
    other = enter(bucket, 3)
    file = workdir.bad_items(other.files, 3)
    assert not (other.files / 'config.json').exists()
    with file.open('a') as f:
      f.write('x\n')
    other.send()
    lines = file.read_text()
    other.leave()
  assert lines == 'x\nx\n' and 'bad_items.3.jsonl' in names(bucket)
  first.leave()


def test_what_other_processes_write_is_seen(bucket):
  code = (
    'from uae_jax.train.bucket import Bucket\n'
    f'place = Bucket({bucket!r}, 0).place\n'
    'for _ in range(2):\n'
    '  print((place / "a").exists(), [p.name for p in place.iterdir()])\n'
    '  input()\n'
  )
  epath.Path(bucket, 'b').write_text('')
  with subprocess.Popen(
    [sys.executable, '-c', code], stdin=subprocess.PIPE,
    stdout=subprocess.PIPE, text=True,
  ) as other:  # fmt: skip
    before = other.stdout.readline()
    epath.Path(bucket, 'a').write_text('')
    other.stdin.write('\n\n')
    other.stdin.flush()
    after = other.stdout.readline()
  assert before == "False ['b']\n" and after == "True ['a', 'b']\n"


def test_a_foreign_folder_is_left_alone(bucket):
  epath.Path(bucket, 'diary.txt').write_text('mine')
  with pytest.raises(UserError, match='is not empty and holds no config.json'):
    Bucket(bucket, 0).enter(CONFIG)
  assert names(bucket) == ['diary.txt']


def test_a_folder_of_another_config_is_left_alone(bucket):
  enter(bucket).leave()
  with pytest.raises(UserError, match=r'another config \(train.lr 1.0 -> 2'):
    Bucket(bucket, 0).enter({'train': {'lr': 2.0}})
  assert names(bucket) == ['config.json']


def test_addresses_that_are_none(monkeypatch, tmp_path):
  assert isinstance(bucket_lib.at(tmp_path, 0), workdir.Workdir)
  for url in ('gs://', 'gs://box', 'gs://box/', 's3://box/run', 'gs:///run'):
    with pytest.raises(UserError, match='neither a folder nor gs://'):
      bucket_lib.at(url, 0)
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(UserError, match=r"pip install 'uae_jax\[gcs\]'"):
    bucket_lib.at('gs://box/run', 0)


def test_a_bucket_that_is_not_there_is_one_line(store):
  with pytest.raises(UserError, match='gs://nowhere/run cannot be') as e:
    Bucket('gs://nowhere/run', 0).enter(CONFIG)
  assert len(str(e.value).splitlines()) == 1


class Runs:
  """Starts on one bucket, as in `keeper_test`."""

  def __init__(self, url):
    self.url, self.data, self.log = url, Data(), Log()

  def start(self):
    self.home = enter(self.url)
    self.checkpoints = Checkpoints(self.home.place / 'checkpoints', 3)
    return Keeper(tower(), self.home, self.checkpoints, self.data)

  def end(self):
    self.checkpoints.close()
    self.home.leave()

  def save(self, keeper, *steps):
    for step in steps:
      self.data.place = 10 * step
      keeper.save(step, state(step), self.log)
    self.checkpoints.wait()


def test_checkpoints_of_a_bucket(bucket, capsys):
  run = Runs(bucket)
  run.save(run.start(), 1, 2, 3, 4)
  run.end()
  place = epath.Path(bucket, 'checkpoints')
  assert sorted(p.name for p in place.iterdir()) == ['2', '3', '4']
  (place / '4' / 'commit_success.txt').unlink()  # as a killed write leaves it
  torn = place / '5' / 'state' / 'd' / 'half'
  torn.write_text('half')
  largest = max(
    (p for p in (place / '3' / 'state' / 'd').iterdir()),
    key=lambda p: p.stat().length,
  )
  data = bytearray(largest.read_bytes())
  data[len(data) // 2] ^= 4
  largest.write_bytes(bytes(data))

  keeper = run.start()
  assert sorted(p.name for p in place.iterdir()) == ['2', '3']
  got, step = keeper.resume(state(0))
  assert step == 2 and run.data.place == 20
  np.testing.assert_array_equal(got.opt_state['mu'], 2)
  said = capsys.readouterr().out
  assert 'warning: step 3 cannot be read' in said
  assert f'{bucket}/unreadable; going on from step 2' in said
  run.save(keeper, 3)  # its place is free again
  run.end()
  assert any(x.startswith('unreadable/3/state/d/') for x in names(bucket))
  keeper = run.start()
  assert keeper.resume(state(0))[1] == 3
  run.end()


def test_a_run_in_a_bucket_is_the_run_in_a_folder(
  bucket, tmp_path, monkeypatch
):
  assert loop.run(tower(), tmp_path / 'whole') == 0

  class Killed(Exception):
    pass

  def kill(_):
    raise Killed

  Batches(monkeypatch, (4,), kill)
  with pytest.raises(Killed):
    loop.run(tower(), bucket)
  monkeypatch.undo()
  text = epath.Path(bucket, 'metrics.jsonl').read_text()
  # Those of the checkpoint were sent before it.
  assert [json.loads(x)['step'] for x in text.splitlines()][:2] == [1, 2]
  assert loop.run(tower(), bucket) == 0
  copy = tmp_path / 'copy'
  for name in names(bucket):
    (copy / name).parent.mkdir(parents=True, exist_ok=True)
    epath.Path(bucket, name).copy(copy / name)
  assert rows(copy) == rows(tmp_path / 'whole')
  have = {p.name for p in copy.iterdir()}
  assert have == {p.name for p in (tmp_path / 'whole').iterdir()} - {'lock'}
  for file in (tmp_path / 'whole' / 'export').rglob('*'):
    if file.is_file():
      other = copy / file.relative_to(tmp_path / 'whole')
      assert other.read_bytes() == file.read_bytes(), file
  assert loop.run(tower(), bucket) == 0  # again: nothing is left to do
