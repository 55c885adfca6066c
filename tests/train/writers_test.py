"""What a run writes down, and what a resumed run takes back."""

import ast
import importlib.util
import inspect
import io
import json
import math
from pathlib import Path

import numpy as np
from PIL import Image
from tensorboard.backend.event_processing import event_file_loader

from uae_jax.train.wandb_writer import WandbWriter
from uae_jax.train.writers import MetricWriter, Progress, Several


def rows(folder):
  text = (folder / 'metrics.jsonl').read_text()
  return [json.loads(line) for line in text.splitlines()]


def test_rows_stay_valid_json_with_nan(tmp_path):
  writer = MetricWriter(tmp_path)
  writer.write_scalars(1, {'a': 1.5, 'b': math.nan, 'c': math.inf})
  writer.close()
  assert rows(tmp_path) == [{'step': 1, 'a': 1.5, 'b': None, 'c': None}]


def test_resuming_drops_later_rows_and_a_torn_line(tmp_path):
  writer = MetricWriter(tmp_path)
  for step in (1, 2, 3):
    writer.write_scalars(step, {'a': step})
  with open(tmp_path / 'metrics.jsonl', 'a') as f:
    f.write('{"step": 4, "a"')
  writer.truncate_after(2)
  writer.write_scalars(3, {'a': 30})
  assert [r['a'] for r in rows(tmp_path)] == [1, 2, 30]


def test_tensorboard_reads_the_events(tmp_path):
  writer = MetricWriter(tmp_path)
  writer.write_scalars(7, {'reward/mean': 0.25})
  writer.close()
  file = next((tmp_path / 'tensorboard').iterdir())
  events = list(event_file_loader.RawEventFileLoader(str(file)).Load())
  assert len(events) == 2
  event = list(event_file_loader.LegacyEventFileLoader(str(file)).Load())[1]
  assert event.step == 7
  assert event.summary.value[0].tag == 'reward/mean'
  assert event.summary.value[0].simple_value == 0.25


def test_progress_shows_rate_and_eta(capsys):
  progress = Progress(100, 0, 0.0, ('reward/mean', 'policy/kl'))
  for step in range(1, 51):
    compiles = {1: 120.0, 40: 90.0}.get(step, 0.0)  # 40: another shape
    seconds = 2.0 + compiles
    progress.update(
      step, {'time/step': seconds, 'reward/mean': 0.5, 'policy/kl': 0.01}
    )
  lines = capsys.readouterr().out.splitlines()
  assert '122 s with compiling' in lines[0] and 'ETA' not in lines[0]
  line = lines[-1]
  assert 'step 50/100' in line and '50%' in line and 'reward 0.5' in line
  assert '0.50 steps/s' in line and 'ETA 01:40' in line


def values(folder):
  """(step, value) of every summary that TensorBoard reads."""
  file = next((folder / 'tensorboard').iterdir())
  loader = event_file_loader.LegacyEventFileLoader(str(file))
  return [(e.step, v) for e in loader.Load() for v in e.summary.value]


def test_tensorboard_reads_pictures_texts_and_the_config(tmp_path):
  pictures = np.random.default_rng(0).integers(0, 256, (2, 4, 6, 3), np.uint8)
  writer = MetricWriter(tmp_path)
  writer.write_images(3, {'redrawn': pictures})
  writer.write_texts(3, {'captions': '0. a | b'})
  writer.write_hparams({'train.lr': 0.1})
  writer.close()
  found = {v.tag: (step, v) for step, v in values(tmp_path)}
  assert set(found) == {'redrawn/0', 'redrawn/1', 'captions', 'config'}
  for i in (0, 1):
    step, value = found[f'redrawn/{i}']
    image = value.image
    assert (step, image.height, image.width, image.colorspace) == (3, 4, 6, 3)
    read = Image.open(io.BytesIO(image.encoded_image_string))
    np.testing.assert_array_equal(read, pictures[i])
  text = lambda tag: found[tag][1].tensor.string_val[0].decode()
  assert text('captions') == '0. a | b'
  assert '| `train.lr` | `0.1` |' in text('config')
  plugin = found['captions'][1].metadata.plugin_data.plugin_name
  assert plugin == 'text'


def test_the_methods_are_those_of_clu():
  """clu imports TensorFlow, so its interface is read, not imported."""
  spec = importlib.util.find_spec('clu')
  file = Path(spec.submodule_search_locations[0]) / 'metric_writers'
  tree = ast.parse((file / 'interface.py').read_text())
  [theirs] = [x for x in ast.walk(tree) if isinstance(x, ast.ClassDef)]
  wanted = {
    x.name: [a.arg for a in x.args.args]
    for x in theirs.body
    if isinstance(x, ast.FunctionDef)
  }
  for ours in (MetricWriter, WandbWriter):
    for name in (
      'write_scalars', 'write_images', 'write_texts', 'write_hparams', 'flush',
      'close',
    ):  # fmt: skip
      assert [*inspect.signature(getattr(ours, name)).parameters] == (
        wanted[name]
      )


def test_all_writers_get_the_same(tmp_path):
  folders = [tmp_path / 'a', tmp_path / 'b']
  for folder in folders:
    folder.mkdir()
  every = Several([MetricWriter(folder) for folder in folders])
  every.write_scalars(1, {'a': 1.0})
  every.close()
  assert rows(folders[0]) == rows(folders[1]) == [{'step': 1, 'a': 1.0}]
