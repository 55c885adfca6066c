"""Runs of the loop take one device: they compile faster so.

A module that sets `ALL_DEVICES` has them all.
"""

import jax
import pytest

from uae_jax.sharding.mesh import make_mesh
from uae_jax.train import loop


@pytest.fixture(autouse=True, scope='module')
def devices(request):
  """What `loop.run` makes its mesh of."""
  if getattr(request.module, 'ALL_DEVICES', False):
    yield
    return
  with pytest.MonkeyPatch.context() as patch:
    one = make_mesh(1, 1, jax.devices()[:1])
    patch.setattr(loop, 'make_mesh', lambda data, model: one)
    yield
