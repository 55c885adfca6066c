"""A folder that is filled, left and filled on, by one process or several."""

import json

import pytest

from uae_jax.errors import UserError
from uae_jax.infer.results import Results

SETTINGS = {'tool': 'x', 'sizes': (1, 2)}


def row(name):
  return {'name': name, 'text': 'a\u2028b\x85c "\n"'}


def test_what_is_done_comes_back(tmp_path):
  Results(tmp_path / 'out', SETTINGS).add([row('a'), row('b')])
  again = Results(tmp_path / 'out', SETTINGS)
  assert again.rows == {'a': row('a'), 'b': row('b')}


@pytest.mark.parametrize(
  'torn', ['{"name": "c"', '{"name": "c"}', '3\n', 'x\n']
)
def test_a_torn_line_is_done_again(tmp_path, torn):
  results = Results(tmp_path, SETTINGS)
  results.add([row('a')])
  with results.file.open('a') as f:
    f.write(torn)
  again = Results(tmp_path, SETTINGS)
  assert [*again.rows] == ['a']
  again.add([row('c')])
  assert [*Results(tmp_path, SETTINGS).rows] == ['a', 'c']


def test_another_setting_or_a_folder_of_something_else_is_refused(tmp_path):
  Results(tmp_path / 'a', SETTINGS)
  with pytest.raises(UserError, match=r"made with other \['seed'\]"):
    Results(tmp_path / 'a', {**SETTINGS, 'seed': 1})
  (tmp_path / 'a' / 'settings.json').write_text('{')
  with pytest.raises(UserError, match='not JSON'):
    Results(tmp_path / 'a', SETTINGS)
  (tmp_path / 'b').mkdir()
  (tmp_path / 'b' / 'mine.txt').write_text('mine')
  with pytest.raises(UserError, match='neither empty nor of this tool'):
    Results(tmp_path / 'b', SETTINGS)
  (tmp_path / 'c').write_text('a file')
  with pytest.raises(UserError, match='cannot be written'):
    Results(tmp_path / 'c', SETTINGS)


def test_several_processes_have_a_file_each(tmp_path):
  first = Results(tmp_path, SETTINGS)
  second = Results(tmp_path, SETTINGS, 1)
  first.add([row('a')])
  second.add([row('b')])
  with second.file.open('a') as f:
    f.write('{"name": "c"')  # still being written
  text = second.file.read_text()
  first.read()
  assert sorted(first.rows) == ['a', 'b']
  assert second.file.read_text() == text  # nobody else mends it
  assert sorted(Results(tmp_path, SETTINGS, 1).rows) == ['a', 'b']
  assert second.file.read_text().endswith('}\n')
  assert json.loads((tmp_path / 'results.jsonl').read_text()) == row('a')
