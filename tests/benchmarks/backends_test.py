"""Curves of several backends, beside those of seeds."""

import json
import sys

import pytest

from benchmarks import backends


def run(folder, rewards):
  """A workdir with these rewards, evaluated at both ends."""
  folder.mkdir()
  rows = [{'step': 0, 'eval/reward': 0.25, 'eval/unified_score': 30.0}]
  rows += [{'step': i, 'reward/mean': x} for i, x in enumerate(rewards, 1)]
  last = {'eval/reward': rewards[-1], 'eval/unified_score': 90.0}
  rows.append({'step': len(rewards), **last})
  text = ''.join(json.dumps(row) + '\n' for row in rows)
  (folder / 'metrics.jsonl').write_text(text)
  return folder


def test_distances_of_backends_and_of_seeds(tmp_path, monkeypatch, capsys):
  a = run(tmp_path / 'a', [0.5] * 20)
  b = run(tmp_path / 'b', [0.6] * 20)
  c = run(tmp_path / 'c', [0.625] * 20)
  runs, out = f'CPU={a},GPU={b},GPU={c}', tmp_path / 'curves.png'
  monkeypatch.setattr(sys, 'argv', ['', f'--runs={runs}', f'--out={out}'])
  backends.main()
  said = capsys.readouterr().out
  assert '| GPU | 0.250, 30.0 | 0.625, 90.0 |' in said
  assert '0.1250 at most between backends, by 0.0250 between seeds' in said
  assert out.stat().st_size > 1000


def test_rewards_are_means_over_steps():
  found = backends.smooth({i: float(i) for i in range(1, 13)})
  assert found.tolist() == pytest.approx([5.5, 6.5, 7.5])
