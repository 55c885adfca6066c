"""The sampler of image codes, driven by a three-line model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uae_jax.rollout import image_tokens
from uae_jax.rollout.sampler import Sampler

B, G, I, K = 2, 3, 8, 11
TABLES = 0.4 * jax.random.normal(jax.random.key(1), (2, K, K))  # with, without
SAMPLERS = [
  Sampler(),
  Sampler(0.7, top_k=3),
  Sampler(top_p=0.6),
  Sampler(1.3, top_k=4, top_p=0.8),
  Sampler(temperature=0),
]


def logits(total, guidance):
  """[B H ... K] where the codes before, each + 1, sum to `total` [B H ...]."""
  prompt = jnp.arange(G)[:, None] if total.ndim > 2 else jnp.arange(G)
  halves = jnp.split(total, 1 if guidance == 1 else 2, 1)
  rows = [t[(x + prompt) % K] for t, x in zip(TABLES, halves)]
  return jnp.concatenate(rows, 1)


def run(guidance, sampler, calls=None, seed=0):
  """Samples; the cache is the sum of the codes that were fed, each + 1."""
  h = G if guidance == 1 else 2 * G

  def decode(cache, codes, t):
    if calls is not None:
      jax.debug.callback(lambda t: calls.append((codes.shape, int(t))), t)
    cache = cache + codes + 1
    return logits(cache, guidance), cache

  start = jnp.zeros((B, h), jnp.int32)
  return image_tokens.sample(
    decode, logits(start, guidance), start, jax.random.key(seed), sampler,
    length=I, guidance=guidance,
  )  # fmt: skip


def taught(codes, guidance):
  """Guided logits of every code given the ones before it."""
  both = logits(image_tokens.twice(before(codes), guidance), guidance)
  return image_tokens.guide(both, guidance)


def before(codes):
  return jnp.cumsum(codes + 1, -1) - (codes + 1)


@pytest.mark.parametrize('guidance', [1.0, 5.0])
@pytest.mark.parametrize('sampler', SAMPLERS, ids=str)
def test_codes_are_scored_as_they_were_drawn(sampler, guidance):
  codes, logp = run(guidance, sampler)
  assert codes.shape == logp.shape == (B, G, I) and logp.dtype == jnp.float32
  score = sampler.score(taught(codes, guidance), codes)
  assert np.abs(np.exp(score - logp) - 1).max() < 1e-5
  if sampler.temperature:
    assert len(np.unique(codes)) > 2 and logp.min() < -0.1
    # One pass alone is another distribution.
    alone = sampler.score(logits(before(codes), 1.0), codes)
    assert guidance == 1 or np.abs(alone - logp).max() > 0.1


def test_greedy_takes_the_largest_guided_logit():
  codes, logp = run(5.0, Sampler(temperature=0))
  np.testing.assert_array_equal(codes, jnp.argmax(taught(codes, 5.0), -1))
  np.testing.assert_array_equal(logp, 0)
  other, _ = run(1.0, Sampler(temperature=0))
  assert (codes != other).any()


def test_every_code_is_drawn_with_its_own_key():
  sampler = Sampler()
  one, two = (run(5.0, sampler, seed=i)[0] for i in (0, 1))
  np.testing.assert_array_equal(one, run(5.0, sampler)[0])
  assert (one != two).any() and (one[0] != one[1]).any()


@pytest.mark.parametrize('guidance, width', [(1.0, G), (5.0, 2 * G)])
def test_guidance_doubles_the_rows_and_the_last_code_is_not_fed(
  guidance, width
):
  calls = []
  jax.block_until_ready(run(guidance, Sampler(), calls))
  jax.effects_barrier()
  assert sorted(calls) == [((B, width), t) for t in range(I - 1)]


def test_guidance_leads_from_the_second_half_through_the_first():
  with_, without = jnp.full((B, G, K), 2.0), jnp.full((B, G, K), 1.0)
  both = jnp.concatenate([with_, without], 1).astype(jnp.bfloat16)
  out = image_tokens.guide(both, 5.0)
  assert out.dtype == jnp.float32
  np.testing.assert_array_equal(out, 1 + 5 * (with_ - without))
  np.testing.assert_array_equal(image_tokens.guide(with_, 1.0), with_)
