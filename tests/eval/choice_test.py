"""Multiple choice: files, prompts, matched answers, and means by hand."""

import base64
import io
import json
import math

import jax
import numpy as np
import pytest
from PIL import Image

from uae_jax.errors import UserError
from uae_jax.eval import choice_tsv
from uae_jax.eval.choice import Answer, Choice
from uae_jax.eval.choice_text import FORMS, extract, prompt, said
from uae_jax.eval.choice_tsv import Row, read_images, read_rows, rotated
from uae_jax.infer.results import Results

HEAD = ['index', 'image', 'question', 'hint', 'A', 'B', 'C', 'D', 'answer',
        'category', 'l2-category', 'split']  # fmt: skip
RNG = jax.random.key(0)


def encoded(shade=0, size=(9, 7), kind='PNG'):
  out = io.BytesIO()
  Image.new('RGB', size, (shade, 0, 0)).save(out, kind)
  return base64.b64encode(out.getvalue()).decode()


def write(folder, rows, head=HEAD, name='bench.tsv'):
  """A TSV of dicts, quoted as pandas does where that is needed."""
  quote = lambda x: '"' + x.replace('"', '""') + '"' if set('\t\n"') & set(
    x
  ) else x  # fmt: skip
  lines = [head, *[[str(row.get(k, '')) for k in head] for row in rows]]
  file = folder / name
  text = ''.join('\t'.join(map(quote, line)) + '\n' for line in lines)
  file.write_text(text, 'utf-8')
  return file


def item(index, answer='A', options='wxyz', **kw):
  letters = dict(zip('ABCD', options))
  return dict(index=index, image=encoded(), question=f'what is {index}?',
              answer=answer, **letters) | kw  # fmt: skip


class Asker:
  """Answers as told, by the question's first line; counts what it is asked."""

  def __init__(self, told=None, default='A'):
    self.told, self.default, self.asked = told or {}, default, []

  def __call__(self, items, rng):
    out = []
    for q in items:
      self.asked.append(q)
      text, letter = self.default, self.default
      for key, value in self.told.items():
        if key in q.text:
          text, letter = value if isinstance(value, tuple) else (value, value)
      odds = {x: math.log(0.6 if x == letter else 0.1) for x in q.options}
      out.append(Answer(text, odds))
    return out


def scored(bench):
  rows = bench.run(bench.items, None, RNG)
  return bench.scores(
    {row['name']: row for row in json.loads(json.dumps(rows))}
  )


def values(scores):
  return {name: round(score.value, 6) for name, score in scores.items()}


# Files.


def test_images_are_base64_lists_paths_or_other_rows(tmp_path):
  Image.new('RGB', (5, 4), (7, 0, 0)).save(tmp_path / 'x.png')
  two = [encoded(3), encoded(4, kind='JPEG', size=(16, 16))]
  broken = '\n'.join(encoded(5)[i : i + 40] for i in range(0, 200, 40))
  file = write(
    tmp_path,
    [
      item(1, image=encoded(1)),
      item(2, image='1'),
      item(3, image=json.dumps(two)),
      item(4, image=repr(two)),
      item(5, image='', image_path='x.png'),
      item(6, image='', image_path="['x.png', 'x.png']"),
      item(7, image='data:image/png;base64,' + encoded(2)),
      item(8, image=broken + encoded(5)[200:]),
    ],
    [*HEAD, 'image_path'],
  )
  seen = [[x[0, 0, 0] for x in read_images(row, tmp_path)]
          for row in read_rows(file)]  # fmt: skip
  assert seen == [[1], [1], [3, 4], [3, 4], [7], [7, 7], [2], [5]]


def test_large_fields_quotes_and_other_columns_are_read(tmp_path):
  noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
  out = io.BytesIO()
  Image.fromarray(noise).save(out, 'PNG')
  image = base64.b64encode(out.getvalue()).decode()
  assert len(image) > 2**17  # the csv module's own limit
  asked = 'a "quoted"\tword\nand a line'
  file = write(
    tmp_path, [item('a1', image=image, question=asked, comment='x')],
    [*HEAD, 'comment'],
  )  # fmt: skip
  [row] = read_rows(file)
  assert row.question == asked and row.name == 'a1'
  np.testing.assert_array_equal(read_images(row, tmp_path)[0], noise)


@pytest.mark.parametrize(
  'change, says',
  [
    (lambda t: t.replace('question', 'text', 1), "no column 'question'"),
    (lambda t: t.replace('answer', 'x', 1), "no column 'answer'"),
    (lambda t: t.replace('image', 'picture', 1), "no column 'image'"),
    (lambda t: t.replace('hint', 'A', 1), "two columns 'A'"),
    (lambda t: t.replace('\n2\t', '\n1\t'), 'index 1 stands there twice'),
    (lambda t: t[:-9], 'line 3 has'),
    (lambda t: t + '3\tx\n', 'line 4 has 2 fields, the first 12'),
    (lambda t: t.replace('what', '"what'), 'no TSV file'),
    (lambda t: '', 'no column'),
    (lambda t: t.replace('\tA\t\t\t\n', '\t\t\t\t\n'), 'has no answers'),
  ],
)
def test_a_file_that_is_no_such_table_is_refused(tmp_path, change, says):
  file = write(tmp_path, [item(1), item(2)])
  read_rows(file)
  file.write_text(change(file.read_text()))
  with pytest.raises(UserError, match=says) as e:
    read_rows(file)
  assert '\n' not in str(e.value)


def test_a_file_that_is_not_there_or_not_text_is_refused(tmp_path):
  with pytest.raises(UserError, match='cannot be read'):
    read_rows(tmp_path / 'none.tsv')
  (tmp_path / 'x.tsv').write_bytes(b'index\t\xff\xfe')
  with pytest.raises(UserError, match='UTF-8'):
    read_rows(tmp_path / 'x.tsv')


def test_bad_items_are_rows_of_their_own_and_counted(tmp_path):
  cut = encoded()[:60] + 'A' * 20
  file = write(
    tmp_path,
    [
      item(1), item(2, image='!' * 80), item(3, image=cut), item(4, image=''),
      item(5, image='77'), item(6, answer='E'), item(7, options=''),
      item(8, question='see <image 2>'), item(9, answer=''),
      item(10, image=encoded(size=(1, 201))),
    ],
  )  # fmt: skip
  asker = Asker()
  bench = Choice('mmt', file, asker)
  rows = {row['name']: row for row in bench.run(bench.items, None, RNG)}
  errors = {name: row['error'] for name, row in rows.items() if 'error' in row}
  assert set(errors) == {str(i) for i in range(2, 11)}
  for name, says in (('2', 'base64'), ('3', 'image'), ('4', 'no image'),
                     ('5', 'no image'), ('6', "'E'"), ('7', 'no options'),
                     ('8', '1 images'), ('9', "''")):  # fmt: skip
    assert says in errors[name] and '\n' not in errors[name]
  assert len(asker.asked) == 1
  got = bench.scores(rows)
  assert got['accuracy'].n == 1 and got['unusable'].value == 0.9
  assert bench.run(['2'], None, RNG)[0]['name'] == '2'  # nothing to ask


# Prompts.


def test_prompts_are_vlmevalkits_word_for_word():
  row = Row('1', 'What is it?', {'A': 'a cat', 'B': 'a dog'}, 'A', hint='Look.')
  assert prompt(row, FORMS['select']) == (
    'Hint: Look.\nQuestion: What is it?\nOptions:\nA. a cat\nB. a dog\n'
    'Please select the correct answer from the options above.'
  )
  assert prompt(row, FORMS['direct']) == (
    'Hint: Look.\nWhat is it?\nA. a cat\nB. a dog\n\n'
    "Answer with the option's letter from the given choices directly."
  )
  free = Row('1', 'How many?', {}, '3')
  assert prompt(free, FORMS['select']) == 'Question: How many?'
  assert prompt(free, FORMS['direct']).endswith('Answer the question directly.')
  chinese = Row('1', '这是什么?', {'A': 'x'}, 'A')
  assert prompt(chinese, FORMS['select']).endswith('A. x\n请直接回答选项字母。')


# Answers.

OPTIONS = {'A': 'a red cat', 'B': 'a dog', 'C': 'two dogs', 'D': 'nothing'}


@pytest.mark.parametrize(
  'text, want',
  [
    ('B', 'B'), ('b', 'B'), (' B.\n', 'B'), ('(C)', 'C'), ('C)', 'C'),
    ('[D]', 'D'), ('**B**', 'B'), ('B:', 'B'), ('B. a dog', 'B'),
    ('(B) a dog', 'B'), ('A. the animal is a cat', 'A'),
    ('Answer: B', 'B'), ('answer:B', 'B'), ('The answer is C.', 'C'),
    ('The correct answer is (D).', 'D'), ('ANSWER IS B', 'B'),
    ('Option B', 'B'), ('The answer is B, since A is too red.', 'B'),
    ('I would pick B because of its ears', 'B'),
    ('a dog', 'B'), ('A dog.', 'B'), ('It shows two dogs', 'C'),
    ('there is nothing', 'D'),
    # An article, not an option.
    ('A man walks here now', None), ('A big one: two dogs', 'C'),
    # Ambiguous or none.
    ('A or B', None), ('Answer: A or B', None), ('A and D', None),
    ('either a dog or two dogs', None), ('E', None), ('', None),
    ('I cannot tell', None), ('answer', None),
    ('Answer: B. Then again, option C', None),
    # One option's text, but in a story.
    ('nothing ' + 'and more of it ' * 10, None),
  ],
)  # fmt: skip
def test_the_option_that_an_answer_speaks_of(text, want):
  assert extract(text, OPTIONS) == want


def test_equal_options_are_told_apart_by_letter_alone():
  assert extract('cat', {'A': 'cat', 'B': 'cat'}) is None
  assert extract('B', {'A': 'cat', 'B': 'cat'}) == 'B'
  assert extract('B', {'A': 'B', 'B': 'A'}) == 'B'  # letters go first


@pytest.mark.parametrize(
  'answer, text, right',
  [
    ('12', '12', True), ('12', 'It is 12.', True), ('12', '112', False),
    ('12', '12.5', False), ('0.5', '10.5', False),
    ("['0.5', '1/2']", '1/2', True), ("['0.5', '1/2']", '2', False),
    ('Paris', 'paris', True), ('12', '12 or 13 or maybe 14 or 15 or 16', False),
    ('[', '[', True),
  ],
)  # fmt: skip
def test_open_answers_are_matched_whole(answer, text, right):
  assert said(Row('1', 'q', {}, answer), text) is right


# MMBench.


def test_rotations_move_options_and_answer_one_letter_further(tmp_path):
  row = Row('7', 'q', dict(zip('ABCD', 'wxyz')), 'B')
  got = rotated([row], tmp_path)
  assert [r.name for r in got] == ['7', '1000007', '2000007', '3000007']
  assert [''.join(r.options.values()) for r in got] == [
    'wxyz', 'zwxy', 'yzwx', 'xyzw',
  ]  # fmt: skip
  assert [r.answer for r in got] == ['B', 'C', 'D', 'A']
  assert all([*r.options] == list('ABCD') for r in got)


@pytest.mark.parametrize(
  'options, orders',
  [
    (['x', 'y'], ['AB', 'BA']),
    (['x', 'y', 'z'], ['ABC', 'CAB', 'BCA']),
    # The last speaks of the others, and stays.
    (['x', 'y', 'z', 'None of these'], ['ABCD', 'CABD', 'BCAD']),
    (['x', 'y', 'z', 'A, B and C'], ['ABCD', 'CABD', 'BCAD']),
    (['x', 'y', 'all of them'], ['ABC', 'BAC']),
    (['x', 'None'], ['AB', 'BA']),
    (['x'], ['A']),
  ],
)
def test_what_speaks_of_the_others_stays_last(tmp_path, options, orders):
  row = Row('1', 'q', dict(zip('ABCD', options)), 'A')
  letters = {x: k for k, x in row.options.items()}
  got = rotated([row], tmp_path)
  seen = [''.join(letters[x] for x in r.options.values()) for r in got]
  assert seen == orders
  assert all(r.options[r.answer] == 'x' for r in got)


GROUPS = {1: ('p', 'logic_reasoning'), 2: ('p', 'logic_reasoning'),
          3: ('q', 'coarse_perception')}  # fmt: skip


def circular(folder):
  rows = [
    item(i, answer='A', options=f'r{i},s{i},t{i}'.split(','),
         category=GROUPS[i][0], **{'l2-category': GROUPS[i][1]})
    for i in GROUPS
  ]  # fmt: skip
  return write(folder, rows)


class Knowing:
  """Right about question 1; about 2 in its first order; says A to 3."""

  def __call__(self, items, rng):
    out = []
    for q in items:
      lines = dict(
        reversed(x.split('. ')) for x in q.text.splitlines() if x[1:3] == '. '
      )
      right = next(lines[k] for k in lines if k.startswith('r'))
      picked = right if 'what is 1' in q.text or right == 'A' else 'B'
      picked = 'A' if 'what is 3' in q.text else picked
      odds = {x: -1.0 if x == right else -2.0 for x in q.options}
      out.append(Answer(f'{picked}.', odds))
    return out


def test_circular_accuracy_by_hand(tmp_path):
  bench = Choice('mmb', circular(tmp_path), Knowing())
  assert len(bench.items) == 9
  assert values(scored(bench)) == {
    'accuracy': 0.333333, 'one order': 1, 'CP': 0, 'LR': 0.5, 'p': 0.5, 'q': 0,
    **{
      f'{name} (letter)': 1
      for name in ('accuracy', 'one order', 'CP', 'LR', 'p', 'q')
    },
  }  # fmt: skip


def test_rotations_that_the_file_has_are_its_own(tmp_path):
  given = circular(tmp_path)
  rows = rotated(read_rows(given), given)
  table = [
    dict(
      index=r.name, question=r.question, answer=r.answer, **r.options,
      image=encoded() if int(r.name) < 10**6 else int(r.name) % 10**6,
      category=r.category, **{'l2-category': r.group},
    )
    for r in rows
  ]  # fmt: skip
  file = write(tmp_path, table, name='whole.tsv')
  one, two = (Choice('mmb', f, Knowing()) for f in (given, file))
  assert one.items == two.items
  assert values(scored(one)) == values(scored(two))


def test_a_question_lacking_a_rotation_is_left_out(tmp_path):
  bench = Choice('mmb', circular(tmp_path), Knowing())
  rows = {row['name']: row for row in bench.run(bench.items, None, RNG)}
  rows['1000003'] = dict(name='1000003', error='x')
  got = bench.scores(rows)
  assert got['accuracy'].value == 0.5 and got['accuracy'].n == 2
  assert got['unusable'].value == pytest.approx(1 / 9)


def test_indices_of_circular_files_are_checked(tmp_path):
  for index, says in (('a', 'no number'), (1000005, 'rotation of no question')):
    with pytest.raises(UserError, match=says):
      Choice('mmb', write(tmp_path, [item(1), item(index)]), Asker())


# MMMU and MMT-Bench.


def test_mmmu_by_hand(tmp_path):
  art = {'category': 'Art', 'l2-category': 'Art & Design'}
  math_ = {'category': 'Math', 'l2-category': 'Science'}
  file = write(
    tmp_path,
    [
      item('v_1', split='validation', **art),
      item('v_2', split='validation', answer='B', **art),
      item('v_3', split='validation', answer='C', **math_,
           image=json.dumps([encoded(1), encoded(2)]),
           question='compare <image 2> to <image 1>'),
      item('v_4', split='validation', answer='12', options='', **math_),
      item('v_5', split='validation', answer='13', options='', **math_),
      item('d_1', split='dev', **art),
    ],
  )  # fmt: skip
  told = {'v_2': ('A', 'B'), 'compare': 'C', 'v_4': 'It is 12', 'v_5': '14'}
  asker = Asker(told)
  bench = Choice('mmmu', file, asker)
  assert bench.items == ['v_1', 'v_2', 'v_3', 'v_4', 'v_5']
  assert bench.settings['split'] == 'validation'
  # Text: 1, 3 and 4 of 5. Letter: 1, 2 and 3 of 3, open ones have none.
  got = scored(bench)
  assert list(got)[0] == 'accuracy'
  assert values(got) == {
    'accuracy': 0.6, 'Art & Design': 0.5, 'Science': 0.666667, 'Art': 0.5,
    'Math': 0.666667, 'accuracy (letter)': 1, 'Art & Design (letter)': 1,
    'Science (letter)': 1, 'Art (letter)': 1, 'Math (letter)': 1,
    'open questions': 0.5,
  }  # fmt: skip
  assert got['open questions'].n == 2 and got['accuracy (letter)'].n == 3
  assert got['accuracy'].low < 0.6 < got['accuracy'].high
  compared = asker.asked[2]
  assert [x[0, 0, 0] for x in compared.images] == [1, 2]
  assert compared.text.startswith('Question: compare <image 2> to <image 1>')
  assert asker.asked[3].options == ()
  assert len(Choice('mmmu', file, asker, split='').items) == 6
  with pytest.raises(UserError, match="no split 'test'.*dev.*validation"):
    Choice('mmmu', file, asker, split='test')


def test_mmt_groups_are_means_of_their_tasks(tmp_path):
  place = lambda task, group: {'category': task, 'l2-category': group}
  file = write(
    tmp_path,
    [
      item(1, **place('small_object_detection', 'localization')),
      item(2, **place('small_object_detection', 'localization')),
      item(3, **place('small_object_detection', 'localization')),
      item(4, answer='B', **place('face_detection', 'localization')),
      item(5, **place('person_reid', 'image_retrieval')),
      item(6, answer='B', **place('clock_reading', 'doc_understanding')),
      item(7, **place('font_recognition', 'ocr')),
    ],
  )
  got = scored(Choice('mmt', file, Asker()))
  text = {k: v for k, v in values(got).items() if '(letter)' not in k}
  assert text == {
    'accuracy': round(5 / 7, 6), 'Loc': 0.5, 'IR': 1, 'DU': 0, 'OCR': 1,
    'Small Object Detection': 1, 'face_detection': 0, 'Person Re-ID': 1,
    'clock_reading': 0, 'font_recognition': 1,
  }  # fmt: skip
  assert got['Loc'].n == 4 and got['accuracy'].n == 7


def test_a_task_named_as_its_group_keeps_both_scores(tmp_path):
  same = {'category': 'ocr', 'l2-category': 'ocr'}
  got = scored(Choice('mmt', write(tmp_path, [item(1, **same)]), Asker()))
  assert {'OCR', 'OCR (category)'} <= set(got)


# Runs.


class Killed(Exception):
  pass


def run(bench, folder, size, kill_after=None):
  """What the command does, stopped before a batch."""
  results = Results(folder, bench.settings)
  for n, start in enumerate(range(0, len(bench.items), size)):
    names = bench.items[start : start + size]
    if set(names) <= set(results.rows):
      continue
    if n == kill_after:
      raise Killed
    rng = jax.random.fold_in(RNG, n)
    results.add(bench.run(names, folder, rng))
  return results


def test_a_killed_run_goes_on_without_asking_again(tmp_path):
  file = circular(tmp_path)
  whole = Choice('mmb', file, Asker({'what is 2': 'B'}))
  want = run(whole, tmp_path / 'whole', 2)
  first, second = (Asker({'what is 2': 'B'}) for _ in range(2))
  with pytest.raises(Killed):
    run(Choice('mmb', file, first), tmp_path / 'half', 2, kill_after=2)
  bench = Choice('mmb', file, second)
  got = run(bench, tmp_path / 'half', 2)
  assert got.rows == want.rows and list(got.rows) == bench.items
  assert (len(first.asked), len(second.asked)) == (4, 5)
  assert bench.scores(got.rows) == whole.scores(want.rows)


def test_another_file_or_form_is_other_settings(tmp_path):
  file = write(tmp_path, [item(1)])
  run(Choice('mmt', file, Asker()), tmp_path / 'out', 1)
  with pytest.raises(UserError, match="other \\['form'\\]"):
    run(Choice('mmt', file, Asker(), form='direct'), tmp_path / 'out', 1)
  write(tmp_path, [item(1, answer='B')])
  assert choice_tsv.digest(file) == Choice('mmt', file, Asker()).settings['md5']
  with pytest.raises(UserError, match="other \\['md5'\\]"):
    run(Choice('mmt', file, Asker()), tmp_path / 'out', 1)
