"""What the step asks of the compiler."""

import re

from tests.train.loop_test import config
from uae_jax.plan import programs
from uae_jax.sharding.mesh import make_mesh


def test_constraints_and_scattered_gradients_are_in_the_lowered_step():
  small = config('umm1')
  text = programs.build(small, make_mesh(4, 2), 'train_step').lower().as_text()
  found = set(
    re.findall(r'sharding_constraint .*?<@mesh, (.*?)> : tensor<(.*?)>', text)
  )
  # Eight images, two captions of seven tokens: four heads of 32; the MLP.
  assert ('[{"data"}, {}, {}, {"model"}, {}]', '8x2x7x4x32xf32') in found
  assert ('[{"data"}, {}, {}, {"model"}]', '8x2x7x384xf32') in found
  # Sampled one by one, and drawn: three heads do not divide.
  assert ('[{"data"}, {}, {}, {"model"}, {}]', '8x2x1x4x32xf32') in found
  assert ('[{"data"}, {}, {}, {}, {}]', '16x1x80x3x32xf32') in found
  assert ('[{"data"}, {}, {"model"}]', '16x64x384xf32') in found
  assert 'stablehlo.reduce_scatter' in text
