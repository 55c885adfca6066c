"""CLIP against transformers, through a checkpoint on disk."""

import jax
import numpy as np
import pytest
import torch
from transformers import CLIPConfig, CLIPModel

from tests.torch_fixtures import randomise
from uae_jax.ckpt import hf, maps_clip
from uae_jax.models.clip import CLIP

EOS = 99


def hub_config(eos=EOS):
  """Sizes that no two towers share, not the defaults of any class."""
  return CLIPConfig(
    projection_dim=24,
    text_config=dict(
      vocab_size=100,
      hidden_size=32,
      intermediate_size=48,
      num_hidden_layers=3,
      num_attention_heads=4,
      projection_dim=24,
      max_position_embeddings=20,
      eos_token_id=eos,
      bos_token_id=0,
    ),
    vision_config=dict(
      hidden_size=48,
      intermediate_size=64,
      num_hidden_layers=2,
      num_attention_heads=3,
      image_size=70,
      patch_size=14,
      projection_dim=24,
      hidden_act='gelu',
      layer_norm_eps=1e-4,
    ),
  )


@pytest.fixture(scope='module', params=[2, 50, EOS], ids=['old', 'mid', 'max'])
def model(request, tmp_path_factory):
  """A random torch CLIP, saved; and ours loaded from its folder."""
  theirs = randomise(CLIPModel(hub_config(request.param)))
  folder = tmp_path_factory.mktemp('clip')
  theirs.save_pretrained(folder)
  fields = maps_clip.from_hf(hf.read_config(folder))
  ours = CLIP(**fields)
  pixels, ids = inputs()
  shapes = jax.eval_shape(ours.init, jax.random.key(0), pixels, ids)['params']
  table = maps_clip.table(**fields)
  params = hf.load(folder, table, shapes, ignore=maps_clip.IGNORE)
  return theirs, ours, params, fields


def inputs():
  rng = np.random.default_rng(0)
  pixels = rng.normal(size=(2, 70, 70, 3)).astype(np.float32)
  ids = rng.integers(3, 90, (2, 20)).astype(np.int32)
  ids[ids == 50] = 51
  # Ends at 7 and 15 under every rule: by the id 50 and, later, by the largest.
  ids[0, 5], ids[0, 7:] = 50, 99
  ids[1, 9], ids[1, 15], ids[1, 16:] = 50, 99, 0
  return pixels, ids


def theirs_of(model, pixels, ids):
  with torch.no_grad():
    image = model.get_image_features(
      torch.tensor(pixels).permute(0, 3, 1, 2)
    ).pooler_output
    text = model.get_text_features(torch.tensor(ids)).pooler_output
  return image.numpy(), text.numpy()


def close(a, b, tol=1e-5):
  a, b = np.asarray(a), np.asarray(b)
  assert a.shape == b.shape
  assert np.abs(a - b).max() <= tol * np.abs(b).max()


def test_both_towers(model):
  theirs, ours, params, _ = model
  pixels, ids = inputs()
  with jax.default_matmul_precision('highest'):
    image, text, scale = ours.apply({'params': params}, pixels, ids)
  want_image, want_text = theirs_of(theirs, pixels, ids)
  close(image, want_image)
  close(text, want_text)
  close(scale, theirs.logit_scale.detach().numpy())


def test_short_captions_and_states(model):
  theirs, ours, params, fields = model
  _, ids = inputs()
  with jax.default_matmul_precision('highest'):
    out = ours.apply({'params': params}, ids[:, :16], method='text_states')
  with torch.no_grad():
    want = theirs.text_model(
      torch.tensor(ids[:, :16]), output_hidden_states=True
    )
  close(out.hidden, want.last_hidden_state.numpy())
  close(out.penultimate, want.hidden_states[-2].numpy())
  close(out.pooled, want.pooler_output.numpy())
  ends = {2: [7, 15], 50: [5, 9], EOS: [7, 15]}[fields['language']['eos']]
  np.testing.assert_array_equal(
    out.pooled, out.hidden[np.arange(2), np.array(ends)]
  )


def test_export_is_read_back_by_transformers(model, tmp_path):
  theirs, _, params, fields = model
  config = maps_clip.to_hf(**fields)
  assert maps_clip.from_hf(config) == fields
  hf.save(tmp_path, maps_clip.table(**fields), params, config)
  again, info = CLIPModel.from_pretrained(tmp_path, output_loading_info=True)
  assert not info['missing_keys'] and not info['unexpected_keys']
  got, want = (theirs_of(m, *inputs()) for m in (again.eval(), theirs))
  np.testing.assert_array_equal(got[0], want[0])
  np.testing.assert_array_equal(got[1], want[1])
