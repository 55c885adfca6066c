"""Qwen2.5-VL on the hub: config.json and tensor names <-> ours.

Names are those of the files (`visual.*`, `model.*`, `lm_head.*`);
transformers 5 writes `model.visual.*`, `model.language_model.*` in some
tools, which `rename` folds back.
"""

from collections.abc import Mapping
from typing import Any

from uae_jax.ckpt.hf import Row, linear, norm
from uae_jax.errors import UserError

IGNORE = (r'.*rotary_emb\.inv_freq',)

# What transformers' Qwen2_5_VLVisionConfig assumes for a key that is absent.
_VISION = dict(
  depth=32,
  hidden_size=3584,
  intermediate_size=3420,
  num_heads=16,
  out_hidden_size=3584,
  patch_size=14,
  spatial_merge_size=2,
  window_size=112,
  fullatt_block_indexes=(7, 15, 23, 31),
)


def rename(name: str) -> str:
  """Folds the in-memory names of transformers 5 into the on-disk ones."""
  name = name.replace('model.language_model.', 'model.')
  return name.removeprefix('model.') if 'model.visual.' in name else name


def from_hf(config: Mapping[str, Any]) -> dict[str, Any]:
  """config.json -> fields of `models.vlm.VLM` (vision, lm, image_pad).

  Raises:
    UserError: when a key that fixes a shape is missing.
  """
  text = dict(config.get('text_config') or config)
  try:
    vision = {**_VISION, **config['vision_config']}
    heads = text['num_attention_heads']
    rope = text.get('rope_parameters') or text['rope_scaling']
    lm = dict(
      vocab=text['vocab_size'],
      width=text['hidden_size'],
      layers=text['num_hidden_layers'],
      heads=heads,
      kv_heads=text['num_key_value_heads'],
      head_dim=text.get('head_dim') or text['hidden_size'] // heads,
      mlp=text['intermediate_size'],
      sections=tuple(rope['mrope_section']),
      tied=bool(
        config.get('tie_word_embeddings', text.get('tie_word_embeddings'))
      ),
      theta=float(rope.get('rope_theta') or text['rope_theta']),
      eps=float(text['rms_norm_eps']),
    )
    return dict(
      vision=dict(
        width=vision['hidden_size'],
        layers=vision['depth'],
        heads=vision['num_heads'],
        mlp=vision['intermediate_size'],
        out=vision['out_hidden_size'],
        patch=vision['patch_size'],
        merge=vision['spatial_merge_size'],
        window=vision['window_size'],
        full=tuple(vision['fullatt_block_indexes']),
      ),
      lm=lm,
      image_pad=config['image_token_id'],
    )
  except KeyError as e:
    raise UserError(f'config.json of the policy lacks {e}') from None


def to_hf(vision: Mapping, lm: Mapping, tokens: Mapping[str, int]) -> dict:
  """Fields and special token ids -> config.json."""
  return {
    'architectures': ['Qwen2_5_VLForConditionalGeneration'],
    'model_type': 'qwen2_5_vl',
    'tie_word_embeddings': lm['tied'],
    **tokens,
    'text_config': {
      'model_type': 'qwen2_5_vl_text',
      'vocab_size': lm['vocab'],
      'hidden_size': lm['width'],
      'num_hidden_layers': lm['layers'],
      'num_attention_heads': lm['heads'],
      'num_key_value_heads': lm['kv_heads'],
      'head_dim': lm['head_dim'],
      'intermediate_size': lm['mlp'],
      'rms_norm_eps': lm.get('eps', 1e-6),
      'tie_word_embeddings': lm['tied'],
      'max_position_embeddings': 128000,
      'rope_parameters': {
        'rope_type': 'default',
        'rope_theta': lm.get('theta', 1e6),
        'mrope_section': list(lm['sections']),
      },
    },
    'vision_config': {
      'model_type': 'qwen2_5_vl',
      'hidden_size': vision['width'],
      'depth': vision['layers'],
      'num_heads': vision['heads'],
      'intermediate_size': vision['mlp'],
      'out_hidden_size': vision['out'],
      'patch_size': vision['patch'],
      'spatial_merge_size': vision['merge'],
      'temporal_patch_size': 2,
      'window_size': vision['window'],
      'fullatt_block_indexes': list(vision['full']),
      'tokens_per_second': 2,
    },
  }


def table(vision: Mapping, lm: Mapping) -> tuple[Row, ...]:
  """The rows of a model with these fields."""
  v = dict(layers=tuple(range(vision['layers'])))
  p = vision['patch']
  ours, hub = 'vision/blocks/block', 'visual.blocks.{i}'
  rows = [
    Row(
      'vision/patch_embed/kernel',
      'visual.patch_embed.proj.weight',
      'linear',
      hub_shape=(vision['width'], 3, 2, p, p),
    ),
    *norm(f'{ours}/norm1', f'{hub}.norm1', bias=False, **v),
    *norm(f'{ours}/norm2', f'{hub}.norm2', bias=False, **v),
    *linear(f'{ours}/qkv', f'{hub}.attn.qkv', **v),
    *linear(f'{ours}/proj', f'{hub}.attn.proj', n_in=2, **v),
    *norm('vision/merger_norm', 'visual.merger.ln_q', bias=False),
    *linear('vision/merger/fc1', 'visual.merger.mlp.0'),
    *linear('vision/merger/fc2', 'visual.merger.mlp.2'),
  ]
  for part in ('gate', 'up', 'down'):
    rows += linear(f'{ours}/mlp/{part}', f'{hub}.mlp.{part}_proj', **v)

  return (*rows, *language(lm, 'model', 'lm_head'))


def language(lm: Mapping, hub: str, head: str) -> list[Row]:
  """Rows of the decoder: Qwen2's names, which are LLaMA's.

  Args:
    lm: fields of `models.lm.LM`.
    hub: the hub's prefix of the decoder.
    head: the hub's name of the head.
  """
  y = dict(layers=tuple(range(lm['layers'])))
  ours, block = 'lm/layers/block', f'{hub}.layers.{{i}}'
  bias = lm.get('bias', True)
  rows = []
  for part in 'qkv':
    target = f'{block}.self_attn.{part}_proj'
    rows += linear(f'{ours}/{part}', target, bias=bias, **y)
  rows += linear(
    f'{ours}/o', f'{block}.self_attn.o_proj', bias=False, n_in=2, **y
  )
  for part in ('gate', 'up', 'down'):
    rows += linear(
      f'{ours}/mlp/{part}', f'{block}.mlp.{part}_proj', bias=False, **y
    )
  after = f'{block}.post_attention_layernorm'
  rows += [
    Row('lm/embed/embedding', f'{hub}.embed_tokens.weight'),
    *norm(f'{ours}/attn_norm', f'{block}.input_layernorm', bias=False, **y),
    *norm(f'{ours}/mlp_norm', after, bias=False, **y),
    *norm('lm/norm', f'{hub}.norm', bias=False),
  ]
  if not lm['tied']:
    rows += linear('lm/head', head, bias=False)
  return rows
