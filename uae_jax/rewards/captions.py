"""What a caption costs by itself: its length and its repetitions, in tokens.

Both are at most 0 and are added to the reward with a weight. Letters as in
`types`; n tokens of a gram.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def length(mask: Bool[Array, 'B G L'], target: int) -> Float[Array, 'B G']:
  """Minus the number of tokens beyond `target`; 0 up to there.

  Args:
    mask: of a caption's tokens, EOS included.
    target: tokens that cost nothing, EOS included.
  """
  return -jnp.maximum(jnp.sum(mask, -1) - target, 0).astype(jnp.float32)


def repetition(
  tokens: Int[Array, 'B G L'], words: Bool[Array, 'B G L'], n: int
) -> Float[Array, 'B G']:
  """Minus the share of n-grams that the caption has had before.

  'a b a b a' has the bigrams ab, ba, ab, ba: -1/2. A caption of fewer than n
  words repeats nothing.

  Args:
    tokens: of the captions.
    words: those before EOS.
    n: of the n-grams.
  """
  size = tokens.shape[-1] - n + 1
  if size < 1:
    return jnp.zeros(tokens.shape[:2], jnp.float32)
  there = words[..., n - 1 :]
  # In order, equal grams are neighbours; what is no gram is -1 throughout.
  grams = [jnp.where(there, tokens[..., i : i + size], -1) for i in range(n)]
  grams = jax.lax.sort(grams, dimension=-1, num_keys=n)
  other = [x[..., 1:] != x[..., :-1] for x in grams]
  new = jnp.any(jnp.stack(other), 0) & (grams[0][..., 1:] >= 0)
  different = jnp.sum(new, -1) + (grams[0][..., 0] >= 0)
  total = jnp.sum(there, -1)
  return -(total - different) / jnp.maximum(total, 1).astype(jnp.float32)
