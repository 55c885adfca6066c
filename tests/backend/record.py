"""Records what tests/backend compares with: `python -m tests.backend.record`.

On a CPU alone, in float32 with exact products. Say in the commit why the
numbers are others now.
"""

import sys

import jax
import numpy as np

from tests.backend import cases


def main() -> None:
  """Writes golden.npz."""
  if jax.default_backend() != 'cpu':
    sys.exit('say JAX_PLATFORMS=cpu: what is recorded is what a CPU computes')
  jax.config.update('jax_default_matmul_precision', 'highest')
  golden = {}
  for name in cases.CASES:
    golden |= cases.run(name)
    print(name, flush=True)
  np.savez_compressed(cases.GOLDEN, **golden)
  print(f'{cases.GOLDEN}: {cases.GOLDEN.stat().st_size / 1000:.0f} kB')


if __name__ == '__main__':
  main()
