"""AutoencoderKL on the hub: config.json and tensors of diffusers <-> ours."""

from collections.abc import Mapping
from typing import Any

from uae_jax.ckpt.hf import Row, conv, linear, norm
from uae_jax.errors import UserError

STEM = 'diffusion_pytorch_model'
CLASS = 'AutoencoderKL'


def from_hf(config: Mapping[str, Any]) -> dict[str, Any]:
  """config.json -> fields of `models.vae.VAE`.

  Raises:
    UserError: for another class of model or a layout it does not have.
  """
  name = config.get('_class_name', CLASS)
  if name != CLASS:
    raise UserError(f'config.json is of a {name}; the VAE is an {CLASS}')
  want = dict(
    down_block_types='DownEncoderBlock2D', up_block_types='UpDecoderBlock2D'
  )
  for key, kind in want.items():
    if set(config.get(key, [kind])) != {kind}:
      raise UserError(f'{CLASS} config: {key} must all be {kind}')
  if not config.get('mid_block_add_attention', True):
    raise UserError(f'{CLASS} config: mid_block_add_attention must be true')
  if not config.get('use_quant_conv', True) == config.get(
    'use_post_quant_conv', True
  ):
    raise UserError(f'{CLASS} config: one quant conv without the other')
  return dict(
    channels=tuple(config['block_out_channels']),
    layers=config.get('layers_per_block', 1),
    latent=config.get('latent_channels', 4),
    groups=config.get('norm_num_groups', 32),
    quant=config.get('use_quant_conv', True),
    scaling=config.get('scaling_factor', 0.18215),
    shift=config.get('shift_factor') or 0.0,
  )


def to_hf(fields: Mapping[str, Any]) -> dict[str, Any]:
  """Fields of `models.vae.VAE` -> config.json."""
  levels = len(fields['channels'])
  return {
    '_class_name': CLASS,
    'in_channels': 3,
    'out_channels': 3,
    'down_block_types': ['DownEncoderBlock2D'] * levels,
    'up_block_types': ['UpDecoderBlock2D'] * levels,
    'block_out_channels': list(fields['channels']),
    'layers_per_block': fields['layers'],
    'latent_channels': fields['latent'],
    'norm_num_groups': fields['groups'],
    'use_quant_conv': fields['quant'],
    'use_post_quant_conv': fields['quant'],
    'mid_block_add_attention': True,
    'scaling_factor': fields['scaling'],
    'shift_factor': fields['shift'],
  }


def table(**fields: Any) -> tuple[Row, ...]:
  """The rows of a `models.vae.VAE` with these fields."""
  channels, layers = fields['channels'], fields['layers']
  down = _half('encoder', 'down', channels, layers)
  up = _half('decoder', 'up', channels[::-1], layers + 1)
  quant = []
  if fields['quant']:
    quant = [*conv('quant_conv', 'quant_conv')]
    quant += conv('post_quant_conv', 'post_quant_conv')
  return (*down, *up, *quant)


def _half(part: str, way: str, widths, layers: int) -> list[Row]:
  """Rows of the encoder or the decoder; `widths` in the order of levels."""
  rows = [
    *conv(f'{part}/conv_in', f'{part}.conv_in'),
    *conv(f'{part}/conv_out', f'{part}.conv_out'),
    *norm(f'{part}/norm_out', f'{part}.conv_norm_out', bias=True),
  ]
  hub = f'{part}.mid_block'
  for j in range(2):
    rows += _res(f'{part}/mid/res{j}', f'{hub}.resnets.{j}', shortcut=False)
  attn, hub = f'{part}/mid/attn', f'{hub}.attentions.0'
  rows += norm(f'{attn}/norm', f'{hub}.group_norm', bias=True)
  for name in 'qkv':
    rows += linear(f'{attn}/{name}', f'{hub}.to_{name}')
  rows += linear(f'{attn}/out', f'{hub}.to_out.0', n_in=2)
  before = widths[0]
  for i, width in enumerate(widths):
    for j in range(layers):
      shortcut = j == 0 and width != before
      name = f'{part}.{way}_blocks.{i}.resnets.{j}'
      rows += _res(f'{part}/{way}{i}_res{j}', name, shortcut=shortcut)
    if i + 1 < len(widths):
      name = f'{part}.{way}_blocks.{i}.{way}samplers.0.conv'
      rows += conv(f'{part}/{way}{i}/conv', name)
    before = width
  return rows


def _res(path: str, hub: str, *, shortcut: bool) -> list[Row]:
  rows = []
  for i in '12':
    rows += norm(f'{path}/norm{i}', f'{hub}.norm{i}', bias=True)
    rows += conv(f'{path}/conv{i}', f'{hub}.conv{i}')
  if shortcut:
    rows += conv(f'{path}/shortcut', f'{hub}.conv_shortcut')
  return rows
