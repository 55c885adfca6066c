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
      {'step': 2, 'eval/reward': 0.9, 'eval/judge_a': 0.7,
       'eval/unified_score': 70.0},
      {'step': 4, 'eval/reward': 0.7, 'eval/judge_a': 0.9,
       'eval/unified_score': 90.0},
      {'step': 6, 'eval/reward': 0.8, 'eval/judge_a': 0.6,
       'eval/unified_score': 60.0},
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
  assert table['steps'] == [0, 2, 6]
  assert table['rows'] == [
    ['unified_score', 'held-out', 50.0, 70.0, 60.0],
    ['reward', 'training reward', 0.5, 0.9, 0.8],
    ['judge_a', 'held-out', 0.5, 0.7, 0.6],
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
  assert ['ckpt.judges', 'bundled:umm1/judge_a', 'held-out'] in rows


def test_gallery_pairs_the_first_and_the_last(run):
  file = add_gallery(run, 0, ['a', 'b'])
  add_gallery(run, 2, ['never', 'shown'])
  add_gallery(run, 4, ['a b', 'b c'])
  gallery = written(run)[1]['gallery']
  assert gallery['labels'] == ['before, step 0', 'after, step 4']
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


def test_best_is_picked_by_the_reward_and_never_by_a_judge():
  rows = [
    {'step': s, 'eval/reward': r, 'eval/unified_score': u}
    for s, r, u in ((0, 0.1, 9.0), (1, None, 5.0), (2, 0.9, 1.0), (3, 0.2, 2.0))
  ]
  assert report.evaluation_table(rows, [])['steps'] == [0, 2, 3]


def test_best_is_the_last_evaluation_without_rewards():
  rows = [{'step': s, 'eval/caption_length': 5.0} for s in (0, 1, 2)]
  assert report.evaluation_table(rows, [])['steps'] == [0, 2, 2]


def test_a_torn_last_row_is_left_out(run):
  before = written(run)[1]
  with open(run / 'metrics.jsonl', 'a') as f:
    f.write('{"step": 7, "reward/me')
  assert written(run)[1] == before


def test_a_gallery_without_scores(run):
  image = np.zeros((1, 8, 8, 3), np.uint8)
  report.save_gallery(
    run, 0, source=image, reconstruction=image, captions=['a'],
    scores=np.zeros((1, 0)), columns=[],
  )  # fmt: skip
  gallery = written(run)[1]['gallery']
  assert gallery['columns'] == [] and gallery['items'][0]['scores'] == [[]]
  assert gallery['labels'] == ['step 0']


def test_a_failed_save_keeps_the_gallery_that_was_there(run, monkeypatch):
  file = add_gallery(run, 0, ['a'])

  def torn(f, **_):
    f.write(b'half')
    raise OSError('disk full')

  monkeypatch.setattr(np, 'savez_compressed', torn)
  with pytest.raises(OSError, match='disk full'):
    add_gallery(run, 0, ['b'])
  assert list(np.load(file)['captions']) == ['a']


def test_lists_in_the_config_are_spaced(run):
  parts = {'trainable': ['policy', 'decoder']}
  config = {**CONFIG, 'pretrain': parts, 'ckpt': {'judges': 'a/b,c/d'}}
  (run / 'config.json').write_text(json.dumps(config))
  rows = written(run)[1]['config']
  assert ['pretrain.trainable', 'policy, decoder', ''] in rows
  assert ['ckpt.judges', 'a/b, c/d', 'held-out'] in rows


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
    ('metrics.jsonl', '{"step": 1\n{"step": 2}\n'),
    ('metrics.jsonl', '{"reward/mean": 1}\n'),
    ('metrics.jsonl', '3\n{"step": 2}\n'),
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
