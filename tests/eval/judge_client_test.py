"""Judges against a local endpoint that misbehaves."""

import json
import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

from tests.eval.judge_server import KEY, Reply, fault, serving
from uae_jax.errors import UserError
from uae_jax.eval import judge_client, vqa_judge
from uae_jax.eval.judge_client import Judge, Question, ask_all, make_judge

SCHEMA = dict(
  type='object',
  properties={'n': dict(type='integer')},
  required=['n'],
  additionalProperties=False,
)
GOOD = '{"n": 7}'


@pytest.fixture(autouse=True)
def key(monkeypatch):
  monkeypatch.setenv('JUDGE_KEY', KEY)


def picture(seed, h=6, w=8):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (h, w, 3), dtype=np.uint8)


def ask(text, seed=0):
  return Question([text, picture(seed)], SCHEMA, 'be fair')


def judge_at(server, tmp_path=None, **options):
  options = dict(backoff=0.01, timeout=5.0, retries=3) | options
  cache = tmp_path and tmp_path / 'answers'
  return Judge('m', server.url, 'JUDGE_KEY', cache=cache, **options)


def number(text):
  """Of the question 'number 12'."""
  return int(text.split()[1])


def test_answers_come_in_the_order_of_the_questions(tmp_path):
  def behave(request, n):
    i = number(request.texts()[0])
    return Reply(json.dumps({'n': i}), seconds=0.02 * (i % 3))

  with serving(behave) as server:
    judge = judge_at(server, tmp_path)
    answers = judge.ask_many([ask(f'number {i}', i) for i in range(12)])
    assert [a.value for a in answers] == [{'n': i} for i in range(12)]
    first = next(r for r in server.requests if r.texts()[0] == 'number 0')
  assert first.key == f'Bearer {KEY}'
  assert first.body['model'] == 'm' and first.body['temperature'] == 0
  assert first.body['messages'][0] == dict(role='system', content='be fair')
  [image] = first.images()
  np.testing.assert_array_equal(np.asarray(image), picture(0))
  sent = first.body['response_format']
  assert sent['type'] == 'json_schema'
  assert sent['json_schema']['schema'] == SCHEMA
  assert judge.usage['answered'] == 12
  used = judge.usage['input_tokens'], judge.usage['output_tokens']
  assert used == (1200, 120)


def test_large_images_are_sent_at_the_stated_side():
  with serving(lambda request, n: Reply(GOOD)) as server:
    judge = judge_at(server, max_side=32)
    judge.ask_many([Question([picture(0, 64, 128)], SCHEMA)])
    [image] = server.requests[0].images()
    assert image.size == (32, 16)


FAULTS = {
  'limit': lambda: fault(429, 'slow down', retry_after='0'),
  'fault': lambda: fault(500, 'oops'),
  'overload': lambda: fault(503),
  'silence': lambda: Reply(GOOD, seconds=1.5),
  'cut short': lambda: Reply(GOOD, cut=20),
  'no JSON': lambda: Reply(body=b'{"choices": [{"mess'),
  'no choices': lambda: Reply(body={'error': {'message': 'upstream'}}),
  'no object': lambda: Reply(body=b'[]'),
}


@pytest.mark.parametrize('kind', FAULTS)
def test_a_passing_fault_is_asked_again(kind, tmp_path):
  behave = lambda request, n: FAULTS[kind]() if n < 2 else Reply(GOOD)
  with serving(behave) as server:
    judge = judge_at(server, tmp_path, timeout=0.5)
    [answer] = judge.ask_many([ask('a')])
    assert answer.value == {'n': 7} and len(server.requests) == 3


def test_it_waits_as_long_as_it_is_told():
  behave = lambda request, n: (
    Reply(GOOD) if n else fault(429, retry_after='0.7')
  )
  with serving(behave) as server:
    judge_at(server).ask_many([ask('a')])
    first, second = server.requests
    assert second.time - first.time >= 0.7


def test_it_does_not_wait_for_tomorrow():
  behave = lambda request, n: fault(429, 'daily', retry_after='86400')
  with serving(behave) as server:
    [answer] = judge_at(server).ask_many([ask('a')])
    assert answer.error == 'HTTP 429: daily' and len(server.requests) == 1


def test_what_is_given_up_is_reported_and_asked_again_later(tmp_path):
  well = threading.Event()

  def behave(request, n):
    odd = number(request.texts()[0]) % 2
    return Reply(GOOD) if well.is_set() or not odd else fault(500, 'down')

  questions = [ask(f'number {i}') for i in range(6)]
  with serving(behave) as server:
    judge = judge_at(server, tmp_path, retries=2)
    answers = judge.ask_many(questions)
    assert [bool(a.error) for a in answers] == [False, True] * 3
    assert answers[1].error == 'HTTP 500: down' and not answers[1].refused
    assert judge.usage['failed'] == 3 and judge.usage['answered'] == 3
    assert len(server.requests) == 3 + 3 * 3
    well.set()
    again = judge_at(server, tmp_path)
    assert all(a.value for a in again.ask_many(questions))
    assert len(server.requests) == 12 + 3
    assert again.usage['cached'] == 3 and again.usage['answered'] == 3


ODD = {
  'no JSON': 'I would say seven.',
  'cut short': '{"n": 7',
  'other type': '{"n": "seven"}',
  'other key': '{"m": 7}',
  'one more key': '{"n": 7, "m": 1}',
  'a list': '[7]',
  'nothing': '',
}


@pytest.mark.parametrize('kind', ODD)
def test_an_odd_answer_is_kept_and_not_asked_again(kind, tmp_path):
  with serving(lambda request, n: Reply(ODD[kind])) as server:
    for _ in range(2):
      judge = judge_at(server, tmp_path)
      [answer] = judge.ask_many([ask('a')])
      assert answer.value is None and not answer.error
      assert answer.text == ODD[kind]
      assert judge.usage['unparsable'] == 1
    assert len(server.requests) == 1


@pytest.mark.parametrize(
  'text',
  [
    GOOD,
    f'```json\n{GOOD}\n```',
    f'I see {{seven}}. {{"m": 1}} So: {GOOD}.',
    f'<think>{{"n": 3}}?</think>{GOOD}',
  ],
)
def test_the_answer_is_found_among_words(text):
  assert judge_client.parse(text, SCHEMA) == {'n': 7}


def test_a_rerun_asks_nothing_and_a_change_asks_anew(tmp_path):
  base = dict(content=['a', picture(0)], schema=SCHEMA, system='s')
  other = picture(0)
  other[0, 0, 0] ^= 1
  changed = [
    dict(base, content=['b', picture(0)]),
    dict(base, content=['a', other]),
    dict(base, content=[picture(0), 'a']),
    dict(base, content=['a', picture(0).reshape(8, 6, 3)]),
    dict(base, system='t'),
    dict(base, schema=dict(SCHEMA, title='x')),
  ]
  with serving(lambda request, n: Reply(GOOD)) as server:
    judge_at(server, tmp_path).ask_many([Question(**base)])
    for n, fields in enumerate(changed):
      judge = judge_at(server, tmp_path)
      judge.ask_many([Question(**base), Question(**fields)])
      assert len(server.requests) == n + 2, fields
    judge_at(server, tmp_path, temperature=1.0).ask_many([Question(**base)])
    assert len(server.requests) == 8
    all_of_them = [Question(**fields) for fields in [base, *changed]]
    judge = judge_at(server, tmp_path)
    answers = judge.ask_many(all_of_them)
    assert len(server.requests) == 8
    assert all(a.cached and a.value == {'n': 7} for a in answers)
    assert judge.usage['input_tokens'] == 0


def test_a_torn_file_is_asked_again(tmp_path):
  with serving(lambda request, n: Reply(GOOD)) as server:
    judge_at(server, tmp_path).ask_many([ask('a')])
    [file] = (tmp_path / 'answers').rglob('*.json')
    whole = file.read_text()
    for torn in (whole[:9], '3', '{"text": 3}', ''):
      file.write_text(torn)
      [answer] = judge_at(server, tmp_path).ask_many([ask('a')])
      assert answer.value == {'n': 7} and file.read_text() == whole
    assert len(server.requests) == 5
  assert not [*tmp_path.rglob('*.part')]


def test_equal_questions_are_asked_once():
  with serving(lambda request, n: Reply(GOOD, seconds=0.1)) as server:
    answers = judge_at(server).ask_many([ask('a'), ask('b'), ask('a')])
    assert len(answers) == 3 and len(server.requests) == 2


@pytest.mark.parametrize('limit', [1, 3])
def test_no_more_questions_are_out_than_allowed(limit):
  with serving(lambda request, n: Reply(GOOD, seconds=0.05)) as server:
    judge = judge_at(server, concurrency=limit)
    judge.ask_many([ask(f'number {i}') for i in range(12)])
    assert server.most == limit


@pytest.fixture
def interrupts():
  """SIGINT as on a terminal: a shell's background jobs have it ignored."""
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  yield
  signal.signal(signal.SIGINT, before)


def test_an_interrupt_keeps_what_was_under_way(tmp_path, interrupts):
  def behave(request, n):
    if n == 3:
      os.kill(os.getpid(), signal.SIGINT)
    return Reply(GOOD, seconds=0.3)

  questions = [ask(f'number {i}') for i in range(20)]
  with serving(behave) as server:
    with pytest.raises(KeyboardInterrupt):
      judge_at(server, tmp_path, concurrency=4).ask_many(questions)
    asked = len(server.requests)
    assert 4 <= asked < 20
    assert len([*tmp_path.rglob('*.json')]) == asked
    judge_at(server, tmp_path).ask_many(questions)
    assert len(server.requests) == 20


REFUSALS = {
  'key': (fault(401, f'wrong key {KEY}'), 'JUDGE_KEY'),
  'rights': (fault(403, 'not yours'), 'JUDGE_KEY'),
  'model': (fault(404, 'no such model'), 'no model m at http'),
  'credit': (
    Reply(status=429, body={'error': {'code': 'insufficient_quota'}}),
    'no credit',
  ),
}


@pytest.mark.parametrize('kind', REFUSALS)
def test_a_refusal_ends_it_with_one_line(kind, tmp_path):
  reply, says = REFUSALS[kind]
  behave = lambda request, n: Reply(GOOD) if n < 3 else reply
  questions = [ask(f'number {i}') for i in range(40)]
  with serving(behave) as server:
    with pytest.raises(UserError, match=says) as e:
      judge_at(server, tmp_path, concurrency=2).ask_many(questions)
    assert '\n' not in str(e.value) and KEY not in str(e.value)
    assert len(server.requests) <= 3 + 2
    server.behave = lambda request, n: Reply(GOOD)
    before = len(server.requests)
    judge_at(server, tmp_path).ask_many(questions)
    assert len(server.requests) - before == 40 - 3


def test_the_key_is_nowhere(tmp_path, capfd, caplog):
  caplog.set_level('DEBUG')
  answers = [f'{{"n": 7}} {KEY}', KEY]

  def behave(request, n):
    i = number(request.texts()[0])
    return Reply(answers[i]) if i < 2 else fault([400, 500][i - 2], KEY)

  with serving(behave) as server:
    judge = judge_at(server, tmp_path, retries=1)
    got = judge.ask_many([ask(f'number {i}') for i in range(4)])
  assert got[0].value == {'n': 7} and got[2].refused and got[3].error
  said = [repr(got), repr(judge), repr(vars(judge).keys()), caplog.text]
  files = [f.read_text() for f in tmp_path.rglob('*') if f.is_file()]
  assert len(files) == 2 and all('***' in text for text in files)
  assert not [t for t in [*said, *files, *capfd.readouterr()] if KEY in t]


def test_an_endpoint_without_structured_output_is_asked_in_words(tmp_path):
  def behave(request, n):
    for field in ('response_format', 'temperature'):
      if field in request.body:
        return fault(400, f'Unsupported parameter: {field}')
    assert json.dumps(SCHEMA) in request.texts()[-1]
    return Reply('```\n{"n": 7}\n```')

  with serving(behave) as server:
    judge = judge_at(server, tmp_path, concurrency=1)
    answers = judge.ask_many([ask(f'number {i}') for i in range(4)])
    assert [a.value for a in answers] == [{'n': 7}] * 4
    assert len(server.requests) == 4 + 2
    again = judge_at(server, tmp_path).ask_many([ask('number 0')])
    assert len(server.requests) == 6
    for answer in [*answers, *again]:
      assert answer.dropped == ['response_format', 'temperature']


def test_one_question_refused_spares_the_others(tmp_path):
  behave = lambda request, n: (
    fault(400, 'not this image') if 'bad' in request.texts() else Reply(GOOD)
  )
  with serving(behave) as server:
    judge = judge_at(server, tmp_path)
    good, bad = judge.ask_many([ask('good'), ask('bad')])
    assert good.value and bad.refused and bad.error.endswith('not this image')
    assert len(server.requests) == 2 and judge.usage['refused'] == 1
    # Still so in another process, where it is all that is left.
    [bad] = judge_at(server, tmp_path).ask_many([ask('bad')])
    assert bad.refused
    with pytest.raises(UserError, match='takes no question.*not this image'):
      judge_at(server).ask_many([ask('bad')])


def test_unknown_tokens_make_an_unknown_cost():
  behave = lambda request, n: Reply(GOOD, usage=None if n else (10**6, 10**5))
  with serving(behave) as server:
    judge = judge_at(server, prices=(2.5, 10.0))
    judge.ask_many([ask('a')])
    assert judge.spent() == pytest.approx(2.5 + 1.0)
    [answer] = judge.ask_many([ask('b')])
    assert answer.input_tokens is None and judge.spent() is None
    assert judge_at(server).spent() is None  # without prices


def test_judges_are_asked_side_by_side():
  both = threading.Barrier(2, timeout=5)

  def behave(request, n):
    both.wait()
    return Reply(json.dumps({'n': len(request.body['model'])}))

  with serving(behave) as server:
    judges = [
      Judge(m, server.url, 'JUDGE_KEY', concurrency=1) for m in ('m', 'mm')
    ]
    (one,), (two,) = ask_all(judges, [ask('a')])
    assert one.value == {'n': 1} and two.value == {'n': 2}


def test_mistakes_are_one_line(monkeypatch):
  monkeypatch.delenv('OPENAI_API_KEY', raising=False)
  monkeypatch.setenv('ODD_KEY', 'sk-\u00e9')
  url = 'http://127.0.0.1:9/v1'
  cases = [
    (lambda: make_judge('m'), 'set OPENAI_API_KEY'),
    (lambda: make_judge(f'm@{url}@NO_KEY'), 'set NO_KEY'),
    (lambda: make_judge(f'm@{url}@ODD_KEY'), 'ODD_KEY holds is no key'),
    (lambda: make_judge(f'm@{url}@{KEY}'), 'never a key'),
    (lambda: make_judge(f'm@http://me:{KEY}@host/v1'), 'a judge is'),
    (lambda: Judge('m', f'http://me:{KEY}@host', 'JUDGE_KEY'), 'base URL'),
    (lambda: Judge('m', f'{url}?key={KEY}', 'JUDGE_KEY'), 'base URL'),
    (lambda: Judge('m', 'ftp://host', 'JUDGE_KEY'), 'base URL'),
    (lambda: Judge('m', url, 'JUDGE_KEY', concurrency=0), 'concurrency'),
    (
      lambda: Judge(
        'm', url, 'JUDGE_KEY', retries=1, backoff=0.01
      ).ask_many([ask('a')]),
      f'{url} cannot be reached',
    ),
  ]  # fmt: skip
  for make, says in cases:
    with pytest.raises(UserError, match=says) as e:
      make()
    assert KEY not in str(e.value) and '\n' not in str(e.value)


def test_a_judge_is_named_by_model_url_and_variable(monkeypatch):
  monkeypatch.setenv('OPENAI_API_KEY', KEY)
  got = [
    make_judge(spec).settings
    for spec in ('org/m@2', 'm@http://h:8/v1', 'm@https://h/v1@JUDGE_KEY')
  ]
  assert [(s['model'], s['base_url']) for s in got] == [
    ('org/m@2', judge_client.OPENAI),
    ('m', 'http://h:8/v1'),
    ('m', 'https://h/v1'),
  ]


@pytest.mark.parametrize('package', ['openai', 'jsonschema'])
def test_a_missing_package_is_named(package):
  script = (
    f'import sys; sys.modules["{package}"] = None\n'
    'from uae_jax.errors import UserError\n'
    'from uae_jax.eval import judge_client, caption_duel, vqa_judge\n'
    'try: judge_client.Judge("m")\n'
    'except UserError as e: print(e)\n'
  )
  done = subprocess.run(
    [sys.executable, '-c', script], capture_output=True, text=True
  )
  assert "pip install 'uae_jax[judges]'" in done.stdout, done.stderr


def test_yes_or_no():
  def behave(request, n):
    [image] = request.images()
    bright = np.asarray(image).mean() > 128
    asked = request.texts()[0]
    if asked == 'sure?':
      return Reply('perhaps')
    return Reply(json.dumps({'answer': 'yes' if bright else 'no'}))

  black, white = (np.full((4, 4, 3), x, np.uint8) for x in (0, 255))
  with serving(behave) as server:
    answer = vqa_judge.YesNo(judge_at(server))
    got = answer([black, white, white], ['white?', 'white?', 'sure?'])
    assert got == [False, True, None]
    server.behave = lambda request, n: fault(400, 'no')
    assert answer([black], ['black?']) == [None]


def test_yes_or_no_is_not_made_up_where_nothing_was_answered(tmp_path):
  def behave(request, n):
    b = request.texts()[0] == 'b?'
    return fault(500, 'down') if b else Reply('{"answer": "yes"}')

  image = picture(0)
  with serving(behave) as server:
    judge = judge_at(server, tmp_path, retries=0)
    pairs = [(image, 'a?'), (image, 'b?')]
    with pytest.raises(UserError, match='1 of 2 .*500: down.*run again'):
      vqa_judge.yes_no(judge, pairs)
    server.behave = lambda request, n: Reply('{"answer": "no"}')
    assert vqa_judge.yes_no(judge, pairs) == [True, False]
    assert len(server.requests) == 3


def test_checklists():
  replies = {
    'two cats': '{"criterion_1": true, "criterion_2": false}',
    'a dog': '{"criterion_1": false, "criterion_3": "yes"}',
    'a hat': 'hm',
  }

  def behave(request, n):
    text = request.texts()[0]
    assert 'criterion_1: x' in text
    return Reply(next(v for k, v in replies.items() if k in text))

  image = picture(0)
  with serving(behave) as server:
    got = vqa_judge.checklist(
      judge_at(server),
      [
        (image, 'two cats', ['x', 'y']),
        (image, 'nothing', []),
        (image, 'a dog', ['x', 'y', 'z']),
        (image, 'a hat', ['x']),
      ],
    )
    assert len(server.requests) == 3
  assert got == [[True, False], [], [False, None, None], [None]]
