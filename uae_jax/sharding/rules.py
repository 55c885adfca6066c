"""Where tensors live: one regex table per model, one table of activations.

A parameter table is read like the weights: `(regex, PartitionSpec)` rows,
the first full match wins, a parameter without a row and a row without a
parameter are both errors. Stacked layers carry a leading axis Y, never
sharded.
"""

import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from uae_jax import trees

Rule = tuple[str, P]

# Activation axis name -> mesh axis.
AXES = {
  'batch': 'data',
  'group': None,
  'len': None,
  'emb': None,
  'heads': 'model',
  'ffn': 'model',
  'vocab': 'model',
}


def constrain(x: jax.Array, *names: str) -> jax.Array:
  """Pins the activation `x` to the mesh; identity when no mesh is set."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return x
  spec = [AXES[n] for n in names]
  spec = [
    a if a and x.shape[i] % mesh.shape[a] == 0 else None
    for i, a in enumerate(spec)
  ]
  return jax.lax.with_sharding_constraint(x, P(*spec))


def specs(params: Any, rules: Sequence[Rule]) -> dict[str, Any]:
  """A tree of PartitionSpecs for `params` (arrays or shape structs).

  Raises:
    ValueError: listing every parameter without a rule and every rule
      without a parameter.
  """
  flat = trees.flatten(params)
  compiled = [(re.compile(r), s) for r, s in rules]
  used, out, missing = set(), {}, []
  for path, leaf in flat.items():
    for i, (regex, spec) in enumerate(compiled):
      if regex.fullmatch(path):
        used.add(i)
        out[path] = P(*spec, *[None] * (len(leaf.shape) - len(spec)))
        break
    else:
      missing.append(path)
  unused = [r for i, (r, _) in enumerate(rules) if i not in used]
  if missing or unused:
    raise ValueError(f'no rule for {missing}; rules that match none {unused}')
  return trees.unflatten(out)


def shardings(params: Any, rules: Sequence[Rule], mesh: Mesh):
  """NamedShardings for `params`; an axis that does not divide is dropped."""

  def one(path, leaf):
    spec = flat_specs[path]
    fits = [
      a if a and leaf.shape[i] % mesh.shape[a] == 0 else None
      for i, a in enumerate(spec)
    ]
    return NamedSharding(mesh, P(*fits))

  flat_specs = trees.flatten(specs(params, rules))
  return trees.map_with_path(one, params)
