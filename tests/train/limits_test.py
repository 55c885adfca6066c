"""What the numbers of a config may be."""

import numpy as np
import pytest

from tests.style_test import CONFIGS, get_config
from tests.train.loop_test import config
from uae_jax.errors import UserError
from uae_jax.train import limits
from uae_jax.train.workdir import flat

FILES = [(name, arg) for name, args in CONFIGS.items() for arg in args]


def numbers(name, arg):
  return {
    k: v
    for k, v in flat(get_config(name, arg)).items()
    if isinstance(v, int | float) and not isinstance(v, bool)
  }


def test_every_number_of_every_config_has_limits():
  found = set().union(*(numbers(*file) for file in FILES))
  assert found == set(limits.LIMITS)


@pytest.mark.parametrize('name, arg', FILES)
def test_the_configs_are_within_them(name, arg):
  for key, value in numbers(name, arg).items():
    low, high = limits.LIMITS[key]
    assert low <= value <= high, key


@pytest.mark.parametrize('key', sorted(numbers('umm1', '')))
def test_what_is_outside_is_one_line(key):
  low, high = limits.LIMITS[key]
  whole = isinstance(numbers('umm1', '')[key], int)
  for value in (low - 1, high + 1 if high < 2**31 else None, np.nan):
    if value is None or (whole and value != value):
      continue
    c = config(**{key: int(value) if whole else float(value)})
    with pytest.raises(UserError, match=f'^{key}='):
      limits.check(c)
  limits.check(config(**{key: numbers('umm1', '')[key]}))
