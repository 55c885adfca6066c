"""Janus-Pro on the hub: two layouts, one model.

`deepseek` is the original release (`language_model.*`, `gen_vision_model.*`,
fused attention maps in the tower), `transformers` is
JanusForConditionalGeneration. The policy and its image tokenizer are in one
file; `table` has the rows of the first, `vq_table` those of the second.
"""

from collections.abc import Mapping
from typing import Any

from uae_jax.ckpt.hf import Row, conv, linear, norm
from uae_jax.ckpt.maps_qwen import language
from uae_jax.errors import UserError

# Of the original: the tower's pooling head and a counter, which nothing uses.
UNUSED = (
  r'vision_model\.vision_tower\.attn_pool\..*',
  r'gen_vision_model\.quantize\.codebook_used',
)
TOKENS = ('bos_token_id', 'eos_token_id', 'pad_token_id')

_LLAMA = dict(  # what LlamaConfig assumes
  rms_norm_eps=1e-6, rope_theta=1e4, num_hidden_layers=32,
  num_attention_heads=32, hidden_size=4096, intermediate_size=11008,
)  # fmt: skip
_VISION = dict(
  width='hidden_size', layers='num_hidden_layers',
  heads='num_attention_heads', patch='patch_size', size='image_size',
)  # fmt: skip
_SIGLIP_L = dict(
  width=1024, layers=24, heads=16, mlp=4096, patch=16, size=384, fused=True
)
_VQ_16 = dict(
  codes=16384, code_dim=8, latent=256, channels=(128, 128, 256, 256, 512),
  layers=2, groups=32,
)  # fmt: skip


def from_hf(config: Mapping[str, Any]) -> dict[str, Any]:
  """config.json -> fields vision, lm, draw of `Janus` and vq of `VQ`.

  Raises:
    UserError: it is of no Janus model, or a key that fixes a shape is missing
      or not supported.
  """
  readers = {'janus': _from_transformers, 'multi_modality': _from_deepseek}
  kind = config.get('model_type')
  if kind not in readers:
    raise UserError(f'config.json: model_type={kind!r} is not a Janus model')
  try:
    return readers[kind](config)
  except KeyError as e:
    raise UserError(f'config.json of the Janus model lacks {e}') from None


def _decoder(text: Mapping[str, Any], tied: bool) -> dict[str, Any]:
  text = {**_LLAMA, **text}
  heads = text['num_attention_heads']
  head_dim = text.get('head_dim') or text['hidden_size'] // heads
  rope = text.get('rope_parameters') or {}
  return dict(
    vocab=text['vocab_size'],
    width=text['hidden_size'],
    layers=text['num_hidden_layers'],
    heads=heads,
    kv_heads=text.get('num_key_value_heads') or heads,
    head_dim=head_dim,
    mlp=text['intermediate_size'],
    sections=(head_dim // 2, 0, 0),
    tied=tied,
    bias=False,
    theta=float(rope.get('rope_theta') or text['rope_theta']),
    eps=float(text['rms_norm_eps']),
  )


def _from_transformers(config) -> dict[str, Any]:
  vision, vq = config['vision_config'], config['vq_config']
  if vision.get('use_qk_norm'):
    raise UserError('Janus config: use_qk_norm is not supported')
  return dict(
    vision=dict(
      **{field: vision[key] for field, key in _VISION.items()},
      mlp=int(vision['hidden_size'] * vision['mlp_ratio']),
      fused=False,
    ),
    # Files hold a head of their own whatever tie_word_embeddings says.
    lm=_decoder(config['text_config'], tied=False),
    draw=dict(
      codes=vq['num_embeddings'],
      code_dim=vq['embed_dim'],
      hidden=vq['projection_dim'],
    ),
    vq=dict(
      codes=vq['num_embeddings'],
      code_dim=vq['embed_dim'],
      latent=vq['latent_channels'],
      channels=tuple(vq['base_channels'] * m for m in vq['channel_multiplier']),
      layers=vq['num_res_blocks'],
      groups=32,
    ),
  )


def _from_deepseek(config) -> dict[str, Any]:
  tower = config['vision_config']['params']
  if tower['model_name'] != 'siglip_large_patch16_384':
    raise UserError(
      f'Janus config: tower {tower["model_name"]!r} is not supported; use '
      'siglip_large_patch16_384'
    )
  head = config['gen_head_config']['params']
  return dict(
    vision=dict(_SIGLIP_L, size=tower['image_size']),
    lm=_decoder(config['language_config'], tied=False),
    draw=dict(
      codes=head['image_token_size'],
      code_dim=config['gen_vision_config']['params']['n_embed'],
      hidden=head['image_token_embed'],
    ),
    vq=dict(_VQ_16, codes=head['image_token_size']),
  )


def tokens_of(config: Mapping[str, Any]) -> dict[str, int]:
  """The decoder's special ids in a config.json, where it has them."""
  text = config.get('text_config') or config.get('language_config') or {}
  return {key: text[key] for key in TOKENS if key in text}


def to_hf(
  vision: Mapping,
  lm: Mapping,
  draw: Mapping,
  vq: Mapping,
  image_pad: int,
  tokens: Mapping[str, int],
) -> dict[str, Any]:
  """Fields -> config.json in the layout that `vision['fused']` names.

  Args:
    vision: fields, as are `lm`, `draw` and `vq`.
    lm: of the decoder.
    draw: of the embeddings and the head of codes.
    vq: of the image tokenizer.
    image_pad: id that image tokens replace.
    tokens: ids of `TOKENS`, as the decoder's own section has them.
  """
  text = {
    'model_type': 'llama',
    'vocab_size': lm['vocab'],
    'hidden_size': lm['width'],
    'num_hidden_layers': lm['layers'],
    'num_attention_heads': lm['heads'],
    'num_key_value_heads': lm['kv_heads'],
    'intermediate_size': lm['mlp'],
    'rms_norm_eps': lm.get('eps', 1e-6),
    'max_position_embeddings': 16384,
    'tie_word_embeddings': False,
    **tokens,
  }
  theta = lm.get('theta', 1e4)
  if vision['fused']:
    width = lm['width']
    mlp = lambda size: dict(
      depth=2, input_dim=size, n_embed=width, projector_type='mlp_gelu'
    )
    return {
      'architectures': ['MultiModalityCausalLM'],
      'model_type': 'multi_modality',
      'language_config': {**text, 'rope_theta': theta},
      'vision_config': {
        'cls': 'CLIPVisionTower',
        'params': {
          'image_size': vision['size'],
          'model_name': 'siglip_large_patch16_384',
          'select_feature': 'same',
          'select_layer': -1,
        },
      },
      'aligner_config': {
        'cls': 'MlpProjector', 'params': mlp(vision['width'])
      },
      'gen_aligner_config': {
        'cls': 'MlpProjector', 'params': mlp(draw['code_dim'])
      },
      'gen_head_config': {
        'cls': 'vision_head',
        'params': {
          'image_token_embed': draw['hidden'],
          'image_token_size': draw['codes'],
          'n_embed': width,
        },
      },
      'gen_vision_config': {
        'cls': 'VQ-16',
        'params': {
          'image_token_size': draw['codes'], 'n_embed': draw['code_dim']
        },
      },
    }  # fmt: skip
  base = vq['channels'][0]
  return {
    'architectures': ['JanusForConditionalGeneration'],
    'model_type': 'janus',
    'image_token_id': image_pad,
    'tie_word_embeddings': False,
    'text_config': {
      **text,
      'head_dim': lm['head_dim'],
      'rope_parameters': {'rope_type': 'default', 'rope_theta': theta},
    },
    'vision_config': {
      'model_type': 'janus_vision_model',
      **{key: vision[field] for field, key in _VISION.items()},
      'mlp_ratio': vision['mlp'] / vision['width'],
      'hidden_act': 'gelu',
      'projection_dim': lm['width'],
      'depth': 2,
      'num_image_tokens': (vision['size'] // vision['patch']) ** 2,
    },
    'vq_config': {
      'model_type': 'janus_vqgan',
      'num_embeddings': vq['codes'],
      'embed_dim': vq['code_dim'],
      'latent_channels': vq['latent'],
      'base_channels': base,
      'channel_multiplier': [c // base for c in vq['channels']],
      'num_res_blocks': vq['layers'],
      'projection_dim': draw['hidden'],
      'image_token_embed_dim': lm['width'],
      'num_patches': (vision['size'] // 2 ** (len(vq['channels']) - 1)),
      'num_hidden_layers': 2,
      'hidden_act': 'gelu',
    },
  }


def table(vision: Mapping, lm: Mapping) -> tuple[Row, ...]:
  """The rows of a `models.janus.Janus`, in the layout of its tower."""
  old = vision['fused']
  tower = 'vision_model.vision_tower' if old else 'model.vision_model'
  y = dict(layers=tuple(range(vision['layers'])))
  ours = 'vision/layers/block'
  block = f'{tower}.{"blocks" if old else "encoder.layers"}.{{i}}'
  embed = 'patch_embed.proj' if old else 'embeddings.patch_embedding'
  patch, width = vision['patch'], vision['width']
  tokens = (vision['size'] // patch) ** 2
  places = 'pos_embed' if old else 'embeddings.position_embedding.weight'
  rows = [
    *linear(
      'vision/patch_embed', f'{tower}.{embed}', bias=False,
      hub_shape=(width, 3, patch, patch),
    ),
    Row('vision/patch_embed/bias', f'{tower}.{embed}.bias'),
    Row(
      'vision/positions', f'{tower}.{places}',
      hub_shape=(1, tokens, width) if old else None,
    ),
    *norm(
      'vision/post_norm',
      f'{tower}.{"norm" if old else "post_layernorm"}', bias=True,
    ),
  ]  # fmt: skip
  if old:
    rows += linear(f'{ours}/qkv', f'{block}.attn.qkv', **y)
    rows += linear(f'{ours}/o', f'{block}.attn.proj', n_in=2, **y)
  else:
    for part in 'qkv':
      rows += linear(f'{ours}/{part}', f'{block}.self_attn.{part}_proj', **y)
    rows += linear(
      f'{ours}/o', f'{block}.self_attn.projection_layer', n_in=2, **y
    )
  for i in '12':
    name = f'{block}.{"norm" if old else "layer_norm"}{i}'
    rows += norm(f'{ours}/norm{i}', name, bias=True, **y)
    rows += linear(f'{ours}/mlp/fc{i}', f'{block}.mlp.fc{i}', **y)
  names = {
    'aligner': ('aligner.layers.{}', 'model.aligner.{}'),
    'code_aligner': ('gen_aligner.layers.{}', 'model.generation_aligner.{}'),
    'code_head': ('gen_head.{}', 'model.generation_head.{}'),
  }
  for path, pair in names.items():
    parts = ('0', '2') if old else ('fc1', 'hidden_layers.0')
    if path == 'code_head':
      first = 'output_mlp_projector' if old else 'proj_out'
      parts = (first, 'vision_head')
    for i, part in enumerate(parts, 1):
      rows += linear(f'{path}/fc{i}', pair[not old].format(part))
  codes = 'gen_embed' if old else 'model.generation_embeddings'
  rows.append(Row('code_embed/embedding', f'{codes}.weight'))
  if old:
    text, head = 'language_model.model', 'language_model.lm_head'
  else:
    text, head = 'model.language_model', 'lm_head'
  return (*rows, *language(lm, text, head))


def vq_table(vision: Mapping, vq: Mapping) -> tuple[Row, ...]:
  """The rows of a `models.vq.VQ`, in the layout of the tower beside it."""
  old = vision['fused']
  hub = 'gen_vision_model' if old else 'model.vqmodel'
  down, up = vq['channels'], vq['channels'][::-1]
  return (
    *_half(old, hub, 'encoder', down, vq['layers'], len(down) - 1),
    *_half(old, hub, 'decoder', up, vq['layers'] + 1, 0),
    *conv('quant_conv', f'{hub}.quant_conv'),
    *conv('post_quant_conv', f'{hub}.post_quant_conv'),
    Row('codebook', f'{hub}.quantize.embedding.weight'),
  )


def _half(old, hub, part, widths, layers, attended) -> list[Row]:
  """Rows of the encoder or the decoder; level `attended` has attention."""
  way = {'encoder': 'down', 'decoder': 'up'}[part]
  level = 'conv_blocks' if old else way
  res = 'res' if old else 'block'
  middle = ('0', '1', '2') if old else ('block_1', 'attn_1', 'block_2')
  hub = f'{hub}.{part}'
  rows = [
    *conv(f'{part}/conv_in', f'{hub}.conv_in'),
    *conv(f'{part}/conv_out', f'{hub}.conv_out'),
    *norm(f'{part}/norm_out', f'{hub}.norm_out', bias=True),
  ]
  width = widths[-1] if part == 'encoder' else widths[0]
  for j, name in ((0, middle[0]), (1, middle[2])):
    rows += _res(f'{part}/mid_res{j}', f'{hub}.mid.{name}', shortcut=False)
  rows += _attn(f'{part}/mid_attn', f'{hub}.mid.{middle[1]}', width)
  before = widths[0]
  for i, width in enumerate(widths):
    block = f'{hub}.{level}.{i}'
    for j in range(layers):
      rows += _res(
        f'{part}/level{i}_res{j}', f'{block}.{res}.{j}',
        shortcut=j == 0 and width != before,
      )  # fmt: skip
      if i == attended:
        rows += _attn(f'{part}/level{i}_attn{j}', f'{block}.attn.{j}', width)
    if i + 1 < len(widths):
      rows += conv(f'{part}/level{i}_move/conv', f'{block}.{way}sample.conv')
    before = width
  return rows


def _res(path: str, hub: str, *, shortcut: bool) -> list[Row]:
  rows = []
  for i in '12':
    rows += norm(f'{path}/norm{i}', f'{hub}.norm{i}', bias=True)
    rows += conv(f'{path}/conv{i}', f'{hub}.conv{i}')
  if shortcut:
    rows += conv(f'{path}/shortcut', f'{hub}.nin_shortcut')
  return rows


def _attn(path: str, hub: str, width: int) -> list[Row]:
  """1 x 1 convolutions, which are linear maps of the pixels."""
  rows = norm(f'{path}/norm', f'{hub}.norm', bias=True)
  shape = (width, width, 1, 1)
  for ours, theirs in (*zip('qkv', 'qkv'), ('out', 'proj_out')):
    name, n_in = f'{hub}.{theirs}', 2 if ours == 'out' else 1
    rows += linear(
      f'{path}/{ours}', name, bias=False, n_in=n_in, hub_shape=shape
    )
    rows.append(Row(f'{path}/{ours}/bias', f'{name}.bias', 'flat'))
  return rows
