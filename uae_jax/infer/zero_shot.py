"""CLIP that names what it sees: the colours of detected objects.

Classes are means of their prompts' embeddings, as `clip_benchmark` builds
them; crops and prompts are those of GenEval's `evaluate_images.py`.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, UInt8
from PIL import Image

from uae_jax import zoo
from uae_jax.ckpt import hf, maps_vit
from uae_jax.data.preprocess import to_rgb
from uae_jax.data.prompts import PromptTokenizer
from uae_jax.data.tower_preprocess import tower_pixels
from uae_jax.errors import UserError
from uae_jax.eval.geneval_rules import COLORS, Detection
from uae_jax.rewards.features import Tower, unit

BACKGROUND = '#999'  # around an object whose mask is known
SCALE = 100  # of cosines, before a softmax


class ZeroShot:
  """Both towers of a CLIP folder, with its tokenizer."""

  def __init__(self, name: str, mesh: Mesh, dtype: str = 'float32'):
    """Loads a hub folder of a `CLIPModel`.

    Raises:
      UserError: the folder is missing, or lacks one of the towers or the
        tokenizer.
    """
    folder = zoo.resolve(name)
    if (kind := hf.kind(folder)) != 'clip':
      raise UserError(
        f'{folder} is a {kind!r}: take a CLIP with both towers, such as '
        'openai/clip-vit-large-patch14'
      )
    model = zoo.tower_from_folder(folder)
    self.tower = Tower(model.module, **maps_vit.read_view(folder))
    self.tokenizer = PromptTokenizer(folder)
    self.length = model.module.language['ctx']
    self.params = zoo.weights(model, folder, mesh, dtype=dtype)
    apply = model.module.apply
    self._image = jax.jit(
      lambda params, x: unit(apply({'params': params}, x, method='image'))
    )
    self._text = jax.jit(
      lambda params, x: unit(apply({'params': params}, x, method='text'))
    )

  def embed_images(self, images: Sequence[Any]) -> Float[np.ndarray, 'n E']:
    """Images of any size -> unit embeddings."""
    # One by one: one program serves any number.
    rows = [
      self._image(self.params, tower_pixels(image, self.tower)[None])[0]
      for image in images
    ]
    return np.stack(jax.device_get(rows))

  def embed_texts(self, texts: Sequence[str]) -> Float[np.ndarray, 'n E']:
    """Texts -> unit embeddings; what exceeds the context is cut."""
    ids = self.tokenizer(texts, self.length)
    return jax.device_get(self._text(self.params, ids))

  def classes(
    self, prompts: Sequence[Sequence[str]]
  ) -> Float[np.ndarray, 'C E']:
    """Equally many prompts of each class -> a unit embedding of each."""
    flat = self.embed_texts([text for texts in prompts for text in texts])
    mean = flat.reshape(len(prompts), -1, flat.shape[-1]).mean(1)
    return np.asarray(unit(mean))

  def logits(
    self, images: Sequence[Any], classes: Float[np.ndarray, 'C E']
  ) -> Float[np.ndarray, 'n C']:
    """How much each image looks like each class: 100 x cosine."""
    return SCALE * self.embed_images(images) @ classes.T


@dataclasses.dataclass(frozen=True)
class ColourClassifier:
  """Says which of GenEval's colours objects have.

  Attributes:
    clip: looks.
  """

  clip: ZeroShot

  def __post_init__(self):
    object.__setattr__(self, '_classes', {})

  def __call__(
    self, image: Any, objects: Sequence[Detection], cls: str
  ) -> list[str]:
    """The colour of each of an image's objects, which are of one class."""
    if cls not in self._classes:
      self._classes[cls] = self.clip.classes(color_prompts(cls))
    crops = [crop(image, d) for d in objects]
    best = self.clip.logits(crops, self._classes[cls]).argmax(1)
    return [COLORS[i] for i in best]


def color_prompts(cls: str) -> list[list[str]]:
  """What each of `COLORS` is called on an object of a class."""
  return [
    [
      f'a photo of a {color} {cls}',
      f'a photo of a {color}-colored {cls}',
      f'a photo of a {color} object',
    ]
    for color in COLORS
  ]


def crop(
  image: Image.Image | UInt8[np.ndarray, 'H W 3'], detection: Detection
) -> Image.Image:
  """An object's box, at least a pixel wide; grey where its mask is not."""
  image = to_rgb(image)
  if detection.mask is not None:
    mask = Image.fromarray(np.uint8(detection.mask) * 255)
    grey = Image.new('RGB', image.size, BACKGROUND)
    image = Image.composite(image, grey, mask)
  left, top, right, bottom = map(round, detection.box)
  return image.crop((left, top, max(right, left + 1), max(bottom, top + 1)))


def load_colours(
  name: str | Path, mesh: Mesh, dtype: str = 'float32'
) -> ColourClassifier:
  """GenEval's colours by a CLIP folder.

  Raises:
    UserError: see `ZeroShot`.
  """
  return ColourClassifier(ZeroShot(str(name), mesh, dtype))
