"""DINOv2 on the hub, with and without registers: config and names <-> ours."""

from collections.abc import Mapping
from typing import Any

from uae_jax.ckpt.hf import Row, linear, norm
from uae_jax.errors import UserError

# What transformers' Dinov2Config and Dinov2WithRegistersConfig assume for a
# key that config.json omits.
DEFAULTS = dict(
  hidden_size=768,
  num_hidden_layers=12,
  num_attention_heads=12,
  mlp_ratio=4,
  hidden_act='gelu',
  layer_norm_eps=1e-6,
  image_size=224,
  num_channels=3,
  qkv_bias=True,
  use_swiglu_ffn=False,
)
PATCH = {'dinov2': 14, 'dinov2_with_registers': 16}

_KEYS = dict(
  size='image_size',
  patch='patch_size',
  width='hidden_size',
  layers='num_hidden_layers',
  heads='num_attention_heads',
  mlp_ratio='mlp_ratio',
  gated='use_swiglu_ffn',
  qkv_bias='qkv_bias',
)


def from_hf(config: Mapping[str, Any]) -> dict[str, Any]:
  """config.json -> fields of `models.dinov2.DINOv2`.

  Raises:
    UserError: for a value that the model does not implement.
  """
  kind = config['model_type']
  config = {**DEFAULTS, 'patch_size': PATCH[kind], **config}
  act = config['hidden_act']
  if act != 'gelu' or config['num_channels'] != 3:
    raise UserError(
      f'DINOv2 with hidden_act={act!r}, num_channels='
      f"{config['num_channels']}: only 'gelu' and 3 are supported"
    )
  sides = [config['image_size'], config['patch_size']]
  if not all(isinstance(n, int) for n in sides):
    raise UserError(f'DINOv2 image_size, patch_size {sides}: not squares')
  registers = kind == 'dinov2_with_registers'
  return dict(
    **{field: config[key] for field, key in _KEYS.items()},
    act=act,
    eps=float(config['layer_norm_eps']),
    registers=config.get('num_register_tokens', 4) if registers else 0,
    antialias=registers,
    mask_token=registers or config.get('use_mask_token', True),
  )


def to_hf(**fields: Any) -> dict[str, Any]:
  """Fields of `models.dinov2.DINOv2` -> config.json."""
  config = dict(
    **{key: fields[field] for field, key in _KEYS.items()},
    hidden_act=fields['act'],
    layer_norm_eps=fields['eps'],
  )
  if fields['antialias']:
    return dict(
      architectures=['Dinov2WithRegistersModel'],
      model_type='dinov2_with_registers',
      num_register_tokens=fields['registers'],
      **config,
    )
  return dict(
    architectures=['Dinov2Model'],
    model_type='dinov2',
    use_mask_token=fields['mask_token'],
    **config,
  )


def table(**fields: Any) -> tuple[Row, ...]:
  """The rows of a `models.dinov2.DINOv2` with these fields."""
  width, patch = fields['width'], fields['patch']
  tokens = 1 + (fields['size'] // patch) ** 2
  rows = [
    Row('cls', 'embeddings.cls_token', hub_shape=(1, 1, width)),
    Row(
      'positions',
      'embeddings.position_embeddings',
      hub_shape=(1, tokens, width),
    ),
    *linear(
      'patch_embed',
      'embeddings.patch_embeddings.projection',
      hub_shape=(width, 3, patch, patch),
    ),
    *_blocks(fields),
    *norm('final_norm', 'layernorm', bias=True),
  ]
  if fields['mask_token']:
    rows.append(
      Row('mask_token', 'embeddings.mask_token', hub_shape=(1, width))
    )
  if fields['registers']:
    shape = (1, fields['registers'], width)
    rows.append(Row('registers', 'embeddings.register_tokens', hub_shape=shape))
  return tuple(rows)


def _blocks(fields: Mapping[str, Any]) -> list[Row]:
  """Rows of the stacked blocks."""
  ours, hub = 'layers/block', 'encoder.layer.{i}'
  y = dict(layers=tuple(range(fields['layers'])))
  rows = []
  for part, name in (('q', 'query'), ('k', 'key'), ('v', 'value')):
    rows += linear(
      f'{ours}/{part}',
      f'{hub}.attention.attention.{name}',
      bias=fields['qkv_bias'],
      **y,
    )
  rows += linear(f'{ours}/o', f'{hub}.attention.output.dense', n_in=2, **y)
  names = (('fc1', 'fc1'), ('fc2', 'fc2'))
  if fields['gated']:
    names = (('gate_up', 'weights_in'), ('down', 'weights_out'))
  for part, name in names:
    rows += linear(f'{ours}/mlp/{part}', f'{hub}.mlp.{name}', **y)
  for n in '12':
    scale = f'{hub}.layer_scale{n}.lambda1'
    rows += norm(f'{ours}/norm{n}', f'{hub}.norm{n}', bias=True, **y)
    rows.append(Row(f'{ours}/scale{n}/scale', scale, **y))
  return rows
