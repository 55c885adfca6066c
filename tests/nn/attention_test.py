"""Fused kernels against written-out products."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uae_jax.nn import attention, kernels
from uae_jax.nn.attention import Segment
from uae_jax.sharding.mesh import make_mesh


def draw(shape, seed):
  return jax.random.normal(jax.random.key(seed), shape, jnp.float32)


def lengths(n, size):
  """bool [len(n), size], True up to each length."""
  return jnp.arange(size) < jnp.array(n)[:, None]


def alone():
  """Two rows of 150 queries, four heads to two, 20 keys of one are padded."""
  k, v = draw((2, 150, 2, 32), 1), draw((2, 150, 2, 32), 2)
  return draw((2, 1, 150, 4, 32), 0), [Segment(k, v, lengths([150, 130], 150))]


def causal():
  q, [segment] = alone()
  return q, [segment._replace(causal=True)]


def group():
  """Three captions of 70 tokens each after a shared prefix of 40."""
  shared = Segment(
    draw((2, 40, 2, 32), 1), draw((2, 40, 2, 32), 2), lengths([40, 31], 40)
  )
  own = Segment(
    draw((2, 3, 70, 2, 32), 3), draw((2, 3, 70, 2, 32), 4), causal=True
  )
  return draw((2, 3, 70, 4, 32), 0), [shared, own]


def several():
  """A prefix of each rollout's own, padded differently, and what follows."""
  there = lengths([40, 1, 7, 40, 22, 39], 40).reshape(2, 3, 40)
  k, v = draw((2, 3, 40, 4, 32), 1), draw((2, 3, 40, 4, 32), 2)
  own = Segment(
    draw((2, 3, 70, 4, 32), 3), draw((2, 3, 70, 4, 32), 4), causal=True
  )
  return draw((2, 3, 70, 4, 32), 0), [Segment(k, v, there), own]


CASES = (alone, causal, group, several)
KERNELS = {
  'splash': functools.partial(kernels.splash, interpret=True),
  'dot_product': functools.partial(kernels.dot_product, implementation='xla'),
}
# As devices run them, not interpreted.
FUSED = {
  'cudnn': functools.partial(kernels.dot_product, implementation='cudnn'),
  'splash': kernels.splash,
}
ON_DEVICE = [
  pytest.param('cudnn', marks=pytest.mark.gpu_only),
  pytest.param('splash', marks=pytest.mark.tpu_only),
]


def slopes(fn, q, segments, ids):
  """Output, and gradients by the queries, keys and values."""

  def loss(q, kv):
    parts = [s._replace(k=k, v=v) for s, (k, v) in zip(segments, kv)]
    out = fn(q * q.shape[-1] ** -0.5, parts, ids)
    return jnp.sum(jnp.sin(3 * out.astype(jnp.float32))), out

  kv = [(s.k, s.v) for s in segments]
  (_, out), found = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(
    q, kv
  )
  return jax.tree.map(lambda x: np.asarray(x, np.float32), (out, found))


def check(kernel, q, segments, ids=None, tolerance=2e-5, among=KERNELS):
  got = slopes(among[kernel], q, segments, ids)
  whole = lambda x: x.astype(jnp.float32)
  exact = [s._replace(k=whole(s.k), v=whole(s.v)) for s in segments]
  want = slopes(attention._attend, whole(q), exact, ids)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(a, b, atol=tolerance * np.abs(b).max())


@pytest.mark.parametrize('kernel', KERNELS)
@pytest.mark.parametrize('case', CASES)
def test_kernels_attend_as_the_products_do(kernel, case):
  check(kernel, *case())


@pytest.mark.parametrize('kernel', KERNELS)
def test_kernels_attend_within_equal_ids(kernel):
  q, [segment] = alone()
  ids = jnp.repeat(jnp.arange(6), 25)[None] // jnp.array([[1], [2]])
  check(kernel, q, [segment._replace(there=None)], ids)


@pytest.mark.parametrize('kernel', KERNELS)
def test_kernels_in_bf16_are_as_close_as_documented(kernel):
  q, segments = group()
  half = lambda x: x.astype(jnp.bfloat16)
  segments = [s._replace(k=half(s.k), v=half(s.v)) for s in segments]
  check(kernel, half(q), segments, tolerance=2e-2)


@pytest.mark.parametrize('kernel', ON_DEVICE)
@pytest.mark.parametrize('case', CASES)
def test_fused_kernels_attend_as_the_products_do(kernel, case):
  q, segments = case()
  half = lambda x: x.astype(jnp.bfloat16)
  segments = [s._replace(k=half(s.k), v=half(s.v)) for s in segments]
  check(kernel, half(q), segments, tolerance=2e-2, among=FUSED)


@pytest.mark.parametrize('kernel', ON_DEVICE)
def test_fused_kernels_are_chosen(kernel):
  q, segments = alone()
  with kernels.use(kernel):
    assert kernels.choose(q.astype(jnp.bfloat16), segments) is not None
    assert kernels.choose(q, segments) is None  # float32


@pytest.mark.parametrize('model', [1, 2, 4])
def test_fewer_key_heads_than_the_model_axis_are_repeated(model):
  mesh = make_mesh(8 // model, model)
  q, segments = alone()  # two key heads
  with jax.set_mesh(mesh):
    check('splash', q, segments)


def test_blocks_pad_little():
  assert kernels.block(1024) == (512, 1024)
  assert kernels.block(1301) == (512, 1536)
  assert kernels.block(1101) == (384, 1152)
  assert kernels.block(100) == (128, 128)


def test_on_a_cpu_products_are_written_out_and_short_queries_everywhere():
  q, segments = alone()
  half = q.astype(jnp.bfloat16)
  assert kernels.choose(half, segments) is None
  with kernels.use('splash'):  # not a TPU
    assert kernels.choose(half, segments) is None


def plain(q, segments, ids=None):
  """softmax(q k) v over copies of whatever is shared."""
  g, m = q.shape[1], q.shape[3] // segments[0].k.shape[-2]
  copies = lambda x, n: x if x.ndim == n else jnp.repeat(x[:, None], g, 1)
  keys, values, seen = [], [], []
  for segment in segments:
    size = segment.k.shape[-3]
    keys.append(copies(segment.k, 5))
    values.append(copies(segment.v, 5))
    mask = np.ones((q.shape[2], size), bool)
    mask = jnp.asarray(np.tril(mask) if segment.causal else mask)
    if segment.there is not None:
      mask = mask & copies(segment.there, 3)[:, :, None]
    seen.append(jnp.broadcast_to(mask, (len(q), g, *mask.shape[-2:])))
  k, v = (jnp.repeat(jnp.concatenate(x, 2), m, 3) for x in (keys, values))
  scores = jnp.einsum('BGLNH,BGSNH->BGNLS', q, k)
  seen = jnp.concatenate(seen, -1)
  if ids is not None:
    seen = seen & (ids[:, None, :, None] == ids[:, None, None])
  scores = jnp.where(seen[:, :, None], scores, -jnp.inf)
  return jnp.einsum('BGNLS,BGSNH->BGLNH', jax.nn.softmax(scores, -1), v)


@pytest.mark.parametrize('cache', [attention.CACHE, 1])
@pytest.mark.parametrize('case', CASES)
def test_products_are_the_softmax_over_copies(monkeypatch, case, cache):
  monkeypatch.setattr(attention, 'CACHE', cache)  # 1: image by image
  q, segments = case()
  shared = lambda there: there if there is None else there[:1]
  for masks in (lambda there: there, shared):  # one mask for all images
    parts = [s._replace(there=masks(s.there)) for s in segments]
    got = slopes(
      functools.partial(attention._in_pieces, bias=None), q, parts, None
    )
    want = slopes(plain, q, segments_like(parts, len(q)), None)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(
        a, b, atol=2e-5 * np.abs(b).max()
      ),
      got, want,
    )  # fmt: skip


def segments_like(segments, rows):
  """With masks of so many rows."""
  full = lambda m: m if m is None else jnp.broadcast_to(m, (rows, *m.shape[1:]))
  return [s._replace(there=full(s.there)) for s in segments]


def test_what_is_written_out_everywhere_computes_nothing_twice(monkeypatch):
  monkeypatch.setattr(attention, 'CACHE', 1)
  q, segments = causal()

  def text():
    fn = lambda q: jnp.sum(attention.attend_group(q, segments))
    return str(jax.make_jaxpr(jax.grad(fn))(q))

  assert 'scan' in text()
  with kernels.use('xla'):
    assert 'scan' not in text()
