"""What is malformed ends in one line: a UserError, and never another error."""

import base64
import contextlib
import io
import json
import struct
import sys
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from absl import flags
from hypothesis import strategies as st
from PIL import Image

from tests.main_test import ROOT
from tests.style_test import get_config, leaves
from uae_jax import main, zoo
from uae_jax.ckpt import hf, safetensors_io
from uae_jax.data import preprocess, tokenize
from uae_jax.errors import UserError
from uae_jax.eval import (
  caption_duel,
  choice_text,
  choice_tsv,
  judge_client,
  report,
)
from uae_jax.train import guard, keeper, limits, optim, workdir
from uae_jax.train.lock import Lock
from uae_jax.train.writers import MetricWriter

fuzz = hypothesis.settings(
  derandomize=True,
  database=None,
  deadline=20_000,  # milliseconds: nothing hangs
  max_examples=60,
  suppress_health_check=list(hypothesis.HealthCheck),
)
JSON = st.recursive(
  st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
  lambda x: (
    st.lists(x, max_size=4)
    | st.dictionaries(st.text(max_size=9), x, max_size=4)
  ),
  max_leaves=12,
)


@contextlib.contextmanager
def one_line():
  """Passes, or there is a UserError of one line."""
  try:
    yield
  except UserError as e:
    assert str(e) and len(str(e).splitlines()) == 1, str(e)


@st.composite
def damaged(draw, whole: bytes) -> bytes:
  """Bytes cut short, changed in places, or with others put in."""
  data = bytearray(whole[: draw(st.integers(0, len(whole)))])
  if draw(st.booleans()):
    data = bytearray(whole)
  for _ in range(draw(st.integers(0, 4))):
    at = draw(st.integers(0, max(len(data) - 1, 0)))
    data[at : at + draw(st.integers(0, 2))] = draw(st.binary(max_size=3))
  return bytes(data)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('fuzz')


def read_tensors(file: Path) -> None:
  """As `hf` does."""
  for entry in safetensors_io.read_header(file).values():
    entry.read()


def test_damaged_safetensors(folder):
  whole = folder / 'whole.safetensors'
  arrays = {'a': np.ones((2, 3), np.float32), 'b': np.ones(4, np.int8)}
  safetensors_io.write(
    whole, {k: (x.shape, x.dtype) for k, x in arrays.items()}, arrays.get
  )
  file = folder / 'x.safetensors'

  @fuzz
  @hypothesis.given(damaged(whole.read_bytes()))
  def check(data):
    file.write_bytes(data)
    with one_line():
      read_tensors(file)

  check()


@st.composite
def headers(draw):
  """A header of tensors in which some things are not what they should be."""
  out, at = {}, 0
  for name in draw(st.lists(st.text(max_size=4), max_size=3)):
    shape = draw(st.lists(st.integers(0, 3), max_size=3) | JSON)
    end = at + draw(st.sampled_from([0, 4, 8, 2.0, True]))
    offsets = draw(st.just([at, end]) | st.lists(JSON, max_size=3) | JSON)
    dtype = draw(st.sampled_from(['F32', 'I8', 'BOOL', 'F4', 3, []]))
    info = dict(dtype=dtype, shape=shape, data_offsets=offsets)
    out[name] = draw(st.just(info) | JSON)
    at = int(end)
  return draw(st.just(out) | JSON), draw(st.binary(min_size=at, max_size=at))


@fuzz
@hypothesis.given(headers())
def test_safetensors_with_other_headers(folder, case):
  header, data = case
  text = json.dumps(header).encode()
  file = folder / 'y.safetensors'
  file.write_bytes(struct.pack('<Q', len(text)) + text + data)
  with one_line():
    read_tensors(file)


@pytest.mark.parametrize(
  'info',
  [
    dict(dtype='F32', shape=[1.0], data_offsets=[0, 4]),
    dict(dtype='F32', shape=[True], data_offsets=[0, 4]),
    dict(dtype='F32', shape=[1], data_offsets=[0.0, 4]),
    dict(dtype='F32', shape=[0, 10**30], data_offsets=[0, 0]),
  ],
)
def test_safetensors_of_numbers_that_count_nothing(folder, info):
  file = folder / 'z.safetensors'
  text = json.dumps({'a': info}).encode()
  data = b'0' * int(info['data_offsets'][1])
  file.write_bytes(struct.pack('<Q', len(text)) + text + data)
  with pytest.raises(UserError, match='not a whole safetensors file'):
    safetensors_io.read_header(file)


@fuzz
@hypothesis.given(JSON)
def test_indices_of_shards(folder, index):
  for content in (index, {'weight_map': index}):
    (folder / 'model.safetensors.index.json').write_text(json.dumps(content))
    with one_line():
      hf.find_files(folder)


def read_tokenizer(folder: Path) -> None:
  """As a run does."""
  tokenizer = tokenize.load_tokenizer(folder)
  tokenize.Template.from_tokenizer(tokenizer, 'describe the image')
  tokenize.encode_caption(tokenizer, 'small red circle', 8)


@pytest.fixture(scope='module')
def processors(folder):
  """A tokenizer's folder, and its two files as they should be."""
  names = ('tokenizer.json', 'tokenizer_config.json')
  source = zoo.resolve('bundled:umm1/processors')
  return folder, {name: (source / name).read_bytes() for name in names}


@pytest.mark.parametrize('name', ['tokenizer.json', 'tokenizer_config.json'])
def test_damaged_tokenizers(processors, name):
  folder, files = processors
  for other, data in files.items():
    (folder / other).write_bytes(data)
  read_tokenizer(folder)

  @fuzz
  @hypothesis.given(damaged(files[name]))
  def check(data):
    (folder / name).write_bytes(data)
    with one_line():
      read_tokenizer(folder)

  check()


@pytest.mark.parametrize('name', ['tokenizer.json', 'tokenizer_config.json'])
def test_tokenizers_with_other_values(processors, name):
  folder, files = processors
  for other, data in files.items():
    (folder / other).write_bytes(data)
  whole = json.loads(files[name])

  @fuzz
  @hypothesis.given(st.sampled_from(sorted(whole)), JSON, st.booleans())
  def check(key, value, alone):
    content = value if alone else {**whole, key: value}
    (folder / name).write_text(json.dumps(content))
    with one_line():
      read_tokenizer(folder)

  check()


def picture(kind: str) -> bytes:
  file = io.BytesIO()
  rng = np.random.default_rng(0)
  image = Image.fromarray(rng.integers(0, 255, (20, 30, 3), np.uint8))
  image.save(file, kind)
  return file.getvalue()


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WEBP', 'GIF', 'BMP'])
def test_damaged_images(folder, kind):
  file = folder / 'image'

  @fuzz
  @hypothesis.given(damaged(picture(kind)))
  def check(data):
    file.write_bytes(data)
    with one_line():
      image = preprocess.read_image(file)
      assert image.ndim == 3 and image.dtype == np.uint8

  check()


def read_questions(file: Path) -> None:
  """As the benchmarks of choices do."""
  rows = choice_tsv.read_rows(file)
  for row in rows:
    choice_text.prompt(row, choice_text.FORMS['select'])
    choice_text.said(row, row.question)
    with one_line():
      choice_tsv.read_images(row, file.parent)
  choice_tsv.rotated(rows, file)


QUESTIONS = '\n'.join(
  '\t'.join(row)
  for row in [
    ['index', 'question', 'answer', 'A', 'B', 'image', 'image_path'],
    ['0', 'What?', 'A', 'a cat', 'none', base64.b64encode(b'x').decode(), ''],
    ['1', 'And now?', 'B', 'a "dog"', '3', '0', ''],
    ['2', 'Say it.', "['a', 'b']", '', '', '', "['a.png']"],
  ]
).encode()


@fuzz
@hypothesis.given(damaged(QUESTIONS))
def test_damaged_tables_of_questions(folder, data):
  file = folder / 'questions.tsv'
  file.write_bytes(data)
  with one_line():
    read_questions(file)


FIELD = st.sampled_from(
  ['0', '1', '-1', '٣', '²', '', '[]', '[{[]:1}]', '[' * 99 + ']', '[1,,]',
   '[\0]', '=', 'data:,', 'A', 'none', '"', '\0', '9' * 5000, f'[{"9" * 5000}]']
) | st.text(max_size=6)  # fmt: skip


@fuzz
@hypothesis.given(
  st.lists(st.sampled_from(
    ['index', 'question', 'answer', 'image', 'image_path', 'A', 'B', 'hint', '']
  ), max_size=8),
  st.booleans(),
  st.lists(st.lists(FIELD, min_size=8, max_size=8), max_size=3),
)  # fmt: skip
def test_tables_of_other_fields(folder, head, whole, rows):
  must = ['index', 'question', 'answer', 'image', 'image_path']
  head = [*must, 'A', 'B', 'C'] if whole else head
  lines = [head, *(row[: len(head)] for row in rows)]
  file = folder / 'fields.tsv'
  text = '\n'.join('\t'.join(line) for line in lines)
  file.write_text(text, 'utf-8', errors='surrogatepass')
  with one_line():
    read_questions(file)


ANSWERS = (
  st.text(max_size=40)
  | JSON.map(json.dumps)
  | damaged(b'Well: {"reason": "x", "better": "first"}').map(
    lambda x: x.decode(errors='replace')
  )
  | st.sampled_from(
    ['{"a":' * 3000, '{' * 20000, '{"better": NaN}', '{"better": ["first"]}',
     '\ud800{}', '{"reason": "", "better": "first"}' * 300]
  )
)  # fmt: skip


@fuzz
@hypothesis.given(ANSWERS)
def test_answers_of_judges(text):
  value = judge_client.parse(text, caption_duel.SCHEMA)
  if value is not None:
    assert set(value) == {'reason', 'better'}
    assert value['better'] in ('first', 'second', 'tie')
  found = choice_text.extract(text, {'A': 'a cat', 'B': 'a dog'})
  assert found in (None, 'A', 'B')


def parsed(*args):
  """The config of a command line, as `main` gets it."""
  for name in [name for name in flags.FLAGS if name.startswith('config.')]:
    delattr(flags.FLAGS, name)
  flags.FLAGS.unparse_flags()
  argv = ['main', *args]
  old, sys.argv = sys.argv, argv
  try:
    main.parse(argv)
    return main.CONFIG.value
  finally:
    sys.argv = old


def check_config(config) -> None:
  """What a run looks at before it builds anything."""
  for module in (limits, optim, guard, keeper):
    module.check(config)
  json.dumps(config.to_dict())


KEYS = sorted(leaves(get_config('umm1', '')))
VALUES = (
  st.text(max_size=12)
  | st.integers(-3, 3).map(str)
  | st.floats().map(str)
  | JSON.map(json.dumps)
  | st.sampled_from(
    ['1e400', '9' * 30, '-0', '("a",', "('[',)", '[1, 2]', '(None,)', 'True',
     '[[', '{', '\0', '\ud800', '__import__("os")', '*' * 99, '0x10', '1_0']
  )
)  # fmt: skip


@pytest.fixture
def flag_values():
  """The flags as they were."""
  yield
  parsed()


@fuzz
@hypothesis.given(
  st.dictionaries(
    st.sampled_from(KEYS) | st.text(max_size=9), VALUES, min_size=1, max_size=3
  )
)
def test_overrides_of_a_config(flag_values, changes):
  config = f'--config={ROOT}/configs/umm1.py'
  with one_line():
    args = [f'--config.{key}={value}' for key, value in changes.items()]
    check_config(parsed(config, *args))


@pytest.mark.parametrize(
  'file',
  ['/tmp', '/etc/passwd', 'x' * 5000 + '.py', '\0', 'a.py:b'],
)
def test_files_that_are_no_config(flag_values, file):
  with pytest.raises(UserError) as e:
    parsed(f'--config={file}')
  assert len(str(e.value).splitlines()) == 1


@fuzz
@hypothesis.given(JSON.map(json.dumps).map(str.encode) | st.binary(max_size=9))
def test_a_workdir_with_another_config_is_left_as_it_is(folder, data):
  workdir_ = folder / 'run'
  workdir_.mkdir(exist_ok=True)
  (workdir_ / 'config.json').write_bytes(data)
  with pytest.raises(UserError) as e:
    workdir.claim(workdir_, {'train': {'lr': 1.0}}, Lock(workdir_))
  assert len(str(e.value).splitlines()) == 1
  assert (workdir_ / 'config.json').read_bytes() == data


ROWS = b'{"step": 1, "eval/unified_score": 3.0}\n{"step": 2, "a": null}\n'


@fuzz
@hypothesis.given(damaged(ROWS) | JSON.map(json.dumps).map(str.encode))
def test_damaged_metrics(folder, data):
  file = folder / 'metrics.jsonl'
  file.write_bytes(data)
  with one_line():
    report.curves(report.read_rows(file))
  writer = MetricWriter(folder)
  writer.truncate_after(1)
  writer.close()
  report.read_rows(file)  # a run goes on with it
