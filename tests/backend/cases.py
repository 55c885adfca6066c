"""What a step computes, part by part, from inputs that are always the same.

Inputs are drawn scenes and numpy's generator; weights are the bundled ones, or
drawn from seeds. Each case gives named arrays, which `golden.npz` has as a CPU
computed them in float32 with exact products (`record.py`).

A number may differ from the recorded one by a share of the largest of its
array, `TOLERANCES`. In float32, with products at the highest precision, a
backend only adds in another order. In bfloat16 the recorded numbers are still
those of float32, so that the tolerance is for the error of bfloat16 itself, of
which a CPU has up to 0.073. Integers are equal.
"""

import dataclasses
import functools
import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from uae_jax import zoo
from uae_jax.models import dinov2, dinov3, siglip, vae
from uae_jax.rollout import image_tokens
from uae_jax.rollout.flow import FlowSchedule
from uae_jax.rollout.sampler import Sampler
from uae_jax.sharding.mesh import make_mesh
from uae_jax.train import reinforce, tasks
from uae_jax.train.parts import Loader
from uae_jax.train.step import learn
from uae_jax.types import Batch, Captions, Rollout

ROOT = Path(__file__).parent.parent.parent
GOLDEN = Path(__file__).with_name('golden.npz')
IMAGES = 4
TOLERANCES = {'float32': 1e-3, 'bfloat16': 1e-1}
CASES = {}  # name -> (function of a dtype, dtypes that it is compared in)


def case(*dtypes):
  """Adds a case."""

  def add(fn):
    CASES[fn.__name__] = (fn, dtypes)
    return fn

  return add


def run(name, dtype='float32'):
  """{name of an array: array} of a case."""
  found = jax.device_get(CASES[name][0](dtype))
  return {f'{name}/{k}': np.asarray(v) for k, v in found.items()}


def differences(found, golden, dtype='float32'):
  """What is further from the recorded arrays than it may be."""
  out = []
  for key, array in found.items():
    wanted = golden[key]
    if array.shape != wanted.shape:
      out.append(f'{key}: {array.shape}, recorded {wanted.shape}')
    elif not np.issubdtype(wanted.dtype, np.floating):
      if (array != wanted).any():
        out.append(f'{key}: {np.mean(array != wanted):.1%} are others')
    else:
      gap = np.abs(array.astype(np.float64) - wanted).max()
      share = gap / max(np.abs(wanted).max(), 1e-6)
      if not share <= TOLERANCES[dtype]:
        out.append(f'{key}: off by {share:.2g} of the largest')
  return out


def draw(seed, *shape):
  """float32 noise."""
  return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@functools.cache
def loaded(name, dtype):
  """(config, parts, mesh, batch of scenes) of configs/`name`.py."""
  spec = importlib.util.spec_from_file_location(
    name, ROOT / 'configs' / f'{name}.py'
  )
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = module.get_config()
  config.update_from_flattened_dict(
    {'eval.images': IMAGES, 'eval.batch': IMAGES, 'eval.prompts': False,
     'train.images': IMAGES, 'train.group_size': 2, 'model.dtype': dtype}
  )  # fmt: skip
  mesh = make_mesh(1, 1, jax.devices()[:1])
  parts = tasks.load(config, Loader(config, mesh))
  rows, _ = next(iter(parts.heldout_data(config)()))
  rows.pop('truth')
  batch = Batch(**{k: jnp.asarray(v) for k, v in rows.items()})
  return config, parts, mesh, batch


def true_captions(batch):
  """What is there, in full; and what another image's captions say, [B 2 L]."""
  both = lambda x: jnp.stack([x, jnp.roll(x, 1, 0)], 1)
  tokens, mask = both(batch.full_ids), both(batch.full_mask)
  return Captions(tokens, mask, jnp.zeros(tokens.shape))


@case('float32', 'bfloat16')
def scores(dtype):
  """The policy's log-probabilities of captions, all tokens at once."""
  _, parts, _, batch = loaded('umm1', dtype)
  logp, entropy = jax.jit(parts.umm.score)(
    parts.params['policy'], batch, true_captions(batch)
  )
  return dict(logp=logp, entropy=entropy)


@case('float32', 'bfloat16')
def decoding(dtype):
  """The same, token by token through the cache."""
  _, parts, _, batch = loaded('umm1', dtype)
  umm, captions = parts.umm, true_captions(batch)

  def decode(policy, batch):
    apply = lambda *a, method: umm.vlm.apply(
      {'params': policy}, *a, method=method
    )
    prefix = umm.prefill(policy, batch)
    b, g, length = captions.tokens.shape
    width = prefix.hidden.shape[-1]
    hidden = jnp.broadcast_to(prefix.hidden[:, None], (b, g, width))
    first = apply(hidden, method='logits')

    def step(carry, t):
      logits, cache = carry
      ids = captions.tokens[..., t]
      logp = umm.sampler.score(logits, ids)
      logits, cache = apply(prefix, cache, ids, t, method='decode')
      return (logits, cache), logp

    start = first, umm.vlm.empty_cache(b, g, length)
    _, logp = jax.lax.scan(step, start, jnp.arange(length))
    return jnp.where(captions.mask, jnp.moveaxis(logp, 0, -1), 0)

  return dict(logp=jax.jit(decode)(parts.params['policy'], batch))


@case('float32')
def captions(dtype):
  """Greedy captions."""
  _, parts, _, batch = loaded('umm1', dtype)
  umm = dataclasses.replace(parts.umm, sampler=Sampler(temperature=0))

  def describe(policy, batch):
    prefix = umm.prefill(policy, batch)
    return umm.describe(policy, prefix, jax.random.key(0), 1)

  said = jax.jit(describe)(parts.params['policy'], batch)
  return dict(tokens=said.tokens, mask=said.mask)


def conditioned(umm, params, batch):
  """Conditioning of the full captions, [B ...]."""
  one = jax.tree.map(lambda x: x[:, :1], true_captions(batch))
  cond = umm.condition(params['policy'], params['connector'], one)
  return jax.tree.map(lambda x: x[:, 0], cond)


@case('float32', 'bfloat16')
def velocity(dtype):
  """The MM-DiT at four times, conditioned through captioner and connector."""
  _, parts, _, batch = loaded('umm1', dtype)
  umm = parts.umm
  x = jnp.asarray(draw(1, IMAGES, *umm.painter.shape), dtype)
  t = jnp.linspace(100, 1000, IMAGES)

  def run(params, batch):
    cond = conditioned(umm, params, batch)
    return umm.painter.velocity(params, x, t, cond), cond['context']

  v, context = jax.jit(run)(parts.params, batch)
  return dict(v=v[:2], context=context[:1])


@case('float32', 'bfloat16')
def drawing(dtype):
  """Four Euler steps from given noise."""
  _, parts, _, batch = loaded('umm1', dtype)
  umm = parts.umm
  painter = dataclasses.replace(umm.painter, schedule=FlowSchedule(4))
  noise = jnp.asarray(draw(2, IMAGES, *painter.shape))
  run = lambda params, batch: painter(
    params, noise, conditioned(umm, params, batch)
  )
  return dict(pixels=jax.jit(run)(parts.params, batch)[:2])


@case('float32')
def reward(dtype):
  """Sources beside mixtures of themselves with others."""
  _, parts, _, batch = loaded('umm1', dtype)
  source = batch.image
  other = jnp.roll(source, 1, 0)
  drawn = jnp.stack([source, 0.7 * source + 0.3 * other], 1)
  total, _ = jax.jit(parts.umm.reward)(
    parts.params, source, drawn, true_captions(batch)
  )
  judged = jax.jit(
    lambda params: parts.umm.similarities(
      parts.umm.judges, params['judges'], source, drawn
    )
  )(parts.params)
  return dict(total=total, **judged)


def random_weights(model, seed):
  """Weights of a model, none of them a constant."""
  flat, tree = jax.tree.flatten(model.shapes())
  scale = lambda x: 0.5 / np.sqrt(x.shape[-2]) if len(x.shape) > 1 else 0.1
  rows = [
    scale(x) * draw((seed, i), *x.shape) + (len(x.shape) == 1)
    for i, x in enumerate(flat)
  ]
  return jax.tree.unflatten(tree, [jnp.asarray(x) for x in rows])


@case('float32', 'bfloat16')
def towers(dtype):
  """CLIP as bundled; DINOv2, DINOv3 and SigLIP from seeds."""
  _, parts, _, batch = loaded('umm1', 'float32')
  models = {
    'dinov2': zoo.dinov2_tower(dinov2.VARIANTS['tiny']),
    'dinov3': zoo.dinov3_tower(dinov3.VARIANTS['tiny']),
    'siglip': zoo.siglip_tower(siglip.VARIANTS['tiny']),
  }
  pixels = (batch.image * 2 - 1).astype(dtype)
  embed = lambda module, params: jax.jit(
    lambda params, x: module.apply({'params': params}, x, method='image')
  )(params, pixels)
  out = {'clip': embed(parts.umm.towers['reward'].module,
                       parts.params['reward']['reward'])}  # fmt: skip
  for i, (name, model) in enumerate(models.items()):
    out[name] = embed(model.module, random_weights(model, i))
  return out


@case('float32', 'bfloat16')
def autoencoder(dtype):
  """A VAE from a seed, both ways."""
  _, _, _, batch = loaded('umm1', 'float32')
  model = zoo.autoencoder(vae.VARIANTS['tiny'])
  params = {'params': random_weights(model, 7)}
  pixels = (batch.image[:2] * 2 - 1).astype(dtype)
  apply = lambda method, x: jax.jit(
    lambda params, x: model.module.apply(params, x, method=method)
  )(params, x)
  latents = jnp.asarray(draw(3, 2, 16, 16, 4), dtype)
  return dict(latents=apply('encode', pixels), pixels=apply('decode', latents))


@case('float32', 'bfloat16')
def update(dtype):
  """Loss, its terms, and the gradient of the whole language model."""
  config, parts, mesh, batch = loaded('umm1', dtype)
  [(umm, options)], optimizer, state = reinforce.build(config, parts, mesh)
  said = true_captions(batch)
  away = jax.tree.map(lambda x: 1.02 * x, state.params)  # a KL has a slope
  state = state.replace(params=away)

  def run(state):
    logp, _ = umm.score(options.policy(state), batch, said)
    gap = 0.2 * draw(4, *logp.shape)  # some ratios are clipped
    rollout = Rollout(
      captions=said.replace(logp=jnp.where(said.mask, logp + gap, 0)),
      images=None,
      reward=jnp.asarray(draw(5, *logp.shape[:2])),
    )
    _, metrics = learn(
      state, batch, rollout, jax.random.key(0), umm=umm, optimizer=optimizer,
      options=options,
    )  # fmt: skip
    return metrics

  metrics = jax.jit(run)(state)
  names = {
    'optim/loss', 'optim/grad_norm', 'policy/kl', 'policy/entropy',
    'policy/ratio_max', 'reward/mean', 'reward/std',
  }  # fmt: skip
  if dtype == 'float32':  # of tokens, which bfloat16 moves across a bound
    names |= {'policy/clip_frac_low', 'policy/clip_frac_high'}
  return {name.replace('/', '_'): metrics[name] for name in names}


@case('float32', 'bfloat16')
def codes(dtype):
  """UMM-2: guided log-probabilities of image codes, and what they look like."""
  _, parts, _, batch = loaded('umm2', dtype)
  umm = dataclasses.replace(parts.umm, guidance=2.0)
  said = jax.tree.map(lambda x: x[:, :1], true_captions(batch))
  ids = np.random.default_rng(6).integers(0, 512, (IMAGES, 1, umm.codes))
  ids = jnp.asarray(ids, jnp.int32)

  def run(policy, params):
    logp, entropy = umm.score_codes(policy, said, ids)
    return logp, entropy, umm.render(params, ids[:2])

  logp, entropy, pixels = jax.jit(run)(parts.params['policy'], parts.params)
  return dict(logp=logp, entropy=entropy, pixels=pixels)


@case('float32')
def guided(dtype):
  """Greedy image codes from given logits, guidance included."""
  logits = jnp.asarray(draw(8, 2, 4, 16), dtype)
  decode = lambda cache, codes, t: (
    jnp.roll(logits, t, -1) + jax.nn.one_hot(codes, 16), cache
  )  # fmt: skip
  tokens, _ = jax.jit(
    lambda: image_tokens.sample(
      decode,
      logits,
      None,
      jax.random.key(0),
      Sampler(temperature=0),
      length=12,
      guidance=3.0,
    )  # fmt: skip
  )()
  return dict(tokens=tokens)
