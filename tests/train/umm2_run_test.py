"""Whole runs of configs/umm2.py, shortened: resume, export, bad input."""

import os
import signal

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from tests.train.loop_test import config, rows
from uae_jax import zoo
from uae_jax.data.scenes import draw
from uae_jax.errors import UserError
from uae_jax.infer.load import load
from uae_jax.sharding.mesh import make_mesh
from uae_jax.train import loop

START = 'bundled:umm2/policy'


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """An uninterrupted run."""
  folder = tmp_path_factory.mktemp('whole') / 'run'
  assert loop.run(config('umm2'), folder) == 0
  return folder


def test_a_run_reports_both_halves_and_text_to_image(whole):
  for row in rows(whole, 'image/'):
    assert row['image/entropy'] > 0 and np.isfinite(row['policy/kl'])
  first = rows(whole, 'image/')[0]
  assert first['rollout/train_gap'] < 1e-5
  last = rows(whole, 'eval/')[-1]
  for name in ('unified_score', 'prompt_overall', 'prompt_counting',
               'full_exact_scene', 'ceiling_exact_scene'):  # fmt: skip
    assert np.isfinite(last[f'eval/{name}'])
  assert 'Images drawn from text' in (whole / 'report.html').read_text()


@pytest.mark.slow  # loop_test does so with a UMM-1
def test_a_stopped_run_resumes_to_the_same_metrics(
  whole, tmp_path, monkeypatch
):
  folder, draw_batch, calls = tmp_path / 'run', loop.to_batch, []

  def stop_at_three(host, mesh):
    calls.append(1)
    if len(calls) == 3:
      os.kill(os.getpid(), signal.SIGTERM)
    return draw_batch(host, mesh)

  monkeypatch.setattr(loop, 'to_batch', stop_at_three)
  assert loop.run(config('umm2'), folder) == 128 + signal.SIGTERM
  monkeypatch.setattr(loop, 'to_batch', draw_batch)
  assert loop.run(config('umm2'), folder) == 0
  assert rows(folder) == rows(whole)


def test_the_export_is_a_janus_that_describes_and_draws(whole):
  start = load_file(zoo.resolve(START) / 'model.safetensors')
  end = load_file(whole / 'export' / 'policy' / 'model.safetensors')
  assert set(start) == set(end)
  moved = {k for k in end if (start[k].astype(np.float32) != end[k]).any()}
  for part in ('language_model', 'generation_head', 'generation_embeddings'):
    assert any(part in name for name in moved)
  assert not any('vision_model' in k or 'vqmodel' in k for k in moved)
  model = load(str(whole / 'export'), make_mesh(-1, 1), {'batch': 8})
  assert model.options.length == 8 and model.options.guidance == 1.0
  scene = np.array([[0, 0, 2, 0, 0]])
  image = Image.fromarray(draw.render(scene))
  [caption] = model.describe([image], jax.random.key(0))
  assert 'red' in caption
  [drawn] = model.draw([caption], jax.random.key(1))
  assert drawn.shape == (32, 32, 3)


@pytest.mark.slow
def test_adapters_leave_the_reference_where_it_was(tmp_path):
  changes = {
    'lora.rank': 2, 'train.lr': 1e-2, 'optim.warmup': 0, 'train.steps': 2,
    'eval.every': 8, 'lora.export': 'adapter',
  }  # fmt: skip
  assert loop.run(config('umm2', **changes), tmp_path / 'run') == 0
  first, later = rows(tmp_path / 'run', 'image/')
  for half in ('policy', 'image'):
    assert abs(first[f'{half}/kl']) < 1e-6 < later[f'{half}/kl']
  adapter = tmp_path / 'run' / 'export' / 'adapter'
  names = load_file(adapter / 'adapter_model.safetensors')
  assert any('language_model' in name for name in names)


@pytest.mark.parametrize(
  'change, says',
  [
    ({'grpo.caption_weight': 0.0, 'grpo.image_weight': 0.0}, 'one must be'),
    ({'grpo.image_weight': -1.0}, 'image_weight=-1.0'),
    ({'model.renderer': 'paint'}, 'model.renderer'),
    ({'model.umm': 'umm3'}, 'model.umm'),
    ({'rollout.image_top_p': 0.0}, 'top_p'),
    ({'ckpt.policy': 'bundled:umm1/policy'}, 'umm1/policy'),
    ({'model.renderer': 'flow', 'ckpt.decoder': 'bundled:umm1/decoder'},
     'no connector of image codes'),
  ],
)  # fmt: skip
def test_mistakes_are_one_line(change, says, tmp_path):
  with pytest.raises(UserError, match=says) as e:
    loop.run(config('umm2', **change), tmp_path / 'run')
  assert '\n' not in str(e.value)
  assert not (tmp_path / 'run').exists()
