"""The report page: what it shows, and what a caption cannot do to it."""

import base64
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from uae_jax.errors import UserError
from uae_jax.eval import report

CONFIG = {
  'stage': 'encoder',
  'rollout': {'bottleneck': 'text', 'environment': 'policy'},
  'ckpt': {'reward': 'bundled:umm1/reward', 'judges': 'bundled:umm1/judge_a'},
}
EVIL = '</script><script>alert(1)</script> <!-- &amp; " \u2028'


def add_gallery(folder, step, captions, side=8):
  rng = np.random.default_rng(step)
  n = len(captions)
  return report.save_gallery(
    folder,
    step,
    source=rng.integers(0, 256, (n, side, side, 3), np.uint8),
    reconstruction=rng.integers(0, 256, (n, side, side, 3), np.uint8),
    captions=captions,
    scores=np.array([[0.5, np.nan]] * n, np.float32),
    columns=['reward', 'judge_a'],
  )


def add_rows(folder, rows):
  text = ''.join(json.dumps(r) + '\n' for r in rows)
  (folder / 'metrics.jsonl').write_text(text)


@pytest.fixture
def run(tmp_path):
  (tmp_path / 'config.json').write_text(json.dumps(CONFIG))
  add_rows(
    tmp_path,
    [
      {'step': 0, 'eval/reward': 0.5, 'eval/judge_a': 0.5,
       'eval/unified_score': 50.0},
      {'step': 1, 'reward/mean': 0.5, 'policy/kl': 0.0},
      {'step': 2, 'reward/mean': None, 'policy/kl': 0.1},
      {'step': 2, 'eval/reward': 0.8, 'eval/judge_a': 0.9,
       'eval/unified_score': 90.0},
      {'step': 4, 'eval/reward': 0.9, 'eval/judge_a': 0.7,
       'eval/unified_score': 70.0},
    ],
  )  # fmt: skip
  return tmp_path


def written(folder):
  """(page, the data inside it)."""
  page = report.write_report(folder).read_text()
  (data,) = re.findall(r'type="application/json" id="data">(.*?)</script', page)
  return page, json.loads(data)


def test_table_has_first_best_and_last(run):
  table = written(run)[1]['table']
  assert table['steps'] == [0, 2, 4]  # best by the judges, not by the reward
  assert table['rows'] == [
    ['unified_score', 'held-out', 50.0, 90.0, 70.0],
    ['reward', 'training reward', 0.5, 0.8, 0.9],
    ['judge_a', 'held-out', 0.5, 0.9, 0.7],
  ]


def test_curves_leave_out_what_was_not_measured(run):
  curves = {p['title']: p['series'] for p in written(run)[1]['curves']}
  assert set(curves) == {
    'Reward', 'Unified-Score, held-out judges', 'KL to the start'
  }  # fmt: skip
  assert curves['Reward'][0]['points'] == [[1, 0.5]]
  assert curves['KL to the start'][0]['points'] == [[1, 0.0], [2, 0.1]]


def test_config_names_the_training_reward(run):
  rows = written(run)[1]['config']
  assert ['rollout.bottleneck', 'text', ''] in rows
  assert ['ckpt.reward', 'bundled:umm1/reward', 'training reward'] in rows
  assert ['ckpt.judges', 'bundled:umm1/judge_a', 'held-out judges'] in rows


def test_gallery_pairs_the_first_and_the_last(run):
  file = add_gallery(run, 0, ['a', 'b'])
  add_gallery(run, 2, ['never', 'shown'])
  add_gallery(run, 4, ['a b', 'b c'])
  gallery = written(run)[1]['gallery']
  assert gallery['steps'] == [0, 4]
  assert gallery['columns'] == ['reward', 'judge_a']
  first = gallery['items'][0]
  assert first['captions'] == ['a', 'a b']
  assert first['scores'] == [[0.5, None], [0.5, None]]
  head, code = first['images'][0].split(',')
  assert head == 'data:image/png;base64'
  image = np.asarray(Image.open(io.BytesIO(base64.b64decode(code))))
  np.testing.assert_array_equal(image, np.load(file)['reconstruction'][0])


def test_captions_are_text_and_never_markup(run):
  add_gallery(run, 0, [EVIL])
  page, data = written(run)
  assert data['gallery']['items'][0]['captions'][0] == EVIL
  assert 'alert(1)</script>' not in page and page.count('<script') == 2
  assert 'innerHTML' not in page


def test_page_needs_no_network(run):
  add_gallery(run, 0, ['a'])
  page, _ = written(run)
  urls = set(re.findall(r'https?://[^\s\'"]+', page))
  assert urls == {'http://www.w3.org/2000/svg'}  # a name, not an address
  assert not re.search(r'<link[^>]+href="(?!data:)|<script[^>]+src=', page)


def test_a_tower_has_curves_only(run):
  add_rows(run, [{'step': 1, 'optim/loss': 2.0, 'tower/accuracy': 0.1}])
  _, data = written(run)
  assert data['table'] is None and data['gallery'] is None
  assert [p['title'] for p in data['curves']] == ['Loss', 'Accuracy']


def test_photographs_have_no_truth_rows(run):
  _, data = written(run)
  assert not [r for r in data['table']['rows'] if 'recall' in r[0]]


def test_best_follows_the_reward_where_no_judge_is():
  rows = [
    {'step': s, 'eval/reward': r} for s, r in ((0, 0.1), (1, 0.9), (2, 0.2))
  ]
  assert report.evaluation_table(rows, [])['steps'] == [0, 1, 2]


def test_long_series_are_averaged():
  points = [(step, float(step)) for step in range(1, 8001)]
  thinned = report.thin(points)
  assert len(thinned) == report.POINTS
  assert thinned[-1] == [8000, 7990.5]
  assert report.thin(points[:3]) == [[1, 1.0], [2, 2.0], [3, 3.0]]


def test_large_pictures_are_made_smaller():
  uri = report.data_uri(np.zeros((1024, 512, 3), np.uint8))
  image = Image.open(io.BytesIO(base64.b64decode(uri.split(',')[1])))
  assert image.size == (128, 256)


@pytest.mark.parametrize(
  'name, text',
  [
    ('config.json', '{'),
    ('metrics.jsonl', '{"step": 1'),
    ('gallery/step_000000.npz', ''),
    ('gallery/step_000000.npz', 'no zip'),
    ('gallery/step_000000.npz', 'PK\x03\x04 torn'),
  ],
)
def test_corrupt_files_are_named(run, name, text):
  (run / 'gallery').mkdir()
  (run / name).write_text(text)
  with pytest.raises(UserError, match=name):
    report.write_report(run)


def test_a_missing_workdir_is_a_user_error(tmp_path):
  with pytest.raises(UserError, match='config.json'):
    report.write_report(tmp_path / 'nowhere')
