"""Every part of a step, beside what a CPU computed: `pytest -m backend`.

`UAE_JAX_TEST_PLATFORM=cuda pytest -n 0 -m backend` (or `tpu`) asks another
backend.
"""

import numpy as np
import pytest

from tests.backend import cases

pytestmark = pytest.mark.backend
# In the usual run of a CPU, float32 will do.
MARKS = {'float32': (), 'bfloat16': pytest.mark.slow}
ALL = [
  pytest.param(name, dtype, marks=MARKS[dtype])
  for name, (_, dtypes) in cases.CASES.items()
  for dtype in dtypes
]


@pytest.fixture(scope='module')
def golden():
  with np.load(cases.GOLDEN) as file:
    return dict(file)


@pytest.mark.parametrize('name, dtype', ALL)
def test_numbers_are_those_recorded(golden, name, dtype):
  found = cases.run(name, dtype)
  recorded = {key for key in golden if key.startswith(f'{name}/')}
  if dtype == 'float32':
    assert set(found) == recorded
  assert not cases.differences(found, golden, dtype)


def test_all_that_is_recorded_is_compared_and_small(golden):
  assert {key.split('/')[0] for key in golden} == set(cases.CASES)
  assert cases.GOLDEN.stat().st_size < 500_000


@pytest.mark.parametrize(
  'found, dtype, seen',
  [
    (np.array([1.0, 2.0], np.float32), 'float32', False),
    (np.array([1.0, 2.001], np.float32), 'float32', False),
    (np.array([1.0, 2.01], np.float32), 'float32', True),
    (np.array([1.0, 2.1], np.float32), 'bfloat16', False),
    (np.array([1.0, 2.3], np.float32), 'bfloat16', True),
    (np.array([1.0, np.nan], np.float32), 'bfloat16', True),
    (np.array([[1.0, 2.0]], np.float32), 'float32', True),
  ],
)
def test_other_numbers_are_seen(found, dtype, seen):
  golden = {'a': np.array([1.0, 2.0], np.float32)}
  assert bool(cases.differences({'a': found}, golden, dtype)) == seen


def test_other_integers_are_seen():
  golden = {'a': np.array([1, 2])}
  assert not cases.differences({'a': np.array([1, 2])}, golden)
  assert cases.differences({'a': np.array([1, 3])}, golden)
