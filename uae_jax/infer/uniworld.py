"""Drawing as UniWorld-V1 does: T5 beside the caption, reference images.

The decoder's folder has `text_encoder`, `text_encoder_2` and their tokenizers
for the former, `siglip` and `siglip_projector` for the latter.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from uae_jax import zoo
from uae_jax.ckpt import maps_vit
from uae_jax.data.preprocess import (
  Example,
  PolicyView,
  mrope_positions,
  smart_resize,
  to_rgb,
)
from uae_jax.data.tokenize import Template, Tokenizer, encode_caption
from uae_jax.data.tower_preprocess import RESAMPLE, tower_pixels
from uae_jax.errors import UserError
from uae_jax.infer.autoencoder import Drawer
from uae_jax.infer.options import Options
from uae_jax.infer.prompts import PromptReader, load_encoders
from uae_jax.rewards.features import Tower
from uae_jax.types import Batch, Captions
from uae_jax.umm.umm1 import UMM1
from uae_jax.umm.uniworld import IMAGE_END, Reference, join

T5_LENGTH = 256  # tokens, padding included
SIGLIP, PROJECTOR = 'siglip', 'siglip_projector'


def load_drawer(
  umm: UMM1,
  params: dict[str, Any],
  decoder: Path,
  tokenizer: Tokenizer,
  template: Template,
  view: PolicyView,
  options: Options,
  mesh: Mesh,
  references: Sequence[Any],
) -> Drawer:
  """A drawer of captions, each with the same reference images.

  Args:
    umm: reads captions; its decoder has distilled guidance.
    params: its parameters; those of what is read beside it are added.
    decoder: its folder.
    tokenizer: of the language model.
    template: of its chat.
    view: how it sees images.
    options: `joint` reads the prompt through T5 and CLIP as well.
    mesh: where weights and batches go.
    references: images of any size; none is plain text to image.

  Raises:
    UserError: the folder lacks what is asked for.
  """
  if umm.painter.guidance != 1:
    raise UserError(
      f'{decoder}: joint and reference images are for decoders that have '
      'their guidance as an input'
    )
  put = lambda model, folder: zoo.weights(
    model, folder, mesh, dtype=options.dtype
  )
  reader = reference = None
  if options.joint:
    models, folders, reader = _encoders(decoder, umm, options.dtype)
    for name, model in models.items():
      params[name] = put(model, folders[name])
  if references:
    models, reference, tower = _reference(decoder, tokenizer)
    for name, model in models.items():
      params[name] = put(model, decoder / name)
    seen = see(references, view, options.max_pixels)
    pixels = np.stack([tower_pixels(image, tower) for image in references])

  def encode(texts):
    out = {}
    if reader is not None:
      out['prompt'] = reader.encode(texts)
    if reference is None:
      rows = [encode_caption(tokenizer, t, options.length) for t in texts]
      ids, mask = (np.stack(x)[:, None] for x in zip(*rows))
      return out | {'caption': Captions(ids, mask, np.zeros(ids.shape))}
    rows = [
      {**seen, **ask(text, seen, tokenizer, template, view, options.length)}
      for text in texts
    ]
    rows = {key: np.stack([row[key] for row in rows]) for key in rows[0]}
    rows['pixels'] = np.stack([pixels] * len(texts))
    return out | {'turn': rows}

  def run(params, batch, rng):
    if 'turn' in batch:
      rows = dict(batch['turn'])
      pixels = rows.pop('pixels')
      cond = reference(umm, params, Batch(image=None, **rows), pixels)
    else:
      cond = umm.condition(
        params['policy'], params['connector'], batch['caption']
      )
      cond = jax.tree.map(lambda x: x[:, 0], cond)
    if 'prompt' in batch:
      cond = join(cond, reader(params, batch['prompt']))
    noise = umm.painter.noise(rng, len(cond['pooled']))
    return umm.painter(params, noise, cond)

  return Drawer(run, params, encode, mesh, options.batch)


def see(
  images: Sequence[Any], view: PolicyView, pixels: int
) -> dict[str, np.ndarray]:
  """Images as the language model sees them, one after the other.

  Args:
    images: of any size.
    view: patches and normalisation.
    pixels: both bounds of the area that an image is resized to.

  Returns:
    Arrays of `types.Batch` without leading axis.
  """
  out: dict[str, list[np.ndarray]] = {}
  window = 0
  for i, image in enumerate(images):
    image = to_rgb(image)
    size = (image.height, image.width, view.factor, pixels, pixels)
    h, w = smart_resize(*size)
    image = image.resize((w, h), RESAMPLE['cubic'])
    exact = dataclasses.replace(view, min_pixels=0, max_pixels=h * w)
    example = exact(image)
    example['patch_window'] += window
    example['patch_image'] += i
    window = example['patch_window'].max() + 1
    for key, x in example.items():
      out.setdefault(key, []).append(x)
  return {key: np.concatenate(x) for key, x in out.items()}


def ask(
  text: str,
  seen: Mapping[str, np.ndarray],
  tokenizer: Tokenizer,
  template: Template,
  view: PolicyView,
  length: int,
) -> Example:
  """The user's turn, text before images, as `prefix_*` of `types.Batch`.

  Args:
    text: cut to what a caption of `length` tokens may have beside its EOS.
    seen: from `see`.
    tokenizer: of the language model.
    template: of its chat.
    view: that of `see`.
    length: the result has room for so long a text.
  """
  turn, grids = [], []
  for i in range(seen['patch_image'].max() + 1):
    hw = seen['patch_hw'][seen['patch_image'] == i]
    grids.append((1, *(hw.max(0) + 1)))
    turn += tokenizer.encode('<|vision_start|>')
    turn += [template.image_pad] * (len(hw) // view.merge**2)
    turn += tokenizer.encode(IMAGE_END)
  words = tokenizer.encode(text)[: length - 1]
  ids = (*template.draw_before, *words, *turn, *template.draw_after)
  spare = length - 1 - len(words)
  positions = mrope_positions(ids, grids, template.image_pad, view.merge)
  return dict(
    prefix_ids=np.array([*ids, *[template.pad] * spare], np.int32),
    prefix_positions=np.pad(positions, ((0, 0), (0, spare))),
    prefix_mask=np.arange(len(ids) + spare) < len(ids),
  )


def _encoders(
  decoder: Path, umm: UMM1, dtype: str
) -> tuple[dict[str, zoo.Model], dict[str, Path], PromptReader]:
  """CLIP-L and T5 of FLUX, where the folder has them."""
  if not (decoder / 'text_encoder_2').is_dir():
    raise UserError(
      f'{decoder} has no text_encoder_2: joint needs the text encoders of FLUX'
    )
  width = umm.painter.decoder.joint_attention_dim
  return load_encoders(decoder, ('clip_l', 't5'), T5_LENGTH, width, dtype)


def _reference(
  decoder: Path, tokenizer: Tokenizer
) -> tuple[dict[str, zoo.Model], Reference, Tower]:
  """SigLIP and its projector, where the folder has them."""
  if not (decoder / SIGLIP).is_dir():
    raise UserError(
      f'{decoder} has no {SIGLIP}, which reads reference images: compose it '
      'with --siglip=FOLDER'
    )
  eye = zoo.tower_from_folder(decoder / SIGLIP)
  width = eye.module.vision['width']
  projector = zoo.conditioner_from_folder(decoder / PROJECTOR, width)
  tower = Tower(eye.module, **maps_vit.read_view(decoder / SIGLIP))
  reference = Reference(eye.module, projector.module, tokenizer.id(IMAGE_END))
  return {SIGLIP: eye, PROJECTOR: projector}, reference, tower
