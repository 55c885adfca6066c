"""One formula that draws tokens and scores them.

The distribution is softmax(logits / temperature), cut to the `top_k` largest
(Fan et al. 2018, https://arxiv.org/abs/1805.04833), then to the smallest set
that holds `top_p` of the mass (Holtzman et al. 2020,
https://arxiv.org/abs/1904.09751), and renormalised. Log-probabilities kept
for an update are of this distribution, and the update scores with it too.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from uae_jax.errors import UserError

EXCLUDED = -1e30  # log-probability of a token that was cut; finite


@dataclasses.dataclass(frozen=True)
class Sampler:
  """A map from logits to a distribution over tokens.

  Attributes:
    temperature: 0 is greedy: all mass on the largest logit.
    top_k: number of tokens kept (more on ties); 0 keeps all.
    top_p: mass kept, after `top_k`; 1 keeps all.
  """

  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0

  def __post_init__(self):
    if self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1:
      raise UserError(
        f'{self}: set temperature >= 0, top_k >= 0 and 0 < top_p <= 1'
      )

  def log_probs(self, logits: Float[Array, '*b V']) -> Float[Array, '*b V']:
    """fp32 log-probabilities of the distribution that `draw` draws from.

    Cut tokens are the constant `EXCLUDED`: no gradient, never NaN.
    """
    x = logits.astype(jnp.float32)
    if self.temperature == 0:
      best = jnp.argmax(x, -1, keepdims=True)
      return jnp.where(jnp.arange(x.shape[-1]) == best, 0.0, EXCLUDED)
    x = x / self.temperature
    if not self.top_k and self.top_p == 1:
      return jax.nn.log_softmax(x)
    keep = x >= self._edge(jax.lax.stop_gradient(x))
    return jnp.where(
      keep, jax.nn.log_softmax(jnp.where(keep, x, EXCLUDED)), EXCLUDED
    )

  def _edge(self, x):
    """What stays of scaled logits is at least this, [... 1].

    Midway between what stays and what does not: a compiler may compute x twice
    and round it in two ways, and a program that scores must cut where the one
    that draws does.
    """
    size = x.shape[-1]
    k = min(self.top_k, size) or size
    top = jax.lax.top_k(x, min(k + 1, size))[0]
    probs = jax.nn.softmax(top[..., :k])
    # A token stays while the larger ones hold less than top_p; the largest,
    # with nothing before it, always does.
    before = jnp.cumsum(probs, -1) - probs
    kept = (before < self.top_p) | (self.top_p == 1)
    n = jnp.sum(kept, -1, keepdims=True)
    at = lambda i: jnp.take_along_axis(
      top, jnp.minimum(i, top.shape[-1] - 1), -1
    )
    return jnp.where(n < size, (at(n - 1) + at(n)) / 2, -jnp.inf)

  def draw(
    self, rng: Key[Array, ''], logits: Float[Array, '*b V']
  ) -> tuple[Int[Array, '*b'], Float[Array, '*b']]:
    """One token per row and its log-probability."""
    log_probs = self.log_probs(logits)
    token = jax.random.categorical(rng, log_probs)
    return token, _pick(log_probs, token)

  def score(
    self, logits: Float[Array, '*b V'], tokens: Int[Array, '*b']
  ) -> Float[Array, '*b']:
    """Log-probability of `tokens`, as `draw` would report it.

    During an update the kept set moves with the weights. A drawn token that
    is now outside of it scores `EXCLUDED` without a gradient; its ratio to
    the old log-probability is 0 for all purposes (`rl.grpo` bounds it at
    exp(-20)), so it neither trains nor becomes infinite.
    """
    return _pick(self.log_probs(logits), tokens)

  def entropy(self, logits: Float[Array, '*b V']) -> Float[Array, '*b']:
    """Entropy in nats of the distribution drawn from."""
    log_probs = self.log_probs(logits)
    return -jnp.sum(jnp.exp(log_probs) * log_probs, -1)


def _pick(log_probs, tokens):
  return jnp.take_along_axis(log_probs, tokens[..., None], -1)[..., 0]
