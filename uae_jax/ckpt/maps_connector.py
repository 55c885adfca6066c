"""The connector on disk: UAE's `projector.*` beside our `pooled.*`."""

from collections.abc import Mapping
from typing import Any

from uae_jax.ckpt.hf import Row, linear
from uae_jax.errors import UserError

CLASS = 'Connector'

_KEYS = dict(
  hidden='hidden_dim', context_dim='context_dim', pooled_dim='pooled_dim'
)


def from_hf(config: Mapping[str, Any]) -> dict[str, Any]:
  """config.json -> fields of `models.connector.Connector`.

  Raises:
    UserError: when a size is absent or not a positive integer.
  """
  values = {field: config.get(key) for field, key in _KEYS.items()}
  wrong = [
    _KEYS[field]
    for field, value in values.items()
    if not isinstance(value, int) or value < 1
  ]
  if wrong:
    raise UserError(
      f'config.json of the connector: {wrong} must be positive integers'
    )
  return values


def to_hf(fields: Mapping[str, Any]) -> dict[str, Any]:
  """Fields of `models.connector.Connector` -> config.json."""
  return {
    '_class_name': CLASS,
    **{key: fields[field] for field, key in _KEYS.items()},
  }


def table() -> tuple[Row, ...]:
  """The rows of any `models.connector.Connector`."""
  return (
    *linear('sequence/fc1', 'projector.0'),
    *linear('sequence/fc2', 'projector.2'),
    *linear('pooled/fc1', 'pooled.0'),
    *linear('pooled/fc2', 'pooled.2'),
  )
