"""Time by part of the algorithm."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks import profile


def step(x):
  with jax.named_scope('draw'):
    x = jax.lax.fori_loop(0, 3, lambda _, x: jnp.tanh(x @ x), x)
  with jax.named_scope('gradient'):
    return jax.grad(lambda x: jnp.sum(jnp.sin(x @ x)))(x)


@pytest.mark.parametrize(
  'name, part',
  [
    ('jit(train_step)/draw/while/body/MMDiT/dot_general', 'draw'),
    ('jit(train_step)/gradient/transpose(jvp(prefill))/lm/mul', 'gradient'),
    ('jit(train_step)/prefill/lm/mul', 'prefill'),
    ('jit(train_step)/withdraw/mul', 'rest'),
    ('', 'rest'),
  ],
)
def test_the_outermost_part_counts(name, part):
  assert profile.part_of(name) == part


def test_a_trace_is_split_by_scopes(tmp_path):
  x = jnp.ones((256, 256))
  program = jax.jit(step)
  scopes = profile.names(program.lower(x).compile().as_text())
  assert {'draw', 'gradient'} <= {profile.part_of(s) for s in scopes.values()}
  with jax.profiler.trace(str(tmp_path)):
    jax.block_until_ready(program(x))
  found = profile.spent(tmp_path, scopes)
  assert all(sum(found[part].values()) > 0 for part in ('draw', 'gradient'))
  flops = profile.flops(step, x, loop=1)
  assert flops['draw'] == 3 * 2 * 256**3  # as often as the loop runs
  assert flops['gradient'] == 3 * 2 * 256**3
