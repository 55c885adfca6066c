"""A UMM-1 of the real classes at the smallest sizes, with random weights."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from uae_jax import trees, zoo
from uae_jax.data import pipeline, tokenize
from uae_jax.data.preprocess import PolicyView, prefix_of
from uae_jax.rewards.features import Tower
from uae_jax.rl.grpo import GRPO
from uae_jax.rollout.flow import FlowSchedule
from uae_jax.rollout.sampler import Sampler
from uae_jax.train.step import StepOptions, learn, train_step
from uae_jax.types import Batch, Captions, Rollout, TrainState
from uae_jax.umm.painter import Painter
from uae_jax.umm.umm1 import UMM1, Tokens

IMAGES, GROUP, LENGTH, SIDE = 8, 4, 8, 32
PROCESSORS = zoo.ASSETS / 'umm1' / 'processors'

POLICY = dict(
  vision=dict(
    width=32, layers=2, heads=2, mlp=32, out=32, patch=4, merge=2,
    window=16, full=(1,),
  ),
  lm=dict(
    vocab=38, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, mlp=48,
    sections=(2, 1, 1), tied=True,
  ),
)  # fmt: skip
DECODER = dict(
  sample_size=32, patch_size=8, in_channels=3, out_channels=3, num_layers=2,
  num_attention_heads=2, attention_head_dim=16, joint_attention_dim=24,
  pooled_projection_dim=16, pos_embed_max_size=4, dual_layers=0, qk_norm=True,
)  # fmt: skip
TOWER = dict(
  projection=16,
  vision=dict(
    size=32, patch=8, width=32, layers=1, heads=2, mlp=32,
    act='quick_gelu', eps=1e-5,
  ),
  language=dict(
    width=32, layers=1, heads=2, mlp=32, ctx=24, vocab=38, eos=5,
    act='quick_gelu', eps=1e-5,
  ),
)  # fmt: skip
OPTIONS = StepOptions(
  group=GROUP,
  inner_epochs=1,
  minibatches=1,
  scale='std',
  filter_zero_std=False,
  mask_truncated=False,
  loss=GRPO(beta=0.05),
)


def redraw(params, seed):
  """Random weights everywhere, so that nothing hides behind a zero."""
  leaves, tree = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(seed), len(leaves))
  noise = [0.1 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves)]
  return jax.tree.unflatten(tree, [x + n for x, n in zip(leaves, noise)])


@functools.cache
def parts():
  """(umm, frozen parameters with the whole policy, batch of 8 scenes)."""
  tok = tokenize.load_tokenizer(PROCESSORS)
  template = tokenize.Template.from_tokenizer(tok, 'describe the image')
  policy = zoo.policy(dict(POLICY, image_pad=template.image_pad), {})
  decoder, tower = zoo.decoder(DECODER), zoo.tower(TOWER)
  connector = zoo.conditioner(
    dict(hidden=24, context_dim=24, pooled_dim=16, act='gelu', pooled='mean'),
    32,
  )
  half = (0.5, 0.5, 0.5)
  umm = UMM1(
    vlm=policy.module,
    connector=connector.module,
    painter=Painter(decoder.module, FlowSchedule(2), SIDE, SIDE),
    towers={'clip': Tower(tower.module, 32, half, half)},
    judges={},
    tokens=Tokens(
      template.draw_before, template.draw_after, template.eos, template.pad
    ),
    sampler=Sampler(),
    length=LENGTH,
    bottleneck='text',
    environment='policy',
    share_noise=True,
    weights={'clip': 1.0},
  )
  key = jax.random.key(0)
  init = lambda model, seed: redraw(jax.jit(model.init)(key), seed)
  frozen = {
    'policy': init(policy, 1),
    'connector': init(connector, 2),
    'decoder': init(decoder, 3),
    'reward': {'clip': init(tower, 4)},
    'judges': {},
  }
  view = PolicyView(4, 2, 16, 1024, 1024)
  example = pipeline.MakeExample(
    lambda image: prefix_of(image, view, template), SIDE
  )
  source = pipeline.make_source('scenes:train', seed=7)
  rows, _ = next(pipeline.take(source, example, n=IMAGES, batch=IMAGES))
  rows.pop('truth')
  return umm, frozen, Batch(**{k: jnp.asarray(v) for k, v in rows.items()})


def setup(*, options=OPTIONS, lr=1e-2, **umm_options):
  """(umm, optimizer, step function, state factory, batch)."""
  umm, frozen, batch = parts()
  umm = dataclasses.replace(umm, **umm_options)
  optimizer = optax.sgd(lr)

  def state():
    policy = frozen['policy']
    trained = {'lm': jax.tree.map(jnp.copy, policy['lm'])}
    params = {'policy': trained}
    rest = {'vision': policy['vision']}
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

  key = repr((options, lr, sorted(umm_options.items(), key=str)))
  if key not in COMPILED:
    COMPILED[key] = jax.jit(
      functools.partial(
        train_step, umm=umm, optimizer=optimizer, options=options
      )
    )
  return Jitted(umm), COMPILED[key], state, batch


def random_rollout(seed=0, *, ended=True) -> Rollout:
  """Made-up captions and rewards: what `learn` gets from a rollout.

  Args:
    seed: of everything.
    ended: whether captions hold an EOS; or [G] bools, one per caption.
  """
  umm = parts()[0]
  rng = np.random.default_rng(seed)
  shape = (IMAGES, GROUP, LENGTH)
  tokens = rng.integers(6, 38, shape).astype(np.int32)
  last = rng.integers(2, LENGTH - 1, shape[:2])
  last = np.where(np.broadcast_to(ended, shape[:2]), last, LENGTH)
  place = np.arange(LENGTH)
  tokens = np.where(place == last[..., None], umm.tokens.eos, tokens)
  mask = place <= last[..., None]
  return Rollout(
    captions=Captions(
      jnp.asarray(np.where(mask, tokens, umm.tokens.pad)),
      jnp.asarray(mask),
      jnp.asarray(np.where(mask, rng.normal(-3.5, 0.3, shape), 0), jnp.float32),
    ),
    images=jnp.zeros((IMAGES, GROUP, 1, 1, 3)),
    reward=jnp.asarray(rng.uniform(0, 1, shape[:2]), jnp.float32),
  )


def learned(rollout, options=OPTIONS, lr=1.0):
  """(parameters before, after, metrics) of one `learn` with SGD.

  The policy has moved away from the reference, so that a KL has a slope, and
  only the last norm is trained: what is tested is the loss, not the model.
  """
  umm, frozen, batch = parts()
  start, rest = trees.split(frozen['policy'], ['lm/norm/.*'])
  optimizer = optax.sgd(lr)
  params = {'policy': redraw(start, 5)}
  state = TrainState(
    step=jnp.int32(0),
    params=params,
    opt_state=optimizer.init(params),
    skipped=jnp.int32(0),
    frozen={**frozen, 'policy': rest, 'reference': start},
  )
  step = functools.partial(learn, umm=umm, optimizer=optimizer, options=options)
  after, metrics = jax.jit(step)(state, batch, rollout, jax.random.key(3))
  return params['policy'], after.params['policy'], metrics


COMPILED = {}  # jitted steps, so that equal setups compile once


class Jitted:
  """A UMM-1 whose functions are jitted whole, one compilation a call."""

  def __init__(self, umm):
    self.umm = umm

  def prefill(self, *a):
    return jax.jit(self.umm.prefill)(*a)

  def describe(self, policy, prefix, rng, group):
    return jax.jit(self.umm.describe, static_argnums=3)(
      policy, prefix, rng, group
    )

  def score(self, *a):
    return jax.jit(self.umm.score)(*a)

  def condition(self, *a):
    return jax.jit(self.umm.condition)(*a)

  def draw(self, *a):
    return jax.jit(self.umm.draw)(*a)

  def rollout(self, *a):
    return jax.jit(self.umm.rollout, static_argnums=4)(*a)


def change(before, after) -> float:
  """Largest change of any parameter."""
  gap = lambda a, b: np.abs(np.asarray(a - b)).max()
  gaps = jax.tree.map(gap, before, after)
  return max(jax.tree.leaves(gaps))
