"""Prompts against transformers, on tokenizers in the layouts of the hub."""

import json
import subprocess
import sys

import numpy as np
import pytest
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer, CLIPTokenizer, T5Tokenizer

from uae_jax.data.prompts import CLIP_LENGTH, PromptTokenizer
from uae_jax.errors import UserError

START, END = '<|startoftext|>', '<|endoftext|>'
PROMPTS = [
  '',
  'a red cube',
  'A RED  Cube,\n\ton "two" blue spheres!',
  "it's 1234 o'clock; they'll, we've... don't!!! (no?)",
  'caf\u00e9, cafe\u0301, na\u00efve, \u7ea2\u8272, \U0001f680 and \u00a0 x',
  f'the words {END} and {START.upper()} and ! and hello ! there',
  'a <extra_id_3> b </s> c <pad>d <unk> e',
  ' a ' * 3,
  'two small red spheres above a blue cube ' * 90,
]
MERGES = (
  'r e',
  're d</w>',
  'c u',
  'cu b',
  'cub e</w>',
  't h',
  'b l',
  '! !</w>',
)


def clip_folder(folder, pad=END, config=()):
  """vocab.json, merges.txt and tokenizer_config.json, as in SD3 and FLUX."""
  signs = sorted(pre_tokenizers.ByteLevel.alphabet())
  names = [*signs, *(f'{s}</w>' for s in signs)]
  names += [m.replace(' ', '') for m in MERGES] + [START, END]
  folder.mkdir(exist_ok=True)
  vocab = {name: i for i, name in enumerate(names)}
  (folder / 'vocab.json').write_text(json.dumps(vocab))
  (folder / 'merges.txt').write_text('\n'.join(['#version: 0.2', *MERGES, '']))
  token = dict(lstrip=False, rstrip=False, single_word=False, special=True)
  added = {
    START: dict(token, content=START, normalized=True),
    END: dict(token, content=END, normalized=False),
    pad: dict(token, content=pad, normalized=False),
  }
  config = dict(
    tokenizer_class='CLIPTokenizer', bos_token=START, eos_token=END,
    unk_token=END, pad_token=pad, model_max_length=CLIP_LENGTH,
    added_tokens_decoder={str(vocab[t]): added[t] for t in added},
    **dict(config),
  )  # fmt: skip
  (folder / 'tokenizer_config.json').write_text(json.dumps(config))
  return folder


def t5_folder(folder):
  """tokenizer.json of word pieces, as transformers writes it."""
  pieces = [
    '\u2581',
    '\u2581a',
    '\u2581red',
    '\u2581c',
    'ube',
    '\u2581two',
    's',
  ]
  pieces += [c for c in 'abcdefghijklmnoprtuvwxy.,!?']
  vocab = [('<pad>', 0.0), ('</s>', 0.0), ('<unk>', 0.0)]
  vocab += [(piece, -float(i + 1)) for i, piece in enumerate(pieces)]
  vocab += [(f'<extra_id_{i}>', 0.0) for i in reversed(range(5))]
  T5Tokenizer(vocab=vocab, extra_ids=5, model_max_length=512).save_pretrained(
    folder
  )
  return folder


def same(folder, length, kind=AutoTokenizer):
  theirs = kind.from_pretrained(folder)
  want = theirs(
    PROMPTS, padding='max_length', max_length=length, truncation=True
  )['input_ids']  # fmt: skip
  got = PromptTokenizer(folder)(PROMPTS, length)
  assert got.dtype == np.int32
  np.testing.assert_array_equal(got, want)
  return got


@pytest.mark.parametrize('length', [CLIP_LENGTH, 20])
@pytest.mark.parametrize('pad', [END, '!'])
def test_clip_vocab_and_merges(tmp_path, pad, length):
  ids = same(clip_folder(tmp_path, pad), length, CLIPTokenizer)
  start, end = ids[0, :2]
  assert (ids[:, 0] == start).all()
  assert (ids[-1, -1], ids[-1, 0]) == (end, start)  # cut, and still closed
  assert (ids[0, 2:] == (end if pad == END else 0)).all()


@pytest.mark.parametrize('pad', [END, '!'])
def test_clip_tokenizer_json(tmp_path, pad):
  old = CLIPTokenizer.from_pretrained(clip_folder(tmp_path / 'old', pad))
  old.save_pretrained(tmp_path / 'new')
  assert (tmp_path / 'new/tokenizer.json').exists()
  ids = same(tmp_path / 'new', CLIP_LENGTH)
  both = PromptTokenizer(tmp_path / 'old')(PROMPTS, CLIP_LENGTH)
  np.testing.assert_array_equal(ids, both)


@pytest.mark.parametrize('where', ['tokenizer_config', 'special_tokens_map'])
def test_clip_folders_of_early_exports(tmp_path, where):
  """They describe each token in place, and the padding in either file."""
  folder = clip_folder(tmp_path)
  file = folder / 'tokenizer_config.json'
  config = json.loads(file.read_text())
  del config['added_tokens_decoder'], config['pad_token']
  token = dict(lstrip=False, normalized=True, rstrip=False, single_word=False)
  for key in ('bos_token', 'eos_token', 'unk_token'):
    config[key] = dict(
      token, content=config[key], **{'__type': 'AddedToken'}
    )  # fmt: skip
  extra = dict(pad_token='!')
  if where == 'tokenizer_config':
    config |= extra
  else:
    (folder / f'{where}.json').write_text(json.dumps(extra))
  file.write_text(json.dumps(config))
  assert same(folder, CLIP_LENGTH)[0, -1] == 0


@pytest.mark.parametrize('length', [77, 256, 512])
def test_t5(tmp_path, length):
  ids = same(t5_folder(tmp_path), length)
  assert ids[0].tolist() == [1] + [0] * (length - 1)
  assert ids[-1, -1] == 1  # cut, and still closed


def test_lengths_follow_each_other(tmp_path):
  ours = PromptTokenizer(t5_folder(tmp_path))
  assert [ours(['a'], n).shape[1] for n in (512, 4, 77)] == [512, 4, 77]


def test_the_tokenizer_needs_no_torch(tmp_path):
  clip_folder(tmp_path)
  script = (
    'import sys; from uae_jax.data.prompts import PromptTokenizer; '
    f'PromptTokenizer({str(tmp_path)!r})(["a red cube"], 77); '
    'bad = {"torch", "transformers", "jax"} & set(sys.modules); '
    'assert not bad, bad'
  )
  subprocess.run([sys.executable, '-c', script], check=True)


def test_mistakes_are_one_line(tmp_path):
  with pytest.raises(UserError, match='is missing'):
    PromptTokenizer(tmp_path / 'nothing')
  with pytest.raises(UserError, match='no tokenizer'):
    PromptTokenizer(tmp_path)
  (tmp_path / 'spiece.model').write_bytes(b'')
  with pytest.raises(UserError, match='save_pretrained'):
    PromptTokenizer(tmp_path)
  folder = clip_folder(tmp_path / 'clip')
  with pytest.raises(UserError, match='no prompt'):
    PromptTokenizer(folder)([], 8)
  config = (folder / 'tokenizer_config.json').read_text()
  for without in ('{}', config.replace(f'"pad_token": "{END}"',
                                       '"pad_token": "[PAD]"')):  # fmt: skip
    assert without != config
    (folder / 'tokenizer_config.json').write_text(without)
    with pytest.raises(UserError, match='pad_token'):
      PromptTokenizer(folder)
  (folder / 'tokenizer_config.json').write_text(config[:-5])
  with pytest.raises(UserError, match='not JSON'):
    PromptTokenizer(folder)
  (folder / 'tokenizer_config.json').write_text(config)
  (folder / 'vocab.json').write_text('[]')
  with pytest.raises(UserError, match='not a tokenizer'):
    PromptTokenizer(folder)
