"""SD3 / SD3.5 on the hub: config.json and tensors of diffusers <-> ours.

The folder is `transformer/` of a pipeline; its safetensors files have the
stem `diffusion_pytorch_model`.
"""

from collections.abc import Mapping
from typing import Any

from uae_jax.ckpt.hf import Row, linear, norm
from uae_jax.errors import UserError

STEM = 'diffusion_pytorch_model'
CLASS = 'SD3Transformer2DModel'

# Fields that config.json has under the same name, with what diffusers
# assumes for a key that is absent.
_SAME = dict(
  sample_size=128,
  patch_size=2,
  in_channels=16,
  out_channels=16,
  num_layers=18,
  num_attention_heads=18,
  attention_head_dim=64,
  joint_attention_dim=4096,
  pooled_projection_dim=2048,
  pos_embed_max_size=96,
)
_CAPTION_WIDTH = 1152

# Ours -> hub inside a block: attention projections, their output, norms.
_ATTENTIONS = {
  'image': ('attn.to_{}', 'attn.to_out.0', 'attn.norm_{}'),
  'text': ('attn.add_{}_proj', 'attn.to_add_out', 'attn.norm_added_{}'),
  'image2': ('attn2.to_{}', 'attn2.to_out.0', 'attn2.norm_{}'),
}


def from_hf(config: Mapping[str, Any]) -> dict[str, Any]:
  """config.json -> fields of `models.mmdit.MMDiT`.

  Raises:
    UserError: for another class of model or a value that the model does not
      implement.
  """
  name = config.get('_class_name', CLASS)
  if name != CLASS:
    raise UserError(f'config.json is of a {name}; the decoder is a {CLASS}')
  fields = {**_SAME, **{k: v for k, v in config.items() if k in _SAME}}
  wrong = [k for k, v in fields.items() if not isinstance(v, int) or v < 1]
  if wrong:
    raise UserError(f'{CLASS} config: {wrong} must be positive integers')
  width = fields['num_attention_heads'] * fields['attention_head_dim']
  captions = config.get('caption_projection_dim', _CAPTION_WIDTH)
  if captions != width:
    raise UserError(
      f'{CLASS} config: caption_projection_dim={captions} must be '
      f'num_attention_heads * attention_head_dim = {width}'
    )
  dual = sorted(config.get('dual_attention_layers') or ())
  if dual != list(range(len(dual))) or len(dual) > fields['num_layers']:
    raise UserError(
      f'{CLASS} config: dual_attention_layers={dual} must be the first '
      'layers, 0, 1, ... without a gap'
    )
  qk_norm = config.get('qk_norm')
  if qk_norm not in (None, 'rms_norm'):
    raise UserError(
      f'{CLASS} config: qk_norm={qk_norm!r} must be null or "rms_norm"'
    )
  return dict(**fields, dual_layers=len(dual), qk_norm=qk_norm is not None)


def to_hf(fields: Mapping[str, Any]) -> dict[str, Any]:
  """Fields of `models.mmdit.MMDiT` -> config.json."""
  width = fields['num_attention_heads'] * fields['attention_head_dim']
  return {
    '_class_name': CLASS,
    **{key: fields[key] for key in _SAME},
    'caption_projection_dim': width,
    'dual_attention_layers': list(range(fields['dual_layers'])),
    'qk_norm': 'rms_norm' if fields['qk_norm'] else None,
  }


def table(**fields: Any) -> tuple[Row, ...]:
  """The rows of a `models.mmdit.MMDiT` with these fields."""
  width = fields['num_attention_heads'] * fields['attention_head_dim']
  patch = fields['patch_size']
  embed = 'time_text_embed'
  rows = [
    Row('pos_embed/table', 'pos_embed.pos_embed'),
    *linear(
      'pos_embed/proj', 'pos_embed.proj', bias=False,
      hub_shape=(width, fields['in_channels'], patch, patch),
    ),
    Row('pos_embed/proj/bias', 'pos_embed.proj.bias'),
    *linear('time/fc1', f'{embed}.timestep_embedder.linear_1'),
    *linear('time/fc2', f'{embed}.timestep_embedder.linear_2'),
    *linear('pooled/fc1', f'{embed}.text_embedder.linear_1'),
    *linear('pooled/fc2', f'{embed}.text_embedder.linear_2'),
    *linear('context', 'context_embedder'),
    *_split('final_mod', 'norm_out.linear', 2 * width),
    *linear('proj_out', 'proj_out'),
  ]  # fmt: skip
  final = fields['num_layers'] - 1
  dual = min(fields['dual_layers'], final)
  stacks = (
    ('dual_blocks', range(dual), True),
    ('joint_blocks', range(dual, final), False),
    ('last_block', range(final, final + 1), fields['dual_layers'] > final),
  )
  for name, layers, dual in stacks:
    if layers:
      rows += _block(
        f'{name}/block', tuple(layers), width, fields['qk_norm'], dual,
        last=name == 'last_block',
      )  # fmt: skip
  return tuple(rows)


def _block(
  ours: str,
  layers: tuple[int, ...],
  width: int,
  qk_norm: bool,
  dual: bool,
  last: bool,
) -> list[Row]:
  """Rows of one stack of equal blocks."""
  hub = 'transformer_blocks.{i}'
  y = dict(layers=layers)
  image, text = (9 if dual else 6), (2 if last else 6)
  rows = [
    *_split(f'{ours}/image_mod', f'{hub}.norm1.linear', image * width, **y),
    *_split(
      f'{ours}/text_mod', f'{hub}.norm1_context.linear', text * width, **y
    ),
  ]
  for name in ('image', 'text', 'image2') if dual else ('image', 'text'):
    projection, out, scale = (f'{hub}.{part}' for part in _ATTENTIONS[name])
    for part in 'qkv':
      target = projection.replace('{}', part)
      rows += _split(f'{ours}/{name}/{part}', target, width, **y)
    if not (last and name == 'text'):
      rows += linear(f'{ours}/{name}_out', out, n_in=2, **y)
    for part in 'qk' if qk_norm else '':
      target = scale.replace('{}', part)
      rows += norm(f'{ours}/{name}/{part}_norm', target, bias=False, **y)
  mlps = {'image_mlp': 'ff', 'text_mlp': 'ff_context'}
  if last:
    del mlps['text_mlp']
  for name, target in mlps.items():
    rows += linear(f'{ours}/{name}/fc1', f'{hub}.{target}.net.0.proj', **y)
    rows += linear(f'{ours}/{name}/fc2', f'{hub}.{target}.net.2', **y)
  return rows


def _split(path: str, hub: str, out: int, **kw) -> list[Row]:
  """Rows of a Linear with two output axes of ours, one of `out` there."""
  return [
    *linear(path, hub, bias=False, **kw),
    Row(f'{path}/bias', f'{hub}.bias', hub_shape=(out,), **kw),
  ]
