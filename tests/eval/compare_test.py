"""Runs side by side, as a table and as a page."""

import json
import re

import pytest

from uae_jax.errors import UserError
from uae_jax.eval import compare


def make(folder, weight, last, **extra):
  folder.mkdir()
  config = {'grpo': {'image_weight': weight}, 'train': {'lr': 0.1}}
  (folder / 'config.json').write_text(json.dumps(config))
  rows = [
    {'step': 0, 'eval/unified_score': 40.0},
    {'step': 1, 'reward/mean': 0.5},
    {'step': 2, 'eval/unified_score': last, **extra},
  ]
  text = ''.join(json.dumps(row) + '\n' for row in rows)
  (folder / 'metrics.jsonl').write_text(text)
  return folder


@pytest.fixture
def runs(tmp_path):
  return [
    make(tmp_path / 'joint', 1.0, 60.0, **{'eval/exact_scene': 0.5}),
    make(tmp_path / 'caption', 0.0, 55.0),
  ]


def test_the_table_starts_once_and_ends_for_each(runs):
  text = compare.markdown(compare.read(runs))
  assert text.splitlines()[0] == '| metric | start | joint | caption |'
  assert '| step | 0 | 2 | 2 |' in text
  assert '| unified_score | 40.000 | 60.000 | 55.000 |' in text
  assert '| exact_scene |  | 0.500 |  |' in text


def test_the_page_shows_what_differs_and_every_curve(runs, tmp_path):
  page = compare.write(runs, tmp_path / 'page.html').read_text()
  (data,) = re.findall(r'type="application/json" id="data">(.*?)</script', page)
  data = json.loads(data)
  assert data['config'] == [['grpo.image_weight', '1.0 | 0.0', '']]
  panel = data['curves'][0]
  assert [s['name'] for s in panel['series']] == ['joint', 'caption']
  assert panel['series'][1]['points'] == [[0, 40.0], [2, 55.0]]
  assert data['gallery'] is None


def test_runs_that_cannot_be_compared_are_refused(runs, tmp_path):
  with pytest.raises(UserError, match='two or more'):
    compare.read(runs[:1])
  with pytest.raises(UserError, match='different names'):
    compare.read([runs[0], runs[0]])
  with pytest.raises(UserError, match='absent'):
    compare.read([runs[0], tmp_path / 'absent'])
  empty = tmp_path / 'empty'
  empty.mkdir()
  (empty / 'metrics.jsonl').write_text('{"step": 1, "reward/mean": 0.1}\n')
  with pytest.raises(UserError, match='never evaluated'):
    compare.read([runs[0], empty])
