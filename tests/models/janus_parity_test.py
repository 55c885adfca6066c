"""Janus-Pro against transformers: reading and drawing."""

import functools

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
  apply,
  batch_of,
  chw,
  reading,
)
from tests.torch_fixtures import close, close_rms
from uae_jax import zoo


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  """(torch model, policy, its parameters, tokenizer, its parameters)."""
  theirs = tiny_janus.build()
  folder = tmp_path_factory.mktemp('janus')
  theirs.save_pretrained(folder)
  both, coder = zoo.janus_from_folder(folder)
  params = jax.tree.map(jnp.asarray, both.load(folder))
  return theirs, both.module, params['policy'], coder, params['vq']


@pytest.mark.parametrize('length, images', [(300, 2), (257, 1), (23, 3)])
def test_logits_of_every_position(model, length, images):
  theirs, module, params, *_ = model
  ids, pixels = reading(length, images)
  with torch.no_grad():
    want = theirs(input_ids=torch.tensor(ids), pixel_values=chw(pixels)).logits
  close(apply(module, params, batch_of(ids, pixels)), want)


def test_bfloat16_stays_close(model):
  _, module, params, *_ = model
  batch = batch_of(*reading(40))
  full = apply(module, params, batch)
  close_rms(apply(module.clone(dtype='bfloat16'), params, batch), full)


def test_captions_equal_generate(model):
  """Greedy captions, token for token, through prefill and decode."""
  theirs, module, params, *_ = model
  ids, pixels = reading(30)
  with torch.no_grad():
    want = theirs.generate(
      torch.tensor(ids), pixel_values=chw(pixels), do_sample=False,
      attention_mask=torch.ones(ids.shape, dtype=int),
      max_new_tokens=12, min_new_tokens=12, generation_mode='text',
    )[:, 30:].numpy()  # fmt: skip
  run = functools.partial(apply, module, params)
  prefix = run(batch_of(ids, pixels), method='prefill')
  logits = run(prefix.hidden[:, None], method='logits')
  cache = run(2, 1, 12, method='empty_cache')
  step = jax.jit(functools.partial(run, method='decode'))
  got, seen = [], []
  for t in range(12):
    seen.append(logits)
    open_ = jnp.where(jnp.arange(120) == EOS, -jnp.inf, logits)
    got.append(jnp.argmax(open_, -1))
    logits, cache = step(prefix, cache, got[-1], jnp.int32(t))
  got = jnp.stack(got, -1)
  np.testing.assert_array_equal(got[:, 0], want)
  # Taught in one pass, the logits are those of the cached loop.
  taught = run(prefix, got, jnp.ones(got.shape, bool), method='teach')
  close(taught, jnp.stack(seen, 2))


def guided(pair, weight):
  cond, free = pair[:, 0], pair[:, 1]
  return free + weight * (cond - free)


def draw(module, params, ids, weight=5.0):
  """Greedy guided codes [B I], and the guided logits [B I K]."""
  free = np.where((ids == BOS) | (ids == BOI), ids, PAD)
  both = jnp.asarray(np.stack([ids, free], 1))
  run = functools.partial(apply, module, params)
  prompt = run(both, jnp.ones(both.shape, bool), method='read_prompt')
  cache = run(len(ids), 2, CODES, method='empty_cache')
  logits = run(prompt.hidden, method='code_logits')
  codes, seen = [], []
  step = jax.jit(functools.partial(run, method='decode_code'))
  for t in range(CODES):
    seen.append(guided(logits, weight))
    codes.append(jnp.argmax(seen[-1], -1))
    twice = jnp.stack([codes[-1]] * 2, 1)
    logits, cache = step(prompt, cache, twice, jnp.int32(t))
  return prompt, jnp.stack(codes, 1), jnp.stack(seen, 1)


def test_image_codes_equal_generate_with_guidance(model):
  theirs, module, params, *_ = model
  ids = np.array([[BOS, 5, 6, 7, 8, 9, BOI], [BOS, 30, 31, 32, 33, 34, BOI]])
  prompt, codes, seen = draw(module, params, ids)
  np.testing.assert_array_equal(codes, tiny_janus.draw(theirs, ids))
  # Taught in one pass, the logits are those of the cached loop.
  twice = jnp.stack([codes] * 2, 1)
  taught = apply(module, params, prompt, twice, method='teach_codes')
  close(guided(taught, 5.0), seen)


def test_padded_prompts_are_as_if_alone(model):
  _, module, params, *_ = model
  ids = np.array([[BOS, 5, 6, BOI, PAD, PAD], [BOS, 7, 8, 9, 10, BOI]])
  mask = np.array([[1, 1, 1, 1, 0, 0], [1] * 6], bool)
  run = functools.partial(apply, module, params)
  both = run(ids[:, None], mask[:, None], method='read_prompt')
  alone = run(ids[:1, None, :4], mask[:1, None, :4], method='read_prompt')
  codes = jnp.arange(8).reshape(1, 1, 8)
  teach = functools.partial(run, method='teach_codes')
  got = teach(both, jnp.tile(codes, (2, 1, 1)))[:1]
  close(got, teach(alone, codes))


@pytest.mark.parametrize('grid', [(4, 4), (2, 6)])
def test_codes_to_pixels(model, grid):
  theirs, *_, coder, params = model
  codes = np.random.default_rng(1).integers(0, 50, (2, grid[0] * grid[1]))
  got = apply(coder, params, codes, grid[0], method='decode')
  vqmodel = theirs.model.vqmodel
  with torch.no_grad():
    book = torch.nn.functional.normalize(
      vqmodel.quantize.embedding.weight, dim=-1
    )
    z = book[torch.tensor(codes)].reshape(2, *grid, 8).permute(0, 3, 1, 2)
    want = vqmodel.decoder(vqmodel.post_quant_conv(z)).permute(0, 2, 3, 1)
    if grid == (4, 4):  # transformers' own decodes one grid only
      close(theirs.decode_image_tokens(torch.tensor(codes)), want)
  close(got, want)


@torch.no_grad()
def test_pixels_to_codes(model):
  """transformers compares codes at unit length where they are so stored."""
  theirs, *_, coder, params = model
  pixels = np.random.default_rng(2).uniform(-1, 1, (2, 16, 24, 3))
  pixels = pixels.astype(np.float32)
  vqmodel = theirs.model.vqmodel
  hidden = vqmodel.quant_conv(vqmodel.encoder(chw(pixels)))
  got = apply(coder, params, pixels, method='latents')
  close(got, hidden.permute(0, 2, 3, 1))
  codes = apply(coder, params, pixels, method='encode')
  table = vqmodel.quantize.embedding.weight
  stored = table.clone()
  table.copy_(torch.nn.functional.normalize(table, dim=-1))
  want = vqmodel.quantize(hidden)[2]
  table.copy_(stored)
  np.testing.assert_array_equal(codes, want.reshape(2, -1))
  assert len(np.unique(codes)) > 3
