"""A model at work on host data: images -> captions, captions -> images.

Every call takes at most a batch; what is missing is filled up, so that one
program serves all of them. Batches are sharded over the mesh's `data` axis.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Key, UInt8

from uae_jax.errors import UserError
from uae_jax.infer.options import Options
from uae_jax.sharding.mesh import put_batch
from uae_jax.types import Batch, Captions

Images = Sequence[Any]  # PIL images, or uint8 [H W 3]


@dataclasses.dataclass(frozen=True)
class Describer:
  """Images -> captions.

  Attributes:
    umm: has `prefill` and `describe`.
    policy: its parameters.
    example: image -> arrays of `types.Batch`, all of one shape.
    decode: ids -> text.
    mesh: where batches go.
    batch: images at once; the mesh's data axis divides it.
  """

  umm: Any
  policy: Any
  example: Callable[[Any], Mapping[str, np.ndarray]]
  decode: Callable[[np.ndarray], str]
  mesh: Mesh
  batch: int

  def __post_init__(self):
    def run(policy, batch, rng):
      prefix = self.umm.prefill(policy, batch)
      return self.umm.describe(policy, prefix, rng, 1)

    object.__setattr__(self, '_run', jax.jit(run))

  def __call__(self, images: Images, rng: Key[Array, '']) -> list[str]:
    """At most `batch` images -> their captions."""
    rows = [self.example(image) for image in images]
    stacked = {
      key: _filled([row[key] for row in rows], self.batch) for key in rows[0]
    }
    with jax.set_mesh(self.mesh):
      batch = Batch(image=None, **put_batch(stacked, self.mesh))
      out = jax.device_get(self._run(self.policy, batch, rng))
    return [
      self.decode(ids[mask])
      for ids, mask in zip(out.tokens[: len(rows), 0], out.mask[:, 0])
    ]


@dataclasses.dataclass(frozen=True)
class Drawer:
  """Captions -> images.

  Attributes:
    run: (parameters, encoded captions, rng) -> pixels in [0, 1], [N R Q 3].
    params: its parameters.
    encode: texts -> a tree of numpy arrays, leading axis N.
    mesh: where batches go.
    batch: captions at once; the mesh's data axis divides it.
  """

  run: Callable[[Any, Any, Array], Array]
  params: Any
  encode: Callable[[Sequence[str]], Any]
  mesh: Mesh
  batch: int

  def __post_init__(self):
    object.__setattr__(self, '_run', jax.jit(self.run))

  def __call__(
    self, texts: Sequence[str], rng: Key[Array, '']
  ) -> UInt8[np.ndarray, 'n R Q 3']:
    """At most `batch` captions -> what is drawn from them."""
    filled = [*texts, *[texts[-1]] * (self.batch - len(texts))]
    with jax.set_mesh(self.mesh):
      batch = put_batch(self.encode(filled), self.mesh)
      pixels = jax.device_get(self._run(self.params, batch, rng))
    return np.round(pixels[: len(texts)] * 255).astype(np.uint8)


@dataclasses.dataclass(frozen=True)
class Autoencoder:
  """What a folder can do; a half that it lacks is None.

  Attributes:
    name: of the folder, for messages.
    options: how it is asked.
    describer: images -> captions.
    drawer: captions -> images.
  """

  name: str
  options: Options
  describer: Describer | None
  drawer: Drawer | None

  def describe(self, images: Images, rng: Key[Array, '']) -> list[str]:
    """At most a batch of images -> captions.

    Raises:
      UserError: the folder holds no captioner.
    """
    if self.describer is None:
      raise UserError(f'{self.name} holds no captioner')
    return self.describer(images, rng)

  def draw(
    self, texts: Sequence[str], rng: Key[Array, '']
  ) -> UInt8[np.ndarray, 'n R Q 3']:
    """At most a batch of captions -> images.

    Raises:
      UserError: the folder holds no decoder.
    """
    if self.drawer is None:
      raise UserError(f'{self.name} holds no decoder to draw with')
    return self.drawer(texts, rng)


def caption_drawer(
  umm: Any,
  params: Mapping[str, Any],
  encode: Callable[[str], tuple[np.ndarray, np.ndarray]],
  mesh: Mesh,
  batch: int,
) -> Drawer:
  """A drawer through a UMM's own reading of the caption.

  Args:
    umm: has `draw_from_text`.
    params: `policy`, and the frozen parameters of `umm` beside it.
    encode: text -> ids [L] and mask [L].
    mesh: where batches go.
    batch: captions at once.
  """

  def run(params, batch, rng):
    ids, mask = (x[:, None] for x in batch)
    captions = Captions(ids, mask, jnp.zeros(ids.shape))
    return umm.draw_from_text(params['policy'], params, captions, rng)[:, 0]

  def encode_all(texts):
    return tuple(np.stack(x) for x in zip(*map(encode, texts)))

  return Drawer(run, params, encode_all, mesh, batch)


def _filled(rows: Sequence[np.ndarray], n: int) -> np.ndarray:
  """Stacked; the last row stands for the missing ones."""
  return np.stack([*rows, *[rows[-1]] * (n - len(rows))])
