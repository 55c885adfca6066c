"""Python asked from inside a program, over a mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uae_jax.sharding.mesh import make_mesh, put_batch
from uae_jax.sharding.on_host import COPIED, call_rows

WIDE = COPIED // 4 * 3 + 5  # a row is cut, and not into equal pieces


@pytest.mark.parametrize('shape', [None, (8, 1), (4, 2), (1, 8)])
@pytest.mark.parametrize('rows', [8, 6])
def test_every_row_is_asked_about_once(shape, rows):
  if shape and jax.device_count() < 8:
    pytest.skip('needs 8 devices')
  asked = []

  def fn(x, names):
    asked.extend(names.tolist())
    return np.stack([x.sum(-1), names * 0.5], -1)

  x = np.random.default_rng(0).integers(0, 9, (rows, WIDE)).astype(np.int32)
  names = np.arange(rows, dtype=np.float32)

  @jax.jit
  def run(x, names):
    said = call_rows(fn, (2,), jnp.float32, x + 1, names)
    return said * 2, jnp.sum(said)

  want = np.stack([(x + 1).sum(-1), names * 0.5], -1).astype(np.float32)
  if shape is None:
    got, total = run(x, names)
  else:
    mesh = make_mesh(*shape)
    with jax.set_mesh(mesh):
      spread = rows % shape[0] == 0
      args = put_batch((x, names), mesh) if spread else (x, names)
      got, total = run(*args)
  np.testing.assert_allclose(got, want * 2, rtol=1e-6)
  np.testing.assert_allclose(total, want.sum(), rtol=1e-5)
  jax.effects_barrier()
  assert sorted(asked) == names.tolist()


def test_it_is_asked_in_every_round_of_a_loop():
  asked = []

  def fn(x):
    asked.append(len(x))
    return x * np.float32(2)

  run = lambda x: jax.lax.map(lambda x: call_rows(fn, (), jnp.float32, x), x)
  x = jnp.arange(12.0).reshape(3, 4)
  np.testing.assert_array_equal(jax.jit(run)(x), 2 * x)
  assert asked == [4, 4, 4]


def test_what_failed_stays_nan_on_every_device():
  if jax.device_count() < 8:
    pytest.skip('needs 8 devices')
  fn = lambda x: np.where(x > 2, np.nan, x)
  mesh = make_mesh(4, 2)
  with jax.set_mesh(mesh):
    [x] = put_batch([np.arange(4, dtype=np.float32)], mesh)
    got = jax.jit(lambda x: call_rows(fn, (), jnp.float32, x))(x)
  np.testing.assert_array_equal(got, [0, 1, 2, np.nan])
  for shard in got.addressable_shards:
    want = np.float32([0, 1, 2, np.nan])[shard.index]
    np.testing.assert_array_equal(shard.data, want)
