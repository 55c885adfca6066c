"""The learned-query connector on disk: config.json and tensor names."""

from collections.abc import Mapping
from typing import Any

from uae_jax.ckpt.hf import Row, linear, norm
from uae_jax.errors import UserError

CLASS = 'QueryConnector'
FIELDS = (
  'queries', 'width', 'layers', 'heads', 'mlp', 'context_dim', 'pooled_dim'
)  # fmt: skip


def from_hf(config: Mapping[str, Any]) -> dict[str, Any]:
  """config.json -> fields of `models.metaquery.QueryConnector`.

  Raises:
    UserError: when a size is absent or cannot be.
  """
  fields = {key: config.get(key) for key in FIELDS}
  wrong = [
    key
    for key, value in fields.items()
    if not isinstance(value, int) or value < (key != 'layers')
  ]
  if wrong:
    raise UserError(f'config.json of a {CLASS}: {wrong} must be positive')
  if fields['width'] % fields['heads']:
    raise UserError(f'config.json of a {CLASS}: heads must divide width')
  return fields


def to_hf(fields: Mapping[str, Any]) -> dict[str, Any]:
  """Fields -> config.json."""
  return {'_class_name': CLASS, **{key: fields[key] for key in FIELDS}}


def table(*, layers: int, **_: Any) -> tuple[Row, ...]:
  """The rows of a `models.metaquery.QueryConnector`."""
  rows = [Row('queries', 'queries')]
  for part in ('sequence', 'pooled'):
    hub = 'projector' if part == 'sequence' else part
    rows += linear(f'{part}/fc1', f'{hub}.0')
    rows += linear(f'{part}/fc2', f'{hub}.2')
  if not layers:
    return tuple(rows)
  y = dict(layers=tuple(range(layers)))
  ours, hub = 'layers/block', 'encoder.layers.{i}'
  for part in 'qkv':
    rows += linear(f'{ours}/{part}', f'{hub}.self_attn.{part}_proj', **y)
  rows += linear(f'{ours}/o', f'{hub}.self_attn.out_proj', n_in=2, **y)
  for part in ('fc1', 'fc2'):
    rows += linear(f'{ours}/mlp/{part}', f'{hub}.mlp.{part}', **y)
  for n in '12':
    rows += norm(f'{ours}/norm{n}', f'{hub}.layer_norm{n}', bias=True, **y)
  rows += norm('final_norm', 'encoder.final_layer_norm', bias=True)
  return tuple(rows)
