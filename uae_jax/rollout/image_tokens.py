"""Sampling image codes with the log-probability they are drawn with.

A fixed number of codes in one scan. With guidance (Ho & Salimans 2022,
https://arxiv.org/abs/2207.12598, on logits) conditional and unconditional
rows run side by side on the group axis: [B 2G], conditional first. The
guided logits are what is sampled from, so they are also what is scored.
Letters as in `types`; K codebook size, H rows of the group axis.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from uae_jax.rollout.sampler import Sampler
from uae_jax.types import KV

# (cache, codes [B H], index) -> (logits of the next code [B H K], cache);
# H is G, or 2G with guidance.
Decode = Callable[[KV, Array, Array], tuple[Array, KV]]


def guide(
  logits: Float[Array, 'B H *r K'], guidance: float
) -> Float[Array, 'B G *r K']:
  """u + w (c - u) of the two halves of the group axis; at w = 1 there is one.

  In fp32.
  """
  logits = logits.astype(jnp.float32)
  if guidance == 1:
    return logits
  with_, without = jnp.split(logits, 2, 1)
  return without + guidance * (with_ - without)


def twice(x: Array, guidance: float) -> Array:
  """The same for both halves of the group axis."""
  return x if guidance == 1 else jnp.concatenate([x, x], 1)


def sample(
  decode: Decode,
  first: Float[Array, 'B H K'],
  cache: KV,
  rng: Key[Array, ''],
  sampler: Sampler,
  *,
  length: int,
  guidance: float,
) -> tuple[Int[Array, 'B G I'], Float[Array, 'B G I']]:
  """Draws `length` codes for every rollout.

  Args:
    decode: feeds one code to every row.
    first: logits of the first code, unguided.
    cache: an empty cache with room for `length` codes.
    rng: one key; code t of every rollout uses fold_in(rng, t).
    sampler: the distribution over guided logits.
    length: I.
    guidance: w; 1 is off and has no unconditional rows.

  Returns:
    Codes, and their log-probability under the distribution drawn from.
  """

  def draw(logits, t):
    code, logp = sampler.draw(
      jax.random.fold_in(rng, t), guide(logits, guidance)
    )
    return code.astype(jnp.int32), logp

  def step(carry, t):
    logits, cache = carry
    code, logp = draw(logits, t)
    logits, cache = decode(cache, twice(code, guidance), t)
    return (logits.astype(first.dtype), cache), (code, logp)

  with jax.named_scope('sample_codes'):
    (logits, _), drawn = jax.lax.scan(
      step, (first, cache), jnp.arange(length - 1)
    )
    last = draw(logits, length - 1)  # nothing follows it
  join = lambda many, one: jnp.moveaxis(
    jnp.concatenate([many, one[None]]), 0, -1
  )
  return join(drawn[0], last[0]), join(drawn[1], last[1])
