"""The compare command: a table on the terminal, a page on disk."""

from tests.eval.compare_test import make
from tests.tools import commands


def test_the_command_prints_the_table_and_writes_the_page(tmp_path):
  one = make(tmp_path / 'joint', 1.0, 60.0)
  two = make(tmp_path / 'caption', 0.0, 55.0)
  page = tmp_path / 'page.html'
  done = commands.run(
    'compare',
    [f'--runs={one},{two}', f'--out={page}'],
    [f'--runs={one}', f'--out={page}'],
    [f'--runs={one},{two}', f'--out={tmp_path / "absent" / "page.html"}'],
  )
  (code, said, err), (lone, _, alone), (nowhere, _, unwritable) = done
  assert code == 0, err
  assert '| unified_score | 40.000 | 60.000 | 55.000 |' in said
  assert 'joint' in page.read_text()
  assert lone == nowhere == 2
  for text in (alone, unwritable):
    assert len(text.strip().splitlines()) == 1
  assert 'two or more' in alone and 'cannot be written' in unwritable
