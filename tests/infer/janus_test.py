"""Janus-Pro from its hub folder: captions and drawings of transformers."""

import json

import jax
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
  JanusConfig,
  JanusForConditionalGeneration,
  PreTrainedTokenizerFast,
)

from tests.data.janus_test import HUB, folder, processor  # noqa: F401
from tests.photographs import photographs
from tests.tiny_janus import CONFIG
from tests.tools import commands
from tests.torch_fixtures import randomise
from uae_jax.data import janus
from uae_jax.errors import UserError
from uae_jax.infer.load import load
from uae_jax.sharding.mesh import make_mesh

SIZE = 64
SAID = dict(prompt='describe a red cube.', length=8, image_temperature=0.0)
PROMPTS = ['a red cube', 'a cube , a red cube']


@pytest.fixture(scope='module')
def hub(folder, processor, tmp_path_factory):  # noqa: F811
  """(torch model, its folder, its processor), tiny."""
  out = tmp_path_factory.mktemp('model')
  tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
  ids = tokenizer.convert_tokens_to_ids
  text = dict(
    CONFIG['text_config'], bos_token_id=ids(janus.BOS),
    eos_token_id=ids('<end>'), pad_token_id=ids(janus.PAD),
  )  # fmt: skip
  config = JanusConfig(
    **{**CONFIG, 'text_config': text, 'image_token_id': ids(janus.IMAGE)}
  )
  theirs = randomise(JanusForConditionalGeneration(config))
  theirs.save_pretrained(out)
  tokenizer.save_pretrained(out)
  images = {**HUB, 'size': {'height': SIZE, 'width': SIZE}}
  (out / 'preprocessor_config.json').write_text(json.dumps(images))
  processor.image_processor.size = images['size']
  processor.num_image_tokens = 16
  return theirs, out, processor


@torch.no_grad()
def test_captions_equal_generate(hub):
  theirs, out, process = hub
  photos = [photographs()[name] for name in ('coffee', 'thin')]
  text = f'{janus.USER}: {janus.IMAGE}\n{SAID["prompt"]}\n\n{janus.ASSISTANT}:'
  want = []
  for photo in photos:
    inputs = process(text=text, images=photo, return_tensors='pt')
    ids = theirs.generate(
      **inputs, do_sample=False, max_new_tokens=8, generation_mode='text'
    )[0, inputs.input_ids.shape[1] :]
    want.append(process.decode(ids, skip_special_tokens=True).strip())
  with jax.default_matmul_precision('highest'):
    model = load(str(out), make_mesh(-1, 1), SAID, draws=False)
    got = model.describe(photos, jax.random.key(0))
  assert got == want and got[0]


@torch.no_grad()
def test_drawings_equal_generate(hub):
  theirs, out, process = hub
  config = theirs.generation_config
  config.generation_kwargs = {'boi_token_id': process.tokenizer.boi_token_id}
  config.pad_token_id = theirs.config.text_config.pad_token_id
  config.bos_token_id = theirs.config.text_config.bos_token_id
  want = []
  for prompt in PROMPTS:
    text = f'{janus.USER}: {prompt}\n\n{janus.ASSISTANT}:'
    inputs = process(text=text, generation_mode='image', return_tensors='pt')
    codes = theirs.generate(
      input_ids=inputs.input_ids, attention_mask=inputs.attention_mask,
      generation_mode='image', do_sample=False, guidance_scale=5.0,
    )  # fmt: skip
    pixels = theirs.decode_image_tokens(codes)[0].numpy()
    want.append(np.clip(pixels / 2 + 0.5, 0, 1) * 255)
  with jax.default_matmul_precision('highest'):
    model = load(str(out), make_mesh(-1, 1), SAID, describes=False)
    got = model.draw(PROMPTS, jax.random.key(0))
  for ours, other in zip(got, want):
    assert ours.shape == other.shape
    assert np.abs(ours - other).max() <= 0.5 + 1e-2


def test_a_folder_is_redrawn_by_the_command(hub, tmp_path):
  _, out, _ = hub
  for name in ('coffee', 'small'):
    (tmp_path / 'in').mkdir(exist_ok=True)
    picture = Image.fromarray(photographs()[name])
    picture.save(tmp_path / 'in' / f'{name}.png')
  flags = [f'--model={out}', f'--images={tmp_path / "in"}', '--length=8']
  (code, said, err), (bad, _, says) = commands.run(
    'reconstruct',
    [*flags, f'--out={tmp_path / "out"}', '--towers=bundled:umm1/reward'],
    [*flags, f'--out={tmp_path / "no"}', '--steps=4'],
  )
  assert code == 0, err
  assert '2 done' in said and (tmp_path / 'out' / 'sheet.html').exists()
  assert Image.open(tmp_path / 'out' / 'coffee.png.png').mode == 'RGB'
  assert bad == 2 and "has no ['steps']" in says


def test_a_captioner_alone_cannot_draw(hub):
  model = load(str(hub[1]), make_mesh(-1, 1), SAID, draws=False)
  with pytest.raises(UserError, match='no decoder'):
    model.draw(PROMPTS, jax.random.key(0))
