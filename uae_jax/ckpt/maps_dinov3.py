"""DINOv3 ViT on the hub: config files and tensor names <-> ours."""

from collections.abc import Mapping
from typing import Any

from uae_jax.ckpt.hf import Row, linear, norm
from uae_jax.errors import UserError

# What transformers' DINOv3ViTConfig assumes for a key that config.json omits.
DEFAULTS = dict(
  patch_size=16,
  hidden_size=384,
  intermediate_size=1536,
  num_hidden_layers=12,
  num_attention_heads=6,
  hidden_act='gelu',
  layer_norm_eps=1e-5,
  rope_theta=100.0,
  image_size=224,
  num_channels=3,
  query_bias=True,
  key_bias=False,
  value_bias=True,
  proj_bias=True,
  mlp_bias=True,
  use_gated_mlp=False,
  num_register_tokens=0,
)

_KEYS = dict(
  size='image_size',
  patch='patch_size',
  width='hidden_size',
  layers='num_hidden_layers',
  heads='num_attention_heads',
  mlp='intermediate_size',
  gated='use_gated_mlp',
  act='hidden_act',
  q_bias='query_bias',
  k_bias='key_bias',
  v_bias='value_bias',
  o_bias='proj_bias',
  registers='num_register_tokens',
)
_ACTS = ('gelu', 'silu')


def from_hf(config: Mapping[str, Any]) -> dict[str, Any]:
  """config.json -> fields of `models.dinov3.DINOv3`.

  Raises:
    UserError: for a value that the model does not implement.
  """
  config = {**DEFAULTS, **config}
  act = config['hidden_act']
  if act not in _ACTS or config['num_channels'] != 3 or not config['mlp_bias']:
    raise UserError(
      f'DINOv3 config: hidden_act={act!r} must be one of {_ACTS}, '
      'num_channels 3 and mlp_bias true'
    )
  sides = [config['image_size'], config['patch_size']]
  if not all(isinstance(n, int) for n in sides):
    raise UserError(f'DINOv3 image_size, patch_size {sides}: not squares')
  return dict(
    **{field: config[key] for field, key in _KEYS.items()},
    theta=float(config['rope_theta']),
    eps=float(config['layer_norm_eps']),
  )


def to_hf(**fields: Any) -> dict[str, Any]:
  """Fields of `models.dinov3.DINOv3` -> config.json."""
  return dict(
    architectures=['DINOv3ViTModel'],
    model_type='dinov3_vit',
    **{key: fields[field] for field, key in _KEYS.items()},
    rope_theta=fields['theta'],
    layer_norm_eps=fields['eps'],
    mlp_bias=True,
  )


def rename(name: str) -> str:
  """Folds the layers' prefix, which some exports keep, into the table's."""
  return name.removeprefix('model.')


def table(**fields: Any) -> tuple[Row, ...]:
  """The rows of a `models.dinov3.DINOv3` with these fields."""
  width, patch = fields['width'], fields['patch']
  one = (1, 1, width)
  return (
    Row('cls', 'embeddings.cls_token', hub_shape=one),
    Row('mask_token', 'embeddings.mask_token', hub_shape=one),
    Row(
      'registers',
      'embeddings.register_tokens',
      hub_shape=(1, fields['registers'], width),
    ),
    *linear(
      'patch_embed',
      'embeddings.patch_embeddings',
      hub_shape=(width, 3, patch, patch),
    ),
    *_blocks(fields),
    *norm('final_norm', 'norm', bias=True),
  )


def _blocks(fields: Mapping[str, Any]) -> list[Row]:
  """Rows of the stacked blocks."""
  ours, hub = 'layers/block', 'layer.{i}'
  y = dict(layers=tuple(range(fields['layers'])))
  rows = []
  for part in 'qkvo':
    rows += linear(
      f'{ours}/{part}',
      f'{hub}.attention.{part}_proj',
      bias=fields[f'{part}_bias'],
      n_in=2 if part == 'o' else 1,
      **y,
    )
  names = (('fc1', 'up'), ('fc2', 'down'))
  if fields['gated']:
    names = (('gate', 'gate'), ('up', 'up'), ('down', 'down'))
  for part, name in names:
    rows += linear(f'{ours}/mlp/{part}', f'{hub}.mlp.{name}_proj', **y)
  for n in '12':
    scale = f'{hub}.layer_scale{n}.lambda1'
    rows += norm(f'{ours}/norm{n}', f'{hub}.norm{n}', bias=True, **y)
    rows.append(Row(f'{ours}/scale{n}/scale', scale, **y))
  return rows
