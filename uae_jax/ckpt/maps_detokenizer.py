"""The connector of image codes on disk: config.json and tensor names."""

from collections.abc import Mapping
from typing import Any

from uae_jax.ckpt.hf import Row, linear
from uae_jax.errors import UserError

CLASS = 'CodeConnector'
FIELDS = ('codes', 'code_dim', 'context_dim', 'pooled_dim')


def from_hf(config: Mapping[str, Any]) -> dict[str, Any]:
  """config.json -> fields of `models.detokenizer.CodeConnector`.

  Raises:
    UserError: when a size is absent or cannot be.
  """
  fields = {key: config.get(key) for key in FIELDS}
  wrong = [k for k, v in fields.items() if not isinstance(v, int) or v < 1]
  if wrong:
    raise UserError(f'config.json of a {CLASS}: {wrong} must be positive')
  return fields


def to_hf(fields: Mapping[str, Any]) -> dict[str, Any]:
  """Fields -> config.json."""
  return {'_class_name': CLASS, **{key: fields[key] for key in FIELDS}}


def table() -> tuple[Row, ...]:
  """The rows of a `models.detokenizer.CodeConnector`."""
  rows = [Row('places', 'places'), *linear('code', 'code')]
  for part in ('sequence', 'pooled'):
    rows += linear(f'{part}/fc1', f'{part}.0')
    rows += linear(f'{part}/fc2', f'{part}.2')
  return tuple(rows)
