"""The word tokenizer, its Hugging Face twin, and the chat template."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from uae_jax.data import tokenize
from uae_jax.data.scenes import draw, grammar
from uae_jax.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp('tokenizer')
  tokenize.build_word_tokenizer(str(path))
  return path


@pytest.fixture(scope='module')
def tok(folder):
  return tokenize.load_tokenizer(str(folder))


def test_vocabulary_is_small_and_knows_every_word(tok):
  assert tok.size < 64
  unknown = tok.id(tokenize.UNKNOWN)
  text = ' '.join((*grammar.WORDS, tokenize.PROMPT))
  assert unknown not in tok.encode(text)
  assert unknown in tok.encode('lorem')


def test_ids_are_those_of_the_bundled_weights(tok):
  bundled = 'uae_jax/assets/umm1'
  for part in ('processors', 'policy', 'blind'):
    theirs = tokenize.load_tokenizer(str(ROOT / bundled / part))
    assert theirs.core.get_vocab() == tok.core.get_vocab()
  assert [tok.id(w) for w in ('circle', 'right', ',')] == [16, 36, 37]
  assert tok.encode('text ghjlpstz') == (38, tok.id(tokenize.UNKNOWN))
  assert tok.encode('text g h j l p s t z') == tuple(range(38, 47))


def test_full_captions_round_trip_in_24_tokens(tok):
  rng = np.random.default_rng(0)
  for _ in range(200):
    caption = grammar.describe(draw.sample_scene(rng))
    ids, mask = tokenize.encode_caption(tok, caption, 24)
    assert ids.shape == mask.shape == (24,) and ids.dtype == np.int32
    assert ids[mask][-1] == tok.eos and np.all(ids[~mask] == tok.pad)
    assert mask.sum() == len(caption.split()) + 1
    assert tokenize.decode(tok, ids) == caption


def test_long_captions_keep_their_eos(tok):
  ids, mask = tokenize.encode_caption(tok, 'red , ' * 30, 8)
  assert mask.all() and ids[-1] == tok.eos and tok.eos not in ids[:-1]


def test_decode_without_eos(tok):
  assert tokenize.decode(tok, tok.encode('red  CIRCLE,blue')) == (
    'red circle , blue'
  )


def test_template_is_the_chat_template(tok):
  template = tokenize.Template.from_tokenizer(tok, tokenize.PROMPT)
  whole = (
    '<|im_start|>user\n<|vision_start|>' + '<|image_pad|>' * 16
    + f'<|vision_end|>{tokenize.PROMPT}<|im_end|>\n<|im_start|>assistant\n'
  )  # fmt: skip
  ids = template.prefix(16)
  assert tuple(ids) == tok.encode(whole)
  assert len(ids) == 16 + template.overhead
  assert np.sum(ids == template.image_pad) == 16
  drawn = template.draw_before + tok.encode('red circle') + template.draw_after
  assert drawn == tok.encode(
    '<|im_start|>user\nred circle<|im_end|>\n<|im_start|>assistant\n'
  )
  assert template.draw_after[0] == template.eos == tok.id('<|im_end|>')
  assert tok.id('\n') in template.draw_before
  hash(template)


@pytest.mark.parametrize('prompt', ['', ' \n', 'see <|image_pad|>'])
def test_bad_prompts(tok, prompt):
  with pytest.raises(UserError, match='prompt'):
    tokenize.Template.from_tokenizer(tok, prompt)


def test_transformers_reads_the_same_ids(folder, tok):
  transformers = pytest.importorskip('transformers')
  theirs = transformers.AutoTokenizer.from_pretrained(str(folder))
  assert theirs.is_fast
  assert (theirs.eos_token_id, theirs.pad_token_id) == (tok.eos, tok.pad)
  text = '<|im_start|>user\n<|image_pad|>small Red circle,top left<|im_end|>\n'
  ids = theirs(text, add_special_tokens=False)['input_ids']
  assert tuple(ids) == tok.encode(text)
  assert theirs.decode(ids, skip_special_tokens=True).split() == (
    tok.core.decode(ids, skip_special_tokens=True).split()
  )


def test_missing_and_corrupt_files(folder, tmp_path):
  with pytest.raises(UserError, match='no tokenizer at'):
    tokenize.load_tokenizer(str(tmp_path / 'nothing'))
  (tmp_path / 'tokenizer.json').write_text('{')
  (tmp_path / 'tokenizer_config.json').write_text('{}')
  with pytest.raises(UserError, match='is not a tokenizer'):
    tokenize.load_tokenizer(str(tmp_path))
  core = (folder / 'tokenizer.json').read_text()
  (tmp_path / 'tokenizer.json').write_text(core)
  with pytest.raises(UserError, match='has no eos_token'):
    tokenize.load_tokenizer(str(tmp_path))
  config = {'eos_token': {'content': '<|im_end|>'}, 'pad_token': '<none>'}
  (tmp_path / 'tokenizer_config.json').write_text(json.dumps(config))
  with pytest.raises(UserError, match='has no pad_token <none>'):
    tokenize.load_tokenizer(str(tmp_path))


def test_import_stays_light():
  code = (
    'import sys; import uae_jax.data.tokenize, uae_jax.data.preprocess;'
    'import uae_jax.data.pipeline;'
    "print({'torch', 'tensorflow', 'transformers'} & set(sys.modules))"
  )
  out = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  assert out.stdout.strip() == 'set()'
