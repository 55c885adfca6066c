"""The caption sampler, driven by a three-line model."""

import jax
import jax.numpy as jnp
import numpy as np

from uae_jax.rollout import caption
from uae_jax.rollout.sampler import Sampler
from uae_jax.types import Captions

EOS, PAD, V = 5, 0, 8


def decode(table):
  """A bigram model: the next token's logits are a row of the table."""
  return lambda cache, ids, t: (table[ids], cache + 1)


def run(table, first, length=6, sampler=None, seed=0):
  return caption.sample(
    decode(table),
    first,
    jnp.int32(0),
    jax.random.key(seed),
    sampler or Sampler(),
    length=length,
    eos=EOS,
    pad=PAD,
  )


def test_log_probs_are_those_of_the_drawn_tokens():
  table = jax.random.normal(jax.random.key(1), (V, V))
  first = jnp.broadcast_to(table[3], (4, 3, V))
  for sampler in (Sampler(), Sampler(0.5, top_k=3), Sampler(top_p=0.7)):
    out = run(table, first, sampler=sampler)
    before = jnp.concatenate([jnp.full((4, 3, 1), 3), out.tokens[..., :-1]], -1)
    want = sampler.score(table[before], out.tokens)
    np.testing.assert_allclose(out.logp, np.where(out.mask, want, 0), atol=1e-6)


def test_nothing_follows_eos():
  table = jax.random.normal(jax.random.key(2), (V, V)).at[:, EOS].add(1.0)
  out = run(table, jnp.zeros((32, 4, V)), length=12)
  tokens, mask = np.asarray(out.tokens), np.asarray(out.mask)
  ends = (tokens == EOS) & mask
  assert (ends.sum(-1) <= 1).all() and ends.any()
  after = np.cumsum(ends, -1) - ends > 0
  assert not mask[after].any() and (tokens[after] == PAD).all()
  assert (mask.sum(-1)[~ends.any(-1)] == 12).all()


def test_the_loop_ends_with_the_last_caption():
  """A model that always ends is asked for one more token only."""
  table = jnp.full((V, V), -50.0).at[:, EOS].set(50.0)
  calls = []

  def counted(cache, ids, t):
    jax.debug.callback(lambda t: calls.append(int(t)), t)
    return table[ids], cache

  caption.sample(
    counted, jnp.broadcast_to(table[0], (2, 2, V)), jnp.int32(0),
    jax.random.key(0), Sampler(), length=50, eos=EOS, pad=PAD,
  )  # fmt: skip
  jax.effects_barrier()
  assert calls == [0]


def test_greedy_takes_the_largest():
  table = jax.random.normal(jax.random.key(3), (V, V))
  out = run(table, table[1][None, None], sampler=Sampler(temperature=0))
  token = int(jnp.argmax(table[1]))
  assert int(out.tokens[0, 0, 0]) == token and float(out.logp.sum()) == 0


def test_captions_in_the_template():
  """before + words + after, whatever the length; EOS is the template's."""
  tokens = jnp.array([[[3, 4, EOS, PAD], [3, 4, 6, 7], [EOS, PAD, PAD, PAD]]])
  mask = jnp.array([[[1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0]]], bool)
  ids, valid = caption.in_template(
    Captions(tokens, mask, 0.0 * mask), (1, 2), (EOS, 9), eos=EOS, pad=PAD
  )
  want = [
    [1, 2, 3, 4, EOS, 9, 0, 0],
    [1, 2, 3, 4, 6, 7, EOS, 9],
    [1, 2, EOS, 9, 0, 0, 0, 0],
  ]
  assert ids[0].tolist() == want
  assert valid[0].sum(-1).tolist() == [6, 8, 4]
