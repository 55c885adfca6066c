"""Whole runs of the embedded default, shortened: resume, stop, photographs."""

import importlib.util
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from uae_jax import zoo
from uae_jax.errors import UserError
from uae_jax.train import loop

ROOT = Path(__file__).parent.parent.parent
ALL_DEVICES = True


def config(name='umm1', part='', **changes):
  """configs/NAME.py with fewer, smaller steps on 8 devices."""
  spec = importlib.util.spec_from_file_location(
    name, ROOT / 'configs' / f'{name}.py'
  )
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  c = module.get_config(part)
  small = {
    'train.steps': 4, 'train.images': 8, 'train.group_size': 2,
    'rollout.length': 8, 'eval.every': 2, 'eval.images': 8, 'eval.batch': 8,
    'eval.gallery': 4, 'ckpt.every': 2, 'log.every': 0.0,
  }  # fmt: skip
  c.update_from_flattened_dict({**small, **changes})
  return c


def rows(folder, prefix=''):
  """metrics.jsonl without what a clock says."""
  out = []
  for line in (folder / 'metrics.jsonl').read_text().splitlines():
    row = json.loads(line)
    out.append(
      {k: v for k, v in row.items() if not k.startswith(('time', 'through'))}
    )
  return [r for r in out if any(k.startswith(prefix) for k in r)]


class Seen:
  """A `Watcher` that keeps what it is shown."""

  def __init__(self):
    self.rows, self.galleries = [], []

  def write_scalars(self, step, scalars):
    self.rows.append({'step': step, **scalars})

  def write_gallery(self, step, gallery):
    self.galleries.append((step, gallery))


@pytest.fixture(scope='module')
def seen():
  return Seen()


@pytest.fixture(scope='module')
def whole(tmp_path_factory, seen):
  """An uninterrupted run."""
  folder = tmp_path_factory.mktemp('whole') / 'run'
  assert loop.run(config(), folder, seen) == 0
  return folder


def test_a_run_leaves_everything_behind(whole):
  names = {p.name for p in whole.iterdir()}
  assert names >= {
    'config.json', 'metrics.jsonl', 'tensorboard', 'checkpoints', 'gallery',
    'report.html', 'export',
  }  # fmt: skip
  steps = [r['step'] for r in rows(whole, 'reward/')]
  assert steps == [1, 2, 3, 4]
  assert [r['step'] for r in rows(whole, 'eval/')] == [0, 2, 4]
  last = rows(whole, 'eval/')[-1]
  for name in ('reward', 'unified_score', 'attribute_recall', 'exact_scene'):
    assert np.isfinite(last[f'eval/{name}'])


def test_a_watcher_is_shown_what_is_written(whole, seen):
  lines = (whole / 'metrics.jsonl').read_text().splitlines()
  assert seen.rows == [json.loads(line) for line in lines]
  for step, gallery in seen.galleries:
    kept = np.load(whole / 'gallery' / f'step_{step:06d}.npz')
    assert [*kept['captions']] == gallery.captions
    np.testing.assert_array_equal(kept['source'], gallery.source)
  assert [step for step, _ in seen.galleries] == [0, 2, 4]


def test_the_export_is_the_trained_policy_in_hub_layout(whole):
  start = load_file(zoo.resolve('bundled:umm1/policy') / 'model.safetensors')
  end = load_file(whole / 'export' / 'policy' / 'model.safetensors')
  assert set(start) == set(end)
  moved = [k for k in end if (start[k].astype(np.float32) != end[k]).any()]
  assert any(k.startswith('model.layers') for k in moved)
  assert not any(k.startswith('visual.') for k in moved)
  assert (whole / 'export' / 'policy' / 'tokenizer.json').exists()


def test_a_stopped_run_resumes_to_the_same_metrics(
  whole, tmp_path, monkeypatch
):
  folder = tmp_path / 'run'
  draw = loop.to_batch
  calls = []

  def stop_at_three(host, mesh):
    calls.append(1)
    if len(calls) == 3:
      os.kill(os.getpid(), signal.SIGTERM)
    return draw(host, mesh)

  monkeypatch.setattr(loop, 'to_batch', stop_at_three)
  assert loop.run(config(), folder) == 128 + signal.SIGTERM
  monkeypatch.setattr(loop, 'to_batch', draw)
  assert [r['step'] for r in rows(folder, 'reward/')][-1] == 3
  assert loop.run(config(), folder) == 0
  assert rows(folder) == rows(whole)


def test_non_finite_updates_stop_the_run_with_a_checkpoint(tmp_path):
  folder = tmp_path / 'run'
  changes = {'train.lr': 1e38, 'optim.warmup': 0, 'train.max_skipped': 2,
             'train.steps': 8}  # fmt: skip
  with pytest.raises(UserError, match='not finite'):
    loop.run(config(**changes), folder)
  assert any((folder / 'checkpoints').iterdir())


def test_a_blind_captioner_keeps_the_language_model_and_gets_new_eyes(tmp_path):
  folder = tmp_path / 'run'
  changes = {'train.steps': 2, 'eval.every': 8}
  assert loop.run(config('coldstart', 'blind', **changes), folder) == 0
  start = load_file(zoo.resolve('bundled:umm1/policy') / 'model.safetensors')
  end = load_file(folder / 'export' / 'policy' / 'model.safetensors')
  assert set(start) == set(end)
  moved = {k for k in end if (start[k] != end[k]).any()}
  assert moved and all(k.startswith('visual.') for k in moved)
  # Drawn anew, not nudged: nothing of the old projection is left.
  old, new = (x['visual.patch_embed.proj.weight'].astype(np.float32).ravel()
              for x in (start, end))  # fmt: skip
  assert abs(np.corrcoef(old, new)[0, 1]) < 0.1
  assert not (folder / 'export' / 'decoder').exists()


def test_photographs_of_any_size_and_mode(tmp_path):
  """Only the source changes; skimage's photographs come as they are."""
  import skimage.data

  photos = tmp_path / 'photos'
  photos.mkdir()
  for name in ('astronaut', 'camera', 'coffee', 'page', 'horse', 'chelsea'):
    image = getattr(skimage.data, name)()
    if image.dtype == bool:
      image = image.astype(np.uint8) * 255
    Image.fromarray(image).save(photos / f'{name}.png')
  (photos / 'broken.jpg').write_bytes(b'not a picture')
  folder = tmp_path / 'run'
  source = f'images:{photos}'
  small = {'train.steps': 2, 'data.source': source, 'data.heldout': source}
  assert loop.run(config(**small), folder) == 0
  for row in rows(folder, 'reward/'):
    assert np.isfinite(row['reward/mean']) and row['reward/invalid'] == 0
  last = rows(folder, 'eval/')[-1]
  assert np.isfinite(last['eval/unified_score'])
  assert 'eval/attribute_recall' not in last
  assert 'data:image/png' in (folder / 'report.html').read_text()


@pytest.mark.parametrize(
  'part',
  [
    'reward',
    *(
      pytest.param(part, marks=pytest.mark.slow)
      for part in ('judge_views', 'policy', 'decoder', 'glyphs_policy')
    ),
  ],
)
def test_the_cold_start_recipe_runs_and_exports_what_the_zoo_loads(
  part, tmp_path
):
  folder = tmp_path / 'run'
  assert loop.run(config('coldstart', part, **{'train.steps': 2}), folder) == 0
  losses = [r['optim/loss'] for r in rows(folder, 'optim/')]
  assert len(losses) == 2 and np.isfinite(losses).all()
  export = folder / 'export'
  if part in ('reward', 'judge_views'):
    zoo.tower_from_folder(export).load(export)
    return
  decoder = export / 'decoder'
  zoo.decoder_from_folder(decoder / 'transformer').load(decoder / 'transformer')
  zoo.conditioner_from_folder(decoder / 'connector', 128).load(
    decoder / 'connector'
  )
  if part in ('policy', 'glyphs_policy'):
    zoo.policy_from_folder(export / 'policy').load(export / 'policy')
  told = {k for r in rows(folder, 'eval/') for k in r if 'glyph' in k}
  assert bool(told) == (part == 'glyphs_policy')


@pytest.mark.slow
def test_a_run_ends_when_its_heldout_score_no_longer_rises(tmp_path, capsys):
  changes = {
    'train.lr': 0.0, 'eval.patience': 2, 'eval.every': 1, 'train.steps': 6,
    'eval.watch': 'caption_length',
  }  # fmt: skip
  for _ in range(2):  # the same command again does not train on
    assert loop.run(config(**changes), tmp_path / 'run') == 0
    assert [r['step'] for r in rows(tmp_path / 'run', 'eval/')] == [0, 1, 2]
  said = capsys.readouterr().out
  assert said.count('no better eval/caption_length') == 2
  assert 'finished 2 steps' in said
  assert (tmp_path / 'run' / 'export' / 'policy').is_dir()


def test_a_score_that_rises_goes_on(tmp_path):
  def write(*values):
    lines = [{'step': i, 'eval/x': v} for i, v in enumerate(values)]
    text = '\n'.join(json.dumps(line) for line in [*lines, {'step': 9}])
    (tmp_path / 'metrics.jsonl').write_text(text)

  c = config(**{'eval.patience': 2, 'eval.watch': 'x'})
  stalled = lambda step=9: loop.has_stalled(tmp_path, c, step)
  write(1, 2, 3)
  assert not stalled()
  write(3, 1, 3)
  assert stalled() and not stalled(step=1)
  write(3, 1, 4)
  assert not stalled()
  write(None, 1, 1)
  assert not stalled()
  write(1, None, None)
  assert stalled()
  c.eval.patience = 0
  assert not stalled()
  c.eval.patience, c.eval.watch = 1, 'y'
  with pytest.raises(UserError, match=r"eval.watch='y' is none of \['x'\]"):
    stalled()
