"""DPG-Bench: the dependency rule, the grid, and scores by hand."""

import csv

import numpy as np
import pytest
from PIL import Image

from tests.eval.filling import Painter, files, fill
from uae_jax.errors import UserError
from uae_jax.eval import dpg
from uae_jax.eval.dpg import DPGBench, Prompt, Question, credited, read_prompts

COLUMNS = (
  'item_id', 'text', 'keywords', 'proposition_id', 'dependency',
  'category_broad', 'category_detailed', 'tuple', 'question_natural_language',
)  # fmt: skip
TEXTS = {'0': 'A red ball, on\na table.', 'whoops1': 'Two cats.', 'b': 'Dusk.'}
# item, id, dependency, tuple, question
ROWS = [
  ('0', 1, '0', 'entity - whole (ball)', 'Is there a ball?'),
  ('0', 2, '1', 'attribute - color (ball, red)', 'Is the ball red?'),
  ('0', 3, '0', 'entity - whole (table)', 'Is there a table?'),
  ('0', 4, '1, 3', 'relation - spatial (ball, table, on)', 'Is it on it?'),
  ('whoops1', 1, '0', 'entity - whole (cats)', 'Are there cats?'),
  ('whoops1', 2, '1', 'other - count (cats, ==2)', 'Are there two cats?'),
  ('b', 1, '0', 'global - (dusk)', 'Is it dusk?'),
]


def write(folder, rows=ROWS, texts=TEXTS):
  (folder / 'prompts').mkdir(parents=True, exist_ok=True)
  for name, text in texts.items():
    (folder / 'prompts' / f'{name}.txt').write_text(text + '\n')
  with (folder / 'dpg_bench.csv').open('w', newline='') as f:
    table = csv.writer(f)
    table.writerow(COLUMNS)
    for item, number, parents, kind, text in rows:
      prompt = texts.get(item, '?')
      table.writerow((item, prompt, '', number, parents, '', '', kind, text))
  return folder


@pytest.fixture(scope='module')
def prompts(tmp_path_factory):
  return read_prompts(write(tmp_path_factory.mktemp('dpg')), 3)


def test_the_files_are_read(prompts):
  assert [*prompts] == ['0', 'b', 'whoops1']
  assert prompts['0'].text == TEXTS['0']
  assert prompts['0'].questions == {
    1: Question('Is there a ball?', 'entity - whole', ()),
    2: Question('Is the ball red?', 'attribute - color', (1,)),
    3: Question('Is there a table?', 'entity - whole', ()),
    4: Question('Is it on it?', 'relation - spatial', (1, 3)),
  }
  assert prompts['b'].questions[1].category == 'global'
  assert prompts['0'].questions[4].broad == 'relation'


def test_the_dependency_rule_by_hand(prompts):
  questions = prompts['0'].questions
  yes = lambda *answers: [*credited(questions, answers).values()]
  assert yes(True, True, True, True) == [True] * 4
  assert yes(False, True, True, True) == [False, False, True, False]
  assert yes(True, True, False, True) == [True, True, False, False]
  assert yes(True, False, True, True) == [True, False, True, True]
  assert yes(None, True, True, False) == [False, False, True, False]


def test_what_a_parent_has_lost_its_children_lose():
  chain = {
    1: Question('?', 'c', ()),
    2: Question('?', 'c', (1,)),
    3: Question('?', 'c', (2,)),
    4: Question('?', 'c', (9,)),  # of no question
  }
  got = credited(chain, [False, True, True, True])
  assert got == {1: False, 2: False, 3: False, 4: True}


def answers_of(image):
  """What the answerer below says of a drawing: by its pixels, repeatably."""
  return [bool(value % 3) for value in image[:4, 0, 0]]


def answer(images, questions):
  """Pairs; the first question is answered by the first pixel, and so on."""
  assert len(images) == len(questions)
  order = [row[4] for row in ROWS]
  place = {text: ROWS[i][1] - 1 for i, text in enumerate(order)}
  return [answers_of(i)[place[q]] for i, q in zip(images, questions)]


def benchmark(prompts, **more):
  drawer = dict(draw=Painter(5), batch=5, answer=answer)
  return DPGBench(prompts, **{**drawer, **more})


@pytest.fixture(scope='module')
def whole(prompts, tmp_path_factory):
  folder = tmp_path_factory.mktemp('out') / 'dpg'
  bench = benchmark(prompts)
  return folder, bench, fill(bench, folder, 2)


def test_the_layout_is_the_official_one(whole, prompts):
  folder, bench, _ = whole
  names = sorted(f.name for f in (folder / 'images').iterdir())
  assert names == ['0.png', 'b.png', 'whoops1.png']
  picture = np.asarray(Image.open(folder / 'images' / '0.png'))
  assert picture.shape == (12, 16, 3)
  crops = dpg.quarters(picture)
  np.testing.assert_array_equal(crops[1], picture[:6, 8:])
  np.testing.assert_array_equal(crops[2], picture[6:, :8])
  np.testing.assert_array_equal(dpg.grid(crops), picture)
  assert len({crop.tobytes() for crop in crops}) == 4
  texts = [prompts[n].text for n in ('0', 'b', 'whoops1') for _ in range(4)]
  assert bench.draw.texts == texts


def test_scores_are_those_of_a_hand(whole, prompts):
  folder, bench, rows = whole
  given, score = {}, {}
  for name in prompts:
    picture = np.asarray(Image.open(folder / 'images' / f'{name}.png'))
    four = [answers_of(crop) for crop in dpg.quarters(picture)]
    number = len(prompts[name].questions)
    given[name] = np.array(four)[:, :number]
    a = given[name].astype(float)
    if name == '0':  # 2 needs 1; 4 needs 1 and 3
      a[:, 1] *= a[:, 0]
      a[:, 3] *= a[:, 0] * a[:, 2]
    elif name == 'whoops1':
      a[:, 1] *= a[:, 0]
    score[name] = a.mean(1)
    assert rows[name]['answers'] == given[name].tolist()
    np.testing.assert_allclose(rows[name]['crops'], score[name])
    np.testing.assert_allclose(rows[name]['score'], score[name].mean())
  assert any((given[n].mean() != score[n].mean()) for n in given)
  got = bench.scores(rows)
  assert [*got] == [
    'overall', 'global', 'entity', 'attribute', 'relation', 'other',
    'attribute - color', 'entity - whole', 'other - count',
    'relation - spatial',
  ]  # fmt: skip
  overall = 100 * np.mean([s.mean() for s in score.values()])
  np.testing.assert_allclose(got['overall'].value, overall)
  assert got['overall'].n == 3
  # Categories know no dependencies, and weigh every question alike.
  entity = [*given['0'][:, [0, 2]].ravel(), *given['whoops1'][:, 0]]
  np.testing.assert_allclose(got['entity'].value, 100 * np.mean(entity))
  assert got['entity'].n == 12 and got['entity - whole'] == got['entity']
  color = 100 * given['0'][:, 1].mean()
  np.testing.assert_allclose(got['attribute'].value, color)
  assert all(s.low <= s.value <= s.high for s in got.values())


def test_an_interval_resamples_prompts_not_questions():
  questions = {i: Question('?', 'entity - whole', ()) for i in range(100)}
  prompts = {str(i): Prompt('x', questions) for i in range(2)}
  bench = DPGBench(prompts, draw=Painter(), answer=answer, pictures=1)
  rows = {
    n: dict(score=s, answers=[[s == 1] * 100]) for n, s in zip('01', (1, 0))
  }
  got = bench.scores(rows)['entity']
  assert (got.value, got.n, got.low, got.high) == (50, 200, 0, 100)


def test_every_call_of_the_drawer_has_noise_of_its_own(prompts, tmp_path):
  bench = benchmark(prompts, draw=Painter(2), batch=2, answer=None)
  fill(bench, tmp_path, 3)
  assert [len(call) for call in bench.draw.calls] == [2] * 6
  pictures = [np.asarray(Image.open(f)) for f in tmp_path.rglob('*.png')]
  crops = [crop.tobytes() for p in pictures for crop in dpg.quarters(p)]
  assert len(set(crops)) == 12


def test_a_killed_run_goes_on_without_redoing_anything(
  whole, prompts, tmp_path
):
  folder, _, rows = whole
  first, second = benchmark(prompts), benchmark(prompts)
  assert len(fill(first, tmp_path, 2, stop=1)) == 2
  assert fill(second, tmp_path, 2) == rows
  assert len(first.draw.texts) == 8 and len(second.draw.texts) == 4
  assert files(tmp_path) == files(folder)


def test_drawn_now_and_scored_later_are_the_same(whole, prompts, tmp_path):
  _, _, rows = whole
  export = benchmark(prompts, answer=None)
  drawn = fill(export, tmp_path / 'drawn', 2)
  assert export.scores(drawn) == {}
  images = tmp_path / 'drawn' / 'images'
  later = benchmark(prompts, draw=None, images=images)
  assert fill(later, tmp_path / 'scored', 1) == rows
  (images / 'b.png').write_bytes(b'no image')
  bench = benchmark(prompts, draw=None, images=images)
  again = fill(bench, tmp_path / 'broken', 3)
  assert again['b']['error'] == 'cannot be read'
  assert bench.scores(again)['overall'].n == 2
  (images / 'b.png').unlink()
  with pytest.raises(UserError, match='lacks 1 of 3 images.*b.png'):
    benchmark(prompts, draw=None, images=images)
  with pytest.raises(UserError, match='only be scored'):
    benchmark(prompts, draw=None, images=images, answer=None)


def test_one_picture_is_no_grid(prompts, tmp_path):
  rows = fill(benchmark(prompts, pictures=1), tmp_path, 3)
  picture = np.asarray(Image.open(tmp_path / 'images' / '0.png'))
  assert picture.shape == (6, 8, 3)
  assert rows['0']['answers'] == [answers_of(picture)]
  with pytest.raises(UserError, match='1 or 4 images'):
    benchmark(prompts, pictures=2)


def test_a_rewrite_is_drawn_and_the_prompt_is_scored(prompts, tmp_path):
  table = {text: f'{text} In oil.' for text in TEXTS.values()}
  bench = benchmark(prompts, rewrite=table)
  rows = fill(bench, tmp_path, 3)
  assert set(bench.draw.texts) == {*table.values()}
  assert (
    rows['b']['drawn'] == 'Dusk. In oil.' and rows['b']['prompt'] == 'Dusk.'
  )
  assert bench.settings['rewrite']
  assert bench.settings['prompts'] == benchmark(prompts).settings['prompts']


def test_files_are_checked(tmp_path):
  with pytest.raises(UserError, match='TencentQQGYLab/ELLA'):
    read_prompts(tmp_path)
  with pytest.raises(UserError, match='has 3 of 1065 prompts'):
    read_prompts(write(tmp_path / 'short'))
  with pytest.raises(UserError, match="asks nothing of 'b'"):
    read_prompts(write(tmp_path / 'mute', ROWS[:-1]), 3)
  bad = [*ROWS[:-1], ('b', 'one', '0', 'global - (dusk)', 'Is it dusk?')]
  with pytest.raises(UserError, match='malformed'):
    read_prompts(write(tmp_path / 'bad', bad), 3)
  folder = write(tmp_path / 'empty', texts={**TEXTS, 'b': ''})
  with pytest.raises(UserError, match='has 2 of 3 prompts'):
    read_prompts(folder, 3)
