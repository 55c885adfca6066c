"""Prompts -> ids for the text encoders that belong to a decoder.

SD3 pipelines hold `tokenizer` (CLIP-L), `tokenizer_2` (CLIP-G) and
`tokenizer_3` (T5), FLUX pipelines `tokenizer` (CLIP-L) and `tokenizer_2`
(T5). All pad to a fixed length, each with a token of its own, and padding is
read by the decoder.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int

from uae_jax.errors import UserError

CLIP_LENGTH = 77


class PromptTokenizer:
  """One tokenizer of a pipeline's folder."""

  def __init__(self, folder: str | Path):
    """Reads the folder; nothing is downloaded.

    Raises:
      UserError: the folder is missing or holds no tokenizer.
    """
    from transformers import AutoTokenizer

    if not Path(folder).is_dir():
      raise UserError(f'{folder} is missing: is it in the pipeline folder?')
    try:
      self._tokenizer = AutoTokenizer.from_pretrained(
        str(folder), local_files_only=True
      )
    except (OSError, ValueError) as e:
      first = str(e).splitlines()[0]
      raise UserError(f'{folder} holds no tokenizer: {first}') from None

  def __call__(
    self, prompts: Sequence[str], length: int
  ) -> Int[np.ndarray, 'B L']:
    """Ids, cut or padded to `length` tokens.

    Raises:
      UserError: there is no prompt.
    """
    if not prompts:
      raise UserError('no prompt to encode')
    ids = self._tokenizer(
      list(prompts), padding='max_length', max_length=length, truncation=True
    )['input_ids']
    return np.asarray(ids, np.int32)
