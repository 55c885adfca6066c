"""Captions in another vocabulary, and the scores of a CLIP."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers as hub

from tests.torch_fixtures import close, randomise
from uae_jax import zoo
from uae_jax.data import tokenize
from uae_jax.errors import UserError
from uae_jax.models.clip import LEGACY_EOS
from uae_jax.rewards.features import Tower
from uae_jax.rewards.text import HostTokens, TextTerm, WordTable
from uae_jax.train.rewards import retokeniser, written

UMM1, UMM2 = (zoo.resolve(f'bundled:{n}/processors') for n in ('umm1', 'umm2'))
LANGUAGE = dict(ctx=10, vocab=64, eos=5)
SIZES = dict(
  hidden_size=32, intermediate_size=48, num_hidden_layers=2,
  num_attention_heads=2,
)  # fmt: skip


def at_once(fn, shape, dtype, *rows):
  """`call_rows` without a device."""
  out = fn(*map(np.asarray, rows))
  assert out.shape == (len(rows[0]), *shape)
  return jnp.asarray(out, dtype)


def captions(tokenizer, size, group=40, length=14):
  """Random ids of a vocabulary [1 G L], special and unknown ones among them."""
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, size, (1, group, length)).astype(np.int32)
  last = rng.integers(0, length, (1, group))
  tokens = np.where(np.arange(length) == last[..., None], tokenizer.eos, tokens)
  first = np.argmax(tokens == tokenizer.eos, -1)
  return tokens, np.arange(length) <= first[..., None]


@pytest.mark.parametrize('folder', [UMM1, UMM2], ids=['umm1', 'umm2'])
def test_words_are_looked_up_as_if_they_were_written_and_read(folder):
  policy = tokenize.load_tokenizer(folder)
  tower = tokenize.load_tokenizer(UMM1)
  table = retokeniser(policy, UMM1, LANGUAGE)
  assert isinstance(table, WordTable)
  tokens, mask = captions(policy, policy.size)
  got = table(jnp.asarray(tokens), jnp.asarray(mask), None)
  assert got.shape == (1, 40, 10)
  for ids, said, there in zip(got[0], tokens[0], mask[0]):
    text = written(policy)(said[there])
    want, _ = tokenize.encode_caption(tower, text, 10)
    np.testing.assert_array_equal(ids, want)


def test_ids_that_are_no_words_are_left_out():
  table = WordTable((-1, 20, -1, 21), eos=5, pad=0, length=4)
  tokens = jnp.array([[[0, 1, 2, 3, 99, 1], [1, 1, 1, 3, 3, 3]]])
  mask = jnp.array([[[True] * 6, [True] * 6]])
  got = table(tokens, mask, None)
  np.testing.assert_array_equal(got, [[[20, 21, 20, 5], [20, 20, 20, 5]]])
  got = table(tokens[..., :2], mask[..., :2], None)
  np.testing.assert_array_equal(got, [[[20, 5, 0, 0], [20, 20, 5, 0]]])


@pytest.fixture(scope='module')
def clip(tmp_path_factory):
  """A hub folder of a random CLIP with CLIP's tokenizer, and both."""
  folder = tmp_path_factory.mktemp('clip')
  words = [f'{c}</w>' for c in 'abcdefgh'] + list('abcdefgh')
  vocab = {w: i for i, w in enumerate(words)}
  vocab |= {'<|startoftext|>': 16, '<|endoftext|>': 17, 'ab</w>': 18}
  (folder / 'vocab.json').write_text(json.dumps(vocab))
  (folder / 'merges.txt').write_text('#version: 0.2\na b</w>\n')
  tokenizer = hub.CLIPTokenizer(
    str(folder / 'vocab.json'), str(folder / 'merges.txt')
  )
  tokenizer.save_pretrained(folder)
  model = randomise(
    hub.CLIPModel(
      hub.CLIPConfig(
        vision_config=dict(image_size=16, patch_size=8, **SIZES),
        text_config=dict(
          vocab_size=19, max_position_embeddings=9, bos_token_id=16,
          eos_token_id=17, **SIZES,
        ),
        projection_dim=24,
      )
    )
  )  # fmt: skip
  model.save_pretrained(folder)
  return folder, tokenizer, model


def test_captions_are_written_out_and_read_by_clips_tokenizer(clip):
  folder, theirs, _ = clip
  policy = tokenize.load_tokenizer(UMM1)
  read = retokeniser(policy, folder, dict(ctx=9, vocab=19, eos=17))
  assert isinstance(read, HostTokens)
  written = ['', 'ab', 'a b c d e f g h a b', 'gh abc']
  spell = lambda ids: written[int(ids[0])]
  read = HostTokens(spell, read.encode, 9)
  tokens = np.arange(4).reshape(2, 2, 1)
  got = read(tokens, np.ones(tokens.shape, bool), at_once)
  want = theirs(written, padding='max_length', max_length=9, truncation=True)
  np.testing.assert_array_equal(got.reshape(4, 9), want['input_ids'])


@torch.no_grad()
def test_scores_are_those_of_transformers_clip(clip):
  folder, theirs, model = clip
  ours = zoo.tower_from_folder(folder)
  params = ours.load(folder)
  tower = Tower(ours.module, 16, (0.5,) * 3, (0.5,) * 3)
  images = np.random.default_rng(0).uniform(size=(3, 16, 16, 3))
  images = images.astype(np.float32)
  ids = theirs(['ab c', 'h', ''], padding='max_length', max_length=9)
  ids = np.array(ids['input_ids'])
  pixels = torch.tensor(images * 2 - 1).permute(0, 3, 1, 2)
  out = model(input_ids=torch.tensor(ids), pixel_values=pixels)
  seen = tower.embed(params, images)[:, None]
  texts = tower.embed_text(params, jnp.asarray(ids))
  every = jnp.broadcast_to(texts[None], (3, *texts.shape))
  term = lambda head: TextTerm(tower, 'text', 'drawn', head, None)
  logits = term('logit').score(params, seen, every)
  close(logits, out.logits_per_image)
  cosine = torch.nn.functional.cosine_similarity(
    out.image_embeds[:, None], out.text_embeds[None], -1
  )
  close(term('cosine').score(params, seen, every), cosine)


@pytest.mark.parametrize('language', [dict(eos=9), dict(vocab=5)])
def test_a_tokenizer_of_another_tower_is_refused(language):
  policy = tokenize.load_tokenizer(UMM1)
  with pytest.raises(UserError, match='not the tokenizer of the text tower'):
    retokeniser(policy, UMM1, LANGUAGE | language)
  # Old CLIP configs do not say how captions end.
  retokeniser(policy, UMM1, LANGUAGE | dict(eos=LEGACY_EOS))


def test_a_folder_without_tokenizer_is_one_line():
  policy = tokenize.load_tokenizer(UMM1)
  with pytest.raises(UserError, match='no tokenizer'):
    retokeniser(policy, zoo.resolve('bundled:umm1/reward'), LANGUAGE)
