"""Folders drawn, captioned and redrawn by the commands, and what they say."""

import functools
import json

import numpy as np
import pytest
from PIL import Image

from tests.tools import commands
from uae_jax.data.scenes import score
from uae_jax.eval import report
from uae_jax.infer.scores import load_towers
from uae_jax.sharding.mesh import make_mesh

MODEL = '--model=bundled:umm1'
PROMPTS = [
  'large red circle top left',
  'medium blue square middle center , large white cross bottom right',
  'large green triangle middle right',
]
TOWERS = '--towers=bundled:umm1/reward,bundled:umm1/judge_clip'

generate, caption, reconstruct = (
  functools.partial(commands.run, name)
  for name in ('generate', 'caption', 'reconstruct')
)


def rows(folder):
  lines = (folder / 'results.jsonl').read_text().splitlines()
  return [json.loads(line) for line in lines]


@pytest.fixture(scope='module')
def drawn(tmp_path_factory):
  """A folder of images drawn from prompts, five each."""
  tmp = tmp_path_factory.mktemp('drawn')
  (tmp / 'prompts.txt').write_text('\n'.join(PROMPTS[1:]) + '\n\n')
  out = tmp / 'images'
  [(code, said, err)] = generate(
    [MODEL, f'--out={out}', f'--prompt={PROMPTS[0]}', '--each=5',
     f'--prompts={tmp / "prompts.txt"}'],
  )  # fmt: skip
  assert code == 0, err
  assert 'image 15/15 100%' in said and '15 done' in said
  return out


def test_drawings_show_what_was_said(drawn):
  done = rows(drawn)
  assert [row['name'] for row in done] == [f'{i:05d}.png' for i in range(15)]
  assert [row['prompt'] for row in done[::5]] == PROMPTS
  images = np.stack([np.asarray(Image.open(drawn / r['name'])) for r in done])
  assert images.shape == (15, 32, 32, 3)
  circle = np.array([[0, 0, 2, 0, 0]])  # large red circle top left
  found = score.scene_scores(images[:5] / 255, [circle] * 5)
  assert found['exact_scene'] == 1, found
  assert (images[0] != images[1]).any()  # their noise differs


@pytest.fixture(scope='module')
def redrawn(drawn, tmp_path_factory):
  """The folder, captioned and redrawn; one file is no image."""
  (drawn / 'broken.jpg').write_bytes(b'no image')
  (drawn / 'below').mkdir()
  Image.new('L', (40, 20), 90).save(drawn / 'below' / 'grey.gif')
  out = tmp_path_factory.mktemp('redrawn')
  source = f'--images={drawn}'
  [(code, said, err)] = caption([MODEL, source, f'--out={out / "captions"}'])
  assert code == 0, err
  assert '16 done, 1 could not be read' in said
  [(code, said, err)] = reconstruct(
    [MODEL, source, f'--out={out / "images"}', TOWERS]
  )
  assert code == 0, err
  assert 'sheet.html' in said
  return out


def test_captions_and_drawings_of_a_folder(drawn, redrawn):
  captions = {row['name']: row for row in rows(redrawn / 'captions')}
  images = {row['name']: row for row in rows(redrawn / 'images')}
  assert captions.keys() == images.keys()
  assert len(captions) == 17 and 'below/grey.gif' in captions
  assert captions.pop('broken.jpg')['error'] == 'cannot be read'
  for name, row in captions.items():
    assert images[name]['caption'] == row['caption']
    picture = Image.open(redrawn / 'images' / f'{name}.png')
    assert picture.size == (32, 32) and picture.mode == 'RGB'
    for tower in ('reward', 'judge_clip'):
      assert -1 <= images[name][tower] <= 1 + 1e-6
  assert 'red circle' in captions['00000.png']['caption']
  # The scores are those of the files that lie there.
  compare = load_towers(['bundled:umm1/reward'], make_mesh(-1, 1))['reward']
  name = '00000.png'
  pictures = [
    [np.asarray(Image.open(folder))]
    for folder in (drawn / name, redrawn / 'images' / f'{name}.png')
  ]
  [got], [same] = compare(*pictures), compare(pictures[0], pictures[0])
  np.testing.assert_allclose(got, images[name]['reward'], atol=1e-5)
  np.testing.assert_allclose(same, 1, atol=1e-5)


def test_the_sheet_shows_every_image(redrawn):
  page = (redrawn / 'images' / 'sheet.html').read_text()
  start = page.index('id="data">') + len('id="data">')
  data = json.loads(page[start : page.index('</script>', start)])
  assert data['gallery']['columns'] == ['reward', 'judge_clip']
  assert len(data['gallery']['items']) == 16
  assert data['config'][0][0] == 'reward, mean of 16'
  uri = data['gallery']['items'][0]['images'][0]
  name = rows(redrawn / 'images')[0]['name']
  picture = Image.open(redrawn / 'images' / f'{name}.png')
  assert uri == report.data_uri(np.asarray(picture))


def test_a_half_done_folder_is_finished_as_if_never_stopped(drawn, redrawn):
  folder = redrawn / 'images'
  whole = {f: f.read_bytes() for f in folder.rglob('*') if f.is_file()}
  lines = (folder / 'results.jsonl').read_text().splitlines(keepends=True)
  (folder / 'results.jsonl').write_text(''.join(lines[:5]) + lines[5][:9])
  for row in map(json.loads, lines[5:]):
    (folder / f'{row["name"]}.png').unlink(missing_ok=True)
  [(code, said, err)] = reconstruct(
    [MODEL, f'--images={drawn}', f'--out={folder}', TOWERS]
  )
  assert code == 0, err
  for file, data in whole.items():
    if file.suffix != '.jsonl':
      assert file.read_bytes() == data, file
  assert sorted(lines) == sorted(
    (folder / 'results.jsonl').read_text().splitlines(keepends=True)
  )


def test_mistakes_are_one_line_and_exit_2(drawn, redrawn, tmp_path):
  source, out = f'--images={drawn}', f'--out={tmp_path / "new"}'
  captions = f'--out={redrawn / "captions"}'
  (tmp_path / 'other').mkdir()
  (tmp_path / 'other' / 'x').write_text('x')
  (tmp_path / 'empty').mkdir()
  cases = {
    'no model': ([source, out], '--model'),
    'no such model': (['--model=/nowhere', source, out], '/nowhere'),
    'not on the hub': (['--model=a/b', source, out], 'hf download a/b'),
    'draws only': (
      ['--model=bundled:umm1/decoder/transformer', source, out],
      'neither describes nor draws',
    ),
    'other settings': ([MODEL, source, captions, '--length=9'], "['length']"),
    'other folder': (
      [MODEL, source, f'--out={tmp_path / "other"}'], 'neither empty',
    ),
    'no folder': ([MODEL, '--images=/nowhere', out], '/nowhere'),
    'no images': ([MODEL, f'--images={tmp_path / "empty"}', out], 'no image'),
    'batch': ([MODEL, source, out, '--batch=3'], 'batch=3'),
    'dtype': ([MODEL, source, out, '--dtype=int8'], 'int8'),
    'empty prompt': ([MODEL, source, out, '--prompt= '], 'prompt is empty'),
    'unwritable': ([MODEL, source, '--out=/dev/null/x'], '/dev/null'),
  }  # fmt: skip
  done = caption(*[args for args, _ in cases.values()])
  for (name, (_, says)), (code, _, err) in zip(cases.items(), done):
    assert code == 2, (name, err)
    assert says in err and len(err.strip().splitlines()) == 1, (name, err)
  assert not (tmp_path / 'new').exists()
  [no_prompt, bad_size] = generate(
    [MODEL, out], [MODEL, out, '--prompt=a', '--height=30']
  )
  assert no_prompt[0] == bad_size[0] == 2
  assert '--prompt' in no_prompt[2] and 'multiples of 4' in bad_size[2]
