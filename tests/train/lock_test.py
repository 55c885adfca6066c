"""One run at a time on a workdir."""

import errno
import os
import socket
import subprocess
import sys

import pytest

from uae_jax.errors import UserError
from uae_jax.train import lock as lock_lib
from uae_jax.train.lock import Lock

HOLDER = (
  'import pathlib, sys, time\n'
  'from uae_jax.train.lock import Lock\n'
  'lock = Lock(pathlib.Path(sys.argv[1]))\n'
  'lock.take()\n'
  'print("held", flush=True)\n'
  'time.sleep(600)'
)


def test_another_process_is_named_and_a_killed_one_blocks_nobody(tmp_path):
  process = subprocess.Popen(
    [sys.executable, '-c', HOLDER, str(tmp_path)],
    stdout=subprocess.PIPE, text=True,
    env={**os.environ, 'PYTHONPATH': os.getcwd()},
  )  # fmt: skip
  try:
    assert process.stdout.readline() == 'held\n'
    host = socket.gethostname()
    with pytest.raises(UserError) as e:
      Lock(tmp_path).take()
    assert f'in use by process {process.pid} on {host}' in str(e.value)
  finally:
    process.kill()
    process.wait()
  Lock(tmp_path).take()


def test_a_lock_is_taken_once_and_let_go(tmp_path):
  one, two = Lock(tmp_path), Lock(tmp_path)
  one.take()
  one.take()
  with pytest.raises(UserError, match=f'process {os.getpid()} on'):
    two.take()
  one.release()
  two.take()
  two.release()
  two.release()


def test_a_holder_that_has_not_written_its_name_yet(tmp_path):
  one = Lock(tmp_path)
  one.take()
  (tmp_path / 'lock').write_text('')
  with pytest.raises(UserError, match='in use by another process'):
    Lock(tmp_path).take()


def test_a_file_system_without_locks_is_used_all_the_same(
  tmp_path, monkeypatch, caplog
):
  def none(*_):
    raise OSError(errno.ENOTSUP, 'not supported')

  monkeypatch.setattr(lock_lib.fcntl, 'flock', none)
  Lock(tmp_path).take()
  Lock(tmp_path).take()
  assert 'has no locks' in caplog.text
