"""Training starts from a composed release, VAE and all."""

import jax
import numpy as np
import pytest

from tests.infer import tiny_releases as tiny
from tests.train.loop_test import config
from uae_jax import trees
from uae_jax.infer import compose, releases
from uae_jax.infer.load import load
from uae_jax.sharding.mesh import make_mesh
from uae_jax.train import loop, tasks


def uae(root):
  tiny.uae(root / 'release')
  return releases.uae(root / 'release')


def uniworld(root):
  tiny.uniworld(root)
  return releases.uniworld(root / 'uniworld', root / 'flux')


@pytest.mark.parametrize(
  'release, guidance',
  [(uae, 2.0), pytest.param(uniworld, 3.5, marks=pytest.mark.slow)],
)
def test_one_step_from_a_release(tmp_path, release, guidance):
  out = tmp_path / 'ours'
  [*compose.write(release(tmp_path), out, {})]
  mesh = make_mesh(-1, 1)
  c = config(**{
    'ckpt.policy': str(out / 'policy'), 'ckpt.decoder': str(out / 'decoder'),
    'ckpt.judges': '', 'rollout.draw_steps': 2, 'rollout.shift': 0.0,
    'rollout.guidance': guidance, 'optim.warmup': 0,
  })  # fmt: skip
  with jax.set_mesh(mesh):
    task = tasks.build(c, mesh)
    before = jax.device_get(
      {**task.state.frozen, 'lm': task.state.params['policy']}
    )
    assert set(before) >= {'vae', 'decoder', 'connector', 'reference'}
    assert before['connector']['constant'].any()
    batch = loop.to_batch(next(task.data), mesh)
    step = loop.compile_step(task.steps[0], task.state)
    state, metrics = step(task.state, batch, jax.random.key(0))
    metrics = jax.device_get(metrics)
    assert np.isfinite(metrics['optim/loss']) and metrics['reward/std'] > 0
    assert abs(metrics['policy/ratio_max'] - 1) < 1e-4
    assert metrics['optim/skipped'] == 0
    task.export(state, tmp_path / 'export')
  after = trees.flatten(
    {**jax.device_get(state.frozen), 'lm': state.params['policy']}
  )
  moved = {
    path.split('/')[0]
    for path, x in trees.flatten(before).items()
    if not np.array_equal(x, after[path])
  }
  assert moved == {'lm'}
  model = load(str(tmp_path / 'export'), mesh, {'batch': 8})
  assert model.options.shift is None and model.options.guidance == guidance
  images = model.draw(['large red circle'], jax.random.key(1))
  assert images.shape == (1, 32, 32, 3) and images.std() > 1
