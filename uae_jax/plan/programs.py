"""The programs of a run, lowered for a mesh on which nothing can run.

They are the very functions that the loop jits, with shapes in the place of
weights and images.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from uae_jax import zoo
from uae_jax.errors import UserError
from uae_jax.sharding.mesh import check_batch
from uae_jax.train import tasks
from uae_jax.train.parts import Loader
from uae_jax.train.state import placed
from uae_jax.train.step import learn, roll_out, train_step
from uae_jax.types import Batch


def lower(config, mesh: Mesh) -> Mapping[str, Callable[[], Any]]:
  """What lowers each program, by name.

  `train_step` is the run's; `rollout`, `update` and `sampler` are its parts,
  to be looked at alone: images to rewards, rewards to the next state, and
  drawing by itself.

  Args:
    config: of stage 'encoder'.
    mesh: of real or of compile-only devices.

  Raises:
    UserError: another stage, or something that cannot be built.
  """
  if config.stage != 'encoder':
    raise UserError(f"stage={config.stage!r}: only 'encoder' runs are planned")
  check_batch(config.train.images, mesh)
  parts = tasks.load(config, Loader(config, mesh, zoo.structs))
  options, optimizer, state = tasks.encoder(config, parts, mesh)
  umm = parts.umm
  rows = NamedSharding(mesh, P('data'))
  batch = example(parts, config, rows)
  key = jax.eval_shape(lambda: jax.random.key(0))
  shardings = jax.tree.map(lambda x: x.sharding, state)
  kw = dict(umm=umm, options=options)

  def made(fn, *args):
    """The result's shapes, rows on the data axis."""
    with jax.set_mesh(mesh):
      out = jax.eval_shape(fn, *args)
    return jax.tree.map(lambda x: placed(x, rows), out)

  def step():
    fn = functools.partial(train_step, optimizer=optimizer, **kw)
    jitted = jax.jit(fn, donate_argnums=0, out_shardings=(shardings, None))
    return jitted.lower(state, batch, key)

  roll = functools.partial(roll_out, **kw)

  def update():
    rollout = made(roll, state, batch, key)
    fn = functools.partial(learn, optimizer=optimizer, **kw)
    jitted = jax.jit(fn, donate_argnums=0, out_shardings=(shardings, None))
    return jitted.lower(state, batch, rollout.replace(images=None), key)

  def sampler():
    captions = made(roll, state, batch, key).captions

    def draw(state, captions, key):
      policy = options.gathered(options.policy(state))
      return umm.draw(policy, state.frozen, captions, None, key)

    return jax.jit(draw).lower(state, captions, key)

  jobs = {
    'train_step': step,
    'rollout': lambda: jax.jit(roll).lower(state, batch, key),
    'update': update,
    'sampler': sampler,
  }

  def under(job):
    def run():
      with jax.set_mesh(mesh):
        return job()

    return run

  return {name: under(job) for name, job in jobs.items()}


def example(parts, config, rows: NamedSharding) -> Batch:
  """Shapes of a global batch."""
  side = config.data.side
  blank = np.zeros((side, side, 3), np.uint8)
  arrays = {**parts.read(blank), 'image': np.zeros(blank.shape, np.float32)}
  n = config.train.images

  def shape(x):
    x = np.asarray(x)
    dtype = jnp.asarray(x[:0]).dtype
    return jax.ShapeDtypeStruct((n, *x.shape), dtype, sharding=rows)

  return Batch(**{k: shape(v) for k, v in arrays.items()})
