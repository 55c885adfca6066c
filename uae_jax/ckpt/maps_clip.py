"""CLIP on the hub: config files and tensor names of `CLIPModel` <-> ours.

LongCLIP is read from the same layout with 248 text positions.
"""

from collections.abc import Mapping
from typing import Any

from uae_jax.ckpt.hf import Row, linear, norm
from uae_jax.errors import UserError

# Buffers that older transformers saved.
IGNORE = (r'(vision|text)_model\.embeddings\.position_ids',)

# What transformers' CLIPTextConfig, CLIPVisionConfig and CLIPConfig assume
# for a key that config.json omits (the sizes of ViT-B/32).
DEFAULTS = {
  'text_config': dict(
    vocab_size=49408,
    hidden_size=512,
    intermediate_size=2048,
    num_hidden_layers=12,
    num_attention_heads=8,
    max_position_embeddings=77,
    hidden_act='quick_gelu',
    layer_norm_eps=1e-5,
    eos_token_id=49407,
  ),
  'vision_config': dict(
    hidden_size=768,
    intermediate_size=3072,
    num_hidden_layers=12,
    num_attention_heads=12,
    num_channels=3,
    image_size=224,
    patch_size=32,
    hidden_act='quick_gelu',
    layer_norm_eps=1e-5,
  ),
  'projection_dim': 512,
}

# Field -> key, for what both towers have, then for each.
_BOTH = dict(
  width='hidden_size',
  layers='num_hidden_layers',
  heads='num_attention_heads',
  mlp='intermediate_size',
)
_VISION = dict(size='image_size', patch='patch_size', **_BOTH)
_TEXT = dict(
  ctx='max_position_embeddings',
  vocab='vocab_size',
  eos='eos_token_id',
  **_BOTH,
)
_ACTS = {
  'quick_gelu': 'quick_gelu',
  'gelu': 'gelu',
  'gelu_pytorch_tanh': 'gelu_tanh',
}


def from_hf(config: Mapping[str, Any]) -> dict[str, Any]:
  """config.json of a CLIPModel -> fields of `models.clip.CLIP`.

  Raises:
    UserError: for a value that the model does not implement.
  """
  vision = _section(config, 'vision_config')
  if vision['num_channels'] != 3:
    raise UserError(
      f'CLIP with num_channels={vision["num_channels"]}: only 3 is supported'
    )
  return dict(
    projection=config.get('projection_dim', DEFAULTS['projection_dim']),
    vision=_fields(vision, _VISION),
    language=text_fields(_section(config, 'text_config')),
  )


def text_fields(config: Mapping[str, Any]) -> dict[str, Any]:
  """A CLIPTextConfig -> fields of `TextTower` but the projection.

  Raises:
    UserError: for a value that the model does not implement.
  """
  return _fields({**DEFAULTS['text_config'], **config}, _TEXT)


def text_from_hf(config: Mapping[str, Any]) -> dict[str, Any]:
  """config.json of a CLIPTextModel, with or without projection -> fields.

  Raises:
    UserError: for a value that the model does not implement.
  """
  projected = 'CLIPTextModelWithProjection' in config.get('architectures', ())
  size = config.get('projection_dim', DEFAULTS['projection_dim'])
  return dict(text_fields(config), projection=size if projected else 0)


def text_to_hf(fields: Mapping[str, Any]) -> dict[str, Any]:
  """Inverse of `text_from_hf`."""
  projection = fields['projection']
  name = 'CLIPTextModelWithProjection' if projection else 'CLIPTextModel'
  config = _to_section(fields, _TEXT, projection or fields['width'])
  return dict(architectures=[name], model_type='clip_text_model', **config)


def text_rename(name: str) -> str:
  """Newer transformers drop the prefix of a CLIPTextModel; this adds it."""
  known = name.startswith(('text_model.', 'text_projection.'))
  return name if known else f'text_model.{name}'


def _section(config: Mapping[str, Any], name: str) -> dict[str, Any]:
  """One sub-config; the `<name>_dict` of early exports wins, as upstream."""
  out = {**DEFAULTS[name], **(config.get(name) or {})}
  early = config.get(f'{name}_dict')
  return out if early is None else {**out, **DEFAULTS[name], **early}


def _fields(config: Mapping[str, Any], keys: Mapping[str, str]) -> dict:
  """Reads `keys`, the activation and the epsilon of one tower."""
  wrong = [k for k in keys.values() if not isinstance(config[k], int)]
  if wrong:
    raise UserError(f'CLIP config: {wrong} must be single integers')
  act = config['hidden_act']
  if act not in _ACTS:
    raise UserError(f'CLIP hidden_act={act!r}: use one of {sorted(_ACTS)}')
  return dict(
    **{field: config[key] for field, key in keys.items()},
    act=_ACTS[act],
    eps=float(config['layer_norm_eps']),
  )


def to_hf(
  projection: int, vision: Mapping[str, Any], language: Mapping[str, Any]
) -> dict[str, Any]:
  """Fields of `models.clip.CLIP` -> config.json of a CLIPModel."""
  return dict(
    architectures=['CLIPModel'],
    model_type='clip',
    projection_dim=projection,
    text_config=dict(
      model_type='clip_text_model', **_to_section(language, _TEXT, projection)
    ),
    vision_config=dict(
      model_type='clip_vision_model', **_to_section(vision, _VISION, projection)
    ),
  )


def _to_section(fields, keys, projection: int) -> dict[str, Any]:
  """Fields of one tower -> its part of config.json."""
  act = next(hub for hub, ours in _ACTS.items() if ours == fields['act'])
  return dict(
    **{key: fields[field] for field, key in keys.items()},
    hidden_act=act,
    layer_norm_eps=fields['eps'],
    projection_dim=projection,
  )


def table(
  projection: int, vision: Mapping[str, Any], language: Mapping[str, Any]
) -> tuple[Row, ...]:
  """The rows of a `models.clip.CLIP` with these fields."""
  del projection  # both shapes follow from the parameters
  ours, hub = 'vision_tower', 'vision_model'
  width, patch = vision['width'], vision['patch']
  return (
    Row(f'{ours}/cls', f'{hub}.embeddings.class_embedding'),
    *linear(
      f'{ours}/patch_embed',
      f'{hub}.embeddings.patch_embedding',
      bias=False,
      hub_shape=(width, 3, patch, patch),
    ),
    Row(f'{ours}/positions', f'{hub}.embeddings.position_embedding.weight'),
    # Upstream's spelling.
    *norm(f'{ours}/pre_norm', f'{hub}.pre_layrnorm', bias=True),
    *_blocks(ours, hub, vision),
    *norm(f'{ours}/post_norm', f'{hub}.post_layernorm', bias=True),
    *linear(f'{ours}/projection', 'visual_projection', bias=False),
    *text_rows('text_tower/', language),
    *linear('text_tower/projection', 'text_projection', bias=False),
    Row('logit_scale', 'logit_scale'),
  )


def text_rows(prefix: str, language: Mapping[str, Any]) -> list[Row]:
  """Rows of a `TextTower` under `prefix`, but for its projection."""
  hub = 'text_model'
  words, positions = 'token_embedding', 'position_embedding'
  return [
    Row(f'{prefix}words', f'{hub}.embeddings.{words}.weight'),
    Row(f'{prefix}positions', f'{hub}.embeddings.{positions}.weight'),
    *_blocks(prefix.removesuffix('/'), hub, language),
    *norm(f'{prefix}final_norm', f'{hub}.final_layer_norm', bias=True),
  ]


def text_table(**fields: Any) -> tuple[Row, ...]:
  """The rows of a `models.clip.TextTower` on its own."""
  rows = text_rows('', fields)
  if fields['projection']:
    rows += linear('projection', 'text_projection', bias=False)
  return tuple(rows)


def _blocks(tower: str, hub: str, fields: Mapping[str, Any]) -> list[Row]:
  """Rows of the stacked blocks of one tower."""
  ours = f'{tower}/layers/block'.removeprefix('/')
  hub = f'{hub}.encoder.layers.{{i}}'
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
