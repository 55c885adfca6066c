"""A host of a run with something wrong: `python -m tests.train.faulty_host`.

`unreadable=STEP` before the arguments of `uae_jax.main`: this host cannot read
that checkpoint. `nan=A,B,…`: images of the batches with these numbers, from 1,
are not numbers.
"""

import itertools
import sys

import numpy as np

from uae_jax import main
from uae_jax.ckpt.orbax_io import Checkpoints
from uae_jax.errors import UserError
from uae_jax.train import loop


def unreadable(step: int) -> None:
  """Makes a checkpoint so."""
  restore = Checkpoints.restore

  def fails(self, which, like):
    if which == step:
      raise UserError(f'checkpoint {step} is on a broken disk')
    return restore(self, which, like)

  Checkpoints.restore = fails


def nan(numbers: list[int]) -> None:
  """Makes images so."""
  to_batch, calls = loop.to_batch, itertools.count(1)

  def broken(host, mesh):
    if next(calls) in numbers:
      host = {**host, 'image': np.full_like(host['image'], np.nan)}
    return to_batch(host, mesh)

  loop.to_batch = broken


if __name__ == '__main__':
  name, _, value = sys.argv.pop(1).partition('=')
  numbers = [int(x) for x in value.split(',')]
  {'unreadable': lambda x: unreadable(*x), 'nan': nan}[name](numbers)
  main.cli()
