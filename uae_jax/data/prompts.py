"""Prompts -> ids for the text encoders that belong to a decoder.

SD3 pipelines hold `tokenizer` (CLIP-L), `tokenizer_2` (CLIP-G) and
`tokenizer_3` (T5), FLUX pipelines `tokenizer` (CLIP-L) and `tokenizer_2`
(T5). All pad to a fixed length, each with a token of its own, and padding is
read by the decoder. Ids are those of transformers, read with the tokenizers
library alone.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from jaxtyping import Int

from uae_jax.errors import UserError

CLIP_LENGTH = 77

# CLIP's ends where tokenizer_config.json leaves them out.
_CLIP = dict(bos_token='<|startoftext|>', eos_token='<|endoftext|>')
# Words, single digits and runs of signs, after Radford et al. 2021.
_CLIP_WORDS = (
  r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|"
  r'[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+'
)


class PromptTokenizer:
  """One tokenizer of a pipeline's folder."""

  def __init__(self, folder: str | Path):
    """Reads `tokenizer.json`, or CLIP's `vocab.json` and `merges.txt`.

    Raises:
      UserError: a file is missing or is not what its name says.
    """
    folder = Path(folder)
    config, core = _read_config(folder), _read_core(folder)
    self._pad = _content(config.get('pad_token'))
    if self._pad is None or core.token_to_id(self._pad) is None:
      raise UserError(
        f'{folder / "tokenizer_config.json"} names no pad_token of the '
        'vocabulary; copy both files from the checkpoint'
      )
    core.add_tokens(_special(config, core))
    self._core = core

  def __call__(
    self, prompts: Sequence[str], length: int
  ) -> Int[np.ndarray, 'B L']:
    """Ids with their start and end, cut or padded to `length` tokens.

    Raises:
      UserError: there is no prompt.
    """
    if not prompts:
      raise UserError('no prompt to encode')
    self._core.enable_truncation(length)
    self._core.enable_padding(
      length=length,
      pad_token=self._pad,
      pad_id=self._core.token_to_id(self._pad),
    )
    rows = self._core.encode_batch(list(prompts))
    return np.array([row.ids for row in rows], np.int32)


def _read_config(folder: Path) -> dict[str, Any]:
  """tokenizer_config.json, completed as in old folders by a second file."""
  out = {}
  for name in ('tokenizer_config.json', 'special_tokens_map.json'):
    file = folder / name
    if file.exists() and 'added_tokens_decoder' not in out:
      try:
        out |= json.loads(file.read_text())
      except ValueError as e:
        raise UserError(f'{file} is not JSON: {e}') from None
  return out


def _read_core(folder: Path) -> tokenizers.Tokenizer:
  """The tokenizer, of whichever files there are."""
  if not folder.is_dir():
    raise UserError(f'{folder} is missing: is it in the pipeline folder?')
  names = ('tokenizer.json', 'vocab.json', 'spiece.model')
  kind = next((name for name in names if (folder / name).exists()), None)
  if kind is None:
    raise UserError(f'{folder} holds no tokenizer: it has none of {names}')
  if kind == 'spiece.model':
    raise UserError(
      f'{folder} has no tokenizer.json; write it once with: python -c "from '
      'transformers import AutoTokenizer; AutoTokenizer.from_pretrained('
      f"'{folder}').save_pretrained('{folder}')\""
    )
  try:
    if kind == 'vocab.json':
      return _clip(folder, {**_CLIP, **_read_config(folder)})
    return tokenizers.Tokenizer.from_file(str(folder / kind))
  except Exception as e:  # the library raises bare Exception
    raise UserError(f'{folder / kind} is not a tokenizer: {e}') from None


def _clip(folder: Path, config: Mapping[str, Any]) -> tokenizers.Tokenizer:
  """CLIP's byte pairs: lower case, words end in `</w>`."""
  start, end = (_content(config[key]) for key in _CLIP)
  core = tokenizers.Tokenizer(
    tokenizers.models.BPE.from_file(
      str(folder / 'vocab.json'),
      str(folder / 'merges.txt'),
      unk_token=_content(config.get('unk_token', end)),
      continuing_subword_prefix='',
      end_of_word_suffix='</w>',
    )
  )
  normal, pre = tokenizers.normalizers, tokenizers.pre_tokenizers
  core.normalizer = normal.Sequence(
    [
      normal.NFC(),
      normal.Replace(tokenizers.Regex(r'\s+'), ' '),
      normal.Lowercase(),
    ]
  )
  core.pre_tokenizer = pre.Sequence(
    [
      pre.Split(tokenizers.Regex(_CLIP_WORDS), 'removed', invert=True),
      pre.ByteLevel(add_prefix_space=False),
    ]
  )
  core.post_processor = tokenizers.processors.TemplateProcessing(
    single=[start, '$A', end],
    special_tokens=[(x, core.token_to_id(x)) for x in {start, end}],
  )
  return core


def _content(token: str | Mapping[str, Any] | None) -> str | None:
  """A token that is spelt out, or described by its `content`."""
  return token['content'] if isinstance(token, Mapping) else token


def _special(
  config: Mapping[str, Any], core: tokenizers.Tokenizer
) -> list[tokenizers.AddedToken]:
  """Tokens that are found in a prompt before it is split into words.

  The padding of SD3's `tokenizer_2` is `!`: as a token of its own it is not
  the `!` that ends a word.
  """
  listed = config.get('added_tokens_decoder', {})
  found = [listed[i] for i in sorted(listed, key=int)]
  names = {token.content for token in core.get_added_tokens_decoder().values()}
  names |= {_content(token) for token in found}
  for key in ('bos_token', 'eos_token', 'unk_token', 'pad_token'):
    token = config.get(key)
    if token is not None and _content(token) not in names:
      names.add(_content(token))
      found.append(token)
  flags = ('single_word', 'lstrip', 'rstrip', 'normalized')
  out = []
  for token in found:
    given = token if isinstance(token, Mapping) else {}
    kept = {'normalized': False, **{k: given[k] for k in flags if k in given}}
    out.append(tokenizers.AddedToken(_content(token), special=True, **kept))
  return out
