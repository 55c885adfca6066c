"""Benchmarks by their command: tables, resuming, several processes, errors."""

import functools
import json
import os
import re
import socket
import subprocess
import sys

import pytest
from PIL import Image

from tests.tools import commands
from uae_jax.data.pipeline import SceneSource
from uae_jax.eval.benchmark import read_summary

MODEL = '--model=bundled:umm1'
TOWERS = '--towers=bundled:umm1/judge_clip,bundled:umm1/judge_views'
FEW = ('--scenes=20', '--batch=8', TOWERS, '--benchmark=scenes', MODEL)

evaluate = functools.partial(commands.run, 'evaluate')


def rows(folder):
  lines = []
  for file in folder.glob('results*.jsonl'):
    lines += file.read_text().splitlines()
  return {row['name']: row for row in map(json.loads, lines)}


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  """Nine scenes as source images, one file of which is broken."""
  folder = tmp_path_factory.mktemp('data')
  (folder / 'unified').mkdir()
  for i in range(8):
    image = SceneSource('heldout', side=40)[i]['image']
    Image.fromarray(image).save(folder / 'unified' / f'{i}.png')
  (folder / 'unified' / '8.jpg').write_bytes(b'broken')
  return folder


@pytest.fixture(scope='module')
def done(tmp_path_factory, data):
  """Two benchmarks of the bundled model, and what was printed."""
  out = tmp_path_factory.mktemp('done') / 'out'
  both = [*FEW[:3], MODEL, f'--data={data}', f'--out={out}',
          '--benchmark=scenes,unified_bench', '--label=start']  # fmt: skip
  again = [*both[:-2], '--benchmark=scenes', '--label=other']
  first, second = evaluate(both, again)
  assert first[0] == 0, first
  return out, first[1], second


def test_tables_are_printed_and_kept(done):
  out, said, _ = done
  assert 'item 20/20 100%' in said and 'ETA' in said
  assert 'scenes: 20 done' in said
  assert '8 done, 1 could not be read' in said
  scenes = read_summary(out / 'scenes')
  assert scenes.benchmark == 'scenes'
  assert scenes.scores['full_exact_scene'].value > 0.9
  assert scenes.scores['choice'].value > 0.6  # of .25 by chance
  value = scenes.scores['unified_score'].value
  assert f'| unified_score | {value:.4g} |' in said
  unified = read_summary(out / 'unified_bench')
  assert unified.label == 'start'
  assert unified.settings['conditioning'] == 'caption'
  assert unified.scores['unified_score'].n == 8
  assert (out / 'unified_bench' / 'images' / '0.png').exists()


def test_the_same_command_has_nothing_left_to_do(done):
  out, _, (code, said, err) = done
  assert code == 0, err
  assert 'item ' not in said.replace('20 items', '')
  assert read_summary(out / 'scenes').label == 'other'


@pytest.mark.slow
def test_two_processes_share_the_items(done, tmp_path):
  flags = re.sub(r'device_count=\d+', 'device_count=4', os.environ['XLA_FLAGS'])
  env = {**os.environ, 'XLA_FLAGS': flags}
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    port = s.getsockname()[1]
  running = [
    subprocess.Popen(
      [sys.executable, '-m', 'uae_jax.tools.evaluate', *FEW,
       f'--out={tmp_path}', f'--coordinator=127.0.0.1:{port}',
       '--processes=2', f'--process={i}'],
      cwd=commands.ROOT, env=env, text=True, stderr=subprocess.STDOUT,
      stdout=subprocess.PIPE,
    )
    for i in range(2)
  ]  # fmt: skip
  said = [process.communicate(timeout=300)[0] for process in running]
  assert [process.returncode for process in running] == [0, 0], said
  assert 'scenes: 20 done' in said[0] and '| unified_score' not in said[1]
  folder = tmp_path / 'scenes'
  own = [
    len((folder / name).read_text().splitlines())
    for name in ('results.jsonl', 'results.1.jsonl')
  ]
  assert own == [12, 8]  # batches of 8, by turns
  alone = rows(done[0] / 'scenes')
  for name, row in rows(folder).items():
    assert row['caption'] == alone[name]['caption']
    assert row['scene'] == alone[name]['scene']


def test_missing_files_and_flags_are_one_line(tmp_path, data):
  out = f'--out={tmp_path / "out"}'
  cases = {
    '--model=FOLDER, or --images': ['--benchmark=scenes', out],
    'are none of': ['--benchmark=scens', MODEL, out],
    'needs --towers': ['--benchmark=scenes', MODEL, out],
    'put its 100 images there': [
      '--benchmark=unified_bench', MODEL, TOWERS, out, f'--data={tmp_path}'
    ],
    'prompts/evaluation_metadata.jsonl of https': [
      '--benchmark=geneval', MODEL, out, f'--data={tmp_path}'
    ],
    'Geneval++.jsonl of https': [
      '--benchmark=genevalpp', MODEL, out, f'--data={tmp_path}'
    ],
    'dpg cannot be read: put': [
      '--benchmark=dpg', MODEL, out, f'--data={tmp_path}'
    ],
    'MMMU_DEV_VAL.tsv is missing': [
      '--benchmark=mmmu', MODEL, out, f'--data={tmp_path}'
    ],
    'reads hidden states': [
      '--benchmark=unified_bench', '--model=bundled:umm1/policy', TOWERS, out,
      f'--data={data}', '--conditioning=hidden',
    ],
    'folder nowhere does not exist': [
      '--benchmark=scenes', '--model=nowhere', TOWERS, out
    ],
  }  # fmt: skip
  found = evaluate(*cases.values())
  for want, (code, _, err) in zip(cases, found, strict=True):
    assert code == 2 and want in err, (want, err)
    assert len(err.strip().splitlines()) == 1, err
  assert not (tmp_path / 'out').exists()
