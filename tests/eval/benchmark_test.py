"""Means, ratios, intervals and the summary that tables read."""

import json

import numpy as np
import pytest
from pytest import approx

from uae_jax.errors import UserError
from uae_jax.eval import benchmark


def test_the_overall_is_the_mean_of_the_means():
  scores = benchmark.mean_scores(
    {'a': [1, 1, 0, 0, 0], 'b': [1], 'none': []}, overall='all'
  )
  assert [*scores] == ['all', 'a', 'b']
  assert scores['a'].value == approx(0.4) and scores['a'].n == 5
  assert scores['b'] == benchmark.Score(1.0, 1, 1.0, 1.0)
  assert scores['all'].value == approx(0.7) and scores['all'].n == 6
  assert benchmark.mean_scores({}, overall='all') == {}


def test_intervals_hold_the_mean_as_often_as_they_say():
  rng = np.random.default_rng(1)
  draws = rng.normal(3, 2, (300, 40))
  hit = [s.low <= 3 <= s.high for s in map(benchmark.mean_score, draws)]
  assert 0.89 < np.mean(hit) < 0.98  # of 0.95
  widths = [np.ptp((s.low, s.high)) for s in map(benchmark.mean_score, draws)]
  assert np.mean(widths) == approx(2 * 1.96 * 2 / np.sqrt(40), rel=0.06)


def test_a_ratio_is_of_the_sums():
  score = benchmark.ratio_score([1, 0, 3], [2, 0, 3])
  assert score.value == approx(0.8) and score.n == 5
  assert score.low < 0.8 < score.high
  assert benchmark.ratio_score([0, 0], [0, 0]).value == 0


def test_a_summary_comes_back(tmp_path):
  scores = {'b': benchmark.mean_score([1, 0]), 'a': benchmark.mean_score([1])}
  benchmark.write_summary(tmp_path, 'x', 'UAE', scores, {'seed': 3})
  found = benchmark.read_summary(tmp_path)
  assert found.label == 'UAE' and found.benchmark == 'x'
  assert found.scores == scores and [*found.scores] == ['b', 'a']
  assert found.settings == {'seed': 3}


@pytest.mark.parametrize(
  'text', ['', '{', '[]', '{"scores": {}}', '{"scores": {"a": 1}}', '3']
)
def test_what_is_no_summary_is_one_line(tmp_path, text):
  with pytest.raises(UserError, match='missing: run tools.evaluate'):
    benchmark.read_summary(tmp_path)
  (tmp_path / 'summary.json').write_text(text)
  with pytest.raises(UserError, match='no summary'):
    benchmark.read_summary(tmp_path)
  (tmp_path / 'summary.json').write_text(json.dumps({'scores': []}))
  with pytest.raises(UserError, match='no summary'):
    benchmark.read_summary(tmp_path)
