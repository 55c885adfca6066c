"""A question's runs by one command, and what is said of mistakes."""

import functools
import subprocess
import sys

import pytest

from tests.tools import commands

sweep = functools.partial(commands.run, 'sweep')
FILE = '--config=configs/ablations.py'


@pytest.mark.slow
def test_runs_are_compared_and_not_repeated(tmp_path):
  small = [
    f'--set={one}' for one in ('train.steps=0', 'eval.images=8', 'eval.batch=8')
  ]
  # Its runs write to the terminal themselves.
  command = [sys.executable, '-m', 'uae_jax.tools.sweep', FILE,
             '--question=noise', f'--out={tmp_path}', *small]  # fmt: skip
  again = lambda: subprocess.run(
    command, cwd=commands.ROOT, capture_output=True, text=True
  )
  first = again()
  assert first.returncode == 0, first.stderr
  table = (tmp_path / 'compare.md').read_text()
  assert '| metric | start | shared | own |' in table
  assert table in first.stdout and 'run 2/2: noise own' in first.stdout
  assert '| unified_score |' in table
  assert (tmp_path / 'compare.html').exists()
  assert (tmp_path / 'own' / 'report.html').exists()
  second = again()
  assert second.returncode == 0, second.stderr
  assert (tmp_path / 'compare.md').read_text() == table


def test_mistakes_are_one_line(tmp_path):
  out = f'--out={tmp_path / "out"}'
  cases = {
    'is none of': [FILE, '--question=botleneck', out],
    'no file of ablations': ['--config=configs/umm1.py', '--question=x', out],
    'does not exist': ['--config=nowhere.py', '--question=x', out],
    'not whole numbers': [FILE, '--question=kl', out, '--seeds=a'],
    'known are': [FILE, '--question=kl', out, '--runs=0,7'],
    'nothing beside': [FILE, '--question=kl', out, '--runs=0'],
    'KEY=VALUE': [FILE, '--question=kl', out, '--set=train.steps'],
  }
  for want, (code, _, err) in zip(cases, sweep(*cases.values()), strict=True):
    assert code == 2 and want in err, (want, err)
    assert len(err.strip().splitlines()) == 1, err
