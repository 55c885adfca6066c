"""Folders of models that are not downloaded: all but the weights.

A plan needs shapes. Where a config names a folder that is not here, one with
the same configuration, and the small tokenizer that is bundled, takes its
place; a caption template differs by a few tokens.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from uae_jax import zoo
from uae_jax.ckpt import convert
from uae_jax.errors import UserError
from uae_jax.models import (
  clip,
  connector,
  dinov2,
  flux,
  janus,
  mmdit,
  vae,
  vlm,
  vq,
)

_QWEN = {
  'image_token_id': 151655,
  'vision_start_token_id': 151652,
  'vision_end_token_id': 151653,
}
_JANUS = {'bos_token_id': 0, 'eos_token_id': 1, 'pad_token_id': 2}


def _write(model: zoo.Model, folder: Path) -> None:
  folder.mkdir(parents=True)
  text = json.dumps(dict(model.hub_config), indent=2)
  (folder / 'config.json').write_text(text)


def processors(name: str, folder: Path, **changed) -> None:
  """A bundled tokenizer and preprocessor beside a config.json."""
  for file in convert.beside(zoo.resolve(name)):
    shutil.copy(file, folder / file.name)
  file = folder / 'preprocessor_config.json'
  settings = json.loads(file.read_text())
  file.write_text(json.dumps({**settings, **changed}))


def qwen(variant: str) -> Callable[[Path], None]:
  """Qwen2.5-VL."""

  def write(folder):
    fields = dict(vlm.VARIANTS[variant], image_pad=_QWEN['image_token_id'])
    _write(zoo.policy(fields, _QWEN), folder)
    patch = fields['vision']['patch']
    processors(
      'bundled:umm1/processors', folder, patch_size=patch,
      min_pixels=4 * (2 * patch) ** 2,
    )  # fmt: skip

  return write


def janus_pro(variant: str) -> Callable[[Path], None]:
  """Janus-Pro with its image tokenizer."""

  def write(folder):
    fields = {**janus.VARIANTS[variant], 'vq': vq.VARIANTS[variant]}
    _write(zoo.janus(fields, 3, _JANUS)[0], folder)
    side = fields['vision']['size']
    size = {'height': side, 'width': side}
    processors('bundled:umm2/processors', folder, size=size)

  return write


def decoder(model: zoo.Model, autoencoder: str, of: str, width: int):
  """A decoder's folder: transformer, vae, connector."""

  def write(folder):
    _write(model, folder / 'transformer')
    _write(zoo.autoencoder(vae.VARIANTS[autoencoder]), folder / 'vae')
    conditioner = zoo.conditioner(connector.VARIANTS[of], width)
    _write(conditioner, folder / 'connector')

  return write


def sd3(variant: str) -> Callable[[Path], None]:
  """SD3.5 behind Qwen2.5-VL-3B."""
  return lambda folder: decoder(
    zoo.decoder(mmdit.VARIANTS[variant]), 'sd3', 'uae', 2048
  )(folder)


def uniworld(folder: Path) -> None:
  """FLUX.1-dev behind Qwen2.5-VL-7B."""
  model = zoo.flux_decoder(flux.VARIANTS['flux-dev'])
  decoder(model, 'flux', 'uniworld', 3584)(folder)


def tower(model: Callable[[], zoo.Model], side: int, resize: int, kind: str):
  """A reward or judge tower."""

  def write(folder):
    _write(model(), folder)
    tower_view(folder, side, resize, kind)

  return write


def tower_view(
  folder: Path, side: int, resize: int, kind: str = 'CLIPImageProcessor'
) -> None:
  """A preprocessor beside a tower's config.json."""
  settings = {
    'image_processor_type': kind,
    'size': {'shortest_edge': resize},
    'crop_size': {'height': side, 'width': side},
    'image_mean': [0.5] * 3,
    'image_std': [0.5] * 3,
    'resample': 3,
  }
  (folder / 'preprocessor_config.json').write_text(json.dumps(settings))


# What a config may name -> what writes its stand-in.
KNOWN = {
  'Qwen/Qwen2.5-VL-3B-Instruct': qwen('qwen2.5-vl-3b'),
  'Qwen/Qwen2.5-VL-7B-Instruct': qwen('qwen2.5-vl-7b'),
  'models/uae/policy': qwen('qwen2.5-vl-3b'),
  'models/uniworld/policy': qwen('qwen2.5-vl-7b'),
  'models/qwen3b-sd35m': sd3('sd3.5-medium'),
  'models/uae/decoder': sd3('sd3.5-large'),
  'models/uniworld/decoder': uniworld,
  'deepseek-community/Janus-Pro-1B': janus_pro('janus-pro-1b'),
  'deepseek-community/Janus-Pro-7B': janus_pro('janus-pro-7b'),
  'openai/clip-vit-large-patch14': tower(
    lambda: zoo.tower(clip.VARIANTS['vit-l-14']), 224, 224,
    'CLIPImageProcessor',
  ),
  'facebook/dinov2-large': tower(
    lambda: zoo.dinov2_tower(dinov2.VARIANTS['dinov2-l']), 224, 256,
    'BitImageProcessor',
  ),
}  # fmt: skip


def fill_in(config, folder: Path) -> list[str]:
  """Points `config` at stand-ins where nothing else is there.

  Args:
    config: of a run; changed.
    folder: where stand-ins are written.

  Returns:
    What was missing.

  Raises:
    UserError: something is missing and unknown.
  """
  missing = []

  def one(name: str) -> str:
    try:
      zoo.resolve(name)
      return name
    except UserError:
      if name not in KNOWN:
        raise
    where = folder / name.replace('/', '--')
    if not where.exists():
      KNOWN[name](where)
      missing.append(name)
    return str(where)

  keys = ('policy', 'reader', 'decoder', 'reward', 'judges')
  for key in (key for key in keys if key in config.ckpt):  # a UMM-2 has fewer
    names = config.ckpt[key].split(',')
    config.ckpt[key] = ','.join(one(name) if name else '' for name in names)
  r = config.rewards
  if r.text and (at := one(r.text_tower)) != r.text_tower:
    r.text_tower, r.text_tokenizer = at, 'bundled:umm1/processors'
  return missing
