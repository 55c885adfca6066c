"""Feed-forward blocks and the activations of the models we load.

`jax.nn.gelu` defaults to the tanh form; each model names the one it needs.
"""

import functools

import flax.linen as nn
import jax

from uae_jax.nn.linear import Linear
from uae_jax.sharding.rules import constrain

ACTIVATIONS = {
  'silu': jax.nn.silu,
  'gelu': functools.partial(jax.nn.gelu, approximate=False),
  'gelu_tanh': functools.partial(jax.nn.gelu, approximate=True),
  'quick_gelu': lambda x: x * jax.nn.sigmoid(1.702 * x),
}


def _constrain_ffn(x):
  return constrain(x, 'batch', *['len'] * (x.ndim - 2), 'ffn')


class MLP(nn.Module):
  """fc2(act(fc1(x))) with biases; x [... D]."""

  hidden: int
  out: int
  act: str

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    h = ACTIVATIONS[self.act](Linear(self.hidden, name='fc1')(x))
    return Linear(self.out, name='fc2')(_constrain_ffn(h))


class GatedMLP(nn.Module):
  """down(act(gate(x)) * up(x)); x [... D]."""

  hidden: int
  bias: bool = False
  act: str = 'silu'

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    gate = Linear(self.hidden, bias=self.bias, name='gate')(x)
    up = Linear(self.hidden, bias=self.bias, name='up')(x)
    h = _constrain_ffn(ACTIVATIONS[self.act](gate) * up)
    return Linear(x.shape[-1], bias=self.bias, name='down')(h)
