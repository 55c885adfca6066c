"""Drawing by image codes: equal to transformers, scored as it was sampled."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tests import tiny_janus
from tests.tiny_janus import (
  BOI,
  BOS,
  CODES,
  EOS,
  PAD,
  batch_of,
  chw,
  reading,
)
from tests.torch_fixtures import close
from uae_jax import zoo
from uae_jax.rollout.sampler import Sampler
from uae_jax.sharding import mesh
from uae_jax.types import Captions
from uae_jax.umm.umm2 import UMM2, Tokens

GREEDY = Sampler(temperature=0)
SAMPLERS = [Sampler(), Sampler(0.7, top_k=20, top_p=0.9)]
RNG = jax.random.key(0)
WORDS = [[[5, 6, 7]], [[30, 31, 32]]]


class Blocks:
  """A tower that sees the mean colour of every sixteenth of an image."""

  def embed(self, params, images):
    n, r = images.shape[:2]
    parts = images.reshape(n, 4, r // 4, 4, r // 4, 3).mean((2, 4))
    return parts.reshape(n, -1) * params


@pytest.fixture(scope='module')
def parts(tmp_path_factory):
  """(torch model, umm, parameters)."""
  theirs = tiny_janus.build()
  folder = tmp_path_factory.mktemp('janus')
  theirs.save_pretrained(folder)
  both, vq = zoo.janus_from_folder(folder)
  umm = UMM2(
    vlm=both.module,
    vq=vq,
    towers={'blocks': Blocks()},
    judges={},
    tokens=Tokens((BOS, 3), (4, BOI), EOS, PAD),
    sampler=GREEDY,
    code_sampler=GREEDY,
    guidance=5.0,
    length=6,
    rows=4,
    codes=CODES,
    weights={'blocks': 2.0},
  )
  params = jax.tree.map(jnp.asarray, both.load(folder))
  return theirs, umm, {**params, 'reward': {'blocks': jnp.float32(3.0)}}


def captions(rows, length=6):
  """Captions [B G L] of ids, with their EOS, right padded."""
  full = np.array(
    [[[*ids, EOS][:length] + [PAD] * (length - len(ids) - 1) for ids in group]
     for group in rows]
  )  # fmt: skip
  mask = np.cumsum(full == EOS, -1) - (full == EOS) == 0
  return Captions(jnp.asarray(full), jnp.asarray(mask), jnp.zeros(full.shape))


def call(umm, name, *args, static=()):
  """A method, as one program."""
  return jax.jit(getattr(umm, name), static_argnums=static)(*args)


def test_codes_and_pixels_equal_generate(parts):
  theirs, umm, params = parts
  want = tiny_janus.draw(theirs, [[BOS, 3, *row[0], 4, BOI] for row in WORDS])
  drawn = call(umm, 'draw_codes', params['policy'], captions(WORDS), RNG)
  np.testing.assert_array_equal(drawn.tokens[:, 0], want)
  pixels = call(
    umm, 'draw_from_text', params['policy'], params, captions(WORDS), RNG
  )
  with torch.no_grad():  # NHWC in [-1, 1]
    theirs_pixels = theirs.decode_image_tokens(torch.tensor(want)).numpy()
  close(pixels[:, 0], np.clip(theirs_pixels / 2 + 0.5, 0, 1))
  unguided = dataclasses.replace(umm, guidance=1.0)
  other = call(unguided, 'draw_codes', params['policy'], captions(WORDS), RNG)
  assert (other.tokens != drawn.tokens).any()


@pytest.mark.parametrize('guidance', [1.0, 5.0])
@pytest.mark.parametrize('sampler', SAMPLERS, ids=['plain', 'cut'])
def test_codes_are_scored_as_they_were_sampled(parts, guidance, sampler):
  _, umm, params = parts
  umm = dataclasses.replace(umm, guidance=guidance, code_sampler=sampler)
  words = captions([[[5, 6, 7], [8], [9, 10]], [[30], [31, 32], [33]]])
  drawn = call(umm, 'draw_codes', params['policy'], words, RNG)
  assert drawn.tokens.shape == (2, 3, CODES)

  def total(policy):
    logp, entropy = umm.score_codes(policy, words, drawn.tokens)
    return logp.mean(), (logp, entropy)

  grads, (logp, entropy) = jax.jit(jax.grad(total, has_aux=True))(
    params['policy']
  )
  assert np.abs(np.exp(logp - drawn.logp) - 1).max() < 1e-5
  assert (logp < 0).mean() > 0.9 and (entropy > 0).mean() > 0.9
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(grads))
  for part in ('code_head', 'code_aligner', 'lm'):
    assert any(np.abs(x).max() > 0 for x in jax.tree.leaves(grads[part]))


def test_a_later_code_leaves_earlier_log_probs_alone(parts):
  _, umm, params = parts
  umm = dataclasses.replace(umm, code_sampler=Sampler())
  words = captions(WORDS)
  codes = call(umm, 'draw_codes', params['policy'], words, RNG).tokens
  changed = codes.at[..., 9].set((codes[..., 9] + 1) % 50)
  score = lambda x: call(umm, 'score_codes', params['policy'], words, x)[0]
  one, two = score(codes), score(changed)
  np.testing.assert_array_equal(one[..., :9], two[..., :9])
  assert np.abs(one[..., 9] - two[..., 9]).min() > 1e-4
  assert np.abs(one[..., 10:] - two[..., 10:]).max() > 1e-4


def test_a_group_of_any_lengths_equals_separate_drawings(parts):
  _, umm, params = parts
  rows = [[5, 6, 7], []]
  draw = lambda groups, length: (
    call(
      umm, 'draw_codes', params['policy'], captions(groups, length), RNG
    ).tokens
  )
  together = draw([rows], 6)
  for i, ids in enumerate(rows):
    alone = draw([[ids]], len(ids) + 1)
    np.testing.assert_array_equal(together[0, i], alone[0, 0])


def test_captions_equal_generate(parts):
  theirs, umm, params = parts
  ids, pixels = reading(30)
  with torch.no_grad():
    want = theirs.generate(
      torch.tensor(ids), pixel_values=chw(pixels), do_sample=False,
      attention_mask=torch.ones(ids.shape, dtype=int), max_new_tokens=6,
      generation_mode='text', pad_token_id=PAD, eos_token_id=EOS,
    )[:, 30:].numpy()  # fmt: skip
  prefix = call(umm, 'prefill', params['policy'], batch_of(ids, pixels))
  got = call(umm, 'describe', params['policy'], prefix, RNG, 2, static=3)
  for g in range(2):
    np.testing.assert_array_equal(got.tokens[:, g, : want.shape[1]], want)
  logp, _ = call(umm, 'score', params['policy'], batch_of(ids, pixels), got)
  assert np.abs(logp - got.logp).max() < 1e-5


def test_captions_of_a_shared_prefix_equal_separate_ones(parts):
  """Each caption after its own image, in one pass without a cache."""
  _, umm, params = parts
  umm = dataclasses.replace(umm, sampler=Sampler())
  ids, pixels = reading(30)
  batch = batch_of(ids, pixels)
  prefix = call(umm, 'prefill', params['policy'], batch)
  drawn = call(umm, 'describe', params['policy'], prefix, RNG, 3, static=3)
  assert (drawn.tokens[:, 0] != drawn.tokens[:, 1]).any()
  logp, _ = call(umm, 'score', params['policy'], batch, drawn)
  assert np.abs(np.exp(logp - drawn.logp) - 1).max() < 1e-5
  # Ids of words alone: one that images replace would be replaced here.
  words = drawn.replace(tokens=drawn.tokens % 99, mask=drawn.mask | True)
  logp, _ = call(umm, 'score', params['policy'], batch, words)
  for g in range(3):
    whole = np.concatenate([ids, words.tokens[:, g]], 1)
    logits = call(
      umm.vlm, 'apply', {'params': params['policy']}, batch_of(whole, pixels)
    )
    alone = umm.sampler.score(logits[:, 29:-1], words.tokens[:, g])
    np.testing.assert_allclose(logp[:, g], alone, atol=2e-5)
  later = words.tokens.at[..., 3].set((words.tokens[..., 3] + 1) % 99)
  changed, _ = call(
    umm, 'score', params['policy'], batch, words.replace(tokens=later)
  )
  np.testing.assert_array_equal(logp[..., :3], changed[..., :3])
  assert np.abs(logp[..., 4:] - changed[..., 4:]).max() > 1e-4


def test_a_rollout_keeps_both_trajectories(parts):
  _, umm, params = parts
  umm = dataclasses.replace(umm, sampler=Sampler(), code_sampler=Sampler())
  ids, pixels = reading(30)
  source = jax.random.uniform(RNG, (2, 16, 16, 3))
  batch = batch_of(ids, pixels).replace(image=source)
  out = call(umm, 'rollout', params['policy'], params, batch, RNG, 3, static=4)
  assert out.images.shape == (2, 3, 16, 16, 3)
  assert out.images.min() >= 0 and out.images.max() <= 1
  np.testing.assert_allclose(
    out.images, call(umm, 'render', params, out.codes.tokens), atol=1e-5
  )
  logp, _ = call(umm, 'score', params['policy'], batch, out.captions)
  assert np.abs(np.exp(logp - out.captions.logp) - 1).max() < 1e-5
  logp, _ = call(
    umm, 'score_codes', params['policy'], out.captions, out.codes.tokens
  )
  assert np.abs(np.exp(logp - out.codes.logp) - 1).max() < 1e-5
  want, _ = umm.reward(params, source, out.images, out.captions)
  np.testing.assert_allclose(out.reward, want, atol=1e-6)
  assert out.reward.shape == (2, 3) and np.ptp(out.reward) > 0


def test_a_mesh_changes_nothing(parts, tmp_path):
  theirs, umm, params = parts
  theirs.save_pretrained(tmp_path)
  both, _ = zoo.janus_from_folder(tmp_path)
  batch = batch_of(*reading(30, 4)).replace(
    image=jax.random.uniform(RNG, (4, 16, 16, 3))
  )
  args = (params['policy'], params, batch, RNG, 2)
  want = call(umm, 'rollout', *args, static=4)
  grid = mesh.make_mesh(4, 2)
  split = {**zoo.weights(both, tmp_path, grid), 'reward': params['reward']}
  batch = mesh.put_batch(batch, grid)
  with jax.set_mesh(grid):
    args = (split['policy'], split, batch, RNG, 2)
    got = call(umm, 'rollout', *args, static=4)
  np.testing.assert_array_equal(got.captions.tokens, want.captions.tokens)
  np.testing.assert_array_equal(got.codes.tokens, want.codes.tokens)
  np.testing.assert_allclose(got.images, want.images, atol=1e-5)
