"""The notebooks run from top to bottom, and are kept without outputs."""

import os
import re
from pathlib import Path

import nbclient
import nbformat
import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / 'notebooks').glob('*.ipynb'))
NAMES = [
  '1_autoencoder', '2_unified_grpo', '3_ablations', '4_your_checkpoint',
]  # fmt: skip


def offences(text: str) -> list[str]:
  """What a notebook, as a file's text, has or lacks against the rules."""
  book = nbformat.reads(text, 4)
  nbformat.validate(book)
  code = [cell for cell in book.cells if cell.cell_type == 'code']
  found = []
  if any(cell.outputs or cell.execution_count for cell in code):
    found.append('outputs')
  installs = [cell for cell in code if '%pip install' in cell.source]
  first = code[0].source if code else ''
  if len(installs) != 1 or installs[0] is not code[0]:
    found.append('install cell')
  elif "find_spec('uae_jax') is None" not in first or 'REPO = ' not in first:
    found.append('install cell')
  badge = r'\]\(https://colab\.research\.google\.com/github/\S+/(\w+\.ipynb)\)'
  if not re.search(badge, book.cells[0].source):
    found.append('badge')
  if any(len(cell.source.splitlines()) > 25 for cell in code):
    found.append('long cell')
  return found


def test_these_are_the_notebooks():
  assert [path.stem for path in NOTEBOOKS] == NAMES


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_clean_and_opens_in_colab(path):
  text = path.read_text()
  assert not offences(text)
  assert f'/notebooks/{path.name})' in nbformat.reads(text, 4).cells[0].source


def test_offences_are_seen():
  text = NOTEBOOKS[0].read_text()

  def changed(change):
    book = nbformat.reads(text, 4)
    change(book)
    return offences(nbformat.writes(book))

  def printed(book):
    output = nbformat.v4.new_output('stream', name='stdout', text='x')
    book.cells[1].outputs = [output]

  assert changed(printed) == ['outputs']
  assert changed(lambda book: book.cells.pop(1)) == ['install cell']
  assert changed(lambda book: book.cells[0].update(source='#')) == ['badge']
  assert changed(lambda book: book.cells[2].update(source='x = 1\n' * 26)) == [
    'long cell'
  ]


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_top_to_bottom(path, tmp_path, monkeypatch):
  """In a kernel of its own, on this machine as it is; with few steps."""
  monkeypatch.setenv('PYTHONPATH', str(ROOT))
  monkeypatch.setenv('UAE_JAX_NOTEBOOK_STEPS', '2')
  monkeypatch.setenv('TMPDIR', str(tmp_path))
  monkeypatch.setenv(
    'JAX_COMPILATION_CACHE_DIR', os.environ['UAE_JAX_TEST_CACHE']
  )
  flags = os.environ['XLA_FLAGS'].split()
  one = [flag for flag in flags if 'device_count' not in flag]
  monkeypatch.setenv('XLA_FLAGS', ' '.join(one))
  book = nbformat.read(path, 4)
  client = nbclient.NotebookClient(
    book, timeout=600, resources={'metadata': {'path': str(tmp_path)}}
  )
  client.execute()
  pictures = [
    output
    for cell in book.cells
    if cell.cell_type == 'code'
    for output in cell.outputs
    if 'data' in output and 'image/png' in output.data
  ]
  assert pictures
