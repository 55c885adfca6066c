"""Janus-Pro's images and prompts, against transformers' processor."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.models.janus.image_processing_pil_janus import (
  JanusImageProcessorPil,
)
from transformers.models.janus.processing_janus import JanusProcessor

from tests.photographs import photographs
from uae_jax.data import janus, tokenize
from uae_jax.errors import UserError
from uae_jax.models.clip import patches
from uae_jax.rollout.caption import in_template
from uae_jax.types import Captions

HALF = [0.5, 0.5, 0.5]
HUB = {
  'image_processor_type': 'JanusImageProcessor', 'min_size': 14,
  'image_mean': HALF, 'image_std': HALF,
  'size': {'height': 384, 'width': 384},
}  # fmt: skip
DEEPSEEK = {
  'image_processor_type': 'VLMImageProcessor', 'image_size': 384,
  'background_color': [127, 127, 127], 'image_mean': HALF, 'image_std': HALF,
  'min_size': 14,
}  # fmt: skip
WORDS = ['describe', 'a', 'red', 'cube', ':', '.', ',', '\n\n', '\n']
PROMPT = 'describe a red cube.'


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A word tokenizer with Janus's special tokens."""
  special = [
    janus.BOS, janus.PAD, '<end>', janus.USER, janus.ASSISTANT, janus.BOI,
    janus.EOI, janus.IMAGE, '<unk>',
  ]  # fmt: skip
  words = [*WORDS, *janus.SYSTEM.replace('.', ' ').replace(',', ' ').split()]
  vocab = {w: i for i, w in enumerate(dict.fromkeys([*special, *words]))}
  core = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, '<unk>'))
  split = tokenizers.pre_tokenizers.Split
  core.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
    [
      split(tokenizers.Regex(r'[^\S\n]+'), 'removed'),
      split(tokenizers.Regex(r'\n+|[.,:]'), 'isolated'),
    ]
  )
  core.post_processor = tokenizers.processors.TemplateProcessing(
    single=f'{janus.BOS} $A', special_tokens=[(janus.BOS, vocab[janus.BOS])]
  )
  out = tmp_path_factory.mktemp('janus')
  PreTrainedTokenizerFast(
    tokenizer_object=core, bos_token=janus.BOS, eos_token='<end>',
    pad_token=janus.PAD, unk_token='<unk>',
    additional_special_tokens=special[3:8],
    extra_special_tokens=dict(
      image_token=janus.IMAGE, boi_token=janus.BOI, eoi_token=janus.EOI
    ),
  ).save_pretrained(out)  # fmt: skip
  return out


@pytest.fixture(scope='module')
def processor(folder):
  tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
  for name, token in (
    ('image_token', janus.IMAGE), ('boi_token', janus.BOI),
    ('eoi_token', janus.EOI),
  ):  # fmt: skip
    setattr(tokenizer, name, token)
    setattr(tokenizer, f'{name}_id', tokenizer.convert_tokens_to_ids(token))
  images = JanusImageProcessorPil(
    image_mean=HALF, image_std=HALF, size=HUB['size']
  )
  return JanusProcessor(
    images, tokenizer, num_image_tokens=4, use_default_system_prompt=True
  )


@pytest.mark.parametrize('label', list(photographs()))
def test_pixels(label, processor):
  photo = photographs()[label]
  want = processor.image_processor(photo, return_tensors='np').pixel_values
  view = janus.JanusView.from_config(HUB, 16)
  got = view(photo)['patches']
  want = np.asarray(patches(jnp.asarray(want.transpose(0, 2, 3, 1)), 16))[0]
  assert got.shape == want.shape == (576, 768)
  assert np.abs(got - want).max() <= 1e-6


def test_deepseek_cuts_where_transformers_rounds():
  photo = np.full((333, 500, 3), 200, np.uint8)
  rows = {}
  for name, config in (('hub', HUB), ('deepseek', DEEPSEEK)):
    square = janus.JanusView.from_config(config, 16).pixels(photo)
    assert square.shape == (384, 384, 3)
    rows[name] = int((square[:, 0, 0] == 200).sum())
    assert square[0, 0].tolist() == [127] * 3  # not black
  assert rows == {'hub': 256, 'deepseek': 255}


@pytest.mark.parametrize('config', [HUB, DEEPSEEK], ids=['hub', 'deepseek'])
def test_the_longest_side_fills_the_square(config):
  view = janus.JanusView.from_config(config, 16)
  assert {view.resized(n // 2, n)[1] for n in range(2, 2000)} == {384}
  assert view.resized(2000, 1) == (384, 14)
  assert view(np.zeros((94, 30, 3), np.uint8))['patches'].shape == (576, 768)


def test_caption_prefix_is_the_processors(folder, processor):
  tok = tokenize.load_tokenizer(folder)
  template = janus.JanusTemplate.from_tokenizer(tok, PROMPT, 4)
  text = f'{janus.USER}: {janus.IMAGE}\n{PROMPT}\n\n{janus.ASSISTANT}:'
  photo = photographs()['coffee']
  want = processor(text=text, images=photo).input_ids[0].tolist()
  prefix = template.prefix()
  assert prefix['prefix_ids'].tolist() == want
  unknown = tok.core.token_to_id('<unk>')
  assert unknown not in want and want.count(template.image_pad) == 4
  assert prefix['prefix_positions'][1].tolist() == list(range(len(want)))
  bare = dataclasses.replace(
    template,
    before_image=janus.JanusTemplate.from_tokenizer(
      tok, PROMPT, 4, ''
    ).before_image,
  )
  assert len(bare.prefix()['prefix_ids']) < len(want)


def test_drawing_prompt_is_the_processors(folder, processor):
  tok = tokenize.load_tokenizer(folder)
  template = janus.JanusTemplate.from_tokenizer(tok, PROMPT, 4)
  text = f'{janus.USER}: a red cube\n\n{janus.ASSISTANT}:'
  want = processor(text=text, generation_mode='image').input_ids[0].tolist()
  caption = tok.encode(' a red cube')
  got = [*template.draw_before, *caption, *template.draw_after]
  assert got == want
  # The same around a caption that was sampled, shorter than its budget.
  ids, mask = tokenize.encode_caption(tok, ' a red cube', 6)
  words = Captions(ids[None, None], mask[None, None], jnp.zeros((1, 1, 6)))
  placed, mask = in_template(
    words, template.draw_before, template.draw_after, eos=template.eos,
    pad=template.pad,
  )  # fmt: skip
  assert placed[mask].tolist() == want
  assert template.pad == tok.core.token_to_id(janus.PAD)


def test_mistakes_are_one_line(folder):
  tok = tokenize.load_tokenizer(folder)
  make = janus.JanusTemplate.from_tokenizer
  with pytest.raises(UserError, match='empty'):
    make(tok, ' ', 4)
  with pytest.raises(UserError, match='contains'):
    make(tok, f'draw {janus.BOI}', 4)
  for config, says in (
    ({**HUB, 'size': {'height': 2, 'width': 4}}, 'not a square'),
    ({'image_size': 384}, 'image_mean'),
  ):
    with pytest.raises(UserError, match=says):
      janus.JanusView.from_config(config, 16)
  other = tokenizers.Tokenizer(tokenizers.models.WordLevel({'a': 0}, 'a'))
  with pytest.raises(UserError, match='Janus-Pro'):
    make(tokenize.Tokenizer(other, 0, 0), PROMPT, 4)
