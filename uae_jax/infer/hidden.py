"""Redraws images from a captioner's own states instead of its text.

The states at the caption's tokens, which have seen the image, go through the
connector to the decoder: `bottleneck='hidden'` of `umm.umm1`. One program
describes and draws.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Key, UInt8

from uae_jax import zoo
from uae_jax.data import tokenize
from uae_jax.errors import UserError
from uae_jax.infer import options as options_lib
from uae_jax.infer.autoencoder import Describer, Images
from uae_jax.infer.load import load
from uae_jax.infer.painters import PARTS, load_painter
from uae_jax.sharding.mesh import put_batch
from uae_jax.types import Batch
from uae_jax.umm.umm1 import UMM1


@dataclasses.dataclass(frozen=True)
class Redrawer:
  """Images -> captions, and images drawn from the states at them.

  Attributes:
    describer: whose `umm` also draws.
    frozen: parameters beside the policy's.
    options: how it is asked.
  """

  describer: Describer
  frozen: Mapping[str, Any]
  options: options_lib.Options

  def __post_init__(self):
    umm = self.describer.umm

    def run(policy, frozen, batch, rng):
      words, noise = jax.random.split(rng)
      prefix = umm.prefill(policy, batch)
      captions = umm.describe(policy, prefix, words, 1)
      images = umm.draw(policy, frozen, captions, prefix, noise)
      return captions.tokens[:, 0], captions.mask[:, 0], images[:, 0]

    object.__setattr__(self, '_run', jax.jit(run))

  def __call__(
    self, images: Images, rng: Key[Array, '']
  ) -> tuple[list[str], UInt8[np.ndarray, 'n R Q 3']]:
    """At most a batch of images -> their captions and drawings."""
    d, n = self.describer, len(images)
    rows = [d.example(image) for image in images]
    rows += [rows[-1]] * (d.batch - n)
    stacked = {key: np.stack([row[key] for row in rows]) for key in rows[0]}
    with jax.set_mesh(d.mesh):
      batch = Batch(image=None, **put_batch(stacked, d.mesh))
      out = self._run(d.policy, self.frozen, batch, rng)
      tokens, mask, pixels = jax.device_get(out)
    texts = [d.decode(ids[keep]) for ids, keep in zip(tokens[:n], mask)]
    return texts, np.round(pixels[:n] * 255).astype(np.uint8)


def load_redrawer(name: str, mesh: Mesh, said: Mapping[str, Any]) -> Redrawer:
  """Loads a UMM-1; arguments as those of `load`.

  The policy's own states are used, also where `umm.json` names another
  reader of captions.

  Raises:
    UserError: the folder is no captioner beside a decoder that reads its
      states, or cannot be read.
  """
  model = load(name, mesh, said, draws=False)
  folder = zoo.resolve(name)
  describer, o = model.describer, model.options
  try:
    decoder = zoo.resolve(options_lib.place(folder, 'decoder'))
    reads = (decoder / 'connector').is_dir() and not o.joint
  except UserError:
    reads = False
  if describer is None or not isinstance(describer.umm, UMM1) or not reads:
    raise UserError(
      f'{name} has no decoder that reads hidden states: use caption'
    )
  policy = zoo.resolve(options_lib.place(folder, 'policy'))
  connector = zoo.conditioner_from_folder(
    decoder / 'connector', describer.umm.vlm.lm['width']
  )
  models, painter = load_painter(
    decoder, height=o.height, width=o.width, steps=o.steps, shift=o.shift,
    guidance=o.guidance, dtype=o.dtype,
  )  # fmt: skip
  kw = dict(dtype=o.dtype)
  frozen = {
    key: zoo.weights(m, decoder / PARTS[key], mesh, **kw)
    for key, m in models.items()
  }
  frozen['connector'] = zoo.weights(
    connector, decoder / 'connector', mesh, **kw
  )
  negative = tokenize.load_tokenizer(policy).encode(o.negative)
  if painter.guidance != 1 and len(negative) > o.length:
    raise UserError(
      f'the negative prompt has {len(negative)} tokens: set length to that'
    )
  umm = dataclasses.replace(
    describer.umm,
    connector=connector.module,
    painter=painter,
    tokens=dataclasses.replace(describer.umm.tokens, negative=negative),
    bottleneck='hidden',
  )
  return Redrawer(dataclasses.replace(describer, umm=umm), frozen, o)
