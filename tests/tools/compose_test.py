"""The command that puts a release together, and drawing with the result."""

import functools
import json

import numpy as np
import pytest
from PIL import Image

from tests.infer import tiny_releases as tiny
from tests.infer.releases_test import photographs, tensors
from tests.tools import commands

SIZES = [
  '--dtype=float32', '--height=32', '--width=48', '--steps=2', '--batch=8',
  '--length=24', '--prompt=large red circle',
]  # fmt: skip
run = functools.partial(commands.run, 'compose')


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  """Both releases, composed by one call of the command each."""
  root = tmp_path_factory.mktemp('releases')
  tiny.uae(root / 'uae')
  tiny.uniworld(root)
  done = run(
    [f'--from={root / "uae"}', f'--to={root / "ours" / "uae"}',
     '--dtype=bfloat16'],
    [f'--from={root / "uniworld"}', f'--flux={root / "flux"}',
     f'--siglip={root / "siglip"}', f'--to={root / "ours" / "uniworld"}'],
  )  # fmt: skip
  assert [code for code, _, _ in done] == [0, 0], done
  assert done[0][1].split()[:2] == ['policy', 'decoder/transformer']
  assert done[1][1].split()[-1] == str(root / 'ours' / 'uniworld')
  return root


def test_folders_are_there_and_nothing_else(root):
  assert {p.name for p in (root / 'ours').iterdir()} == {'uae', 'uniworld'}
  weights = tensors(root / 'ours' / 'uae' / 'policy')
  assert {str(x.dtype) for x in weights.values()} == {'torch.bfloat16'}
  weights = tensors(root / 'ours' / 'uniworld' / 'policy')
  assert {str(x.dtype) for x in weights.values()} == {'torch.float32'}


@pytest.mark.slow
def test_a_reference_image_changes_the_drawing(root, tmp_path):
  photographs()[0].save(tmp_path / 'photo.png')
  model = f'--model={root / "ours" / "uniworld"}'
  photo = f'--reference={tmp_path / "photo.png"}'
  outs = [f'--out={tmp_path / name}' for name in 'abcd']
  draw = functools.partial(commands.run, 'generate')
  # Nothing says how large a reference image may be but umm.json.
  file = root / 'ours' / 'uniworld' / 'umm.json'
  options = json.loads(file.read_text()) | {'max_pixels': 1024}
  file.write_text(json.dumps(options))
  done = draw(
    [model, outs[0], *SIZES],
    [model, outs[1], photo, *SIZES],
    [model, outs[2], photo, '--nojoint', *SIZES],
    [model, outs[1], *SIZES],
    [model, outs[3], '--reference=/nowhere.png', *SIZES],
    ['--model=bundled:umm1', outs[3], '--joint', '--prompt=a'],
  )
  assert [code for code, _, _ in done] == [0, 0, 0, 2, 2, 2], done
  assert "['reference']" in done[3][2]
  assert '/nowhere.png' in done[4][2]
  assert 'text_encoder_2' in done[5][2]
  images = [np.asarray(Image.open(tmp_path / n / '00000.png')) for n in 'abc']
  assert images[0].shape == (32, 48, 3)
  assert (images[0] != images[1]).any() and (images[1] != images[2]).any()
  assert not (tmp_path / 'd').exists()


def test_mistakes_are_one_line_and_exit_2(root, tmp_path):
  (tmp_path / 'full').mkdir()
  (tmp_path / 'full' / 'x').write_text('x')
  uae, world = f'--from={root / "uae"}', f'--from={root / "uniworld"}'
  to, flux = f'--to={tmp_path / "new"}', f'--flux={root / "flux"}'
  cases = {
    'no source': ([to], '--from'),
    'no target': ([uae], '--to'),
    'no such folder': (['--from=/nowhere', to], '/nowhere'),
    'no flux': ([world, to], '--flux=FOLDER'),
    'not a release': ([f'--from={tmp_path}', flux, to], 'config.json'),
    'flags of the other': ([uae, flux, to], "leave out ['flux']"),
    'flux is not flux': (
      [world, f'--flux={root / "uae" / "SD3"}', to], 'transformer',
    ),
    'siglip is not siglip': (
      [world, flux, f'--siglip={root / "uae" / "llm_model"}', to],
      'no tower',
    ),
    'full target': ([uae, f'--to={tmp_path / "full"}'], 'not an empty'),
    'unwritable': ([uae, '--to=/dev/null/x'], '/dev/null'),
    'dtype': ([uae, to, '--dtype=int8'], 'int8'),
    'extra word': ([uae, to, 'extra'], 'extra'),
  }  # fmt: skip
  done = run(*[args for args, _ in cases.values()])
  for (name, (_, says)), (code, _, err) in zip(cases.items(), done):
    assert code == 2, (name, err)
    assert says in err and len(err.strip().splitlines()) == 1, (name, err)
  assert {p.name for p in tmp_path.iterdir()} == {'full'}
