"""Pipelines of diffusers, from their folders to pixels."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import (
  AutoencoderKL,
  FlowMatchEulerDiscreteScheduler,
  FluxPipeline,
  FluxTransformer2DModel,
  SD3Transformer2DModel,
  StableDiffusion3Pipeline,
)
from transformers import (
  CLIPTextModel,
  CLIPTextModelWithProjection,
  T5Config,
  T5EncoderModel,
)

from tests.models.text_encoder_parity_test import clip_text, tokenizer
from tests.torch_fixtures import randomise
from uae_jax.data.prompts import CLIP_LENGTH
from uae_jax.errors import UserError
from uae_jax.infer.load import load
from uae_jax.sharding.mesh import make_mesh

PROMPTS = ['a red cube', 'two small blue boats']
STEPS, HEIGHT, WIDTH, BATCH = 4, 32, 48, 8
RNG = jax.random.key(3)


def t5():
  config = T5Config(
    vocab_size=40, d_model=48, d_kv=8, d_ff=64, num_layers=2, num_heads=4,
    feed_forward_proj='gated-gelu', tie_word_embeddings=False,
  )  # fmt: skip
  return randomise(T5EncoderModel(config))


def vae(channels):
  return randomise(
    AutoencoderKL(
      down_block_types=['DownEncoderBlock2D'] * 2,
      up_block_types=['UpDecoderBlock2D'] * 2,
      block_out_channels=[32, 64], layers_per_block=1,
      latent_channels=channels, use_quant_conv=False,
      use_post_quant_conv=False, scaling_factor=1.5, shift_factor=0.06,
    )
  )  # fmt: skip


def sd3():
  transformer = SD3Transformer2DModel(
    sample_size=16, patch_size=2, in_channels=4, out_channels=4, num_layers=2,
    attention_head_dim=16, num_attention_heads=4, joint_attention_dim=48,
    caption_projection_dim=64, pooled_projection_dim=40, pos_embed_max_size=16,
    qk_norm='rms_norm',
  )  # fmt: skip
  return StableDiffusion3Pipeline(
    transformer=randomise(transformer),
    scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    vae=vae(4),
    text_encoder=clip_text(CLIPTextModelWithProjection, 16, 'quick_gelu', 0),
    text_encoder_2=clip_text(CLIPTextModelWithProjection, 24, 'gelu', 2),
    text_encoder_3=t5(),
    tokenizer=tokenizer('<end>', '<start>', '<end>', CLIP_LENGTH),
    tokenizer_2=tokenizer('!', '<start>', '<end>', CLIP_LENGTH),
    tokenizer_3=tokenizer('<pad>', None, '</s>', 512),
  )


def flux(dev):
  transformer = FluxTransformer2DModel(
    in_channels=16, num_layers=1, num_single_layers=2, attention_head_dim=32,
    num_attention_heads=2, joint_attention_dim=48, pooled_projection_dim=16,
    guidance_embeds=dev, axes_dims_rope=(8, 12, 12),
  )  # fmt: skip
  dynamic = dict(
    shift=3.0, use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15
  )
  return FluxPipeline(
    transformer=randomise(transformer),
    scheduler=FlowMatchEulerDiscreteScheduler(**dynamic if dev else {}),
    vae=vae(4),
    text_encoder=clip_text(CLIPTextModel, 16, 'quick_gelu', 0),
    text_encoder_2=t5(),
    tokenizer=tokenizer('<end>', '<start>', '<end>', CLIP_LENGTH),
    tokenizer_2=tokenizer('<pad>', None, '</s>', 512),
  )


def ours(folder, **said):
  said = dict(height=HEIGHT, width=WIDTH, steps=STEPS, batch=BATCH, **said)
  with jax.default_matmul_precision('highest'):
    model = load(str(folder), make_mesh(-1, 1), said)
    return model.draw(PROMPTS, RNG) / 255.0


def latents(channels):
  """The noise that `ours` starts from, as diffusers lays it out."""
  shape = (BATCH, HEIGHT // 2, WIDTH // 2, channels)
  noise = np.array(jax.random.normal(RNG, shape, jnp.float32))[:2]
  return torch.tensor(noise).permute(0, 3, 1, 2)


def same(got, want):
  assert got.shape == want.shape == (2, HEIGHT, WIDTH, 3)
  assert want.std() > 0.02  # there is something to see
  assert np.abs(got - want).max() <= 0.5 / 255 + 1e-4


@pytest.mark.parametrize('guidance, t5_is_there', [(5.0, True), (1.0, False)])
@torch.no_grad()
def test_sd3(tmp_path, guidance, t5_is_there):
  theirs = sd3()
  theirs.save_pretrained(tmp_path)
  if not t5_is_there:
    shutil.rmtree(tmp_path / 'text_encoder_3')
    theirs.text_encoder_3 = theirs.tokenizer_3 = None
  theirs.set_progress_bar_config(disable=True)
  want = theirs(
    PROMPTS, negative_prompt=['small'] * 2, num_inference_steps=STEPS,
    guidance_scale=guidance, height=HEIGHT, width=WIDTH, latents=latents(4),
    output_type='np',
  ).images  # fmt: skip
  same(ours(tmp_path, guidance=guidance, negative='small'), want)


@pytest.mark.parametrize('dev', [True, False])
@torch.no_grad()
def test_flux(tmp_path, dev):
  theirs = flux(dev)
  theirs.save_pretrained(tmp_path)
  theirs.set_progress_bar_config(disable=True)
  packed = theirs._pack_latents(latents(4), 2, 4, HEIGHT // 2, WIDTH // 2)
  want = theirs(
    PROMPTS, num_inference_steps=STEPS, guidance_scale=2.5, height=HEIGHT,
    width=WIDTH, latents=packed, output_type='np',
  ).images  # fmt: skip
  same(ours(tmp_path, guidance=2.5 if dev else 1.0), want)


def test_mistakes_are_one_line(tmp_path):
  flux(True).save_pretrained(tmp_path)
  mesh = make_mesh(-1, 1)
  with pytest.raises(UserError, match='multiples of 4'):
    load(str(tmp_path), mesh, dict(height=30, width=32))
  model = load(str(tmp_path), mesh, dict(height=32, width=32, steps=1))
  with pytest.raises(UserError, match='no captioner'):
    model.describe([np.zeros((8, 8, 3), np.uint8)], RNG)
  (tmp_path / 'model_index.json').write_text('{"_class_name": "Pipeline"}')
  with pytest.raises(UserError, match='FluxPipeline'):
    load(str(tmp_path), mesh, {})
