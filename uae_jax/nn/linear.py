"""Linear maps with named head axes, computed in the dtype of the input."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from uae_jax.sharding.fsdp import product


class Linear(nn.Module):
  """Contracts the last `n_in` axes of x into `out` axes.

  The kernel is [*in, *out] (`o`: [N H D], `q`: [D N H]), the bias [*out].
  Parameters are stored in `param_dtype` fp32 or whatever was loaded and cast
  to the dtype of `x`.
  """

  out: tuple[int, ...] | int
  n_in: int = 1
  bias: bool = True
  zero: bool = False

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    out = (self.out,) if isinstance(self.out, int) else tuple(self.out)
    inner = x.shape[-self.n_in :]
    fan_in = int(np.prod(inner))

    def init(key, shape, dtype=jnp.float32):
      if self.zero:
        return jnp.zeros(shape, dtype)
      return jax.random.normal(key, shape, dtype) * fan_in**-0.5

    kernel = self.param('kernel', init, (*inner, *out))
    y = product(x, kernel, tuple(range(self.n_in)))
    if self.bias:
      y = y + self.param('bias', nn.initializers.zeros, out).astype(x.dtype)
    return y
