"""The command of caption duels, against a local judge."""

import functools
import json

import pytest
from PIL import Image

from tests.eval.caption_duel_test import BASE, NAMES, OURS, think
from tests.eval.judge_server import KEY, fault, serving
from tests.tools import commands
from uae_jax.eval import benchmark

duel = functools.partial(commands.run, 'duel')


@pytest.fixture(scope='module', autouse=True)
def key():
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('JUDGE_KEY', KEY)
    patch.delenv('OPENAI_API_KEY', raising=False)
    yield


@pytest.fixture(scope='module')
def flags(tmp_path_factory):
  """Of images, and captions in both forms."""
  tmp = tmp_path_factory.mktemp('inputs')
  (tmp / 'images').mkdir()
  for i, name in enumerate(NAMES):
    Image.new('RGB', (8, 8), (20 * i, 0, 0)).save(tmp / 'images' / name)
  Image.new('RGB', (8, 8)).save(tmp / 'images' / 'new.png')
  rows = [dict(name=k, caption=v, clip=0.5) for k, v in OURS.items()]
  rows.append(dict(name='bad.png', error='cannot be read'))
  lines = ''.join(json.dumps(row) + '\n' for row in rows)
  (tmp / 'results.jsonl').write_text(lines)
  (tmp / 'base.json').write_text(json.dumps({**BASE, 'new.png': 'base 0'}))
  return [
    f'--images={tmp / "images"}',
    f'--captions={tmp / "results.jsonl"}',
    f'--baseline=before={tmp / "base.json"}',
  ]


def judges(server, *models):
  return [f'--judge={m}@{server.url}@JUDGE_KEY' for m in models]


def files(folder):
  return {
    f.relative_to(folder): f.read_text()
    for f in folder.rglob('*')
    if f.is_file()
  }


@pytest.fixture(scope='module')
def done(flags, tmp_path_factory):
  """A whole run and its rerun."""
  out = tmp_path_factory.mktemp('out') / 'duel'
  with serving(think) as server:
    args = [
      *flags, *judges(server, 'judge-a', 'judge-b'), f'--out={out}',
      '--batch=4', '--price=judge-a=2,10', '--price=judge-b=0,0',
      '--label=trained',
    ]  # fmt: skip
    [first] = duel(args)
    asked, before = len(server.requests), files(out)
    [second, third] = duel(args, [*args, '--temperature=1'])
    again = len(server.requests) - asked
  return out, first, second, third, asked, again, before


def test_a_run_leaves_rows_a_summary_and_a_table(done):
  out, (code, said, err), *_, asked, _, _ = done
  assert code == 0, err
  assert asked == 10 * 2 * 2
  rows = [*map(json.loads, (out / 'results.jsonl').read_text().splitlines())]
  assert [row['name'] for row in rows] == NAMES
  summary = benchmark.read_summary(out)
  assert (summary.benchmark, summary.label) == ('caption_duel', 'trained')
  score = summary.scores['win_rate/before/judge-a']
  assert (score.value, score.n) == (pytest.approx(100 * 6 / 9), 9)
  assert summary.scores['win_rate'].value == pytest.approx(85)
  assert summary.settings['tokens']['before/judge-a'] == [2000, 200]
  assert '| before | judge-a | 9 | 66.7 |' in said
  assert '| before | mean | 10 | 85.0 |' in said
  assert 'image 10/10 100%' in said and 'ETA' in said
  assert 'no caption of ours: new.png' in said
  assert '40 answers for 0.0060 USD in this run' in said


def test_a_rerun_asks_nothing_and_changes_nothing(done):
  out, first, (code, said, err), _, _, again, before = done
  assert code == 0, err
  assert again == 0 and files(out) == before
  assert '0 answers for 0.0000 USD' in said
  table = [line for line in first[1].splitlines() if line.startswith('|')]
  assert table and all(line in said for line in table)


def test_other_settings_are_refused(done):
  *_, (code, _, err), _, _, _ = done
  assert code == 2 and "other ['judges']" in err


def test_the_key_is_in_no_file_and_no_output(done):
  out, *results, _, _, _ = done
  said = [text for _, *texts in results for text in texts]
  assert not [t for t in [*said, *files(out).values()] if KEY in t]


def test_a_run_that_was_ended_goes_on_where_it_was(flags, tmp_path):
  """The endpoint takes the key back after 13 answers."""
  out = tmp_path / 'duel'
  behave = lambda request, n: think(request) if n < 13 else fault(401, KEY)
  with serving(behave) as server:
    args = [
      *flags, *judges(server, 'judge-a'), f'--out={out}', '--batch=4',
      '--concurrency=1',
    ]  # fmt: skip
    [(code, said, err)] = duel(args)
    assert code == 2 and len(err.splitlines()) == 1 and 'JUDGE_KEY' in err
    assert KEY not in said + err
    assert not (out / 'summary.json').exists()
    rows = (out / 'results.jsonl').read_text()
    assert len(rows.splitlines()) == 4  # of one batch; the next was not whole
    refused = len(server.requests) - 13
    server.behave = think
    [(code, said, err)] = duel(args)
    assert code == 0, err
    assert len(server.requests) == 20 + refused
    assert '7 answers in this run' in said
  assert (out / 'results.jsonl').read_text().startswith(rows)
  score = benchmark.read_summary(out).scores['win_rate']
  assert score.value == pytest.approx(100 * 6 / 9)


def test_what_a_judge_gave_up_is_said_and_asked_again(flags, tmp_path):
  out = tmp_path / 'duel'
  behave = lambda request, n: (
    fault(503, 'busy') if 'ours 2' in request.texts()[1] else think(request)
  )
  with serving(behave) as server:
    args = [
      *flags, *judges(server, 'judge-a'), f'--out={out}', '--retries=0'
    ]  # fmt: skip
    [(code, said, err)] = duel(args)
    assert code == 2 and len(err.splitlines()) == 1
    assert '1 images are not judged (2.png, judge-a: HTTP 503: busy)' in err
    assert '| before | judge-a | 8 |' in said  # and 1 unparsable
    summary = benchmark.read_summary(out)
    assert summary.settings['missing'].keys() == {'2.png'}
    server.behave = think
    before = len(server.requests)
    [(code, said, err)] = duel(args)
    assert code == 0, err
    assert len(server.requests) == before + 2
    assert '| before | judge-a | 9 |' in said
    assert benchmark.read_summary(out).settings['missing'] == {}


def test_mistakes_are_one_line_and_exit_2(flags, tmp_path):
  images, ours, base = flags
  for name, text in {
    'rows.jsonl': '{"name": "a"}\n', 'list.json': '[1]', 'torn.jsonl': '{"na',
    'number.json': '{"a": 3}', 'other.json': '{"z.png": "a"}',
  }.items():  # fmt: skip
    (tmp_path / name).write_text(text)
  out = f'--out={tmp_path / "new"}'
  judge = '--judge=m@http://127.0.0.1:9/v1@JUDGE_KEY'
  all_ = [images, ours, base, judge, out]
  given = lambda name: f'--captions={tmp_path / name}'
  cases = {
    'no images': ([ours, base, judge, out], '--images'),
    'no baseline': ([images, ours, judge, out], '--baseline'),
    'no judge': ([images, ours, base, out], '--judge'),
    'no folder': (['--images=/nowhere', *all_[1:]], '/nowhere'),
    'no file': ([*all_, given('none')], 'none cannot be read'),
    'a folder': ([*all_, '--captions=/tmp'], '/tmp cannot be read'),
    'no caption': ([*all_, given('rows.jsonl')], 'holds no captions'),
    'a list': ([*all_, given('list.json')], 'holds no captions'),
    'torn': ([*all_, given('torn.jsonl')], 'holds no captions'),
    'numbers': ([*all_, given('number.json')], 'holds no captions'),
    'no pair': ([*all_, given('other.json')], 'no image has a caption'),
    'baseline': ([*all_, '--baseline=x'], 'NAME=VALUE'),
    'twice': ([*all_, base], 'used once'),
    'judge twice': ([*all_, judge], 'named twice'),
    'no key': ([*all_, '--judge=gpt-4o'], 'set OPENAI_API_KEY'),
    'a key': ([*all_, f'--judge=m@http://h@{KEY}'], 'never a key'),
    'price': ([*all_, '--price=m=cheap'], 'INPUT,OUTPUT'),
    'price of none': ([*all_, '--price=x=1,2'], "['x']"),
    'concurrency': ([*all_, '--concurrency=0'], 'concurrency'),
    'batch': ([*all_, '--batch=0'], 'batch'),
    'unwritable': ([*all_, '--out=/dev/null/x'], '/dev/null'),
  }
  results = duel(*[args for args, _ in cases.values()])
  for (name, (_, says)), (code, _, err) in zip(cases.items(), results):
    assert code == 2, (name, err)
    assert says in err and len(err.strip().splitlines()) == 1, (name, err)
    assert KEY not in err
  assert not (tmp_path / 'new').exists()
