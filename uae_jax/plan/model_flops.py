"""Operations that a program asks for, counted before any compiler sees it.

Matrix products and convolutions of a traced function, loops as often as they
run. Traced without rematerialisation this is what the model needs; what the
hardware does beyond it is recomputation and padding.
"""

import collections
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
  return sum(by_scope(fn, *args, loop=loop).values())


def by_scope(
  fn: Callable[..., Any], *args: Any, loop: int
) -> collections.Counter[str]:
  """`count` by the named scopes that operations are in, outermost first."""
  found = collections.Counter()
  for scope, flops in _work(jax.make_jaxpr(fn)(*args).jaxpr, loop, ''):
    found[scope] += flops
  return found


def _work(jaxpr: Any, loop: int, scope: str) -> Iterator[tuple[str, float]]:
  """(scope, operations) of each matrix product and convolution."""
  for eqn in jaxpr.eqns:
    here = f'{scope}/{eqn.source_info.name_stack}'.rstrip('/')
    own = _own(eqn)
    if own is not None:
      yield here, own
    elif eqn.primitive.name == 'cond':
      branches = [[*_work(b, loop, here)] for b in _inner(eqn.params)]
      yield from max(branches, key=lambda work: sum(n for _, n in work))
    else:
      times = {'scan': eqn.params.get('length'), 'while': loop}
      times = times.get(eqn.primitive.name, 1)
      for inner in _inner(eqn.params):
        for name, flops in _work(inner, loop, here):
          yield name, times * flops


def _own(eqn: Any) -> float | None:
  """Operations of an equation that is no program of its own."""
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
  if name == 'pallas_call':
    cost = params['cost_estimate']
    return 0.0 if cost is None else float(cost.flops)
  return None


def _inner(params: Any) -> Iterator[Any]:
  """Programs among the parameters of an equation."""
  for value in params.values():
    for one in value if isinstance(value, tuple | list) else (value,):
      if hasattr(one, 'eqns'):
        yield one
      elif hasattr(one, 'jaxpr') and hasattr(one.jaxpr, 'eqns'):
        yield one.jaxpr
