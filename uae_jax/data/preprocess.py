"""Images as the policy and the reward see them, in numpy and PIL.

Mirrors Hugging Face's PIL image processors of Qwen2-VL (smart resize, patches
in merge-group order, M-RoPE) and CLIP (shortest side, centre crop).
"""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from uae_jax.data.tokenize import Template
from uae_jax.errors import UserError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
MAX_ASPECT = 200  # of Qwen2-VL's resize
TEMPORAL = 2  # a still image is two equal frames

Example = dict[str, Any]  # of numpy arrays, one image


class BadItem(UserError):
  """An image, or what belongs to it, that cannot be used.

  Attributes:
    reason: in a word.
  """

  def __init__(self, reason: str, why: str):
    super().__init__(why)
    self.reason = reason


def to_rgb(image: Image.Image | np.ndarray) -> Image.Image:
  """RGB of any PIL mode or a uint8 [H, W, 3]: upright, alpha over white."""
  if isinstance(image, np.ndarray):
    return Image.fromarray(image)
  image = ImageOps.exif_transpose(image)
  if image.mode in ('I', 'F') or image.mode.startswith('I;16'):
    top = 1.0 if image.mode == 'F' else 65535.0
    grey = np.clip(np.asarray(image) / top, 0, 1)
    return Image.fromarray(np.uint8(np.round(grey * 255))).convert('RGB')
  if image.has_transparency_data:
    image = image.convert('RGBA')
    white = Image.new('RGBA', image.size, 'white')
    image = Image.alpha_composite(white, image)
  return image.convert('RGB')


def read_image(
  file: str | Path | BinaryIO, name: str = ''
) -> UInt8[np.ndarray, 'H W 3']:
  """Reads a file of any mode; of an animation, the first frame.

  Args:
    file: its path or its bytes.
    name: what to call it in errors; the path if not told.

  Raises:
    BadItem: it is not an image, is cut short or damaged, is far too long and
      thin, or too large to be anything but an attack on memory.
  """
  name = name or file
  try:
    with Image.open(file) as image:
      _check_size(name, *image.size)
      return np.asarray(to_rgb(image))
  except BadItem:
    raise
  except FileNotFoundError as e:
    reason, why = 'missing', e
  except UnidentifiedImageError:
    reason, why = 'not_an_image', 'its format is none of an image'
  except Image.DecompressionBombError as e:
    reason, why = 'too_large', e
  except Exception as e:  # decoders of corrupt files raise whatever they meet
    reason, why = 'corrupt', e
    if 'truncated' in str(e).lower():
      reason = 'truncated'
  raise BadItem(reason, f'cannot read image {name}: {why}')


def image_size(file: str | Path | BinaryIO) -> tuple[int, int]:
  """(height, width) of an upright image, by its header alone.

  Raises:
    BadItem: it has none.
    OSError: it cannot be read.
  """
  try:
    with Image.open(file) as image:
      w, h = image.size
      turned = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
  except FileNotFoundError:
    raise
  except Exception as e:  # decoders raise whatever they meet
    raise BadItem('corrupt', f'{file}: {e}') from None
  return (w, h) if turned else (h, w)


def _check_size(name: Any, w: int, h: int) -> None:
  """Before it is decoded."""
  if max(h, w) > MAX_ASPECT * min(h, w):
    why = f'image {name} is {w}x{h}: crop it to 1:{MAX_ASPECT}'
    raise BadItem('too_thin', why)
  if h * w > Image.MAX_IMAGE_PIXELS:
    why = (
      f'image {name} is {w}x{h}: shrink it to {Image.MAX_IMAGE_PIXELS} pixels'
    )
    raise BadItem('too_large', why)


def smart_resize(
  h: int, w: int, factor: int, min_pixels: int, max_pixels: int
) -> tuple[int, int]:
  """Qwen2-VL's size: multiples of `factor`, area within the bounds.

  Rounding is to even, as Python's. Where rounding up a small or very thin
  image still exceeds `max_pixels`, the result does too, as Qwen's.

  Raises:
    UserError: one side is more than 200 times the other.
  """
  if max(h, w) > MAX_ASPECT * min(h, w):
    raise UserError(f'image of {w}x{h}: crop it to at most 1:{MAX_ASPECT}')
  h_bar, w_bar = (round(x / factor) * factor for x in (h, w))
  if h_bar * w_bar > max_pixels:
    beta = math.sqrt(h * w / max_pixels)
    floor = lambda x: max(factor, math.floor(x / beta / factor) * factor)
    return floor(h), floor(w)
  if h_bar * w_bar < min_pixels:
    beta = math.sqrt(min_pixels / (h * w))
    ceil = lambda x: math.ceil(x * beta / factor) * factor
    return ceil(h), ceil(w)
  return h_bar, w_bar


def patchify(
  image: UInt8[np.ndarray, 'H W 3'],
  patch: int,
  merge: int,
  temporal: int = TEMPORAL,
  mean: Sequence[float] = CLIP_MEAN,
  std: Sequence[float] = CLIP_STD,
) -> Float[np.ndarray, 'P E']:
  """Normalised patches in merge-group-major order, columns (C, T, ph, pw)."""
  x = image.astype(np.float32) / 255
  x = (x - np.float32(mean)) / np.float32(std)
  gh, gw = x.shape[0] // patch, x.shape[1] // patch
  x = x.reshape(gh // merge, merge, patch, gw // merge, merge, patch, 3)
  x = x.transpose(0, 3, 1, 4, 6, 2, 5)[:, :, :, :, :, None]
  return np.repeat(x, temporal, 5).reshape(gh * gw, -1)


def patch_layout(
  gh: int, gw: int, merge: int, window_px: int, patch: int
) -> tuple[Int[np.ndarray, 'P 2'], Int[np.ndarray, 'P']]:
  """Where each patch of a gh x gw grid lies, in merge-group-major order.

  Returns:
    (row, column) in the grid, and the id of the attention window. Windows
    hold whole merge groups; the last of a row or column may be smaller.
  """
  rows, cols = np.mgrid[:gh, :gw]
  hw = np.stack([rows, cols], -1)
  hw = hw.reshape(gh // merge, merge, gw // merge, merge, 2)
  hw = hw.transpose(0, 2, 1, 3, 4).reshape(-1, 2).astype(np.int32)
  span = window_px // patch // merge * merge  # patches on a window's side
  down, right = (hw // span).T
  return hw, down * -(-gw // span) + right


def mrope_positions(
  ids: Int[np.ndarray, 'S'],
  grids: Sequence[tuple[int, int, int]],
  image_pad: int,
  merge: int,
) -> Int[np.ndarray, '3 S']:
  """Positions (time, row, column) of every token of a prompt with images.

  Args:
    ids: the prompt; each image is a run of `image_pad`, one per merged patch.
    grids: (frames, rows, columns) of each image, in patches.
    image_pad: the id of an image token.
    merge: patches merged on each side.
  """
  parts, now, i = [], 0, 0
  images = iter(grids)
  is_image = np.asarray(ids) == image_pad
  while i < len(ids):
    if is_image[i]:
      t, gh, gw = next(images)
      shape = (t, gh // merge, gw // merge)
      parts.append(np.indices(shape).reshape(3, -1) + now)
      now += max(shape[1:])
    else:
      after = is_image[i:].argmax() or len(ids) - i  # length of this text
      parts.append(np.broadcast_to(now + np.arange(after), (3, after)))
      now += after
    i += parts[-1].shape[1]
  return np.concatenate(parts, 1).astype(np.int32)


def fitted_view(
  image: Image.Image | np.ndarray, height: int, width: int
) -> UInt8[np.ndarray, 'R Q 3']:
  """Resized (bicubic) to just cover height x width; the centre of that.

  Of a square, CLIP's view.
  """
  image = to_rgb(image)
  w, h = image.size
  if height * w >= width * h:  # what is cut off are columns
    size = int(height * w / h), height
  else:
    size = width, int(width * h / w)
  image = image.resize(size, Image.Resampling.BICUBIC)
  left, top = (image.width - width) // 2, (image.height - height) // 2
  return np.asarray(image)[top : top + height, left : left + width]


@dataclasses.dataclass(frozen=True)
class PolicyView:
  """How the policy sees an image, with a fixed bound on its patches."""

  patch: int
  merge: int
  window: int  # side in pixels
  min_pixels: int
  max_pixels: int
  mean: tuple[float, float, float] = CLIP_MEAN
  std: tuple[float, float, float] = CLIP_STD

  def __post_init__(self):
    if not self.factor**2 <= self.max_pixels >= self.min_pixels:
      raise UserError(
        f'max_pixels {self.max_pixels} must be at least {self.factor**2}'
        f' (one image token) and min_pixels {self.min_pixels}'
      )
    if self.window % self.factor:
      raise UserError(f'window {self.window} must divide by {self.factor}')

  @property
  def factor(self) -> int:
    """Side in pixels of one image token."""
    return self.patch * self.merge

  @property
  def max_tokens(self) -> int:
    """Image tokens that every image fits in."""
    return self.max_pixels // self.factor**2

  @property
  def max_patches(self) -> int:
    """Patches that every image fits in: the P of a batch."""
    return self.max_tokens * self.merge**2

  def size(self, h: int, w: int) -> tuple[int, int]:
    """Qwen's smart resize; what still exceeds the bound loses whole tokens."""
    h, w = smart_resize(h, w, self.factor, self.min_pixels, self.max_pixels)
    th, tw = h // self.factor, w // self.factor
    while th * tw > self.max_tokens:
      th, tw = (th - 1, tw) if th >= tw else (th, tw - 1)
    return th * self.factor, tw * self.factor

  def __call__(self, image: Image.Image | np.ndarray) -> Example:
    """Unpadded `patches`, `patch_hw`, `patch_window` and `patch_image`."""
    image = to_rgb(image)
    h, w = self.size(image.height, image.width)
    if image.size != (w, h):
      image = image.resize((w, h), Image.Resampling.BICUBIC)
    patches = patchify(
      np.asarray(image), self.patch, self.merge, TEMPORAL, self.mean, self.std
    )
    grid = (h // self.patch, w // self.patch)
    hw, window = patch_layout(*grid, self.merge, self.window, self.patch)
    return dict(
      patches=patches,
      patch_hw=hw,
      patch_window=window,
      patch_image=np.zeros(len(patches), np.int32),
    )


def prefix_of(
  image: Image.Image | np.ndarray, view: PolicyView, template: Template
) -> Example:
  """One image and the prompt as the policy reads them, padded to the bound."""
  example = add_prefix(view(image), template, view.merge)
  tokens = view.max_tokens + template.overhead
  return pad_to(example, view.max_patches, tokens, template.pad)


def add_prefix(example: Example, template: Template, merge: int) -> Example:
  """Adds `prefix_ids`, `prefix_positions` and `prefix_mask`, unpadded.

  Args:
    example: what a `PolicyView` returns.
    template: the chat template.
    merge: of the view.
  """
  hw = example['patch_hw']
  ids = template.prefix(len(hw) // merge**2)
  grid = (1, *(hw.max(0) + 1))
  positions = mrope_positions(ids, [grid], template.image_pad, merge)
  prefix = dict(
    prefix_ids=ids,
    prefix_positions=positions,
    prefix_mask=np.ones(len(ids), bool),
  )
  return {**example, **prefix}


def pad_to(example: Example, patches: int, tokens: int, pad: int) -> Example:
  """Right pads to P patches and S prefix tokens; other keys stay.

  Args:
    example: one image's arrays.
    patches: P, at least the image's own.
    tokens: S, at least the prefix's own.
    pad: id that fills `prefix_ids`.
  """
  # key: (padded axis, its size, what fills it)
  rules = dict(
    patches=(0, patches, 0),
    patch_hw=(0, patches, 0),
    patch_window=(0, patches, -1),
    patch_image=(0, patches, -1),
    prefix_ids=(0, tokens, pad),
    prefix_positions=(1, tokens, 0),
    prefix_mask=(0, tokens, False),
  )

  def padded(key: str, x: np.ndarray) -> np.ndarray:
    if key not in rules:
      return x
    axis, size, fill = rules[key]
    width = [(0, 0)] * x.ndim
    width[axis] = (0, size - x.shape[axis])
    return np.pad(x, width, constant_values=fill)

  return {key: padded(key, x) for key, x in example.items()}
