"""Qwen2.5-VL against transformers, through a checkpoint on disk."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from tests.torch_fixtures import randomise
from uae_jax.ckpt import hf, maps_qwen
from uae_jax.data import preprocess
from uae_jax.models.vlm import VLM
from uae_jax.types import Batch

IMAGE, START, END = 190, 192, 193
GRIDS = [(12, 18), (10, 6)]  # patches; neither divides the 8-patch window


@pytest.fixture(scope='module', params=[True, False], ids=['tied', 'head'])
def model(request, tmp_path_factory):
  """A random tiny torch model, saved; and ours loaded from its folder."""
  config = Qwen2_5_VLConfig(
    text_config=dict(
      vocab_size=200,
      hidden_size=64,
      intermediate_size=96,
      num_hidden_layers=3,
      num_attention_heads=4,
      num_key_value_heads=2,
      rms_norm_eps=1e-6,
      max_position_embeddings=512,
      tie_word_embeddings=request.param,
      rope_parameters=dict(
        rope_type='default', rope_theta=1e6, mrope_section=[2, 3, 3]
      ),
    ),
    vision_config=dict(
      depth=4,
      hidden_size=32,
      intermediate_size=44,
      num_heads=2,
      out_hidden_size=64,
      fullatt_block_indexes=[1, 3],
      window_size=112,
      patch_size=14,
      spatial_merge_size=2,
      temporal_patch_size=2,
      tokens_per_second=2,
    ),
    image_token_id=IMAGE,
    video_token_id=191,
    vision_start_token_id=START,
    vision_end_token_id=END,
    tie_word_embeddings=request.param,
  )
  theirs = randomise(Qwen2_5_VLForConditionalGeneration(config))
  folder = tmp_path_factory.mktemp('qwen')
  theirs.save_pretrained(folder)
  fields = maps_qwen.from_hf(hf.read_config(folder))
  ours = VLM(**fields)
  batch, _, _ = two_images()
  shapes = jax.eval_shape(ours.init, jax.random.key(0), batch)['params']
  params = hf.load(
    folder,
    maps_qwen.table(fields['vision'], fields['lm']),
    shapes,
    ignore=maps_qwen.IGNORE,
    rename=maps_qwen.rename,
  )
  return theirs, ours, params, folder


def two_images(extra_pad=0):
  """Two images of different sizes in one row, and 260 tokens of text."""
  rng = np.random.default_rng(0)
  patches, hw, window, image, ids = [], [], [], [], [5, 6]
  offset = 0
  for i, (h, w) in enumerate(GRIDS):
    a, b = preprocess.patch_layout(h, w, 2, 112, 14)
    patches.append(rng.normal(size=(h * w, 1176)).astype(np.float32))
    hw.append(a)
    window.append(b + offset)
    offset += b.max() + 1
    image.append(np.full(h * w, i))
    ids += [START] + [IMAGE] * (h * w // 4) + [END, 7, 8]
  ids += list(rng.integers(0, 180, 260))
  positions = preprocess.mrope_positions(
    np.array(ids), [(1, h, w) for h, w in GRIDS], IMAGE, 2
  )

  def pad(x, value):
    width = [(0, extra_pad * 4)] + [(0, 0)] * (x.ndim - 1)
    return jnp.asarray(np.pad(x, width, constant_values=value))[None]

  text = lambda x, v: np.pad(x, (0, extra_pad), constant_values=v)[None]
  batch = Batch(
    patches=pad(np.concatenate(patches), 0),
    patch_hw=pad(np.concatenate(hw).astype(np.int32), 0),
    patch_window=pad(np.concatenate(window).astype(np.int32), -1),
    patch_image=pad(np.concatenate(image).astype(np.int32), -1),
    prefix_ids=jnp.asarray(text(np.array(ids, np.int32), 0)),
    prefix_positions=jnp.asarray(
      np.pad(positions, ((0, 0), (0, extra_pad)))[None].astype(np.int32)
    ),
    prefix_mask=jnp.asarray(text(np.ones(len(ids), bool), False)),
    image=jnp.zeros((1, 8, 8, 3)),
  )
  return batch, np.concatenate(patches), ids


def their_logits(theirs, patches, ids):
  with torch.no_grad():
    return theirs(
      input_ids=torch.tensor([ids]),
      pixel_values=torch.tensor(patches),
      image_grid_thw=torch.tensor([[1, h, w] for h, w in GRIDS]),
      mm_token_type_ids=torch.tensor([[int(i == IMAGE) for i in ids]]),
    ).logits[0].numpy()  # fmt: skip


def close(a, b, tol=1e-5):
  a, b = np.asarray(a), np.asarray(b)
  assert np.abs(a - b).max() <= tol * np.abs(b).max()


@pytest.mark.parametrize('padding', [0, 5])
def test_logits_of_two_images_and_260_tokens(model, padding):
  theirs, ours, params, _ = model
  batch, patches, ids = two_images(padding)
  logits = ours.apply({'params': params}, batch)[0, : len(ids)]
  close(logits, their_logits(theirs, patches, ids))


def test_vision_tower(model):
  theirs, ours, params, _ = model
  batch, patches, _ = two_images()
  run = lambda m: m.vision_tower(
    batch.patches, batch.patch_hw, batch.patch_window, batch.patch_image
  )
  tokens = ours.apply({'params': params}, method=run)
  with torch.no_grad():
    want = theirs.model.visual(
      torch.tensor(patches),
      grid_thw=torch.tensor([[1, h, w] for h, w in GRIDS]),
    ).pooler_output
  close(tokens[0], want.numpy())


def test_prefix_then_caption_equals_one_sequence(model):
  """Cached decoding, teacher forcing and the torch model agree."""
  theirs, ours, params, _ = model
  batch, patches, ids = two_images()
  rng = np.random.default_rng(1)
  captions = rng.integers(0, 180, (1, 2, 6)).astype(np.int32)
  apply = lambda *a, **k: ours.apply({'params': params}, *a, **k)
  prefix = apply(batch, method='prefill')
  mask = np.ones(captions.shape, bool)
  taught = apply(prefix, captions, mask, method='teach')
  cache = ours.empty_cache(1, 2, 6)
  for t in range(5):
    logits, cache = apply(
      prefix, cache, captions[:, :, t], jnp.int32(t), method='decode'
    )
    close(logits, taught[:, :, t + 1])
  for g in range(2):
    full = their_logits(theirs, patches, ids + list(captions[0, g]))
    close(taught[0, g], full[len(ids) - 1 : -1])


def test_export_is_read_back_by_transformers(model, tmp_path):
  theirs, ours, params, folder = model
  fields = maps_qwen.from_hf(hf.read_config(folder))
  tokens = dict(
    image_token_id=IMAGE,
    video_token_id=191,
    vision_start_token_id=START,
    vision_end_token_id=END,
  )
  hf.save(
    tmp_path,
    maps_qwen.table(fields['vision'], fields['lm']),
    params,
    maps_qwen.to_hf(fields['vision'], fields['lm'], tokens),
  )
  again, info = Qwen2_5_VLForConditionalGeneration.from_pretrained(
    tmp_path, output_loading_info=True
  )
  assert not info['missing_keys'] and not info['unexpected_keys']
  _, patches, ids = two_images()
  close(
    their_logits(again.eval(), patches, ids),
    their_logits(theirs, patches, ids),
  )
