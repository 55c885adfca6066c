"""What compiled programs are said to do, against what they do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from uae_jax.errors import UserError
from uae_jax.plan import counting, fit, hlo, model_flops, topology
from uae_jax.sharding.mesh import make_mesh

LAYERS, WIDTH, ROWS = 6, 1024, 4096


@pytest.fixture(scope='module')
def mesh():
  topology.prepare()
  return make_mesh(-1, 1, topology.devices('v5e:2x2'))


def shape(mesh, dims, *spec, dtype=jnp.bfloat16):
  return jax.ShapeDtypeStruct(
    dims, dtype, sharding=NamedSharding(mesh, P(*spec))
  )


def forward(w, x):
  def layer(x, w):
    x = jnp.tanh(x @ w)
    return jax.lax.with_sharding_constraint(x, P('data')), None

  return jax.lax.scan(layer, x, w)[0]


def loss(w, x):
  return jnp.sum(forward(w, x).astype(jnp.float32) ** 2)


def compiled(fn, *args, **kw):
  with jax.set_mesh(args[0].sharding.mesh):
    return lowered(fn, *args, **kw)


def lowered(fn, *args, **kw):
  return jax.jit(fn, **kw).lower(*args).compile().as_text()


def test_a_loop_over_spread_weights_counts_as_often_as_it_runs(mesh):
  w = shape(mesh, (LAYERS, WIDTH, WIDTH), None, 'data')
  x = shape(mesh, (ROWS, WIDTH), 'data')
  found = counting.count(compiled(forward, w, x))
  flops = 2 * LAYERS * ROWS * WIDTH**2
  assert found.flops == flops / 4
  with jax.set_mesh(mesh):
    assert model_flops.count(forward, w, x, loop=1) == flops
  # Every layer's weights come from the three other devices.
  weights = 2 * LAYERS * WIDTH**2
  assert found.ici == pytest.approx(weights * 3 / 4, rel=0.01)
  # Each device reads them, gathered or not, and little else.
  assert weights / 4 < found.bytes < 5 * weights
  assert not found.whole


def test_whole_gradients_are_told_from_scattered_ones(mesh):
  x = shape(mesh, (ROWS, WIDTH), 'data')
  slope = jax.grad(loss)
  spread = shape(mesh, (LAYERS, WIDTH, WIDTH), None, 'data')
  home = dict(out_shardings=spread.sharding)
  found = counting.count(compiled(slope, spread, x, **home))
  assert found.flops == pytest.approx(3 * 2 * LAYERS * ROWS * WIDTH**2 / 4)
  assert not found.whole
  copied = shape(mesh, (LAYERS, WIDTH, WIDTH))
  home = dict(out_shardings=copied.sharding)
  found = counting.count(compiled(slope, copied, x, **home))
  each = 2 * LAYERS * WIDTH**2  # bytes in bfloat16, sent about 3/4 twice
  assert sum(found.whole.values()) >= each * 1.4


def test_a_loop_that_may_end_early_counts_as_if_it_does_not(mesh):
  def sample(x):
    step = lambda c: (c[0] + 1, jnp.tanh(c[1] @ c[1]))
    more = lambda c: (c[0] < 37) & (jnp.max(c[1]) < 2)
    return jax.lax.while_loop(more, step, (jnp.int32(0), x))[1]

  x = shape(mesh, (WIDTH, WIDTH))
  assert counting.count(compiled(sample, x)).flops == 37 * 2 * WIDTH**3
  assert model_flops.count(sample, x, loop=37) == 37 * 2 * WIDTH**3


def test_convolutions_count_what_meets_an_input(mesh):
  def convolve(x, k):
    names = ('NHWC', 'HWIO', 'NHWC')
    return jax.lax.conv_general_dilated(
      x, k, (1, 1), 'SAME', dimension_numbers=names
    )

  x, k = shape(mesh, (4, 32, 32, 128), 'data'), shape(mesh, (3, 3, 128, 128))
  inside = (3 * 32 - 2) ** 2  # pairs of places, without the padding
  found = counting.count(compiled(convolve, x, k))
  # The compiler rounds the image up to its tiles.
  assert 1 <= found.flops / (2 * 128 * 128 * inside) < 1.5
  full = 2 * 4 * 32 * 32 * 9 * 128 * 128
  assert model_flops.count(convolve, x, k, loop=1) == full


def test_a_line_is_read():
  op = hlo.parse(
    '  ROOT %x.1 = (bf16[2,3]{1,0:T(8,128)(2,1)S(1)}, /*index=1*/f32[]) '
    'fusion(%a, %b.2), kind=kLoop, calls=%c.3, metadata={op_name="f(g)"}'
  )
  assert op.root and op.code == 'fusion' and op.operands == ('a', 'b.2')
  assert [a.dims for a in op.out] == [(2, 3), ()]
  assert [a.near for a in op.out] == [True, False]
  assert op.out[0].bytes == 12 and op.calls() == ['c.3']
  assert hlo.parse('}') is None


@pytest.mark.parametrize(
  'groups, size',
  [
    ('{{0,1,2,3},{4,5,6,7}}', 4),
    ('[2,8]<=[16]', 8),
    ("mesh['a'=4,'b'=2] {'a'}", 4),
    ("mesh['a'=4,'b'=2] {'a', 'b'}", 8),
    ("mesh['a'=16,'b'=1] {'a':(2)4}", 4),
  ],
)
def test_groups_of_a_collective_are_read(groups, size):
  line = f'  %x = f32[8]{{0}} all-reduce(%y), replica_groups={groups}, to=%z'
  assert counting.group_size(hlo.parse(line), 64) == size


def test_a_refusal_says_how_much_is_needed(mesh):
  message = (
    'RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required '
    'for HLO temporaries (21.50G) exceeds available HBM (15.75G).'
  )
  assert fit.refused(message) == int(21.5 * 2**30)
  assert fit.refused('INTERNAL: no') is None
  x = shape(mesh, (2**18, 2**17))
  with pytest.raises(jax.errors.JaxRuntimeError) as e:
    compiled(lambda x: jnp.sin(x @ x.T), x)
  assert fit.refused(str(e.value)) > 2**36


@pytest.mark.parametrize('name', ['v5e:3x3', 'v9:4x4', 'v5e', 'v5e:4x4x'])
def test_a_slice_that_is_not_offered_is_refused(mesh, name):
  with pytest.raises(UserError, match='v5e|topology'):
    topology.devices(name)


def test_slices_divide_the_data_axis(mesh):
  found = topology.devices('v5e:4x4', 2)
  two = make_mesh(-1, 4, found)
  assert dict(two.shape) == {'data': 8, 'model': 4}
  of = lambda d: d.slice_index
  halves = np.vectorize(of)(two.devices)
  assert (halves[:4] == halves[0, 0]).all()
  assert (halves[4:] == halves[4, 0]).all() and halves[0, 0] != halves[4, 0]
  with pytest.raises(UserError, match='does not cover'):
    make_mesh(3, 4, found)
