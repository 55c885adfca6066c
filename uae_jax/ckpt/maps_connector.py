"""The connector on disk: UAE's `projector.*` beside our pooled part."""

from collections.abc import Mapping
from typing import Any

from uae_jax.ckpt.hf import Row, linear
from uae_jax.errors import UserError

CLASS = 'Connector'

_SIZES = dict(
  hidden='hidden_dim', context_dim='context_dim', pooled_dim='pooled_dim'
)
_CHOICES = dict(act=('gelu', 'silu'), pooled=('mean', 'constant', 'none'))
_DEFAULTS = dict(act='gelu', pooled='mean')  # of files without these keys


def from_hf(config: Mapping[str, Any]) -> dict[str, Any]:
  """config.json -> fields of `models.connector.Connector`.

  Raises:
    UserError: when a size is absent or not a positive integer, or a choice
      is none of those there are.
  """
  values = {field: config.get(key) for field, key in _SIZES.items()}
  wrong = [
    _SIZES[field]
    for field, value in values.items()
    if not isinstance(value, int) or value < 1
  ]
  if wrong:
    raise UserError(
      f'config.json of the connector: {wrong} must be positive integers'
    )
  for field, known in _CHOICES.items():
    values[field] = config.get(field, _DEFAULTS[field])
    if values[field] not in known:
      raise UserError(
        f'config.json of the connector: {field}={values[field]!r} is none of '
        f'{known}'
      )
  return values


def to_hf(fields: Mapping[str, Any]) -> dict[str, Any]:
  """Fields of `models.connector.Connector` -> config.json."""
  return {
    '_class_name': CLASS,
    **{key: fields[field] for field, key in _SIZES.items()},
    **{key: fields[key] for key in _CHOICES},
  }


def table(pooled: str, projector: str = 'projector') -> tuple[Row, ...]:
  """The rows of a `models.connector.Connector`.

  Args:
    pooled: the field of that name.
    projector: the hub's prefix of the token projector.
  """
  rest = {
    'mean': [
      *linear('pooled/fc1', 'pooled.0'), *linear('pooled/fc2', 'pooled.2')
    ],
    'constant': [Row('constant', 'pooled.constant')],
    'none': [],
  }  # fmt: skip
  return (
    *linear('sequence/fc1', f'{projector}.0'),
    *linear('sequence/fc2', f'{projector}.2'),
    *rest[pooled],
  )
