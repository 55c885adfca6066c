"""The step of Janus-Pro at its real sizes, shape by shape."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.train.loop_test import config
from uae_jax import trees, zoo
from uae_jax.data import tokenize
from uae_jax.data.janus import JanusTemplate
from uae_jax.models import clip
from uae_jax.rewards.features import Tower
from uae_jax.train import assemble_umm2, optim, reinforce
from uae_jax.train.state import split_part
from uae_jax.train.step import train_step
from uae_jax.types import Batch, TrainState

BILLIONS = {'janus-pro-1b': (1.5, 2.5), 'janus-pro-7b': (6.5, 8.0)}


@pytest.mark.parametrize('variant', BILLIONS)
def test_the_step_of_a_real_size_has_the_shapes_it_promises(variant):
  c = config('umm2', variant, **{'ckpt.policy': '', 'rollout.length': 16})
  both, vq, folder = assemble_umm2.model(c, dtype='bfloat16', remat='full')
  rows = assemble_umm2.code_rows(both.module)
  assert rows**2 == 576 and vq.factor * rows == c.data.side
  tower = zoo.tower(clip.VARIANTS['vit-l-14'])
  third = (0.5, 0.5, 0.5)
  template = JanusTemplate.from_tokenizer(
    tokenize.load_tokenizer(folder), tokenize.PROMPT, rows**2, ''
  )
  umm = assemble_umm2.architecture(
    c, both.module, vq, template, {'clip': Tower(tower.module, 224, third,
    third)}, {},
  )  # fmt: skip
  assert umm.guidance == 5.0
  prefix = template.prefix()
  b = c.train.images
  stack = lambda x: jax.ShapeDtypeStruct((b, *x.shape), x.dtype)
  floats = lambda *s: jax.ShapeDtypeStruct((b, *s), jnp.float32)
  batch = Batch(
    image=floats(384, 384, 3),
    patches=floats(576, 3 * 16 * 16),
    **{key: stack(x) for key, x in prefix.items()},
  )
  shapes = both.shapes()
  low, high = BILLIONS[variant]
  assert low < trees.count(shapes['policy']) / 1e9 < high
  params, rest = split_part(
    shapes['policy'], 'train.trainable', c.train.trainable
  )
  optimizer = optim.make(c)
  number = jax.ShapeDtypeStruct((), jnp.int32)
  state = TrainState(
    step=number,
    params={'policy': params},
    opt_state=jax.eval_shape(optimizer.init, {'policy': params}),
    skipped=number,
    frozen=dict(
      policy=rest, reference=params, vq=shapes['vq'],
      reward={'clip': tower.shapes()}, judges={},
    ),
  )  # fmt: skip
  step = functools.partial(
    train_step,
    umm=umm,
    optimizer=optimizer,
    options=reinforce.step_options(c, ('policy',)),
  )
  after, metrics = jax.eval_shape(step, state, batch, jax.random.key(0))
  same = jax.tree.map(
    lambda x, y: x.shape == y.shape and x.dtype == y.dtype, state, after
  )
  assert all(jax.tree.leaves(same))
  assert {'image/kl', 'policy/kl', 'reward/mean'} <= set(metrics)
  assert all(np.shape(x) == () for x in jax.tree.leaves(metrics))
