"""What a run writes down, and what a resumed run takes back."""

import json
import math

from tensorboard.backend.event_processing import event_file_loader

from uae_jax.train.writers import MetricWriter, Progress


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
    progress.update(
      step, {'time/step': 2.0, 'reward/mean': 0.5, 'policy/kl': 0.01}
    )
  line = capsys.readouterr().out.splitlines()[-1]
  assert 'step 50/100' in line and '50%' in line and 'reward 0.5' in line
  assert '0.50 steps/s' in line and 'ETA 01:40' in line
