"""FLUX.1 on the hub: config.json and tensors of diffusers <-> ours."""

from collections.abc import Mapping
from typing import Any

from uae_jax.ckpt.hf import Row, linear, norm
from uae_jax.errors import UserError

STEM = 'diffusion_pytorch_model'
CLASS = 'FluxTransformer2DModel'

# Fields that config.json has under the same name, with what diffusers
# assumes for a key that is absent.
_SAME = dict(
  in_channels=64,
  num_layers=19,
  num_single_layers=38,
  attention_head_dim=128,
  num_attention_heads=24,
  joint_attention_dim=4096,
  pooled_projection_dim=768,
  guidance_embeds=False,
  axes_dims_rope=(16, 56, 56),
)
# Ours -> hub inside a double block: projections, their output, norms.
_STREAMS = {
  'image': ('attn.to_{}', 'attn.to_out.0', 'attn.norm_{}', 'norm1', 'ff'),
  'text': (
    'attn.add_{}_proj', 'attn.to_add_out', 'attn.norm_added_{}',
    'norm1_context', 'ff_context',
  ),
}  # fmt: skip


def from_hf(config: Mapping[str, Any]) -> dict[str, Any]:
  """config.json -> fields of `models.flux.Flux`.

  Raises:
    UserError: for another class of model or sizes that do not go together.
  """
  name = config.get('_class_name', CLASS)
  if name != CLASS:
    raise UserError(f'config.json is of a {name}; the decoder is a {CLASS}')
  fields = {**_SAME, **{k: v for k, v in config.items() if k in _SAME}}
  fields['axes_dims_rope'] = tuple(fields['axes_dims_rope'])
  if config.get('patch_size', 1) != 1:
    raise UserError(f'{CLASS} config: patch_size must be 1')
  if config.get('out_channels') not in (None, fields['in_channels']):
    fields['out_channels'] = config['out_channels']
  if sum(fields['axes_dims_rope']) != fields['attention_head_dim']:
    raise UserError(
      f'{CLASS} config: axes_dims_rope must sum to attention_head_dim'
    )
  return fields


def to_hf(fields: Mapping[str, Any]) -> dict[str, Any]:
  """Fields of `models.flux.Flux` -> config.json."""
  same = {key: fields[key] for key in _SAME}
  same['axes_dims_rope'] = list(fields['axes_dims_rope'])
  if fields.get('out_channels'):
    same['out_channels'] = fields['out_channels']
  return {'_class_name': CLASS, 'patch_size': 1, **same}


def table(prefix: str = '', **fields: Any) -> tuple[Row, ...]:
  """The rows of a `models.flux.Flux`, under a prefix of the hub's names."""
  width = fields['num_attention_heads'] * fields['attention_head_dim']
  embed = f'{prefix}time_text_embed'
  rows = [
    *linear('x', f'{prefix}x_embedder'),
    *linear('context', f'{prefix}context_embedder'),
    *_split('final_mod', f'{prefix}norm_out.linear', 2 * width),
    *linear('proj_out', f'{prefix}proj_out'),
  ]
  embedders = {'time': 'timestep_embedder', 'pooled': 'text_embedder'}
  if fields['guidance_embeds']:
    embedders['guidance'] = 'guidance_embedder'
  for ours, theirs in embedders.items():
    for i in '12':
      rows += linear(f'{ours}/fc{i}', f'{embed}.{theirs}.linear_{i}')

  y = dict(layers=tuple(range(fields['num_layers'])))
  block = f'{prefix}transformer_blocks.{{i}}'
  for name, hub in _STREAMS.items():
    ours = f'double_blocks/block/{name}'
    projection, out, scale, mod, mlp = (f'{block}.{part}' for part in hub)
    rows += _split(f'{ours}_mod', f'{mod}.linear', 6 * width, **y)
    rows += _qkv(ours, projection, scale, width, y)
    rows += linear(f'{ours}_out', out, n_in=2, **y)
    rows += linear(f'{ours}_mlp/fc1', f'{mlp}.net.0.proj', **y)
    rows += linear(f'{ours}_mlp/fc2', f'{mlp}.net.2', **y)

  y = dict(layers=tuple(range(fields['num_single_layers'])))
  ours, block = (
    'single_blocks/block',
    f'{prefix}single_transformer_blocks.{{i}}',
  )
  rows += _split(f'{ours}/mod', f'{block}.norm.linear', 3 * width, **y)
  rows += _qkv(
    f'{ours}/all', f'{block}.attn.to_{{}}', f'{block}.attn.norm_{{}}', width, y
  )
  rows += linear(f'{ours}/mlp', f'{block}.proj_mlp', **y)
  rows += linear(f'{ours}/out', f'{block}.proj_out', **y)
  return tuple(rows)


def _qkv(ours: str, projection: str, scale: str, width: int, y) -> list[Row]:
  rows = []
  for part in 'qkv':
    rows += _split(f'{ours}/{part}', projection.replace('{}', part), width, **y)
  for part in 'qk':
    target = scale.replace('{}', part)
    rows += norm(f'{ours}/{part}_norm', target, bias=False, **y)
  return rows


def _split(path: str, hub: str, out: int, **kw) -> list[Row]:
  """Rows of a Linear with two output axes of ours, one of `out` there."""
  return [
    *linear(path, hub, bias=False, **kw),
    Row(f'{path}/bias', f'{hub}.bias', hub_shape=(out,), **kw),
  ]
