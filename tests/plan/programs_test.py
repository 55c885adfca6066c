"""What the step asks of the compiler."""

import re
from pathlib import Path

from tests.train.loop_test import config
from uae_jax.plan import programs, stand_ins
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


def test_the_largest_bucket_is_planned():
  small = config('umm1', **{'data.buckets': ('16x32', '24x32', '24x24')})
  program = programs.build(small, make_mesh(8, 1), 'train_step')
  assert program.args[1].image.shape == (8, 24, 32, 3)
  assert '8x24x32x3xf32' in program.lower().as_text()


def test_a_reader_that_is_not_here_has_a_stand_in(tmp_path):
  small = config('umm1', **{'ckpt.reader': 'models/uae/policy'})
  assert stand_ins.fill_in(small, tmp_path) == ['models/uae/policy']
  assert (Path(small.ckpt.reader) / 'config.json').exists()
