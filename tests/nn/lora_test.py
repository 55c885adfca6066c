"""Low-rank adapters: what they add, what they train, where they lie."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from uae_jax import trees
from uae_jax.ckpt import hf
from uae_jax.errors import UserError
from uae_jax.nn.linear import Linear
from uae_jax.nn.lora import LoRA, merge, pairs, shardings
from uae_jax.sharding import mesh as mesh_lib
from uae_jax.sharding import rules

Y, D, N, H, F = 3, 6, 2, 4, 10
TABLE = (
  hf.Row('embed/embedding', 'embed.weight'),
  *hf.linear('head', 'head', bias=False),
  *hf.linear('layers/q', 'layers.{i}.q', layers=(0, 1, 2)),
  *hf.linear('layers/o', 'layers.{i}.o', bias=False, n_in=2, layers=(0, 1, 2)),
)
SHAPES = {
  'embed/embedding': (7, D),
  'head/kernel': (D, F),
  'layers/q/kernel': (Y, D, N, H),
  'layers/q/bias': (Y, N, H),
  'layers/o/kernel': (Y, N, H, D),
}
ADAPTED = LoRA(rank=2, alpha=6.0, targets=(r'.*/[qo]/kernel', r'head/kernel'))


def draw(shapes, seed=0, dtype=np.float32):
  rng = np.random.default_rng(seed)
  return trees.unflatten(
    {p: jnp.asarray(rng.normal(size=s), dtype) for p, s in shapes.items()}
  )


@pytest.fixture
def params():
  return draw(SHAPES)


@pytest.fixture
def tree(params):
  """Adapters with B away from zero."""
  start = ADAPTED.init(jax.random.key(0), params, TABLE)
  return draw({p: x.shape for p, x in trees.flatten(start).items()}, 1)


def test_init_changes_nothing_and_is_uniform_within_the_bound(params):
  tree = ADAPTED.init(jax.random.key(0), params, TABLE)
  flat = trees.flatten(tree)
  assert {p: x.shape for p, x in flat.items()} == {
    'head/kernel/a': (D, 2),
    'head/kernel/b': (2, F),
    'layers/q/kernel/a': (Y, D, 2),
    'layers/q/kernel/b': (Y, 2, N, H),
    'layers/o/kernel/a': (Y, N, H, 2),
    'layers/o/kernel/b': (Y, 2, D),
  }
  jax.tree.map(
    np.testing.assert_array_equal, ADAPTED.apply(params, tree), params
  )
  a = np.asarray(flat['layers/o/kernel/a'])
  bound = (N * H) ** -0.5
  assert bound / 2 < np.abs(a).max() <= bound
  assert len(np.unique(a)) == a.size  # the layers differ, too


def test_each_layer_gets_its_own_product(params, tree):
  merged = ADAPTED.apply(params, tree)
  for path, spec in (
    ('head/kernel', 'DR,RF->DF'),
    ('layers/q/kernel', 'YDR,YRNH->YDNH'),
    ('layers/o/kernel', 'YNHR,YRD->YNHD'),
  ):
    a, b = pairs(tree)[path]
    want = trees.flatten(params)[path] + 3.0 * jnp.einsum(spec, a, b)
    np.testing.assert_allclose(trees.flatten(merged)[path], want, atol=1e-5)
  for path in ('embed/embedding', 'layers/q/bias'):
    assert trees.flatten(merged)[path] is trees.flatten(params)[path]


def test_a_linear_map_with_merged_kernel_is_the_sum_of_two(params, tree):
  x = jax.random.normal(jax.random.key(2), (5, N, H))
  module = Linear(D, n_in=2, bias=False)
  a, b = (v[1] for v in pairs(tree)['layers/o/kernel'])
  one = lambda p: {'params': {'kernel': p['layers']['o']['kernel'][1]}}
  got = module.apply(one(ADAPTED.apply(params, tree)), x)
  low = jnp.einsum('BNH,NHR->BR', x, a) @ b
  want = module.apply(one(params), x) + 3.0 * low
  np.testing.assert_allclose(got, want, atol=1e-4)


def test_gradients_reach_a_and_b_only(params, tree):
  def loss(tree):
    merged = ADAPTED.apply(params, tree)
    return sum(jnp.sum(jnp.sin(x)) for x in jax.tree.leaves(merged))

  grads = jax.jit(jax.grad(loss))(tree)
  assert jax.tree.structure(grads) == jax.tree.structure(tree)
  assert all(jnp.abs(g).min() > 0 for g in jax.tree.leaves(grads))
  start = ADAPTED.init(jax.random.key(0), params, TABLE)
  first = trees.flatten(jax.grad(loss)(start))
  for path, g in first.items():
    assert jnp.any(g != 0) == path.endswith('/b'), path


def test_the_base_keeps_its_dtype(tree):
  base = draw(SHAPES, dtype=jnp.bfloat16)
  merged = merge(base, tree, 0.5)
  assert all(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(merged))
  exact = merge(trees.cast(base, jnp.float32), tree, 0.5)
  jax.tree.map(
    lambda a, b: np.testing.assert_array_equal(a, b.astype(jnp.bfloat16)),
    merged,
    exact,
  )


def test_adapters_lie_as_their_kernels(params, tree):
  mesh = mesh_lib.make_mesh(2, 4)
  table = (
    (r'embed/embedding|layers/q/bias', P()),
    (r'head/kernel', P('data')),
    (r'layers/q/kernel', P(None, 'data', None, 'model')),
    (r'layers/o/kernel', P(None, None, 'model', 'data')),
  )
  placed = rules.shardings(params, table, mesh)
  got = shardings(tree, params, placed)
  assert {p: s.spec for p, s in trees.flatten(got).items()} == {
    'head/kernel/a': P('data', None),
    'head/kernel/b': P(None, None),
    'layers/q/kernel/a': P(None, 'data', None),
    'layers/q/kernel/b': P(None, None, None, 'model'),
    'layers/o/kernel/a': P(None, None, 'model', None),
    'layers/o/kernel/b': P(None, None, 'data'),
  }
  put = jax.device_put((params, tree), (placed, got))
  merged = jax.jit(ADAPTED.apply, out_shardings=placed)(*put)
  want = ADAPTED.apply(params, tree)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), merged, want
  )


@pytest.mark.parametrize(
  'change, says',
  [
    (dict(targets=('layers/q/bias',)), r"\['layers/q/bias'\] match no"),
    (dict(targets=('.*/kernel', 'embed/.*')), r"\['embed/.*'\] match no"),
    (dict(targets=()), 'match no'),
    (dict(rank=0), 'rank 0'),
  ],
)
def test_a_wrong_target_or_rank_is_said(params, change, says):
  lora = LoRA(**(dict(rank=2, alpha=1.0, targets=('.*/kernel',)) | change))
  with pytest.raises(UserError, match=says):
    lora.init(jax.random.key(0), params, TABLE)


def test_an_adapter_of_another_model_is_an_error(params, tree):
  tree['ghost'] = {'kernel': tree['head']['kernel']}
  with pytest.raises(KeyError, match='ghost'):
    merge(params, tree, 1.0)
