"""How a family writes a question about images, and how it sees them.

Mirrors Qwen2.5-VL's chat template and Janus's `VLChatProcessor`: images stand
first, or each where `<image 1>`, `<image 2>`, … stand in the text.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from uae_jax.data import janus, tokenize
from uae_jax.data.janus import JanusView
from uae_jax.data.preprocess import Example, PolicyView, mrope_positions
from uae_jax.data.tokenize import Tokenizer
from uae_jax.errors import UserError
from uae_jax.eval.choice import MARK


@dataclasses.dataclass(frozen=True)
class Chat:
  """How a family writes a question.

  Attributes:
    before: up to the user's words.
    image: an image; has one `pad`, which its tokens take the place of.
    gap: between images in front and the text.
    after: from the text to the answer.
    lead: what an answer's first word carries before it.
    pad: the image token.
    special: what a question must not spell.
  """

  before: str
  image: str
  gap: str
  after: str
  lead: str
  pad: str
  special: tuple[str, ...]

  @classmethod
  def qwen(cls, system: str) -> 'Chat':
    """Qwen2.5-VL's template."""
    opening = f'<|im_start|>system\n{system}<|im_end|>\n' if system else ''
    return cls(
      before=f'{opening}<|im_start|>user\n',
      image=f'<|vision_start|>{tokenize.IMAGE_PAD}<|vision_end|>',
      gap='',
      after='<|im_end|>\n<|im_start|>assistant\n',
      lead='',
      pad=tokenize.IMAGE_PAD,
      special=tokenize.SPECIAL,
    )

  @classmethod
  def janus(cls, system: str) -> 'Chat':
    """Janus's conversation."""
    opening = f'{system}\n\n' if system else ''
    return cls(
      before=f'{janus.BOS}{opening}{janus.USER}: ',
      image=f'{janus.BOI}{janus.IMAGE}{janus.EOI}',
      gap='\n',
      after=f'\n\n{janus.ASSISTANT}:',
      lead=' ',
      pad=janus.IMAGE,
      special=(
        janus.USER, janus.ASSISTANT, janus.BOI, janus.EOI, janus.IMAGE,
        janus.BOS,
      ),
    )  # fmt: skip

  def write(self, text: str, count: int) -> tuple[str, list[int]]:
    """The whole prompt of a text beside `count` images.

    Returns:
      It, and which image stands at each of its places: an image that no
      marker names is left out, where there are markers.

    Raises:
      UserError: a special token, or a marker of no image.
    """
    spelled = [token for token in self.special if token in text]
    if spelled:
      raise UserError(f'a question contains {spelled[0]}; remove it')
    places = [int(number) - 1 for number in MARK.findall(text)]
    if not places:
      front = self.image * count + self.gap if count else ''
      body, places = front + text, [*range(count)]
    else:
      body = MARK.sub(lambda _: self.image, text)
    if not set(places) <= set(range(count)):
      raise UserError(
        f'a question names image {max(places) + 1} of {count}: number them '
        'from 1'
      )
    return self.before + body + self.after, places

  def continuation(self, tok: Tokenizer, text: str) -> tuple[int, ...]:
    """Ids of a text right after the assistant's opening."""
    opening = tok.encode(self.after)
    ids = tok.encode(self.after + self.lead + text)
    if ids[: len(opening)] == opening:
      return ids[len(opening) :]
    return tok.encode(self.lead + text)  # it grows into the opening

  def letters(self, tok: Tokenizer, options: Sequence[str]) -> list[int]:
    """The token that each letter is, right after the assistant's opening.

    Raises:
      UserError: a letter is not one token, or two are the same.
    """
    ids = [self.continuation(tok, letter) for letter in options]
    if any(len(x) != 1 for x in ids) or len(set(ids)) < len(ids):
      raise UserError(
        f'the tokenizer has no tokens of their own for {list(options)}: '
        'compare whole options by likelihood'
      )
    return [token for (token,) in ids]


@dataclasses.dataclass(frozen=True)
class QwenEyes:
  """Several images of any size in one row."""

  view: PolicyView

  piece = 0  # patches that the tower takes at once; 0 is a whole row

  def __call__(self, images: Sequence[Any]) -> tuple[Example, list[int]]:
    """Patches of a row, and the tokens of each image."""
    seen = [self.view(image) for image in images]
    windows = np.cumsum([0, *(x['patch_window'].max() + 1 for x in seen)])
    join = lambda key: np.concatenate([x[key] for x in seen])
    row = dict(
      patches=join('patches'),
      patch_hw=join('patch_hw'),
      patch_window=np.concatenate(
        [x['patch_window'] + w for x, w in zip(seen, windows)]
      ).astype(np.int32),
      patch_image=np.repeat(
        np.arange(len(seen), dtype=np.int32), [len(x['patches']) for x in seen]
      ),
    )
    counts = [len(x['patches']) // self.view.merge**2 for x in seen]
    return row, counts

  def positions(self, ids: np.ndarray, row: Example, pad: int) -> np.ndarray:
    """M-RoPE positions [3 S]."""
    grids = [
      (1, *(row['patch_hw'][row['patch_image'] == i].max(0) + 1))
      for i in range(row['patch_image'].max() + 1)
    ]
    return mrope_positions(ids, grids, pad, self.view.merge)

  def room(self, patches: int) -> int:
    """Patches that a row of so many is filled up to."""
    return roomy(patches, 64)


@dataclasses.dataclass(frozen=True)
class JanusEyes:
  """Several images, each a square that the tower takes alone."""

  view: JanusView

  @property
  def piece(self) -> int:
    """Patches that the tower takes at once."""
    return (self.view.size // self.view.patch) ** 2

  def __call__(self, images: Sequence[Any]) -> tuple[Example, list[int]]:
    """Patches of a row, and the tokens of each image."""
    patches = np.concatenate([self.view(x)['patches'] for x in images])
    return dict(patches=patches), [self.piece] * len(images)

  def positions(self, ids: np.ndarray, row: Example, pad: int) -> np.ndarray:
    """One axis, three times."""
    del row, pad
    return np.broadcast_to(np.arange(len(ids), dtype=np.int32), (3, len(ids)))

  def room(self, patches: int) -> int:
    """Patches that a row of so many is filled up to."""
    return self.piece * roomy(patches // self.piece, 1)


def roomy(n: int, least: int) -> int:
  """The first to hold `n` of 1, 1.5, 2, 3, 4, 6, … times `least`."""
  size = least
  while size < n:
    size *= 2
  return size * 3 // 4 if size > least and 4 * n <= 3 * size else size
