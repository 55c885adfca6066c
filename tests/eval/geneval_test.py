"""GenEval: its rules on hand-made detections, its layout, its scores."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from tests.eval.filling import Painter, files, fill
from uae_jax.errors import UserError
from uae_jax.eval import drawing, geneval_rules
from uae_jax.eval.geneval import GenEval, grid, read_metadata
from uae_jax.eval.geneval_rules import Detection, judge, keep, relations


def spec(tag, *include, exclude=(), prompt='a photo of it'):
  out = {'tag': tag, 'include': list(include), 'prompt': prompt}
  return {**out, 'exclude': list(exclude)} if exclude else out


def need(cls, count=1, **more):
  return {'class': cls, 'count': count, **more}


def see(cls, score=0.95, box=(0, 0, 10, 10)):
  return Detection(cls, tuple(map(float, box)), score)


def verdict(detections, wanted, colours=None):
  """Colours by left edge of the box; asked for nothing by default."""
  ask = lambda objects, cls: [colours[d.box[0]] for d in objects]
  return judge(keep(detections, wanted['tag']), wanted, ask)


def test_single_object():
  wanted = spec('single_object', need('bench'))
  assert verdict([see('bench', 0.31)], wanted) == (True, '')
  assert verdict([see('bench'), see('bench')], wanted) == (True, '')
  none = (False, 'expected bench>=1, found 0')
  assert verdict([see('bench', 0.3)], wanted) == none  # must exceed it
  assert verdict([see('chair')], wanted) == none
  assert verdict([], wanted) == none


def test_two_objects():
  wanted = spec('two_object', need('bench'), need('cow'))
  assert verdict([see('cow'), see('bench')], wanted) == (True, '')
  assert verdict([], wanted) == (
    False,
    'expected bench>=1, found 0\nexpected cow>=1, found 0',
  )


def test_counting_has_its_own_threshold_and_an_upper_bound():
  wanted = spec('counting', need('cup', 2), exclude=[need('cup', 3)])
  two = [see('cup', 0.91), see('cup', 0.99)]
  assert verdict(two, wanted) == (True, '')
  assert verdict([*two, see('cup', 0.9)], wanted) == (True, '')
  assert verdict([*two, see('cup', 0.91)], wanted) == (
    False,
    'expected cup<3, found 3',
  )
  assert verdict(two[:1], wanted) == (False, 'expected cup>=2, found 1')


def test_colors_are_those_of_the_surest_objects():
  wanted = spec('colors', need('car', color='red'))
  sure, other = see('car', 0.9, (1, 0, 5, 5)), see('car', 0.8, (2, 0, 5, 5))
  assert verdict([other, sure], wanted, {1: 'red', 2: 'blue'}) == (True, '')
  assert verdict([other, sure], wanted, {1: 'blue', 2: 'red'}) == (
    False,
    'expected red car>=1, found 0 red; and 1 blue',
  )
  two = spec('colors', need('car', 2, color='red'))
  assert verdict([other, sure], two, {1: 'blue', 2: 'red'}) == (
    False,
    'expected red car>=2, found 1 red; and 1 red, 1 blue',
  )


def test_color_attribution_of_the_wrong_object():
  wanted = spec(
    'color_attr', need('car', color='red'), need('dog', color='blue')
  )
  scene = [see('car', box=(1, 0, 5, 5)), see('dog', box=(2, 0, 5, 5))]
  assert verdict(scene, wanted, {1: 'red', 2: 'blue'}) == (True, '')
  assert verdict(scene, wanted, {1: 'blue', 2: 'red'}) == (
    False,
    'expected red car>=1, found 0 red; and 1 blue\n'
    'expected blue dog>=1, found 0 blue; and 1 red',
  )


def test_position():
  wanted = spec('position', need('sink'), need('tie', position=['above', 0]))
  sink, tie = see('sink', box=(0, 50, 10, 60)), see('tie', box=(0, 0, 10, 10))
  assert verdict([sink, tie], wanted) == (True, '')
  swapped = [see('tie', box=sink.box), see('sink', box=tie.box)]
  assert verdict(swapped, wanted) == (
    False,
    'expected tie above target, found below target',
  )
  assert verdict([tie], wanted) == (
    False,
    'expected sink>=1, found 0\nno target for tie to be above',
  )
  assert verdict([sink, see('tie', box=sink.box)], wanted) == (
    False,
    'expected tie above target, found  target',
  )


@pytest.mark.parametrize(
  'dx, dy, where',
  [
    (0, 0, []),
    (4, 0, []),  # the margin is a tenth of 20 + 20
    (8, 0, []),  # (8 - 4) / 8 does not exceed a half
    (8.01, 0, ['right of']),
    (-8.01, 0, ['left of']),
    (0, 9, ['below']),
    (0, -9, ['above']),
    (100, 100, ['right of', 'below']),
    (-100, -100, ['left of', 'above']),
    (100, 55, ['right of']),  # (55 - 4) / |(100, 55)| = 0.447
    (100, 70, ['right of', 'below']),  # 0.541
  ],
)
def test_positions_at_the_border(dx, dy, where):
  a = (100 + dx, 100 + dy, 120 + dx, 120 + dy)
  assert relations(a, (100, 100, 120, 120)) == where


def test_what_is_kept_of_many():
  twenty = [see('cup', 0.5 + i / 100, (i, 0, i + 1, 1)) for i in range(20)]
  kept = keep(twenty, 'single_object')['cup']
  assert [d.box[0] for d in kept] == list(range(19, 3, -1))
  ties = [see('cup', 0.5, (i, 0, 1, 1)) for i in range(3)]
  assert [d.box[0] for d in keep(ties, 'colors')['cup']] == [2, 1, 0]
  order = keep([see('toothbrush'), see('person'), see('ufo')], 'colors')
  assert [*order] == ['person', 'toothbrush']


def test_overlaps_are_kept_unless_asked_for():
  a, b = see('cup', 0.8, (0, 0, 9, 9)), see('cup', 0.9, (0, 0, 9, 9))
  half = see('cup', 0.7, (0, 0, 9, 4))  # 50 of 100 pixels
  assert geneval_rules.overlap(a.box, half.box) == 0.5
  assert geneval_rules.overlap(a.box, (20, 20, 30, 30)) == 0
  assert keep([a, b, half], 'colors')['cup'] == [b, a, half]
  assert keep([a, b, half], 'colors', 0.9)['cup'] == [b, half]
  assert keep([a, b, half], 'colors', 0.5)['cup'] == [b]


METADATA = (
  spec('single_object', need('bench'), prompt='a photo of a bench'),
  spec('counting', need('cup', 2), exclude=[need('cup', 3)], prompt='two cups'),
  spec('colors', need('car', color='red'), prompt='a photo of a red car'),
)


def bright(image):
  """What the detector below goes by."""
  return int(image[0, 0, 0]) >= 128


def detect(images):
  """Everything where the first pixel is bright, else nothing."""
  every = [see('bench'), see('cup'), see('cup', 0.92), see('car')]
  return [every if bright(image) else [] for image in images]


def red(image, objects, cls):
  assert bright(image) and cls == 'car'
  return ['red'] * len(objects)


def benchmark(**more):
  scorer = dict(detect=detect, colours=red)
  return GenEval(METADATA, **{'draw': Painter(), 'batch': 3, **scorer, **more})


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  folder = tmp_path_factory.mktemp('geneval') / 'out'
  bench = benchmark()
  return folder, bench, fill(bench, folder, 5)


def test_the_layout_is_the_official_one(whole):
  folder, _, rows = whole
  assert len(rows) == 12
  for i, line in enumerate(METADATA):
    below = folder / f'{i:05d}'
    assert json.loads((below / 'metadata.jsonl').read_text()) == line
    # What the official evaluator takes.
    samples = sorted(f.name for f in (below / 'samples').iterdir())
    assert samples == [f'{j:05d}.png' for j in range(4)]
    assert all(re.match(r'\d+\.png', name) for name in samples)
    pictures = [np.asarray(Image.open(below / 'samples' / n)) for n in samples]
    assert pictures[0].shape == (6, 8, 3)
    row = np.asarray(Image.open(below / 'grid.png'))
    assert row.shape == (6 + 2 * 2, 4 * 8 + 5 * 2, 3)
    np.testing.assert_array_equal(row[2:8, 12:20], pictures[1])
    np.testing.assert_array_equal(row, grid(pictures))
  assert not [*folder.rglob('*.part')]


def test_rows_have_the_official_fields(whole):
  folder, _, rows = whole
  for name, row in rows.items():
    right = bright(np.asarray(Image.open(folder / name)))
    line = METADATA[int(name[:5])]
    assert row['filename'] == name and row['correct'] is right
    assert row['tag'] == line['tag'] and row['prompt'] == line['prompt']
    assert bool(row['reason']) is not right
    assert json.loads(row['metadata']) == line
    boxes = json.loads(row['details'])
    assert boxes.get('bench', []) == ([[0, 0, 10, 10, 0.95]] if right else [])
  assert {row['correct'] for row in rows.values()} == {True, False}


def test_scores_are_those_of_a_hand(whole):
  _, bench, rows = whole
  right = np.array([row['correct'] for row in rows.values()]).reshape(3, 4)
  got = bench.scores(rows)
  assert [*got] == ['overall', 'single_object', 'counting', 'colors', 'images',
                    'prompts']  # fmt: skip
  for task, values in zip(('single_object', 'counting', 'colors'), right):
    assert got[task].value == values.mean() and got[task].n == 1
  assert np.isclose(got['overall'].value, right.mean(1).mean())
  assert np.isclose(got['images'].value, right.mean())
  assert got['prompts'].value == right.any(1).mean() and got['prompts'].n == 3
  assert all(s.low <= s.value <= s.high for s in got.values())


def test_the_overall_score_is_a_mean_over_tasks_not_prompts():
  lines = [spec('colors', need('car'), prompt=str(i)) for i in range(3)]
  lines += [spec('counting', need('cup'), prompt='c')]
  rows = {
    str(i): dict(tag=line['tag'], metadata=json.dumps(line), correct=i == 3)
    for i, line in enumerate(lines)
  }
  rows['4'] = {**rows['3'], 'correct': False}  # a second image of it
  rows['5'] = {'name': '5', 'error': 'cannot be read'}
  got = {k: s.value for k, s in benchmark().scores(rows).items()}
  assert got == dict(
    overall=0.25, colors=0, counting=0.5, images=0.125, prompts=0.25
  )


def test_a_killed_run_goes_on_without_redoing_anything(whole, tmp_path):
  folder, _, rows = whole
  first = benchmark()
  assert len(fill(first, tmp_path, 5, stop=1)) == 5
  second = benchmark()
  assert fill(second, tmp_path, 5) == rows
  assert len(first.draw.texts) == 5 and len(second.draw.texts) == 7
  assert files(tmp_path) == files(folder)


def test_drawn_now_and_scored_later_are_the_same(whole, tmp_path):
  folder, _, rows = whole
  export = benchmark(detect=None, colours=None)
  drawn = fill(export, tmp_path / 'drawn', 5)
  assert export.scores(drawn) == {}
  assert all('correct' not in row for row in drawn.values())
  images = {k: v for k, v in files(folder).items() if k.endswith('.png')}
  assert images.items() <= files(tmp_path / 'drawn').items()
  later = benchmark(draw=None, images=tmp_path / 'drawn')
  assert fill(later, tmp_path / 'scored', 4) == rows
  assert not [*(tmp_path / 'scored').rglob('*.png')]


def test_a_rewrite_is_drawn_and_the_prompt_is_scored(tmp_path):
  table = {line['prompt']: f'{line["prompt"]}, in oil' for line in METADATA}
  bench = benchmark(rewrite=table)
  rows = fill(bench, tmp_path, 5)
  assert set(bench.draw.texts) == {*table.values()}
  for row in rows.values():
    assert row['drawn'] == table[row['prompt']]
    assert json.loads(row['metadata'])['prompt'] == row['prompt']
  assert bench.settings['rewrite'] and benchmark().settings['rewrite'] is None
  called = benchmark(rewrite=str.upper)
  assert fill(called, tmp_path / 'called', 5)['00001/samples/00000.png'][
    'drawn'
  ] == 'TWO CUPS'  # fmt: skip
  with pytest.raises(UserError, match="1 prompts have no rewrite.*'two cups'"):
    benchmark(rewrite={k: v for k, v in table.items() if k != 'two cups'})


def test_folders_of_others_are_checked(whole, tmp_path):
  folder, _, _ = whole
  scored = lambda: benchmark(draw=None, images=tmp_path / 'in')
  with pytest.raises(UserError, match='no folder of drawings'):
    scored()
  for name, data in files(folder).items():
    if 'samples' in name or name.endswith('metadata.jsonl'):
      name = name.replace('/0000', '/000')  # four digits, as some write
      (tmp_path / 'in' / name).parent.mkdir(parents=True, exist_ok=True)
      (tmp_path / 'in' / name).write_bytes(data)
  broken = tmp_path / 'in' / '00000' / 'samples' / '0001.png'
  broken.write_bytes(b'no image')
  rows = fill(scored(), tmp_path / 'out', 5)
  assert rows['00000/samples/0001.png']['error'] == 'cannot be read'
  assert sum('correct' in row for row in rows.values()) == 11
  broken.unlink()
  with pytest.raises(UserError, match='00001/samples has 4 images, expected 3'):
    scored()
  (tmp_path / 'in/00000/metadata.jsonl').write_text(json.dumps(METADATA[1]))
  with pytest.raises(UserError, match='does not ask what line 1'):
    scored()


@pytest.mark.parametrize(
  'kwargs, message',
  [
    (dict(draw=None), 'either a model that draws or a folder'),
    (dict(colours=None), 'together'),
    (dict(draw=None, images='tmp', detect=None, colours=None), 'only be'),
  ],
)
def test_a_benchmark_without_its_parts_is_refused(kwargs, message, tmp_path):
  if 'images' in kwargs:
    kwargs = {**kwargs, 'images': tmp_path}
  with pytest.raises(UserError, match=message):
    benchmark(**kwargs)


def test_metadata_is_read_and_checked(tmp_path):
  file = tmp_path / 'evaluation_metadata.jsonl'
  with pytest.raises(UserError, match='github.com/djghosh13/geneval'):
    read_metadata(file)
  lines = [json.dumps(line) for line in METADATA]
  file.write_text('\n'.join(lines) + '\n')
  assert read_metadata(file, 3) == METADATA
  with pytest.raises(UserError, match='has 3 of 553 lines'):
    read_metadata(file)
  file.write_text('\n'.join([*lines[:2], '{"tag": ']))
  with pytest.raises(UserError, match='line 3 is not JSON'):
    read_metadata(file, 3)
  wrong = {
    'its tag': {**METADATA[0], 'tag': 'size'},
    'no prompt': {**METADATA[0], 'prompt': ' '},
    'includes nothing': {**METADATA[0], 'include': []},
    'has no class': spec('colors', need(1)),
    'of no class': spec('colors', need('ufo')),
    'no count': spec('colors', need('car', 0)),
    'no colour': spec('colors', need('car', color='beige')),
    'position that is none': spec('position', need('car', position=['in', 0])),
    'object 1 .* position': spec(
      'position', need('car'), need('cup', position=['above', 1])
    ),
    'exclude is no list': {**METADATA[0], 'exclude': {}},
  }
  for message, line in wrong.items():
    file.write_text('\n'.join([*lines[:2], json.dumps(line)]))
    with pytest.raises(UserError, match=f'object 3: .*{message}'):
      read_metadata(file, 3)


def test_rewrites_are_read_from_three_forms(tmp_path):
  rows = [{'prompt': 'a', 'rewritten': 'A'}, {'prompt': 'b', 'rewritten': 'B'}]
  table = {'a': 'A', 'b': 'B'}
  forms = {
    'table.json': json.dumps(table),
    'list.json': json.dumps(rows),
    'lines.jsonl': '\n'.join(map(json.dumps, rows)) + '\n\n',
  }
  for name, text in forms.items():
    (tmp_path / name).write_text(text)
    assert drawing.read_rewrites(tmp_path / name) == table
  for text, message in (
    ('[1]', 'holds no rewrites'),
    ('{', 'holds no rewrites'),
    ('[{"prompt": "a"}]', 'holds no rewrites'),
    ('{"a": ""}', "no text to draw for 'a'"),
  ):
    (tmp_path / 'bad.json').write_text(text)
    with pytest.raises(UserError, match=message):
      drawing.read_rewrites(tmp_path / 'bad.json')
  with pytest.raises(UserError, match='cannot be read'):
    drawing.read_rewrites(tmp_path / 'none.json')
