"""Matrices that are put together where they are multiplied."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from uae_jax.nn.linear import Linear
from uae_jax.sharding import fsdp
from uae_jax.sharding.mesh import lines, make_mesh

# name -> (axes of x beside the rows, of w, of w that x meets, where w lies)
KINDS = {
  'column': ((3, 16), (16, 8), (0,), P('data', 'model')),
  'row': ((3, 8), (8, 16), (0,), P('model', 'data')),
  'heads': ((3, 16), (16, 4, 5), (0,), P('data', 'model', None)),
  'out of heads': ((2, 4, 5), (4, 5, 16), (0, 1), P('model', None, 'data')),
  'table': ((3, 16), (8, 16), (1,), P('model', 'data')),
  'few heads': ((3, 16), (16, 1, 6), (0,), P('data', None, None)),
}


def case(kind, mesh):
  """(x, w) placed on the mesh."""
  inner, dims, _, spec = KINDS[kind]
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
  x = jax.device_put(draw(8, *inner), NamedSharding(mesh, P('data')))
  return x, jax.device_put(draw(*dims), NamedSharding(mesh, spec))


def slopes(fn, x, w):
  """Product, and gradients of a sum that tells all its places apart."""

  def loss(x, w):
    y = fn(x, w)
    place = jnp.linspace(0, 9, y.size).reshape(y.shape)
    return jnp.sum(jnp.sin(y * place)), y

  return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(x, w)


@pytest.mark.parametrize(
  'shape, steps, slices',
  [
    ((8, 1), (8,), False),
    ((4, 2), (4,), False),
    ((8, 1), (2, 4), False),
    ((8, 1), (2, 2, 2), False),
    ((8, 1), (2, 4), True),
    ((4, 2), (2, 2), True),
  ],
)
@pytest.mark.parametrize('kind', KINDS)
def test_products_and_gradients_are_those_of_the_whole(
  kind, shape, steps, slices
):
  mesh, inner = make_mesh(*shape), KINDS[kind][2]
  x, w = case(kind, mesh)
  want = slopes(lambda x, w: fsdp._dot(x, w, inner), x, w)
  spec = w.sharding.spec

  def spread(x, w):
    return fsdp.product(x, fsdp.Spread(w, tuple(spec), steps, slices), inner)

  with jax.set_mesh(mesh):
    got = slopes(spread, x, w)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-4),
    got, want,
  )  # fmt: skip
  assert got[1][1].sharding.is_equivalent_to(w.sharding, w.ndim)


def test_the_gradient_is_scattered_and_never_whole_on_a_device():
  mesh = make_mesh(8, 1)
  x = jax.ShapeDtypeStruct((8, 4, 64), np.float32)
  params = {'kernel': np.zeros((64, 128), np.float32)}
  home = NamedSharding(mesh, P('data', 'model'))
  params = jax.device_put(params, home)
  wrap = fsdp.spreader(params, ['kernel'])

  def loss(params, x):
    return jnp.sum(Linear(128, bias=False).apply({'params': wrap(params)}, x))

  with jax.set_mesh(mesh):
    x = jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=NamedSharding(mesh, P('data'))
    )
    text = jax.jit(jax.grad(loss)).lower(params, x).compile().as_text()
  assert 'reduce-scatter(' in text and 'all-reduce(' not in text


def test_rows_that_do_not_divide_are_multiplied_all_the_same():
  mesh = make_mesh(4, 2)
  x, w = case('column', mesh)
  x = x[:3]
  want = slopes(lambda x, w: fsdp._dot(x, w, (0,)), x, w)
  spread = lambda w: fsdp.Spread(w, ('data', 'model'), (2, 2))
  with jax.set_mesh(mesh):
    got = slopes(lambda x, w: fsdp.product(x, spread(w), (0,)), x, w)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-4),
    got, want,
  )  # fmt: skip


def test_only_what_is_spread_is_wrapped():
  mesh = make_mesh(4, 2)
  place = lambda *spec: jax.ShapeDtypeStruct(
    (8, 8, 8), np.float32, sharding=NamedSharding(mesh, P(*spec))
  )
  tree = {
    'a': {'kernel': place(None, 'data'), 'bias': place('data')},
    'b': {'kernel': place('model')},
  }
  out = fsdp.spreader(tree, ['.*/kernel'])(tree)
  assert isinstance(out['a']['kernel'], fsdp.Spread)
  assert out['a']['kernel'].placed == P(None, 'data', None)
  assert out['a']['bias'] is tree['a']['bias']
  assert out['b']['kernel'] is tree['b']['kernel']


def test_without_a_torus_the_data_axis_is_one_line():
  assert lines(make_mesh(4, 2)) == ((4,), False)


@pytest.mark.parametrize('steps, slices', [((4,), False), ((2, 2), True)])
@pytest.mark.parametrize('kind', KINDS)
def test_a_copy_for_sampling_is_whole_and_cast(kind, steps, slices):
  mesh = make_mesh(4, 2)
  _, w = case(kind, mesh)
  spread = fsdp.Spread(w, tuple(w.sharding.spec), steps, slices)
  got = jax.jit(lambda s: s.everywhere(mesh, jnp.bfloat16))(spread)
  assert 'data' not in got.sharding.spec
  np.testing.assert_array_equal(got, w.astype(jnp.bfloat16))
