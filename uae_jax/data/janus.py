"""Images and prompts as Janus-Pro reads them.

Mirrors transformers' `image_processing_janus.py` and DeepSeek's
`VLMImageProcessor` (they round differently), and the chat format of Janus's
`conversation.py`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image

from uae_jax.data import tokenize
from uae_jax.data.preprocess import Example, patchify, to_rgb
from uae_jax.data.tokenize import Tokenizer
from uae_jax.errors import UserError

# What Janus says to itself before it reads an image.
SYSTEM = (
  'You are a helpful language and vision assistant. You are able to '
  'understand the visual content that the user provides, and assist the user '
  'with a variety of tasks using natural language.'
)
USER, ASSISTANT = '<|User|>', '<|Assistant|>'
BOI, EOI, IMAGE = '<begin_of_image>', '<end_of_image>', '<image_placeholder>'
BAR, LOW = '\uff5c', '\u2581'  # as DeepSeek spells its special tokens
BOS = f'<{BAR}begin{LOW}of{LOW}sentence{BAR}>'
EOS = f'<{BAR}end{LOW}of{LOW}sentence{BAR}>'
PAD = f'<{BAR}{LOW}pad{LOW}{BAR}>'


def build_word_tokenizer(folder: str) -> None:
  """`tokenize.build_word_tokenizer` with the special tokens of Janus."""
  special = (PAD, BOS, EOS, USER, ASSISTANT, BOI, EOI, IMAGE)
  tokenize.build_word_tokenizer(folder, special, ('\n', ':'), eos=EOS, pad=PAD)


@dataclasses.dataclass(frozen=True)
class JanusView:
  """How Janus sees an image: the longest side resized, padded to a square.

  Attributes:
    size: side in pixels.
    patch: side of a patch in pixels.
    mean: per channel, of pixels in [0, 1].
    std: per channel.
    min_size: least side of the resized image.
    rounds: transformers rounds a side, DeepSeek cuts it off.
  """

  size: int
  patch: int
  mean: tuple[float, float, float]
  std: tuple[float, float, float]
  min_size: int = 14
  rounds: bool = True

  @classmethod
  def from_config(cls, config: Mapping[str, Any], patch: int) -> 'JanusView':
    """From preprocessor_config.json, of either release.

    Raises:
      UserError: a key is missing, or the image is not a square.
    """
    try:
      if 'image_size' in config:  # DeepSeek's
        size, rounds = config['image_size'], False
      else:
        sides = config['size']
        if sides['height'] != sides['width']:
          raise UserError(f'preprocessor_config.json: {sides} is not a square')
        size, rounds = sides['height'], True
      return cls(
        size=size,
        patch=patch,
        mean=tuple(config['image_mean']),
        std=tuple(config['image_std']),
        min_size=config.get('min_size', 14),
        rounds=rounds,
      )
    except (KeyError, TypeError) as e:
      raise UserError(
        f'preprocessor_config.json of the Janus model lacks {e}'
      ) from None

  def resized(self, *sides: int) -> tuple[int, ...]:
    """Sides of an image before it is padded; the longest is `size`."""
    longest = max(sides)
    if self.rounds:
      sides = (round(x * (self.size / longest)) for x in sides)
    else:  # in this order: 94 * (384 / 94) is less than 384
      sides = (int(x / longest * self.size) for x in sides)
    return tuple(max(x, self.min_size) for x in sides)

  def pixels(self, image: Image.Image | np.ndarray) -> np.ndarray:
    """Bytes of the padded square."""
    image = to_rgb(image)
    w, h = self.resized(*image.size)
    image = image.resize((w, h), Image.Resampling.BICUBIC)
    grey = tuple(int(x * 255) for x in self.mean)
    square = Image.new('RGB', (max(w, h),) * 2, grey)
    square.paste(image, ((max(w, h) - w) // 2, (max(w, h) - h) // 2))
    return np.asarray(square)

  def __call__(self, image: Image.Image | np.ndarray) -> Example:
    """`patches` [P, E], row by row, columns (C, ph, pw)."""
    return dict(patches=self.patches(self.pixels(image)))

  def patches(self, square: np.ndarray) -> Float[np.ndarray, 'P E']:
    """Normalised patches of a square of bytes."""
    return patchify(square, self.patch, 1, 1, self.mean, self.std)


@dataclasses.dataclass(frozen=True)
class JanusTemplate:
  """Ids around an image to caption it, and around a caption to draw it.

  Captions are placed as they were sampled, after a colon: their first word
  carries the space before it, so a text is encoded with one.
  """

  before_image: tuple[int, ...]
  after_image: tuple[int, ...]
  image_pad: int
  image_tokens: int
  draw_before: tuple[int, ...]
  draw_after: tuple[int, ...]  # up to the begin-of-image token
  eos: int
  pad: int

  @classmethod
  def from_tokenizer(
    cls, tok: Tokenizer, prompt: str, image_tokens: int, system: str = SYSTEM
  ) -> 'JanusTemplate':
    """The template that asks for a caption with `prompt`.

    Raises:
      UserError: the prompt is empty or spells a special token, or the
        tokenizer is not Janus's.
    """
    special = (USER, ASSISTANT, BOI, EOI, IMAGE, BOS)
    if not prompt.strip():
      raise UserError('the caption prompt is empty; say what to describe')
    for token in special:
      if tok.core.token_to_id(token) is None:
        raise UserError(f'the tokenizer has no {token}; use that of Janus-Pro')
      if token in prompt + system:
        raise UserError(f'the caption prompt contains {token}; remove it')
    opening = f'{system}\n\n' if system else ''
    pad = tok.core.token_to_id(PAD)
    return cls(
      before_image=tok.encode(f'{BOS}{opening}{USER}: {BOI}'),
      after_image=tok.encode(f'{EOI}\n{prompt}\n\n{ASSISTANT}:'),
      image_pad=tok.id(IMAGE),
      image_tokens=image_tokens,
      draw_before=tok.encode(f'{BOS}{USER}:'),
      draw_after=tok.encode(f'\n\n{ASSISTANT}:{BOI}'),
      eos=tok.eos,
      pad=tok.pad if pad is None else pad,
    )

  def prefix(self) -> Example:
    """The caption prefix, the same for every image."""
    image = (self.image_pad,) * self.image_tokens
    ids = np.array((*self.before_image, *image, *self.after_image), np.int32)
    at = np.arange(len(ids), dtype=np.int32)
    return dict(
      prefix_ids=ids,
      prefix_positions=np.broadcast_to(at, (3, len(ids))),
      prefix_mask=np.ones(len(ids), bool),
    )
