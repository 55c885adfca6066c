"""Folders scored by the command: backbones, resuming, mistakes.

The reference for the backbones is transformers end to end: its processor,
then its model, and torch's cosine.
"""

import functools
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers as hub
from PIL import Image

from tests.data.tower_preprocess_test import (
  CLIP,
  FILES,
  IMAGENET,
  SQUARE,
  reference,
  write,
)
from tests.photographs import photographs
from tests.tools import commands
from tests.torch_fixtures import randomise
from uae_jax.eval.benchmark import read_summary

score = functools.partial(commands.run, 'score')
JUDGE = '--towers=bundled:umm1/judge_clip'

SIZES = dict(
  hidden_size=48,
  intermediate_size=64,
  num_hidden_layers=2,
  num_attention_heads=3,
)
DINO2 = {k: v for k, v in SIZES.items() if k != 'intermediate_size'}
VISION = dict(image_size=56, patch_size=8, **SIZES)
TEXT = dict(vocab_size=64, bos_token_id=0, eos_token_id=1, **SIZES)
CROP = dict(crop_size=SQUARE(56), size={'shortest_edge': 64}, resample=3)
# Folder -> model, preprocessor_config.json, its reference.
BACKBONES = {
  'clip-vit-tiny': (
    lambda: hub.CLIPModel(
      hub.CLIPConfig(vision_config=VISION, text_config=TEXT, projection_dim=24)
    ),
    FILES['clip'] | {'crop_size': 56, 'size': 56},
    'clip',
  ),
  'longclip-tiny': (
    lambda: hub.CLIPModel(
      hub.CLIPConfig(
        vision_config={**VISION, 'hidden_size': 36},
        text_config={**TEXT, 'max_position_embeddings': 248},
        projection_dim=16,
      )
    ),
    CROP | CLIP | {'image_processor_type': 'CLIPImageProcessor'},
    'clip',
  ),
  'dinov2-tiny': (
    lambda: hub.Dinov2Model(
      hub.Dinov2Config(image_size=70, patch_size=8, **DINO2)
    ),
    CROP | IMAGENET | {'image_processor_type': 'BitImageProcessor'},
    'dinov2',
  ),
  'dinov3-tiny': (
    lambda: hub.DINOv3ViTModel(
      hub.DINOv3ViTConfig(**SIZES, patch_size=32, num_register_tokens=4)
    ),
    FILES['dinov3'],
    'dinov3',
  ),
}


def save_backbones(folder):
  """The four, random and tiny, in the hub's layout; by name."""
  models = {}
  for name, (build, file, _) in BACKBONES.items():
    models[name] = randomise(build())
    models[name].save_pretrained(folder / name)
    write(folder / name, file)
  return models


@torch.no_grad()
def expected(models, folder, name, first, second):
  """torch's cosine of two images."""
  process, out = reference(BACKBONES[name][2], folder / name), []
  for image in (first, second):
    x = torch.tensor(process(image)).permute(2, 0, 1)[None]
    model = models[name]
    if isinstance(model, hub.CLIPModel):
      pooled = model.vision_model(pixel_values=x).pooler_output
      out.append(model.visual_projection(pooled))
    else:
      out.append(model(pixel_values=x).last_hidden_state[:, 0])
  return torch.cosine_similarity(*out).item()


def save_pairs(references, images):
  """Photographs as png, and what was made of them as files of other sizes."""
  references.mkdir()
  images.mkdir()
  sources, made = {}, {}
  for i, (name, photo) in enumerate([*photographs().items()][:8]):
    Image.fromarray(photo).save(references / f'{name}.png')
    other = [photo[:, ::-1], photo[::2, ::3], 255 - photo, np.roll(photo, 40)]
    made[name] = np.ascontiguousarray(other[i % 4])
    Image.fromarray(made[name]).save(images / f'{name}.PNG')
    sources[name] = photo
  return sources, made


def rows(folder):
  lines = (folder / 'results.jsonl').read_text().splitlines()
  return {row['name']: row for row in map(json.loads, lines)}


@pytest.fixture(scope='module')
def scored(tmp_path_factory):
  """Photographs and their changed copies, scored by all four backbones."""
  tmp = tmp_path_factory.mktemp('scored')
  models = save_backbones(tmp)
  pictures = save_pairs(tmp / 'a', tmp / 'b')
  Image.new('RGB', (9, 9)).save(tmp / 'b' / 'extra.png')
  Image.new('RGB', (9, 9)).save(tmp / 'a' / 'missing.png')
  towers = ','.join(str(tmp / name) for name in BACKBONES)
  [(code, said, err)] = score(
    [f'--images={tmp / "b"}', f'--references={tmp / "a"}', '--label=mine',
     f'--towers={towers}', f'--out={tmp / "out"}', '--reward=clip-vit-tiny',
     '--conditioning=caption'],
  )  # fmt: skip
  assert code == 0, err
  want = {
    tower: {
      f'{name}.png': expected(models, tmp, tower, photo, pictures[1][name])
      for name, photo in pictures[0].items()
    }
    for tower in BACKBONES
  }
  return tmp, want, said


def test_all_backbones_score_as_transformers_does(scored):
  tmp, want, _ = scored
  done = rows(tmp / 'out')
  for tower, cosines in want.items():
    assert np.std([*cosines.values()]) > 1e-3, tower
    for name, cosine in cosines.items():
      assert abs(done[name][tower] - cosine) <= 1e-4, (tower, name)
  assert len(done) == 8


def test_the_summary_and_the_table(scored):
  tmp, want, said = scored
  summary = read_summary(tmp / 'out')
  assert (summary.benchmark, summary.label) == ('unified_bench', 'mine')
  assert summary.settings['reward'] == ['clip-vit-tiny']
  assert summary.settings['conditioning'] == 'caption'
  assert summary.settings['towers'] == [*BACKBONES]
  means = {k: 100 * np.mean([*v.values()]) for k, v in want.items()}
  assert [*summary.scores] == ['unified_score', *BACKBONES]
  for tower, mean in means.items():
    s = summary.scores[tower]
    assert abs(s.value - mean) < 1e-2 and s.n == 8
    assert s.low < s.value < s.high
  overall = summary.scores['unified_score'].value
  assert abs(overall - np.mean([*means.values()])) < 1e-2
  assert f'| unified_score | {overall:.2f} |' in said
  assert '| clip-vit-tiny (reward) |' in said
  assert (
    '8 pairs, 1 references without an image, 1 images without a reference'
    in said
  )
  assert 'image 8/8 100%' in said and 'ETA' in said


def test_what_lies_beside_the_summary(scored):
  tmp, want, _ = scored
  out, done = tmp / 'out', rows(tmp / 'out')
  for tower in BACKBONES:
    file = json.loads((out / f'cosines/{tower}.json').read_text())
    cosines = {name: done[name][tower] for name in want[tower]}
    mean = np.mean([*cosines.values()])
    assert file.pop('average') == pytest.approx(mean)
    assert file.pop('min') == min(cosines.values())
    assert file.pop('max') == max(cosines.values())
    assert file == cosines
  unpaired = json.loads((out / 'unpaired.json').read_text())
  assert unpaired == {'references': ['missing.png'], 'images': ['extra.png']}
  page = (out / 'sheet.html').read_text()
  assert not re.search(r'(src|href)="?(https?:)?//', page)
  start = page.index('id="data">') + len('id="data">')
  data = json.loads(page[start : page.index('</script>', start)])
  assert data['gallery']['columns'] == [*BACKBONES]
  names = [item['captions'][0] for item in data['gallery']['items']]
  assert sorted(names) == sorted(done)


# A Ctrl-C comes once so many batches are compared; says how many were.
STOPPED = """
import sys
from uae_jax.tools import cli, score
limit, real, calls = int(sys.argv.pop()), score.load_towers, []
def load_towers(*args):
  def stop(compare):
    def run(*pair):
      if len(calls) == limit:
        raise KeyboardInterrupt
      calls.append(1)
      return compare(*pair)
    return run
  return {name: stop(c) for name, c in real(*args).items()}
score.load_towers = load_towers
try:
  cli.run(score.main)
finally:
  print('batches', len(calls))
"""


def test_a_stopped_command_goes_on_where_it_was(tmp_path):
  save_pairs(tmp_path / 'a', tmp_path / 'b')
  (tmp_path / 'b' / 'chelsea.PNG').write_bytes(b'no image')
  half, whole = tmp_path / 'half', tmp_path / 'whole'
  stopped, resumed, once = (
    subprocess.run(
      [sys.executable, '-c', STOPPED, f'--images={tmp_path / "b"}',
       f'--references={tmp_path / "a"}', '--batch=2', JUDGE, f'--out={out}',
       str(limit)],
      capture_output=True, text=True, cwd=commands.ROOT,
      env={**os.environ, 'PYTHONPATH': str(commands.ROOT)},
    )
    for out, limit in ((half, 1), (half, 9), (whole, 9))
  )  # fmt: skip
  assert stopped.returncode == 130, stopped.stderr
  assert 'run the same command to go on' in stopped.stderr
  assert 'batches 1' in stopped.stdout
  assert resumed.returncode == 0, resumed.stderr
  assert 'batches 3' in resumed.stdout and 'batches 4' in once.stdout
  for done in (resumed, once):
    assert '7 pairs, 1 could not be read' in done.stdout
    assert 'image 8/8 100%' in done.stdout
  for file in ('results.jsonl', 'summary.json', 'cosines/judge_clip.json'):
    assert (half / file).read_bytes() == (whole / file).read_bytes(), file


def test_mistakes_are_one_line_and_exit_2(tmp_path):
  save_pairs(tmp_path / 'a', tmp_path / 'b')
  for name in ('bad_a', 'bad_b'):
    (tmp_path / name).mkdir()
    (tmp_path / name / 'x.png').write_bytes(b'no image')
  (tmp_path / 'full').mkdir()
  (tmp_path / 'full' / 'x').write_text('x')
  Image.new('RGB', (8, 8)).save(tmp_path / 'bad_a' / 'y.png')
  Image.new('RGB', (8, 8)).save(tmp_path / 'bad_b' / 'z.png')
  images, references = (
    f'--images={tmp_path / "b"}',
    f'--references={tmp_path / "a"}',
  )
  out = f'--out={tmp_path / "new"}'
  bad = [f'--images={tmp_path / "bad_b"}', f'--references={tmp_path / "bad_a"}']
  cases = {
    'no images': ([references, out, JUDGE], '--images'),
    'no towers': ([images, references, out], '--towers'),
    'empty towers': ([images, references, out, '--towers='], 'one tower'),
    'no folder': (['--images=/nowhere', references, out, JUDGE], '/nowhere'),
    'no tower': (
      [images, references, out, '--towers=/no/tower'], '/no/tower',
    ),
    'twice': (
      [images, references, out, f'{JUDGE},bundled:umm1/judge_clip'],
      'two towers',
    ),
    'not a tower': (
      [images, references, out, '--towers=bundled:umm1/policy'], 'qwen2_5_vl',
    ),
    'reward': ([images, references, out, JUDGE, '--reward=clip'], '--reward'),
    'dtype': ([images, references, out, JUDGE, '--dtype=int8'], 'int8'),
    'batch': ([images, references, out, JUDGE, '--batch=0'], 'batch=0'),
    'unpaired': (
      [f'--images={tmp_path / "full"}', references, out, JUDGE], 'no image',
    ),
    'strange out': (
      [images, references, JUDGE, f'--out={tmp_path / "full"}'],
      'neither empty',
    ),
    'all corrupt': (
      [*bad, JUDGE, f'--out={tmp_path / "corrupt"}'], 'none of 1 images',
    ),
  }  # fmt: skip
  done = score(*[args for args, _ in cases.values()])
  for (name, (_, says)), (code, _, err) in zip(cases.items(), done):
    assert code == 2, (name, err)
    lines = [line for line in err.splitlines() if 'skipped' not in line]
    assert says in err and len(lines) == 1, (name, err)
  assert not (tmp_path / 'new').exists()
