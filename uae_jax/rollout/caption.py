"""Sampling captions with the log-probability they are drawn with.

One while_loop over caption tokens. It ends when every caption has its EOS;
the prefix is computed once per image and shared by its G rollouts.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from uae_jax.rollout.sampler import Sampler
from uae_jax.types import KV, Captions

# (cache, token ids [B G], index) -> (logits of the next token, cache)
Decode = Callable[[KV, Array, Array], tuple[Array, KV]]


def sample(
  decode: Decode,
  first: Float[Array, 'B G V'],
  cache: KV,
  rng: Key[Array, ''],
  sampler: Sampler,
  *,
  length: int,
  eos: int,
  pad: int,
) -> Captions:
  """Draws captions of at most `length` tokens, EOS included.

  Args:
    decode: feeds one token to every rollout.
    first: logits of the first token.
    cache: an empty cache with room for `length` tokens.
    rng: one key; token t of every rollout uses fold_in(rng, t).
    sampler: the distribution; temperature 0 is greedy.
    length: the budget L.
    eos: id that ends a caption and counts as its last token.
    pad: id written after it.

  Returns:
    Captions whose `logp` is under the distribution drawn from.
  """
  shape = (*first.shape[:2], length)

  def unfinished(carry):
    t, done = carry[0], carry[1]
    return (t < length) & ~jnp.all(done)

  def step(carry):
    t, done, logits, cache, tokens, mask, logp = carry
    token, lp = sampler.draw(jax.random.fold_in(rng, t), logits)
    token = jnp.where(done, pad, token).astype(jnp.int32)
    write = lambda x, one: jax.lax.dynamic_update_index_in_dim(x, one, t, 2)
    tokens = write(tokens, token)
    mask = write(mask, ~done)
    logp = write(logp, jnp.where(done, 0.0, lp))
    done = done | (token == eos)
    logits, cache = decode(cache, token, t)
    return t + 1, done, logits, cache, tokens, mask, logp

  carry = (
    jnp.int32(0),
    jnp.zeros(shape[:2], bool),
    first,
    cache,
    jnp.full(shape, pad, jnp.int32),
    jnp.zeros(shape, bool),
    jnp.zeros(shape, jnp.float32),
  )
  with jax.named_scope('sample_captions'):
    *_, tokens, mask, logp = jax.lax.while_loop(unfinished, step, carry)
  return Captions(tokens, mask, logp)


def in_template(
  captions: Captions,
  before: tuple[int, ...],
  after: tuple[int, ...],
  *,
  eos: int,
  pad: int,
) -> tuple[Array, Array]:
  """Places captions in the text-to-image template, on the device.

  `before + caption without EOS + after`, left aligned: `after` follows the
  last word at once, whatever the caption's length. `after` starts with the
  template's own end-of-turn token.

  Returns:
    ids and mask [B G L + len(before) + len(after)].
  """
  words = captions.mask & (captions.tokens != eos)
  n = jnp.sum(words, -1, keepdims=True)
  head, tail = jnp.array(before), jnp.array(after)
  size = len(before) + captions.tokens.shape[-1] + len(after)
  at = jnp.arange(size) - len(before)
  inside = jnp.clip(at, 0, captions.tokens.shape[-1] - 1)
  caption = captions.tokens[..., inside]
  opening = head[jnp.clip(jnp.arange(size), 0, len(before) - 1)]
  closing = tail[jnp.clip(at - n, 0, len(after) - 1)]
  ids = jnp.where(at < 0, opening, jnp.where(at < n, caption, closing))
  mask = at < n + len(after)
  return jnp.where(mask, ids, pad), mask
