"""The T5 encoder on the hub: config.json and tensors <-> ours."""

from collections.abc import Mapping
from typing import Any

from uae_jax.ckpt.hf import Row, linear, norm
from uae_jax.errors import UserError

# The same table under a second name, in some files.
IGNORE = (r'encoder\.embed_tokens\.weight',)

_KEYS = dict(
  vocab='vocab_size',
  width='d_model',
  layers='num_layers',
  heads='num_heads',
  head_dim='d_kv',
  mlp='d_ff',
  buckets='relative_attention_num_buckets',
  max_distance='relative_attention_max_distance',
)
_EPS = 1e-6  # that of every published T5, and of `nn.norms.RMSNorm`
_DEFAULTS = dict(
  relative_attention_num_buckets=32,
  relative_attention_max_distance=128,
  layer_norm_epsilon=_EPS,
)


def from_hf(config: Mapping[str, Any]) -> dict[str, Any]:
  """config.json -> fields of `models.t5.T5`.

  Raises:
    UserError: for T5 1.0, whose MLP is another one, another epsilon, or a
      missing size.
  """
  config = {**_DEFAULTS, **config}
  if config.get('feed_forward_proj') != 'gated-gelu':
    raise UserError(
      'T5 config: feed_forward_proj must be "gated-gelu" (T5 v1.1)'
    )
  if config['layer_norm_epsilon'] != _EPS:
    raise UserError(f'T5 config: layer_norm_epsilon must be {_EPS}')
  wrong = [k for k in _KEYS.values() if not isinstance(config.get(k), int)]
  if wrong:
    raise UserError(f'T5 config: {wrong} must be integers')
  return {field: config[key] for field, key in _KEYS.items()}


def to_hf(fields: Mapping[str, Any]) -> dict[str, Any]:
  """Fields of `models.t5.T5` -> config.json."""
  return {
    'architectures': ['T5EncoderModel'],
    'model_type': 't5',
    **{key: fields[field] for field, key in _KEYS.items()},
    'feed_forward_proj': 'gated-gelu',
    'is_gated_act': True,
    'dense_act_fn': 'gelu_new',
    'layer_norm_epsilon': _EPS,
    'is_encoder_decoder': False,
    'tie_word_embeddings': False,
    'pad_token_id': 0,
    'eos_token_id': 1,
  }


def table(**fields: Any) -> tuple[Row, ...]:
  """The rows of a `models.t5.T5`."""
  y = dict(layers=tuple(range(fields['layers'])))
  ours, hub = 'layers/block', 'encoder.block.{i}.layer'
  attention = f'{hub}.0.SelfAttention'
  first = attention.format(i=0)
  rows = [
    Row('words', 'shared.weight'),
    Row('relative', f'{first}.relative_attention_bias.weight'),
    *norm('final_norm', 'encoder.final_layer_norm', bias=False),
    *norm(f'{ours}/attn_norm', f'{hub}.0.layer_norm', bias=False, **y),
    *norm(f'{ours}/mlp_norm', f'{hub}.1.layer_norm', bias=False, **y),
  ]
  for part in 'qkv':
    rows += linear(f'{ours}/{part}', f'{attention}.{part}', bias=False, **y)
  rows += linear(f'{ours}/o', f'{attention}.o', bias=False, n_in=2, **y)
  for part, name in (('gate', 'wi_0'), ('up', 'wi_1'), ('down', 'wo')):
    target = f'{hub}.1.DenseReluDense.{name}'
    rows += linear(f'{ours}/mlp/{part}', target, bias=False, **y)
  return tuple(rows)
