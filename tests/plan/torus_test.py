"""Meshes on the torus, and what the TPU compiler makes of them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from uae_jax.nn import attention, kernels
from uae_jax.nn.linear import Linear
from uae_jax.plan import counting, topology
from uae_jax.sharding import fsdp
from uae_jax.sharding.mesh import lines, make_mesh
from uae_jax.train.state import gatherer

LAYERS, WIDTH = 4, 2048


@pytest.fixture(scope='module', autouse=True)
def compiler():
  topology.prepare()


def shape(mesh, dims, *spec, dtype=jnp.bfloat16):
  return jax.ShapeDtypeStruct(
    dims, dtype, sharding=NamedSharding(mesh, P(*spec))
  )


@pytest.mark.parametrize(
  'name, slices, model, want',
  [
    ('v5e:8x8', 1, 1, ((8, 8), False)),
    ('v5e:8x8', 1, 4, ((8, 2), False)),
    ('v5e:8x8', 1, 16, ((4,), False)),
    ('v5p:4x4x4', 1, 1, ((4, 4, 4), False)),
    ('v5p:2x2x4', 1, 4, ((2, 2), False)),
    ('v5e:4x4', 2, 1, ((2, 4, 4), True)),
    ('v5e:4x4', 2, 4, ((2, 4), True)),
  ],
)
def test_the_data_axis_is_made_of_straight_lines(name, slices, model, want):
  mesh = make_mesh(-1, model, topology.devices(name, slices))
  assert lines(mesh) == want
  grid = mesh.devices[:, 0].reshape(want[0])
  for axis in range(int(want[1]), grid.ndim):  # one coordinate changes
    row = np.moveaxis(grid, axis, 0).reshape(grid.shape[axis], -1)[:, 0]
    places = np.array([d.coords for d in row])
    assert (np.ptp(places, axis=0) > 0).sum() == 1
  for row in mesh.devices:  # neighbours on the model axis are near
    places = np.array([d.coords for d in row])
    assert np.prod(np.ptp(places, axis=0) + 1) == model


class Deep(nn.Module):
  """Layers of one matrix, scanned."""

  @nn.compact
  def __call__(self, x):
    def body(layer, x, _):
      return x + jnp.tanh(layer(x)), None

    scan = nn.transforms.scan(
      body, variable_axes={'params': 0}, split_rngs={'params': True},
      length=LAYERS,
    )  # fmt: skip
    return scan(Linear(WIDTH, bias=False, name='layer'), x, None)[0]


def slopes(mesh, wrap):
  """The gradient of a mean over `Deep`, compiled."""
  weights = shape(
    mesh, (LAYERS, WIDTH, WIDTH), None, 'data', 'model', dtype=jnp.float32
  )
  params = {'layer': {'kernel': weights}}
  x = shape(mesh, (mesh.shape['data'], 256, WIDTH), 'data')

  def loss(params, x):
    out = Deep().apply({'params': wrap(params)}, x)
    return jnp.mean(out.astype(jnp.float32) ** 2)

  with jax.set_mesh(mesh):
    done = (
      jax.jit(
        jax.grad(loss), out_shardings=jax.tree.map(lambda w: w.sharding, params)
      )
      .lower(params, x)
      .compile()
    )
  return counting.count(done.as_text(), mesh.shape['data'])


@pytest.mark.parametrize('name, model', [('v5e:8x8', 1), ('v5e:8x8', 4)])
def test_gradients_are_scattered_where_the_compiler_would_not(name, model):
  mesh = make_mesh(-1, model, topology.devices(name))
  data = mesh.shape['data']
  weights = shape(mesh, (LAYERS, WIDTH, WIDTH), None, 'data', 'model')
  wrap = fsdp.spreader({'layer': {'kernel': weights}}, ['.*/kernel'])
  size = 2 * LAYERS * WIDTH**2 / model * (1 - 1 / data)
  found = slopes(mesh, wrap)
  assert not found.whole
  # Once forward, once back; and the gradients once.
  assert found.sent['all-gather'] == pytest.approx(2 * size, rel=0.5)
  assert found.sent['reduce-scatter'] == pytest.approx(size, rel=0.5)
  if model == 1:  # left to itself
    assert slopes(mesh, lambda params: params).whole


@pytest.mark.parametrize('heads', [8, 2])
def test_splash_is_used_for_tpus_and_its_products_are_counted(heads):
  mesh = make_mesh(-1, 4, topology.devices('v5e:4x4'))
  q = shape(mesh, (4, 1024, 8, 128), 'data', None, 'model')
  k = shape(mesh, (4, 1024, heads, 128), 'data')

  def text(kind):
    with jax.set_mesh(mesh), kernels.use(kind):
      fn = lambda q, k: attention.attend(q, k, k, causal=True)
      return jax.jit(fn).lower(q, k).compile().as_text()

  fused, plain = text('auto'), text('xla')
  assert 'splash_mha_fwd' in fused and 'splash_mha_fwd' not in plain
  flops = 4 * 1024 * 1024 * 2 * 128
  assert counting.count(plain).flops == pytest.approx(flops, rel=0.01)
  assert counting.count(fused).flops == pytest.approx(flops, rel=0.01)


def test_what_is_sampled_from_is_gathered_where_the_compiler_would_not():
  mesh = make_mesh(-1, 1, topology.devices('v5p:4x4x4'))
  weights = shape(
    mesh, (LAYERS, WIDTH, WIDTH), None, 'data', None, dtype=jnp.float32
  )
  policy = {'lm': {'layer': {'kernel': weights}}}
  gather = gatherer(policy, (r'lm/.*',), jnp.bfloat16)
  home = NamedSharding(mesh, P())
  left = lambda tree: jax.tree.map(
    lambda x: jax.lax.with_sharding_constraint(x.astype(jnp.bfloat16), home),
    tree,
  )

  def found(fn):
    text = jax.jit(fn).lower(policy).compile().as_text()
    return counting.count(text, mesh.shape['data'])

  size = 2 * LAYERS * WIDTH**2 * (1 - 1 / 64)
  ours = found(gather)
  assert ours.sent['all-gather'] == pytest.approx(size, rel=0.1)
  assert not ours.whole and found(left).whole
