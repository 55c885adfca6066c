"""SigLIP and SigLIP 2 on the hub: config files and tensor names <-> ours.

SigLIP 2 at a fixed resolution is a `SiglipModel`; at any aspect ratio
(NaFlex) it is a `Siglip2Model` with the same names. Files of the image tower
alone may leave out its prefix.
"""

import math
from collections.abc import Mapping
from typing import Any

from uae_jax.ckpt.hf import Row, linear, norm
from uae_jax.errors import UserError

# Buffers that older transformers saved.
IGNORE = (r'(vision|text)_model\.embeddings\.position_ids',)
# What a file of both towers holds besides the image tower.
TEXT = (r'text_model\..*', r'logit_(scale|bias)')

# What transformers' config classes assume for a key that config.json omits
# (the sizes of siglip-base-patch16-224).
_BOTH = dict(
  hidden_size=768,
  intermediate_size=3072,
  num_hidden_layers=12,
  num_attention_heads=12,
  hidden_act='gelu_pytorch_tanh',
  layer_norm_eps=1e-6,
)
DEFAULTS = {
  'text_config': dict(vocab_size=32000, max_position_embeddings=64, **_BOTH),
  'vision_config': dict(
    num_channels=3, patch_size=16, vision_use_head=True, **_BOTH
  ),
}

_KEYS = dict(
  width='hidden_size',
  layers='num_hidden_layers',
  heads='num_attention_heads',
  mlp='intermediate_size',
)
_ACTS = {'gelu_pytorch_tanh': 'gelu_tanh', 'gelu': 'gelu'}


def from_hf(config: Mapping[str, Any], *, text: bool = True) -> dict[str, Any]:
  """config.json -> fields of `models.siglip.SigLIP`.

  Args:
    config: of a SiglipModel or Siglip2Model, or of its image tower alone.
    text: whether to keep the text tower, where there is one.

  Raises:
    UserError: for a value that the model does not implement.
  """
  alone = config['model_type'].endswith('_vision_model')
  vision = config if alone else config.get('vision_config') or {}
  vision = {**DEFAULTS['vision_config'], **vision}
  if not vision['vision_use_head'] or vision['num_channels'] != 3:
    raise UserError(
      'SigLIP config: vision_use_head must be true and num_channels 3'
    )
  naflex = config['model_type'].startswith('siglip2')
  patch = vision['patch_size']
  if naflex:
    side = math.isqrt(vision.get('num_patches', 256))
    size = side * patch
  else:
    size = vision.get('image_size', 224)
  return dict(
    vision=dict(_fields(vision), patch=patch, size=size, naflex=naflex),
    language=None if alone or not text else _language(config),
  )


def _language(config: Mapping[str, Any]) -> dict[str, Any]:
  """Fields of the text tower."""
  text = {**DEFAULTS['text_config'], **(config.get('text_config') or {})}
  return dict(
    _fields(text),
    ctx=text['max_position_embeddings'],
    vocab=text['vocab_size'],
    projection=text.get('projection_size') or text['hidden_size'],
  )


def _fields(config: Mapping[str, Any]) -> dict[str, Any]:
  """What both towers have."""
  act = config['hidden_act']
  if act not in _ACTS:
    raise UserError(f'SigLIP hidden_act={act!r}: use one of {sorted(_ACTS)}')
  return dict(
    **{field: config[key] for field, key in _KEYS.items()},
    act=_ACTS[act],
    eps=float(config['layer_norm_eps']),
  )


def to_hf(
  vision: Mapping[str, Any], language: Mapping[str, Any] | None
) -> dict[str, Any]:
  """Fields of `models.siglip.SigLIP` -> config.json."""

  def section(fields):
    act = next(hub for hub, ours in _ACTS.items() if ours == fields['act'])
    return dict(
      **{key: fields[field] for field, key in _KEYS.items()},
      hidden_act=act,
      layer_norm_eps=fields['eps'],
    )

  kind = 'siglip2' if vision['naflex'] else 'siglip'
  patch, size = vision['patch'], vision['size']
  seen = {'num_patches': (size // patch) ** 2}
  seen = seen if vision['naflex'] else {'image_size': size}
  image = dict(
    model_type=f'{kind}_vision_model',
    patch_size=patch,
    vision_use_head=True,
    **seen,
    **section(vision),
  )
  if language is None:
    return dict(architectures=[f'{kind.title()}VisionModel'], **image)
  return dict(
    architectures=[f'{kind.title()}Model'],
    model_type=kind,
    vision_config=image,
    text_config=dict(
      model_type=f'{kind}_text_model',
      vocab_size=language['vocab'],
      max_position_embeddings=language['ctx'],
      projection_size=language['projection'],
      **section(language),
    ),
  )


def rename(name: str) -> str:
  """Gives the tensors of an image tower alone their prefix."""
  bare = ('embeddings.', 'encoder.', 'post_layernorm.', 'head.')
  return f'vision_model.{name}' if name.startswith(bare) else name


def ignore(language: Mapping[str, Any] | None) -> tuple[str, ...]:
  """Known tensors that a model with these fields does not read."""
  return IGNORE + (TEXT if language is None else ())


def table(
  vision: Mapping[str, Any], language: Mapping[str, Any] | None
) -> tuple[Row, ...]:
  """The rows of a `models.siglip.SigLIP` with these fields."""
  ours, hub = 'vision_tower', 'vision_model'
  width, patch = vision['width'], vision['patch']
  kernel = (width, 3, patch, patch)
  flat = (width, 3 * patch * patch)
  positions = 'embeddings.position_embedding.weight'
  rows = [
    *linear(
      f'{ours}/patch_embed',
      f'{hub}.embeddings.patch_embedding',
      hub_shape=flat if vision['naflex'] else kernel,
    ),
    Row(f'{ours}/positions', f'{hub}.{positions}'),
    *_blocks(ours, hub, vision),
    *norm(f'{ours}/post_norm', f'{hub}.post_layernorm', bias=True),
    Row(f'{ours}/head/probe', f'{hub}.head.probe', hub_shape=(1, 1, width)),
    Row(
      f'{ours}/head/qkv/kernel',
      f'{hub}.head.attention.in_proj_weight',
      'linear',
    ),
    Row(f'{ours}/head/qkv/bias', f'{hub}.head.attention.in_proj_bias', 'flat'),
    *linear(f'{ours}/head/o', f'{hub}.head.attention.out_proj', n_in=2),
    *norm(f'{ours}/head/norm', f'{hub}.head.layernorm', bias=True),
    *linear(f'{ours}/head/mlp/fc1', f'{hub}.head.mlp.fc1'),
    *linear(f'{ours}/head/mlp/fc2', f'{hub}.head.mlp.fc2'),
  ]
  if language is not None:
    ours, hub = 'text_tower', 'text_model'
    rows += [
      Row(f'{ours}/words', f'{hub}.embeddings.token_embedding.weight'),
      Row(f'{ours}/positions', f'{hub}.{positions}'),
      *_blocks(ours, hub, language),
      *norm(f'{ours}/final_norm', f'{hub}.final_layer_norm', bias=True),
      *linear(f'{ours}/head', f'{hub}.head'),
      Row('logit_scale', 'logit_scale'),
      Row('logit_bias', 'logit_bias'),
    ]
  return tuple(rows)


def _blocks(tower: str, hub: str, fields: Mapping[str, Any]) -> list[Row]:
  """Rows of the stacked blocks of one tower."""
  ours, hub = f'{tower}/layers/block', f'{hub}.encoder.layers.{{i}}'
  y = dict(layers=tuple(range(fields['layers'])))
  rows = []
  for part in 'qkv':
    rows += linear(f'{ours}/{part}', f'{hub}.self_attn.{part}_proj', **y)
  rows += linear(f'{ours}/o', f'{hub}.self_attn.out_proj', n_in=2, **y)
  for part in ('fc1', 'fc2'):
    rows += linear(f'{ours}/mlp/{part}', f'{hub}.mlp.{part}', **y)
  for n in '12':
    rows += norm(f'{ours}/norm{n}', f'{hub}.layer_norm{n}', bias=True, **y)
  return rows
