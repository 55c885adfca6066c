"""Tokenizers as files, and the Qwen2.5-VL chat template as token ids.

Reads the `tokenizer.json` and `tokenizer_config.json` of any Hugging Face
folder with the tokenizers library alone: transformers' AutoTokenizer gives
the same ids but imports torch wherever torch is installed.
"""

import dataclasses
import functools
import json
import os
from collections.abc import Sequence

import numpy as np
import tokenizers
from jaxtyping import Bool, Int

from uae_jax.data.scenes import grammar
from uae_jax.errors import UserError

PAD, EOS = '<|endoftext|>', '<|im_end|>'
IMAGE_PAD = '<|image_pad|>'
# EOS is not the third: CLIP configs give id 2 a meaning of its own.
SPECIAL = (
  PAD,
  '<|im_start|>',
  '<|vision_start|>',
  '<|vision_end|>',
  IMAGE_PAD,
  EOS,
)
UNKNOWN = '<unk>'
# What the embedded sizes are asked; its words are in their vocabulary.
PROMPT = 'describe every object in the image'


@dataclasses.dataclass(frozen=True)
class Tokenizer:
  """A tokenizer with the ids that end and fill a caption."""

  core: tokenizers.Tokenizer
  eos: int
  pad: int

  @property
  def size(self) -> int:
    """Entries in the vocabulary, special tokens included."""
    return self.core.get_vocab_size(with_added_tokens=True)

  def encode(self, text: str) -> tuple[int, ...]:
    """Ids of a text; special tokens only where the text spells them.

    Raises:
      UserError: the tokenizer fails on it.
    """
    try:
      return tuple(self.core.encode(text, add_special_tokens=False).ids)
    except Exception as e:  # the library raises bare Exception
      raise UserError(f'the tokenizer cannot read {text[:40]!r}: {e}') from e

  def id(self, token: str) -> int:
    """Id of one token.

    Raises:
      UserError: the vocabulary does not have it.
    """
    found = self.core.token_to_id(token)
    if found is None:
      raise UserError(
        f'the tokenizer has no token {token}; use that of the checkpoint'
      )
    return found


def build_word_tokenizer(
  folder: str,
  special: Sequence[str] = SPECIAL,
  words: Sequence[str] = ('\n', 'user', 'assistant'),
  *,
  eos: str = EOS,
  pad: str = PAD,
) -> None:
  """Writes the embedded sizes' tokenizer: one id per word of the grammar.

  The folder also loads with `AutoTokenizer.from_pretrained`.

  Args:
    folder: to write.
    special: tokens of the chat template, as the family spells them.
    words: of the chat template.
    eos: of the special tokens.
    pad: of the special tokens.
  """
  words = (*words, *PROMPT.split(), *grammar.WORDS)
  names = (*special, UNKNOWN, *dict.fromkeys(words))
  vocab = {name: i for i, name in enumerate(names)}
  core = tokenizers.Tokenizer(
    tokenizers.models.WordLevel(vocab, unk_token=UNKNOWN)
  )
  core.normalizer = tokenizers.normalizers.Lowercase()
  split = tokenizers.pre_tokenizers.Split
  core.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
    [
      split(tokenizers.Regex(r'[^\S\n]+'), 'removed'),
      split(tokenizers.Regex(r'[\n,.:]'), 'isolated'),
    ]
  )
  core.add_special_tokens(
    [
      tokenizers.AddedToken(name, special=True, normalized=False)
      for name in special
    ]
  )
  os.makedirs(folder, exist_ok=True)
  core.save(os.path.join(folder, 'tokenizer.json'))
  config = {
    'tokenizer_class': 'PreTrainedTokenizerFast',
    'eos_token': eos,
    'pad_token': pad,
    'unk_token': UNKNOWN,
    'clean_up_tokenization_spaces': False,
    'model_max_length': 4096,
  }
  with open(os.path.join(folder, 'tokenizer_config.json'), 'w') as f:
    json.dump(config, f, indent=2, sort_keys=True)
    f.write('\n')


def _special(config: dict, key: str, path: str) -> str:
  token = config.get(key)
  if isinstance(token, dict):  # how older files spell an added token
    token = token.get('content')
  if not isinstance(token, str):
    raise UserError(f'{path} has no {key}; copy the file from the checkpoint')
  return token


def load_tokenizer(folder: str) -> Tokenizer:
  """Reads the tokenizer of a checkpoint folder.

  Raises:
    UserError: a file is missing or is not a tokenizer.
  """
  path = os.path.join(folder, 'tokenizer.json')
  config_path = os.path.join(folder, 'tokenizer_config.json')
  for name in (path, config_path):
    if not os.path.isfile(name):
      raise UserError(
        f'no tokenizer at {name}; give a folder that has the file'
      )
  try:
    core = tokenizers.Tokenizer.from_file(path)
  except Exception as e:  # the library raises bare Exception
    raise UserError(f'{path} is not a tokenizer: {e}') from e
  try:
    with open(config_path) as f:
      config = json.load(f)
  except ValueError as e:
    raise UserError(f'{config_path} is not JSON: {e}') from e
  if not isinstance(config, dict):
    raise UserError(f'{config_path} is no JSON object')
  core.no_truncation()
  core.no_padding()
  ids = []
  for key in ('eos_token', 'pad_token'):
    token = _special(config, key, config_path)
    ids.append(core.token_to_id(token))
    if ids[-1] is None:
      raise UserError(f'{path} has no {key} {token}, which {config_path} names')
  return Tokenizer(core, *ids)


def encode_caption(
  tok: Tokenizer, text: str, length: int
) -> tuple[Int[np.ndarray, 'L'], Bool[np.ndarray, 'L']]:
  """Ids of a caption and its EOS, right padded to `length`, and their mask.

  A longer caption loses its end and keeps its EOS.
  """
  words = (*tok.encode(text)[: length - 1], tok.eos)
  ids = np.full(length, tok.pad, np.int32)
  ids[: len(words)] = words
  return ids, np.arange(length) < len(words)


def decode(tok: Tokenizer, ids: Sequence[int]) -> str:
  """The text before the first EOS, without special tokens."""
  ids = [int(i) for i in ids]
  if tok.eos in ids:
    ids = ids[: ids.index(tok.eos)]
  return tok.core.decode(ids, skip_special_tokens=True).strip()


@dataclasses.dataclass(frozen=True)
class Template:
  """Ids around an image to caption it, and around a caption to draw it."""

  before_image: tuple[int, ...]
  after_image: tuple[int, ...]  # the prompt, up to the assistant's turn
  image_pad: int
  draw_before: tuple[int, ...]
  draw_after: tuple[int, ...]  # starts with the end of the user's turn
  eos: int
  pad: int

  @classmethod
  def from_tokenizer(
    cls, tok: Tokenizer, prompt: str, system: str = ''
  ) -> 'Template':
    """The template that asks for a caption with `prompt`.

    Args:
      tok: the tokenizer.
      prompt: the user's words beside the image.
      system: of a system turn before both uses; '' has none. Qwen's own
        template puts 'You are a helpful assistant.' where nothing is said.

    Raises:
      UserError: the prompt is empty or spells an image token, or the
        tokenizer is not of the Qwen2.5-VL family.
    """
    if not prompt.strip():
      raise UserError('the caption prompt is empty; say what to describe')
    for token in SPECIAL:
      tok.id(token)
      if token in prompt + system:
        raise UserError(f'the caption prompt contains {token}; remove it')
    user = '<|im_start|>user\n'
    if system:
      user = f'<|im_start|>system\n{system}<|im_end|>\n{user}'
    answer = '<|im_end|>\n<|im_start|>assistant\n'
    return cls(
      before_image=tok.encode(user + '<|vision_start|>'),
      after_image=tok.encode('<|vision_end|>' + prompt + answer),
      image_pad=tok.id(IMAGE_PAD),
      draw_before=tok.encode(user),
      draw_after=tok.encode(answer),
      eos=tok.eos,
      pad=tok.pad,
    )

  @functools.cached_property
  def overhead(self) -> int:
    """Tokens of the caption prefix beside the image's."""
    return len(self.before_image) + len(self.after_image)

  def prefix(self, image_tokens: int) -> Int[np.ndarray, 'S']:
    """The caption prefix of an image of so many merged patches."""
    image = (self.image_pad,) * image_tokens
    return np.array((*self.before_image, *image, *self.after_image), np.int32)
