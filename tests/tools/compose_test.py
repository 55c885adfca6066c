"""The command that composes: a release becomes a folder of ours, or a line."""

import functools
import json

import pytest

from tests.infer import tiny_releases
from tests.tools import commands

compose = functools.partial(commands.run, 'compose')


@pytest.fixture(scope='module')
def release(tmp_path_factory):
  """A tiny UAE release."""
  folder = tmp_path_factory.mktemp('release') / 'uae'
  tiny_releases.uae(folder)
  return folder


def test_a_release_becomes_a_folder_that_the_tools_read(release, tmp_path):
  out = tmp_path / 'ours'
  [(code, said, err)] = compose(
    [f'--from={release}', f'--to={out}', '--dtype=bfloat16']
  )
  assert code == 0, err
  assert 'decoder/transformer' in said.splitlines()
  for part in ('transformer', 'connector', 'vae', 'scheduler'):
    assert (out / 'decoder' / part).is_dir()
  assert json.loads((out / 'umm.json').read_text())['guidance'] == 5.0
  [(code, said, err)] = commands.run(
    'generate',
    [f'--model={out}', f'--out={tmp_path / "drawn"}', '--prompt=red circle',
     '--height=32', '--width=32', '--steps=2', '--length=8',
     '--dtype=float32', '--negative=blue'],
  )  # fmt: skip
  assert code == 0, err
  assert (tmp_path / 'drawn' / '00000.png').exists()


def test_mistakes_are_one_line_and_exit_2(release, tmp_path):
  (tmp_path / 'full').mkdir()
  (tmp_path / 'full' / 'x').write_text('x')
  ok, to = f'--from={release}', f'--to={tmp_path / "new"}'
  cases = {
    'no source': ([to], '--from'),
    'no release': (['--from=bundled:umm1/policy', to], '--flux=FOLDER'),
    'other flags': ([ok, to, '--flux=bundled:umm1'], "leave out ['flux']"),
    'full target': ([ok, f'--to={tmp_path / "full"}'], 'not an empty folder'),
    'dtype': ([ok, to, '--dtype=int8'], 'int8'),
  }
  done = compose(*[args for args, _ in cases.values()])
  for (name, (_, says)), (code, _, err) in zip(cases.items(), done):
    assert code == 2, (name, err)
    assert says in err and len(err.strip().splitlines()) == 1, (name, err)
  assert not (tmp_path / 'new').exists()
