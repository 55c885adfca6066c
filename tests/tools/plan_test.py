"""The plan of the embedded run, compiled for a TPU slice."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


def plan(*args):
  """(exit code, stdout, stderr) of the tool."""
  env = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'}
  done = subprocess.run(
    [sys.executable, '-m', 'uae_jax.tools.plan', *args],
    cwd=ROOT, capture_output=True, text=True, env=env,
  )  # fmt: skip
  return done.returncode, done.stdout, done.stderr


def test_the_embedded_run_is_planned():
  code, out, err = plan(
    '--config=configs/umm1.py', '--topology=v5e:2x2', '--programs=update',
    '--json', '--config.train.images=8', '--config.train.group_size=2',
  )  # fmt: skip
  assert code == 0, err
  found = json.loads(out.splitlines()[-1])
  assert found['fits'] and found['mesh'] == {'data': 4, 'model': 1}
  assert 0 < found['peak_bytes'] < 0.01 * found['hbm_bytes']
  # Counted from the compiled program, and from the traced one.
  assert 0.8 < found['hardware_flops'] / found['model_flops'] < 1.2
  assert found['step_seconds'] > 0
  update = found['programs']['update']
  assert update['sent']['reduce-scatter'] > 0 and not update['whole']


@pytest.mark.slow
def test_what_is_too_large_says_by_how_much_and_what_to_change():
  code, out, err = plan(
    '--config=configs/umm1.py', '--topology=v5e:2x2', '--programs=update',
    '--config.train.images=32768',
  )  # fmt: skip
  assert code == 2 and 'does not fit' in out
  assert 'GiB over the 15.75 GiB' in err
  assert '--config.memory.update_images=1 makes it fit' in err
  assert len(err.strip().splitlines()) == 1


def test_models_that_are_not_here_are_planned_by_their_sizes():
  code, out, err = plan(
    '--config=configs/umm2.py:janus-pro-7b', '--topology=v5e:2x2',
    '--programs=dream', '--config.train.images=4',
  )  # fmt: skip
  assert 'deepseek-community/Janus-Pro-7B' in out
  assert code == 2 and 'dream' in err  # as far as that


@pytest.mark.parametrize(
  'args, says',
  [
    ([], '--topology'),
    (['--topology=v5e:5x5'], 'v5e:5x5'),
    (['--topology=v5e:2x2', '--config.mesh.model=3'], 'mesh.model=3'),
    (['--topology=v5e:2x2', '--programs=dream'], 'dream'),
    (['--topology=v5e:2x2', '--config.ckpt.policy=/nowhere'], '/nowhere'),
  ],
)
def test_mistakes_are_one_line(args, says):
  code, _, err = plan('--config=configs/umm1.py', *args)
  assert code == 2 and says in err
  assert len(err.strip().splitlines()) == 1
