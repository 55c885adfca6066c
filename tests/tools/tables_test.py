"""Tables as the command leaves them: Markdown, CSV and a page."""

import csv
import functools
import html.parser
import re

import pytest

from tests.eval.tables_test import REWRITTEN, put, unified
from tests.tools import commands

tables = functools.partial(commands.run, 'tables')


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  """Folder of tables; what was printed."""
  tmp = tmp_path_factory.mktemp('tables')
  results = tmp / 'results'
  scores = {'overall': 0.5, 'counting': 0.25}
  put(results / 'geneval', 'geneval', 'a <b> | c', scores, REWRITTEN)
  for seed, value in enumerate((70.0, 74.0)):
    put(results / f'{seed}/unified', 'unified_bench', f'mine#{seed}',
        *unified([value] * 4, reward=['dinov2-large']))  # fmt: skip
  put(tmp / 'more' / 'scenes', 'scenes', 'mine', {'exact_scene': 0.5})
  command = [f'--results={results},{tmp / "more"}', f'--out={tmp / "out"}']
  first, again = tables(command, command)
  assert first[0] == again[0] == 0, first[2] + again[2]
  assert first[1] == again[1]
  return tmp / 'out', first[1]


def test_markdown(made):
  out, said = made
  text = (out / 'tables.md').read_text()
  assert text in said and 'tables.html' in said
  lines = text.splitlines()
  assert (
    '| model | kind | rewriting | Counting | Colors | Color attr. | Overall |'
    in lines
  )
  assert '| UAE | published | yes | 0.82 | 0.95 | 0.84 | 0.89 |' in lines
  assert (
    r'| a <b> \| c | measured | yes | 0.25 [-0.75, 1.25] n=100 | – | – | '
    '0.50 [-0.50, 1.50] n=100 |' in lines
  )
  mine = '72.00 ± 2.83 (2 seeds, n=100)'
  assert (
    f'| mine | measured | caption | {mine} | {mine} | {mine} (reward) | '
    f'{mine} | {mine} (reward) |' in lines
  )
  assert '| exact_scene | measured | 0.500 [-0.500, 1.500] n=100 |' in lines
  for line, below in zip(lines, lines[1:]):
    if line.startswith('|') and below.startswith('|'):
      bars = [len(re.findall(r'(?<!\\)\|', x)) for x in (line, below)]
      assert bars[0] == bars[1]


def test_csv(made):
  out, _ = made
  with (out / 'tables.csv').open(newline='') as f:
    rows = [*csv.DictReader(f)]
  cell = lambda **kw: [r for r in rows if kw.items() <= r.items()]
  (row,) = cell(table='unified_bench', row='UAE', column='CLIP')
  assert row['kind'] == 'published' and row['value'] == '90.5'
  assert row['n'] == row['low'] == row['sd'] == row['seeds'] == ''
  assert row['reward'] == 'yes'
  (row,) = cell(table='unified_bench', row='mine', column='DINO-v2')
  assert (row['kind'], row['conditioning']) == ('measured', 'caption')
  assert float(row['value']) == 72 and abs(float(row['sd']) - 8**0.5) < 1e-9
  assert (row['n'], row['seeds'], row['reward']) == ('100', '2', 'yes')
  (row,) = cell(table='geneval', row='a <b> | c', column='Counting')
  assert (row['low'], row['high'], row['n']) == ('-0.75', '1.25', '100')
  assert row['rewriting'] == 'yes'
  assert len(cell(table='main', kind='published')) == 20


class Page(html.parser.HTMLParser):
  """Tags, attributes and rows of a page."""

  def __init__(self):
    super().__init__()
    self.tags, self.attributes, self.rows = set(), [], []
    self._cell = False

  def handle_starttag(self, tag, attrs):
    self.tags.add(tag)
    self.attributes += attrs
    self._cell = tag in ('td', 'th')
    if tag == 'tr':
      self.rows.append([dict(attrs).get('class')])
    if self._cell:
      self.rows[-1].append('')

  def handle_endtag(self, tag):
    self._cell = False

  def handle_data(self, data):
    if self._cell:
      self.rows[-1][-1] += data


def test_the_page_needs_nothing_else(made):
  out, _ = made
  text = (out / 'tables.html').read_text()
  page = Page()
  page.feed(text)
  assert not page.tags & {'script', 'img', 'iframe', 'object', 'embed', 'b'}
  links = [v for k, v in page.attributes if k in ('href', 'src', 'srcset')]
  assert links == ['data:,']
  assert '//' not in text and 'url(' not in text and '@import' not in text
  assert 'color-scheme: light dark' in text
  assert 'prefers-color-scheme: dark' in text
  assert ['published', 'UAE', 'published', 'yes', '0.82', '0.95', '0.84',
          '0.89'] in page.rows  # fmt: skip
  assert ['measured', 'a <b> | c', 'measured', 'yes',
          '0.25 [-0.75, 1.25] n=100', '–', '–',
          '0.50 [-0.50, 1.50] n=100'] in page.rows  # fmt: skip


def test_mistakes_are_one_line_and_exit_2(tmp_path):
  put(tmp_path / 'good', 'mmb', 'x', {'accuracy': 0.5})
  (tmp_path / 'empty').mkdir()
  (tmp_path / 'bad').mkdir()
  (tmp_path / 'bad' / 'summary.json').write_text('{"scores": 3')
  out = f'--out={tmp_path / "out"}'
  cases = {
    'no results': ([out], '--results'),
    'no out': ([f'--results={tmp_path / "good"}'], '--out'),
    'absent': (['--results=/nowhere', out], '/nowhere'),
    'empty': ([f'--results={tmp_path / "empty"}', out], 'no summary.json'),
    'none': (['--results=', out], '--results'),
    'bad': ([f'--results={tmp_path / "bad"}', out], 'no summary of'),
    'unwritable': (
      [f'--results={tmp_path / "good"}', '--out=/dev/null/x'], '/dev/null',
    ),
  }  # fmt: skip
  done = tables(*[args for args, _ in cases.values()])
  for (name, (_, says)), (code, _, err) in zip(cases.items(), done):
    assert code == 2, (name, err)
    assert says in err and len(err.strip().splitlines()) == 1, (name, err)
  assert not (tmp_path / 'out').exists()
