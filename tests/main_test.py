"""The command line: what a user gets for a mistake."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from uae_jax import main
from uae_jax.errors import UserError
from uae_jax.train import workdir
from uae_jax.train.lock import Lock

ROOT = Path(__file__).parent.parent
UMM1 = '--config=configs/umm1.py'
HAS_WANDB = importlib.util.find_spec('wandb') is not None


def run(*args):
  """The command in a process of its own: (exit code, stderr)."""
  done = subprocess.run(
    [sys.executable, '-m', 'uae_jax.main', *args],
    cwd=ROOT,
    capture_output=True,
    text=True,
    env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
  )
  return done.returncode, done.stderr


@pytest.mark.parametrize(
  'args, says',
  [
    ([], '--config='),
    ([UMM1, '--nonsense=1'], 'nonsense'),
    (['--config=configs/absent.py'], 'absent'),
    ([UMM1, '--workdir=s3://bucket/run'], 'gs://BUCKET/FOLDER'),
    ([UMM1, '--workdir=gs://bucket'], 'gs://BUCKET/FOLDER'),
    ([f'{UMM1}:huge'], 'huge'),
    ([UMM1, '--config.train.stepz=3'], 'stepz'),
    ([UMM1, '--config.train.steps=many'], 'many'),
    ([UMM1, 'extra'], 'extra'),
  ],
  ids=lambda x: ' '.join(x) if isinstance(x, list) else '',
)
def test_a_bad_command_line_is_one_line_and_exit_2(args, says):
  code, err = run(*args)
  assert code == 2
  assert says in err and len(err.strip().splitlines()) == 1, err


@pytest.mark.parametrize(
  'change, says',
  [
    ('data.prompt=', 'prompt is empty'),
    ('data.source=tapes:x', 'tapes:x'),
    ('data.source=images:/nowhere', '/nowhere'),
    ('ckpt.policy=/nowhere', '/nowhere'),
    ('ckpt.reward=bundled:none', 'bundled:none'),
    ('mesh.data=3', 'mesh.data=3'),
    ('grpo.kl=k9', 'k9'),
    ('rollout.bottleneck=pixels', 'pixels'),
    ('train.group_size=1', 'group_size'),
    ('optim.schedule=magic', 'magic'),
    pytest.param(
      'log.wandb=umm',
      'pip install',
      marks=pytest.mark.skipif(HAS_WANDB, reason='W&B is installed'),
    ),
  ],
)
def test_a_bad_value_is_one_line_exit_2_and_nothing_written(
  change, says, tmp_path
):
  folder = tmp_path / 'run'
  key, _, value = change.partition('=')
  code, err = run(UMM1, f'--workdir={folder}', f'--config.{key}={value}')
  lines = [x for x in err.splitlines() if x.startswith('uae_jax: ')]
  assert code == 2 and len(lines) == 1, err
  assert says in lines[0]
  assert not (folder / 'config.json').exists()


@pytest.mark.parametrize(
  'change, says',
  [
    ('grpo.image_weight=-1', 'image_weight'),
    ('rollout.image_top_k=-2', 'top_k'),
    ('ckpt.policy=bundled:umm1/policy', 'umm1/policy'),
  ],
)
def test_umm2_speaks_of_mistakes_the_same_way(change, says, tmp_path):
  folder = tmp_path / 'run'
  umm2 = '--config=configs/umm2.py'
  code, err = run(umm2, f'--workdir={folder}', f'--config.{change}')
  lines = [x for x in err.splitlines() if x.startswith('uae_jax: ')]
  assert code == 2 and len(lines) == 1, err
  assert says in lines[0]
  assert not (folder / 'config.json').exists()


def claim(folder, config):
  workdir.claim(folder, config, Lock(folder))


def test_default_workdir():
  assert main.default_workdir('configs/umm1.py') == 'runs/umm1'
  assert main.default_workdir('configs/coldstart.py:a') == 'runs/coldstart-a'


def test_a_foreign_workdir_is_refused_by_the_keys_that_differ(tmp_path):
  claim(tmp_path, {'train': {'lr': 1.0, 'seed': 0}})
  before = (tmp_path / 'config.json').read_text()
  with pytest.raises(UserError, match=r'train\.lr 1\.0 -> 2\.0'):
    claim(tmp_path, {'train': {'lr': 2.0, 'seed': 0}})
  assert (tmp_path / 'config.json').read_text() == before


def test_log_keys_may_change(tmp_path):
  claim(tmp_path, {'log': {'every': 1.0}})
  claim(tmp_path, {'log': {'every': 9.0}})
  assert json.loads((tmp_path / 'config.json').read_text())['log']


def test_a_folder_of_something_else_is_left_alone(tmp_path):
  (tmp_path / 'thesis.txt').write_text('x')
  with pytest.raises(UserError, match='not empty'):
    claim(tmp_path, {'a': 1})
  assert [p.name for p in tmp_path.iterdir()] == ['thesis.txt']


def test_an_unwritable_workdir(tmp_path):
  (tmp_path / 'file').write_text('x')
  with pytest.raises(UserError, match='cannot be written'):
    claim(tmp_path / 'file' / 'run', {'a': 1})
