"""Win rates of captions, against a judge whose mind is known."""

import itertools
import json
import re

import pytest
from PIL import Image

from tests.eval.judge_server import KEY, Reply, fault, serving
from uae_jax.errors import UserError
from uae_jax.eval import caption_duel
from uae_jax.eval.caption_duel import CaptionDuel, outcome
from uae_jax.eval.judge_client import Judge

NAMES = [f'{i}.png' for i in range(10)]
# What 'judge-a' thinks of our captions 0 to 9: 5 wins, 2 losses, 1 tie by
# word, 1 by place, 1 muddle.
MINDS = ['win'] * 5 + ['loss'] * 2 + ['tie', 'place', 'muddle']


@pytest.fixture(autouse=True)
def key(monkeypatch):
  monkeypatch.setenv('OPENAI_API_KEY', KEY)


@pytest.fixture
def images(tmp_path):
  folder = tmp_path / 'images'
  folder.mkdir()
  for i, name in enumerate(NAMES):
    Image.new('RGB', (8, 8), (20 * i, 0, 0)).save(folder / name)
  return {name: folder / name for name in NAMES}


OURS = {name: f'ours {i}' for i, name in enumerate(NAMES)}
BASE = {name: f'base {i}' for i, name in enumerate(NAMES)}


def shown(request):
  """The two captions of a question, in its order."""
  text = request.texts()[1]
  return re.fullmatch(
    r'First caption:\n(.*)\n\nSecond caption:\n(.*)', text
  ).groups()


def think(request, n=0):
  """Answers by `MINDS`; any judge but 'judge-a' likes ours always."""
  both = shown(request)
  ours = next(text for text in both if text.startswith('ours'))
  mind = MINDS[int(ours.split()[1])]
  if request.body['model'] != 'judge-a':
    mind = 'win'
  place = ['first', 'second'][both.index(ours)]
  other = {'first': 'second', 'second': 'first'}[place]
  better = dict(win=place, loss=other, tie='tie', place='first')
  if mind == 'muddle' and place == 'second':
    return Reply('neither convinces me')
  better = better.get(mind, 'first')
  return Reply(json.dumps(dict(reason='so', better=better)))


def judge_at(server, model='judge-a', **options):
  options = dict(backoff=0.01, timeout=5.0, retries=1) | options
  return Judge(model, server.url, **options)


def run(duel, tmp_path, names=None):
  rows = duel.run(names or duel.items, tmp_path, None)
  return {row['name']: row for row in rows}


def test_outcomes_of_all_pairs_of_answers():
  answers = ('first', 'second', 'tie', None)
  got = {(a, b): outcome(a, b) for a, b in itertools.product(answers, answers)}
  assert got.pop(('first', 'second')) == 'win'
  assert got.pop(('second', 'first')) == 'loss'
  for pair, said in got.items():
    assert said == ('unparsable' if None in pair else 'tie'), pair


def test_both_orders_are_asked_with_the_image(images, tmp_path):
  with serving(think) as server:
    duel = CaptionDuel(images, OURS, {'b': BASE}, {'a': judge_at(server)})
    run(duel, tmp_path)
    asked = sorted(
      (shown(r), r.images()[0].getpixel((0, 0))[0] // 20)
      for r in server.requests
    )
  expected = [
    (pair, i)
    for i in range(10)
    for pair in ((f'base {i}', f'ours {i}'), (f'ours {i}', f'base {i}'))
  ]
  assert asked == sorted(expected)


def test_rates_are_those_counted_by_hand(images, tmp_path):
  with serving(think) as server:
    judges = {m: judge_at(server, m) for m in ('judge-a', 'judge-b')}
    some = {name: BASE[name] for name in NAMES[3:7]}  # win win loss loss
    duel = CaptionDuel(images, OURS, {'x': BASE, 'y': some}, judges)
    rows = run(duel, tmp_path)
    scores = duel.scores(rows)
  value = lambda name: (pytest.approx(scores[name].value), scores[name].n)
  assert list(scores)[0] == 'win_rate'
  # Of 9 that are parsable: 5 wins, 2 losses, 2 ties.
  assert value('win_rate/x/judge-a') == (100 * 6 / 9, 9)
  assert value('win/x/judge-a') == (100 * 5 / 9, 9)
  assert value('tie/x/judge-a') == (100 * 2 / 9, 9)
  assert value('loss/x/judge-a') == (100 * 2 / 9, 9)
  assert value('unparsable/x/judge-a') == (10, 10)
  assert value('win_rate/x/judge-b') == (100, 10)
  assert value('win_rate/y/judge-a') == (50, 4)
  # Mean over judges: 5 images 1, 2 of 1/2, 2 of 3/4, and one judge's 1.
  assert value('win_rate/x') == (100 * (5 + 1 + 1.5 + 1) / 10, 10)
  assert value('win_rate/y') == (75, 4)
  # Over baselines too, the same as x here, as a judge thinks the same.
  assert value('win_rate') == (85, 10)
  for name, score in scores.items():
    assert score.low <= score.value <= score.high, name
  assert scores['win_rate/x/judge-b'].low == 100
  wide = scores['win_rate/x/judge-a']
  assert wide.low < wide.value < wide.high


def test_rows_hold_every_raw_answer(images, tmp_path):
  with serving(think) as server:
    duel = CaptionDuel(images, OURS, {'b': BASE}, {'a': judge_at(server)})
    rows = run(duel, tmp_path)
  duel = rows['9.png']['duels']['b']['a']
  assert duel['outcome'] == 'unparsable'
  first, second = duel['answers']
  assert json.loads(first['text'])['better'] == first['better'] == 'first'
  assert second['better'] is None
  assert second['text'] == 'neither convinces me'
  assert (first['input_tokens'], first['output_tokens']) == (100, 10)
  assert json.loads(json.dumps(rows)) == rows


def test_the_interval_is_over_images_and_not_over_judges(images, tmp_path):
  """Two judges of one mind know no more than one."""
  mind = lambda request, n: think(request)
  with serving(mind) as server:
    scores = []
    for judges in (['judge-a'], ['judge-a', 'twin']):
      made = {label: judge_at(server) for label in judges}
      duel = CaptionDuel(images, OURS, {'b': BASE}, made)
      scores.append(duel.scores(run(duel, tmp_path))['win_rate'])
  assert scores[0] == scores[1]


def test_names_that_do_not_pair_are_listed(images, tmp_path):
  ours = {**OURS, 'lost.png': 'ours 0'}
  del ours['0.png']
  base = {name: BASE[name] for name in NAMES[:4]}
  with serving(think) as server:
    judges = {'a': judge_at(server)}
    duel = CaptionDuel(images, ours, {'b': base}, judges)
    assert duel.items == NAMES[1:4]
    assert duel.unpaired == {
      'image': ['lost.png'],
      'caption of ours': ['0.png'],
      'caption of b': [*NAMES[4:], 'lost.png'],
    }
    with pytest.raises(UserError, match='no image has a caption of both'):
      CaptionDuel(images, ours, {'b': {'0.png': 'x'}}, judges)


def test_an_unreadable_image_is_a_row_and_no_question(images, tmp_path):
  images['0.png'].write_bytes(b'no image')
  with serving(think) as server:
    duel = CaptionDuel(images, OURS, {'b': BASE}, {'a': judge_at(server)})
    rows = run(duel, tmp_path, ['0.png', '1.png'])
    assert rows['0.png'] == dict(name='0.png', error='cannot be read')
    assert len(server.requests) == 2
    assert duel.scores(rows)['win_rate'].n == 1
    assert duel.scores({'0.png': rows['0.png']}) == {}


def test_an_item_without_all_answers_is_left_for_another_run(images, tmp_path):
  # Only one order of one item fails.
  behave = lambda request, n: (
    fault(500, 'down') if shown(request)[0] == 'base 3' else think(request)
  )
  with serving(behave) as server:
    make = lambda: {'a': judge_at(server, cache=tmp_path / 'answers')}
    duel = CaptionDuel(images, OURS, {'b': BASE}, make())
    rows = run(duel, tmp_path)
    assert rows.keys() == {*NAMES} - {'3.png'}
    assert duel.missing == {'3.png': 'a: HTTP 500: down'}
    before = len(server.requests)
    server.behave = think
    rows |= run(duel, tmp_path, ['3.png'])
    assert len(server.requests) == before + 1 and not duel.missing
    whole = CaptionDuel(images, OURS, {'b': BASE}, make())
    assert run(whole, tmp_path) == rows
    assert len(server.requests) == before + 1


def test_fields_that_a_judge_does_not_take_are_told(images, tmp_path):
  behave = lambda request, n: (
    fault(400, 'temperature: only 1')
    if 'temperature' in request.body
    else think(request)
  )
  with serving(behave) as server:
    duel = CaptionDuel(images, OURS, {'b': BASE}, {'a': judge_at(server)})
    rows = run(duel, tmp_path)
    assert duel.dropped(rows) == {'a': ['temperature']}
    server.behave = think
    duel = CaptionDuel(images, OURS, {'b': BASE}, {'a': judge_at(server)})
    assert duel.dropped(run(duel, tmp_path)) == {}


def test_settings_tell_other_captions_and_judges_apart(images):
  with serving(think) as server:
    make = lambda ours=OURS, base=BASE, **options: (
      CaptionDuel(
        images, ours, {'b': base}, {'a': judge_at(server, **options)}
      ).settings
    )
    same = make()
    assert same == make(dict(reversed(OURS.items()))) == make(retries=3)
    for other in (
      make({**OURS, '0.png': 'x'}), make(base={**BASE, '0.png': 'x'}),
      make(model='judge-b'), make(temperature=1.0), make(max_side=8),
    ):  # fmt: skip
      assert other != same
  assert KEY not in json.dumps(same)


def test_the_table_has_a_line_for_every_judge_and_their_mean(images, tmp_path):
  with serving(think) as server:
    judges = {
      'judge-a': judge_at(server, prices=(2.0, 10.0)),
      'judge-b': judge_at(server, 'judge-b'),
    }
    duel = CaptionDuel(images, OURS, {'x': BASE}, judges)
    rows = run(duel, tmp_path)
    table = duel.table(rows, duel.scores(rows))
  head, rule, *lines = [
    [cell.strip() for cell in line.strip('|').split('|')]
    for line in table.splitlines()
  ]
  assert len(head) == len(rule) == 12
  a, b, mean = [dict(zip(head, line)) for line in lines]
  low, high = map(float, a.pop('95 % interval').split(' to '))
  assert low < 66.7 < high
  # 20 answers of 100 and 10 tokens: 2000 * 2 + 200 * 10 = 6000 of a million.
  assert a == {
    'baseline': 'x', 'judge': 'judge-a', 'images': '9', 'win rate %': '66.7',
    'win %': '55.6', 'tie %': '22.2', 'loss %': '22.2', 'unparsable %': '10.0',
    'tokens in': '2,000', 'tokens out': '200', 'USD': '0.0060',
  }  # fmt: skip
  assert b['win rate %'] == '100.0' and b['USD'] == '–'
  assert mean['judge'] == 'mean' and mean['tokens in'] == '4,000'
  assert mean['win rate %'] == '85.0' and mean['USD'] == '–'


def test_the_schema_is_one_that_strict_endpoints_take():
  schema = caption_duel.SCHEMA
  assert schema['additionalProperties'] is False
  assert set(schema['required']) == schema['properties'].keys()
  # The reason comes first, so that the verdict follows from it.
  assert list(schema['properties'])[0] == 'reason'
