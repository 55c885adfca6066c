"""The programs of a run, for a mesh on which nothing need be able to run.

They are the very functions that the loop jits, with shapes in the place of
weights and images.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from uae_jax import zoo
from uae_jax.data import buckets
from uae_jax.errors import UserError
from uae_jax.nn import kernels
from uae_jax.plan import model_flops
from uae_jax.sharding.mesh import check_batch
from uae_jax.train import reinforce, supervise, tasks
from uae_jax.train.parts import TURNS, Loader, sampled
from uae_jax.train.state import placed
from uae_jax.train.step import learn, roll_out, train_step
from uae_jax.types import Batch

# `train_step` is the run's; the others are its parts, to be looked at alone:
# images to rewards, rewards to the next state, and drawing by itself.
NAMES = ('train_step', 'rollout', 'update', 'sampler')


@dataclasses.dataclass(frozen=True)
class Program:
  """A function with the shapes that it is called with.

  Attributes:
    fn: the function.
    args: shapes with their shardings.
    mesh: of those.
    options: of `jax.jit`.
    attention: see `nn.kernels.use`.
  """

  fn: Callable[..., Any]
  args: Sequence[Any]
  mesh: Mesh
  options: Mapping[str, Any]
  attention: str

  def lower(self) -> Any:
    """Lowered for the devices of the mesh."""
    with jax.set_mesh(self.mesh), kernels.use(self.attention):
      return jax.jit(self.fn, **self.options).lower(*self.args)

  def flops(self, loop: int) -> float:
    """See `model_flops.count`; of what all devices do, so of no mesh."""
    with kernels.use('xla'):  # nothing is computed twice
      return model_flops.count(self.fn, *self.args, loop=loop)


def build(config, mesh: Mesh, name: str) -> Program:
  """One of `NAMES`.

  Args:
    config: of any stage but `tower`; a supervised one has no other program
      than its train_step.
    mesh: of real or of compile-only devices.
    name: of the program.

  Raises:
    UserError: another stage or name, or something that cannot be built.
  """
  stages = [*TURNS, 'pretrain']
  if config.stage not in stages:
    raise UserError(f'stage={config.stage!r} is none of {stages}: no plan')
  known = NAMES if config.stage in TURNS else NAMES[:1]
  if name not in known:
    raise UserError(f'program {name!r} is none of {known}')
  check_batch(config.train.images, mesh)
  parts = tasks.load(config, Loader(config, mesh, zoo.structs))
  if config.stage == 'pretrain':
    return _supervised(config, parts, mesh)
  turns, optimizer, state = reinforce.build(config, parts, mesh)
  umm, options = turns[-1]  # of stage 'alternate' the decoder's
  rows = NamedSharding(mesh, P('data'))
  batch = example(parts, config, rows)
  key = _key()
  kw = dict(umm=umm, options=options)
  roll = functools.partial(roll_out, **kw)
  homes = jax.tree.map(lambda x: x.sharding, state)
  in_place = dict(donate_argnums=0, out_shardings=(homes, None))

  def program(fn, *args, **options):
    return Program(fn, args, mesh, options, config.model.attention)

  def rolled_out():
    with jax.set_mesh(mesh):
      out = jax.eval_shape(roll, state, batch, key)
    return jax.tree.map(lambda x: placed(x, rows), out).replace(images=None)

  if name == 'train_step':
    fn = functools.partial(train_step, optimizer=optimizer, **kw)
    return program(fn, state, batch, key, **in_place)
  if name == 'rollout':
    return program(roll, state, batch, key)
  if name == 'update':
    fn = functools.partial(learn, optimizer=optimizer, **kw)
    return program(fn, state, batch, rolled_out(), key, **in_place)

  def draw(state, captions, key):
    policy = options.gathered(options.policy(state))
    frozen = options.frozen(options.read(state))
    return umm.draw(policy, frozen, captions, None, key)

  return program(draw, state, rolled_out().captions, key)


def _supervised(config, parts, mesh) -> Program:
  """The train_step of stage 'pretrain'."""
  _, step, state = supervise.build(config, parts, mesh)
  homes = jax.tree.map(lambda x: x.sharding, state)
  rows = NamedSharding(mesh, P('data'))
  args = state, example(parts, config, rows), _key()
  options = dict(donate_argnums=0, out_shardings=(homes, None))
  return Program(step, args, mesh, options, config.model.attention)


def _key() -> jax.ShapeDtypeStruct:
  return jax.eval_shape(lambda: jax.random.key(0))


def unrestricted(config) -> Any:
  """The same step with nothing computed twice: what the model needs."""
  config = config.copy_and_resolve_references()
  config.model.remat, config.model.chunk = 'none', 0
  for key in ('rollout_images', 'drawings', 'update_images'):
    config.memory[key] = 0
  return config


def example(parts, config, rows: NamedSharding) -> Batch:
  """Shapes of a global batch; of several, the one with the most pixels."""
  shapes = [(config.data.side,) * 2]
  if config.model.umm == 'umm1':  # a UMM-2 draws squares alone
    shapes = buckets.parse(config.data.buckets) or shapes
  blank = np.zeros((*max(shapes, key=math.prod), 3), np.uint8)
  arrays = {**parts.read(blank), 'image': np.zeros(blank.shape, np.float32)}
  if config.stage == 'pretrain':
    caption = np.zeros(config.rollout.length, np.int32)
    for kind in ('full', 'caption'):
      arrays |= {f'{kind}_ids': caption, f'{kind}_mask': caption > 0}
  n = sampled(config)

  def shape(x):
    dtype = jnp.asarray(np.asarray(x)[:0]).dtype
    return jax.ShapeDtypeStruct((n, *np.shape(x)), dtype, sharding=rows)

  return Batch(**{k: shape(v) for k, v in arrays.items()})
