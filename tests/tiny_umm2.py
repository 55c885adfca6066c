"""A UMM-2 of the real classes at the smallest sizes, with random weights."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tests import tiny_umm
from tests.tiny_umm import redraw
from uae_jax import trees, zoo
from uae_jax.data import pipeline, tokenize
from uae_jax.data.janus import IMAGE, JanusTemplate, JanusView
from uae_jax.rewards.features import Tower
from uae_jax.rl.grpo import GRPO
from uae_jax.rollout.sampler import Sampler
from uae_jax.train.step import train_step
from uae_jax.types import Batch, TrainState
from uae_jax.umm.umm2 import UMM2, Tokens

IMAGES, GROUP, LENGTH, SIDE, ROWS = 8, 4, 6, 16, 4
PROCESSORS = zoo.ASSETS / 'umm2' / 'processors'
FIELDS = dict(
  vision=dict(
    width=32, layers=1, heads=2, mlp=32, patch=4, size=SIDE, fused=False
  ),
  lm=dict(
    vocab=39, width=32, layers=2, heads=2, kv_heads=2, head_dim=16, mlp=48,
    sections=(8, 0, 0), tied=False, bias=False, theta=1e4,
  ),
  draw=dict(hidden=32, codes=24, code_dim=8),
  vq=dict(
    codes=24, code_dim=8, latent=32, channels=(32, 32, 32), layers=1,
    groups=32,
  ),
)  # fmt: skip
OPTIONS = dataclasses.replace(
  tiny_umm.OPTIONS,
  image_loss=GRPO(beta=0.05),
  image_weight=1.0,
)


@functools.cache
def parts():
  """(umm, frozen parameters with the whole policy, batch, the zoo's model)."""
  tok = tokenize.load_tokenizer(PROCESSORS)
  template = JanusTemplate.from_tokenizer(tok, tokenize.PROMPT, ROWS**2, '')
  both, vq = zoo.janus(FIELDS, tok.id(IMAGE), {})
  tower, half = zoo.tower(tiny_umm.TOWER), (0.5, 0.5, 0.5)
  umm = UMM2(
    vlm=both.module,
    vq=vq,
    towers={'clip': Tower(tower.module, 32, half, half)},
    judges={},
    tokens=Tokens(
      template.draw_before, template.draw_after, template.eos, template.pad
    ),
    sampler=Sampler(),
    code_sampler=Sampler(),
    guidance=1.0,
    length=LENGTH,
    rows=ROWS,
    codes=ROWS**2,
    weights={'clip': 1.0},
  )
  key = jax.random.key(0)
  init = lambda model, seed: redraw(jax.jit(model.init)(key), seed)
  frozen = {**init(both, 1), 'reward': {'clip': init(tower, 2)}, 'judges': {}}
  view, prefix = JanusView(SIDE, 4, half, half), template.prefix()
  example = pipeline.MakeExample(lambda x: {**view(x), **prefix}, SIDE)
  source = pipeline.make_source('scenes:train', seed=7, side=SIDE)
  rows, _ = next(pipeline.take(source, example, n=IMAGES, batch=IMAGES))
  rows.pop('truth')
  batch = Batch(**{k: jnp.asarray(v) for k, v in rows.items()})
  return umm, frozen, batch, both


TRAINED = (r'(lm|code_\w+)/.*',)


def setup(*, options=OPTIONS, lr=1e-2, **umm_options):
  """(umm, step function, state factory, batch)."""
  umm, frozen, batch, _ = parts()
  umm = dataclasses.replace(umm, **umm_options)
  optimizer = optax.sgd(lr)

  def state():
    params, rest = trees.split(frozen['policy'], TRAINED)
    trained = jax.tree.map(jnp.copy, params)
    params = {'policy': trained}
    return TrainState(
      step=jnp.int32(0),
      params=params,
      opt_state=optimizer.init(params),
      skipped=jnp.int32(0),
      frozen={
        **frozen,
        'policy': rest,
        'reference': jax.tree.map(jnp.copy, trained),
      },
    )

  step = functools.partial(
    train_step, umm=umm, optimizer=optimizer, options=options
  )
  return umm, jax.jit(step), state, batch


def moved(before, after) -> dict[str, float]:
  """Largest change by path."""
  gap = lambda a, b: float(np.abs(np.asarray(a - b)).max())
  return trees.flatten(jax.tree.map(gap, before, after))
