"""GenEval++: expectations in words, verdicts, layout, scores."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.eval.filling import Painter, files, fill
from uae_jax.errors import UserError
from uae_jax.eval.genevalpp import (
  NATURAL,
  TASKS,
  GenEvalPP,
  criteria,
  read_prompts,
)


def need(cls, count=1, **more):
  return {'class': cls, 'count': count, **more}


PROMPTS = (
  dict(
    tag='color_attr',
    include=[need('bus', color='brown'), need('truck', color='green')],
    prompt='A photo of a brown bus and a green truck',
  ),
  dict(
    tag='size_spatial_attr',
    include=[
      need('bench', size='larger', region='above'),
      need('spoon', size='smaller', region='below'),
    ],
    prompt='A larger bench above a smaller spoon',
  ),
  dict(
    tag='counting',
    include=[need('clock', 6)],
    exclude=[need('clock', 7)],
    prompt='A photo of six clocks',
  ),
  dict(
    tag='color_count_attr',
    include=[need('boat', 3, color='white')],
    prompt='three white boats',
  ),
  dict(
    tag='counting',
    include=[need('cup', 5)],
    exclude=[need('cup', 6)],
    prompt='A photo of five cups',
  ),
)


def test_expectations_in_words():
  assert criteria(PROMPTS[0]) == [
    'there is exactly 1 brown bus',
    'there is exactly 1 green truck',
    NATURAL,
  ]
  assert criteria(PROMPTS[1]) == [
    'there is exactly 1 bench, larger than the other object, in the upper '
    'part of the image',
    'there is exactly 1 spoon, smaller than the other object, in the lower '
    'part of the image',
    NATURAL,
  ]
  assert criteria(PROMPTS[2]) == [
    'there are exactly 6 clock objects',
    'there are no more than 6 clock objects',
    NATURAL,
  ]


def judge(images, prompt, asked):
  """All is well but: one criterion of the sizes, no answer on white boats."""
  [image] = images
  assert image.dtype == np.uint8 and image.shape == (6, 8, 3)
  assert asked[-1] == NATURAL
  assert prompt in [line['prompt'] for line in PROMPTS]
  doubt = {'white': None, 'smaller': False}
  return [
    next((v for word, v in doubt.items() if word in text), True)
    for text in asked
  ]


def benchmark(**more):
  return GenEvalPP(
    PROMPTS, **{'draw': Painter(), 'batch': 3, 'judge': judge, **more}
  )


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  folder = tmp_path_factory.mktemp('genevalpp') / 'out'
  return folder, fill(benchmark(), folder, 2)


def test_rows_and_layout(whole):
  folder, rows = whole
  assert [*rows] == ['1', '2', '3', '4', '5']
  names = sorted(f.name for f in (folder / 'images').iterdir())
  assert names == ['1.jpg', '2.jpg', '3.jpg', '4.jpg', '5.jpg']
  assert Image.open(folder / 'images' / '1.jpg').format == 'JPEG'
  assert [r['correct'] for r in rows.values()] == [1, 0, 1, 0, 1]
  assert rows['4']['criteria'] == {
    'there are exactly 3 white boat objects': None, NATURAL: True,
  }  # fmt: skip
  assert list(rows['2']['criteria'].values()) == [True, False, True]


def test_scores_are_those_of_a_hand(whole):
  _, rows = whole
  rows = {**rows, '5': {**rows['5'], 'correct': False}}
  got = {k: (s.value, s.n) for k, s in benchmark().scores(rows).items()}
  assert got == {
    'overall': (0.375, 5), 'color': (1, 1), 'count': (0.5, 2),
    'color/count': (0, 1), 'pos/size': (0, 1),
  }  # fmt: skip
  assert list(TASKS.values()) == [
    'color', 'count', 'color/count', 'color/pos', 'pos/count', 'pos/size',
    'multi-count',
  ]  # fmt: skip


def test_a_killed_run_goes_on_without_redoing_anything(whole, tmp_path):
  folder, rows = whole
  first, second = benchmark(), benchmark()
  assert len(fill(first, tmp_path, 2, stop=1)) == 2
  assert fill(second, tmp_path, 2) == rows
  assert len(first.draw.texts) == 2 and len(second.draw.texts) == 3
  assert files(tmp_path) == files(folder)


def test_drawn_now_and_scored_later_are_the_same(whole, tmp_path):
  _, rows = whole
  export = benchmark(judge=None)
  drawn = fill(export, tmp_path / 'drawn', 2)
  assert export.scores(drawn) == {}
  images = tmp_path / 'drawn' / 'images'
  later = benchmark(draw=None, images=images)
  assert fill(later, tmp_path / 'scored', 3) == rows
  Image.open(images / '1.jpg').save(images / '1.png')
  (images / '1.jpg').unlink()
  (images / '2.jpg').write_bytes(b'no image')
  again = fill(benchmark(draw=None, images=images), tmp_path / 'png', 3)
  assert again['2']['error'] == 'cannot be read' and again['1'] == rows['1']
  (images / '1.png').unlink()
  with pytest.raises(
    UserError, match='lacks 1 of 5 images, the first is 1.png'
  ):
    benchmark(draw=None, images=images)
  with pytest.raises(UserError, match='only be scored'):
    benchmark(draw=None, images=images, judge=None)


def test_a_rewrite_is_drawn_and_the_prompt_is_judged(tmp_path):
  table = {line['prompt']: f'{line["prompt"]} at dusk' for line in PROMPTS}
  bench = benchmark(rewrite=table)
  rows = fill(bench, tmp_path, 2)
  assert bench.draw.texts == [*table.values()]
  assert rows['1']['drawn'] == table[PROMPTS[0]['prompt']]
  assert rows['1']['prompt'] == PROMPTS[0]['prompt']
  assert bench.settings['rewrite']


def test_the_file_is_read_and_checked(tmp_path):
  file = tmp_path / 'Geneval++.jsonl'
  with pytest.raises(UserError, match='github.com/yejy53/Echo-4o'):
    read_prompts(file)
  file.write_text('\n'.join(map(json.dumps, PROMPTS)))
  assert read_prompts(file, 5) == PROMPTS
  with pytest.raises(UserError, match='has 5 of 280 lines'):
    read_prompts(file)
  wrong = {
    'its tag': {**PROMPTS[0], 'tag': 'colors'},
    'no prompt': {**PROMPTS[0], 'prompt': ''},
    'includes nothing': {**PROMPTS[0], 'include': []},
    'no class': {**PROMPTS[0], 'include': [{'count': 1}]},
    'no count': {**PROMPTS[0], 'include': [need('car', 0)]},
    'no region': {**PROMPTS[0], 'include': [need('car', region='middle')]},
    'no size': {**PROMPTS[0], 'include': [need('car', size='huge')]},
    'exclude is': {**PROMPTS[0], 'exclude': {}},
  }
  for message, line in wrong.items():
    file.write_text(json.dumps(line))
    with pytest.raises(UserError, match=f'object 1: .*{message}'):
      read_prompts(file, 1)
