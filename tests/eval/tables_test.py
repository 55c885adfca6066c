"""Measured numbers beside published ones, checked by hand."""

import pytest

from uae_jax.errors import UserError
from uae_jax.eval import tables
from uae_jax.eval.benchmark import Score, write_summary

CAPTION = dict(conditioning='caption')
PLAIN, REWRITTEN = dict(rewrite=None), dict(rewrite='0123456789ab')
FOUR = ['clip-vit-large-patch14', 'LongCLIP-L', 'dinov2-large', 'dinov3-vitl16']


def put(folder, benchmark, label, scores, settings=()):
  """A summary; a score is a value, its interval is 1 around it, n is 100."""
  folder.mkdir(parents=True)
  full = {k: Score(v, 100, v - 1, v + 1) for k, v in scores.items()}
  write_summary(folder, benchmark, label, full, dict(settings))


def made(*folders):
  found = tables.tables(tables.merge(tables.find(folders)))
  return {table.name: table for table in found}


def measured(table):
  return [row for row in table.rows if row.kind == 'measured']


def texts(row):
  return {column: str(cell) for column, cell in row.cells.items()}


def unified(values, towers=FOUR, **settings):
  scores = {'unified_score': sum(values) / len(values)}
  return scores | dict(zip(towers, values)), {**CAPTION, **settings}


def test_published_numbers_are_those_of_the_paper(tmp_path):
  put(tmp_path / 'x', 'scenes', 'x', {'choice': 0.5})
  by_name = made(tmp_path)
  rows = {t.name: {(r.label, r.rewriting): r for r in t.rows}
          for t in by_name.values()}  # fmt: skip
  assert texts(rows['main']['Janus-Pro + Ours', '']) == {
    'MMB': '80.3', 'MMMU': '41.6', 'GenEval': '84.3 (+4.3)',
    'DPGBench': '88.9 (+4.7)', 'Unified-Score': '89.1 (+6.3) (reward)',
  }  # fmt: skip
  assert texts(rows['main']['UniWorld', '']) == {
    'MMB': '83.5', 'MMMU': '58.6', 'GenEval': '84.0', 'DPGBench': '81.2',
    'Unified-Score': '79.0',
  }  # fmt: skip
  assert texts(rows['geneval']['UAE', 'no']) == {
    'Counting': '0.84', 'Colors': '0.90', 'Color attr.': '0.79',
    'Overall': '0.86',
  }  # fmt: skip
  assert texts(rows['geneval']['UAE', 'yes'])['Overall'] == '0.89'
  assert len(by_name['geneval'].rows) == 6
  assert texts(rows['genevalpp']['UAE', '']) == {
    'Color/Count': '0.550', 'Pos/Count': '0.450', 'Overall': '0.475'
  }  # fmt: skip
  assert texts(rows['genevalpp']['BAGEL', '']) == {'Overall': '0.371'}
  assert texts(rows['unified_bench']['UAE', '']) == {
    'CLIP': '90.50 (reward)', 'LongCLIP': '94.35', 'DINO-v2': '81.98',
    'DINO-v3': '77.54', 'Overall': '86.09 (reward)',
  }  # fmt: skip
  assert texts(rows['unified_bench']['GPT-4o-Image', ''])['Overall'] == '85.95'
  assert texts(rows['mmt']['Ours (Qwen-3B)', '']) == {
    'Fine-grained Perception': '56.9', 'Small Object Detection': '0.45',
    'Person Re-ID': '0.75', 'Transparent Object Det.': '0.45',
    'Salient Obj. Detection RGBD': '0.45',
  }  # fmt: skip
  assert texts(rows['mmt']['Gain, points', '']) == {
    'Fine-grained Perception': '+24.4', 'Small Object Detection': '+40',
    'Person Re-ID': '+60', 'Transparent Object Det.': '+30',
    'Salient Obj. Detection RGBD': '+20', 'OCR': '-6.2', 'DU': '-11.6',
    'IR': '-6.2',
  }  # fmt: skip


def test_published_means_are_means_of_what_they_are_of():
  """Slips of the pen would show: each mean is within its rounding."""
  by_name = {t['name']: t for t in tables.published()['tables']}
  for row in by_name['unified_bench']['rows']:
    *backbones, overall = row['values'].values()
    assert abs(sum(backbones) / 4 - overall) < 0.02, row
  base, ours, gain = (row['values'] for row in by_name['mmt']['rows'])
  for name in base:
    times = 100 if base[name] < 1 else 1
    assert (ours[name] - base[name]) * times == pytest.approx(gain[name])
  rows = {row['label']: row for row in by_name['main']['rows']}
  for name in ('UniWorld', 'Janus-Pro'):
    ours = rows[f'{name} + Ours']
    for column, gain in ours['gains'].items():
      diff = ours['values'][column] - rows[name]['values'][column]
      assert diff == pytest.approx(gain), (name, column)


def test_a_measured_row_in_the_units_of_the_table(tmp_path):
  put(tmp_path / 'a', 'mmb', 'mine', {'accuracy': 0.5, 'LR': 0.25})
  put(tmp_path / 'b', 'geneval', 'mine', {'overall': 0.75}, PLAIN)
  put(tmp_path / 'c', 'dpg', 'mine', {'overall': 80.0}, PLAIN)
  put(tmp_path / 'd', 'unified_bench', 'mine', *unified([80, 90, 70, 60]))
  by_name = made(tmp_path)
  (row,) = measured(by_name['main'])
  assert texts(row) == {
    'MMB': '50.0 [-50.0, 150.0] n=100',
    'GenEval': '75.0 [-25.0, 175.0] n=100',
    'DPGBench': '80.0 [79.0, 81.0] n=100',
    'Unified-Score': '75.0 [74.0, 76.0] n=100',
  }
  assert (row.conditioning, row.rewriting) == ('caption', 'no')
  (row,) = measured(by_name['unified_bench'])
  assert texts(row)['DINO-v3'] == '60.00 [59.00, 61.00] n=100'
  assert texts(row)['Overall'] == '75.00 [74.00, 76.00] n=100'
  (row,) = measured(by_name['geneval'])
  assert texts(row) == {'Overall': '0.75 [-0.25, 1.75] n=100'}
  # MMB's groups have no place in the paper's tables; all of dpg has.
  assert [r.label for r in by_name['mmb_scores'].rows] == ['accuracy', 'LR']
  assert 'dpg_scores' not in by_name


def test_what_was_measured_twice_has_two_rows(tmp_path):
  put(tmp_path / 'a', 'mmb', 'mine', {'accuracy': 0.5})
  put(tmp_path / 'b', 'geneval', 'mine', {'overall': 0.7}, REWRITTEN)
  put(tmp_path / 'c', 'geneval', 'mine', {'overall': 0.6}, PLAIN)
  put(tmp_path / 'd', 'unified_bench', 'mine', *unified([80] * 4))
  hidden = unified([90] * 4, conditioning='hidden')
  put(tmp_path / 'e', 'unified_bench', 'mine', *hidden)
  rows = measured(made(tmp_path)['main'])
  values = [{k: round(c.value) for k, c in row.cells.items()} for row in rows]
  said = [(row.conditioning, row.rewriting) for row in rows]
  assert dict(zip(said, values)) == {
    ('caption', 'no'): {'MMB': 50, 'GenEval': 60, 'Unified-Score': 80},
    ('hidden', 'yes'): {'GenEval': 70, 'Unified-Score': 90},
  }
  rows = measured(made(tmp_path)['unified_bench'])
  assert [row.conditioning for row in rows] == ['caption', 'hidden']


def test_what_others_drew_is_not_said_to_be_of_plain_prompts(tmp_path):
  for name, settings in {
    'plain': dict(rewrite=None, images=None),
    'theirs': dict(rewrite=None, images='drawings'),
    'rewritten': dict(rewrite='0123456789ab', images=None),
    'score': dict(images='drawings', conditioning=None),
  }.items():
    put(tmp_path / name, 'geneval', name, {'overall': 0.5}, settings)
  rows = measured(made(tmp_path)['geneval'])
  assert {row.label: row.rewriting for row in rows} == {
    'plain': 'no', 'theirs': '', 'rewritten': 'yes', 'score': '',
  }  # fmt: skip


def test_the_training_reward_is_marked(tmp_path):
  rewarded = unified([80] * 4, reward=['openai/clip-vit-large-patch14'])
  put(tmp_path / 'a', 'unified_bench', 'mine', *rewarded)
  put(tmp_path / 'b', 'unified_bench', 'other', *unified([80] * 4, reward=[]))
  mine, other = measured(made(tmp_path)['unified_bench'])
  marked = [k for k, text in texts(mine).items() if '(reward)' in text]
  assert marked == ['CLIP', 'Overall']
  assert not any('(reward)' in text for text in texts(other).values())


def test_other_towers_are_no_backbones(tmp_path):
  towers = ['judge_clip', 'dinov2-small']
  put(tmp_path / 'a', 'unified_bench', 'mine', *unified([80, 70], towers))
  by_name = made(tmp_path)
  whole = by_name['unified_bench_scores']
  (row,) = measured(by_name['unified_bench'])
  assert [*row.cells] == ['DINO-v2']  # a mean of others is no Overall
  assert not measured(by_name['main'])
  assert whole.title == 'unified_bench, every score'
  assert [row.label for row in whole.rows] == ['unified_score', *towers]
  two = ['clip-vit-base', 'clip-vit-large', 'dinov2', 'dinov3']
  put(tmp_path / 'b', 'unified_bench', 'two', *unified([1, 2, 3, 4], two))
  rows = measured(made(tmp_path / 'b')['unified_bench'])
  assert [[*row.cells] for row in rows] == [['DINO-v2', 'DINO-v3']]


def test_seeds_become_a_mean_and_their_deviation(tmp_path):
  for seed, value in enumerate((70.0, 74.0, 78.0)):
    scores, settings = unified([value] * 4)
    put(tmp_path / f's{seed}', 'unified_bench', f'run-seed{seed}', scores,
        settings)  # fmt: skip
  for seed, value in ((0, 0.5), (7, 0.7)):
    put(tmp_path / f'g{seed}', 'geneval', f'run#{seed}', {'overall': value})
  put(tmp_path / 'm', 'mmb', 'run-seed1', {'accuracy': 0.5})
  by_name = made(tmp_path)
  (row,) = measured(by_name['unified_bench'])
  assert row.label == 'run'
  # Mean of 70, 74, 78 and sqrt((16 + 0 + 16) / 2).
  assert texts(row)['CLIP'] == '74.00 ± 4.00 (3 seeds, n=100)'
  (row,) = measured(by_name['geneval'])
  assert row.label == 'run'
  assert texts(row)['Overall'] == '0.60 ± 0.14 (2 seeds, n=100)'
  # One seed alone is no mean, and keeps its name.
  rows = {row.label: texts(row) for row in measured(by_name['main'])}
  assert rows['run']['GenEval'] == '60.0 ± 14.1 (2 seeds, n=100)'
  assert rows['run-seed1'] == {'MMB': '50.0 [-50.0, 150.0] n=100'}


def test_drawn_scenes_are_a_table_of_their_own(tmp_path):
  settings = dict(towers=['judge_clip'], reward=['reward'], **CAPTION)
  scores = {'unified_score': 90.0, 'judge_clip': 90.0, 'exact_scene': 0.5}
  put(tmp_path / 'a', 'scenes', 'before', scores, settings)
  put(tmp_path / 'b', 'scenes', 'after', {**scores, 'choice': 0.75}, settings)
  table = made(tmp_path)['scenes_scores']
  assert table.corner == 'score' and table.title == 'scenes, every score'
  assert table.columns == [
    'before, caption conditioning', 'after, caption conditioning'
  ]  # fmt: skip
  assert [row.label for row in table.rows] == [*scores, 'choice']
  by_score = {row.label: row for row in table.rows}
  assert [*by_score['choice'].cells] == ['after, caption conditioning']
  assert str(by_score['exact_scene'].cells['before, caption conditioning']) == (
    '0.500 [-0.500, 1.500] n=100'
  )
  assert not any(c.reward for r in table.rows for c in r.cells.values())


def test_the_same_result_twice_is_refused(tmp_path):
  put(tmp_path / 'a', 'mmb', 'x-seed0', {'accuracy': 0.5})
  put(tmp_path / 'b', 'mmb', 'x-seed0', {'accuracy': 0.6})
  with pytest.raises(UserError, match="both 'x-seed0' of mmb.*--label"):
    made(tmp_path)
  assert made(tmp_path / 'a', tmp_path / 'a')  # one folder named twice


def test_folders_without_results_are_refused(tmp_path):
  with pytest.raises(UserError, match='no summary.json below'):
    tables.find([tmp_path])
  with pytest.raises(UserError, match='absent'):
    tables.find([tmp_path / 'absent'])
  (tmp_path / 'summary.json').write_text('{}')
  with pytest.raises(UserError, match='no summary of tools.evaluate'):
    tables.find([tmp_path])


def test_published_rows_have_known_columns_and_keys():
  for table in tables.published()['tables']:
    columns = [column['name'] for column in table['columns']]
    assert len(set(columns)) == len(columns)
    for row in table['rows']:
      assert set(row['values']) <= set(columns), row
      assert set(row) <= {
        'label', 'values', 'gains', 'rewriting', 'reward', 'signed'
      }  # fmt: skip
