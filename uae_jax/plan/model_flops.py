"""Operations that a program asks for, counted before any compiler sees it.

Matrix products and convolutions of a traced function, loops as often as they
run. Traced without rematerialisation this is what the model needs; what the
hardware does beyond it is recomputation and padding.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax


def count(fn: Callable[..., Any], *args: Any, loop: int) -> float:
  """Floating-point operations of `fn(*args)` on all devices together.

  Args:
    fn: to be traced.
    *args: arrays or shapes.
    loop: how often a loop without a fixed length runs (captions are sampled
      until all have ended).
  """
  return _jaxpr(jax.make_jaxpr(fn)(*args).jaxpr, loop)


def _jaxpr(jaxpr: Any, loop: int) -> float:
  return sum(_equation(eqn, loop) for eqn in jaxpr.eqns)


def _equation(eqn: Any, loop: int) -> float:
  name, params = eqn.primitive.name, eqn.params
  if name == 'dot_general':
    (contract, _), _ = params['dimension_numbers']
    lhs = eqn.invars[0].aval.shape
    inner = math.prod(lhs[a] for a in contract)
    return 2.0 * inner * math.prod(eqn.outvars[0].aval.shape)
  if name == 'conv_general_dilated':
    kernel = eqn.invars[1].aval.shape
    out = params['dimension_numbers'].rhs_spec[0]
    each = math.prod(kernel) / kernel[out]
    return 2.0 * each * math.prod(eqn.outvars[0].aval.shape)
  if name == 'scan':
    return params['length'] * _jaxpr(params['jaxpr'].jaxpr, loop)
  if name == 'while':
    return loop * _jaxpr(params['body_jaxpr'].jaxpr, loop)
  if name == 'cond':
    return max(_jaxpr(b.jaxpr, loop) for b in params['branches'])
  if name == 'pallas_call':
    cost = params['cost_estimate']
    return 0.0 if cost is None else float(cost.flops)
  return sum(_jaxpr(inner, loop) for inner in _inner(params))


def _inner(params: Any) -> Iterator[Any]:
  """Programs among the parameters of an equation."""
  for value in params.values():
    if hasattr(value, 'eqns'):
      yield value
    elif hasattr(value, 'jaxpr') and hasattr(value.jaxpr, 'eqns'):
      yield value.jaxpr
