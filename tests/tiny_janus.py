"""A Janus small enough to be drawn at random and run in torch."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from transformers import JanusConfig, JanusForConditionalGeneration

from tests.torch_fixtures import randomise
from uae_jax.models.clip import patches
from uae_jax.types import Batch

PAD, BOS, EOS, BOI, IMAGE = 102, 100, 101, 103, 104
CONFIG = dict(
  text_config=dict(
    model_type='llama', vocab_size=120, hidden_size=64, intermediate_size=96,
    num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
    rms_norm_eps=1e-6, bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD,
    rope_parameters=dict(rope_type='default', rope_theta=1e4),
  ),
  vision_config=dict(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=64,
    patch_size=16, projection_dim=64, num_image_tokens=16,
  ),
  vq_config=dict(
    num_embeddings=50, embed_dim=8, projection_dim=64,
    image_token_embed_dim=64, base_channels=32, channel_multiplier=[1, 1, 2],
    latent_channels=32, num_res_blocks=2, num_patches=4,
  ),
  image_token_id=IMAGE, tie_word_embeddings=False,
)  # fmt: skip
CODES = 16  # of an image


def build() -> JanusForConditionalGeneration:
  """A random torch Janus that `generate` draws with."""
  model = randomise(JanusForConditionalGeneration(JanusConfig(**CONFIG)))
  config = model.generation_config
  config.generation_kwargs = {'boi_token_id': BOI}
  config.pad_token_id, config.bos_token_id = PAD, BOS
  return model


@torch.no_grad()
def draw(model, ids, guidance=5.0):
  """Greedy codes [B I] of `generate` after ids [B L]."""
  ids = torch.tensor(ids)
  return model.generate(
    ids, attention_mask=torch.ones_like(ids), generation_mode='image',
    do_sample=False, guidance_scale=guidance,
  ).numpy()  # fmt: skip


def reading(length=300, images=2):
  """ids [B S] with an image among words, and its pixels [B R R 3]."""
  rng = np.random.default_rng(length)
  ids = rng.integers(3, 99, (images, length))
  ids[:, 0] = BOS
  ids[:, 5 : 5 + 16] = IMAGE
  pixels = rng.normal(size=(images, 64, 64, 3)).astype(np.float32)
  return ids, pixels


def batch_of(ids, pixels) -> Batch:
  b, s = ids.shape
  return Batch(
    image=None,
    patches=patches(jnp.asarray(pixels), 16),
    prefix_ids=jnp.asarray(ids),
    prefix_positions=jnp.broadcast_to(jnp.arange(s), (b, 3, s)),
    prefix_mask=jnp.ones((b, s), bool),
  )


def apply(module, params, *args, **kw):
  with jax.default_matmul_precision('highest'):
    return module.apply({'params': params}, *args, **kw)


def chw(pixels):
  """Pixels as torch wants them."""
  return torch.tensor(np.asarray(pixels)).permute(0, 3, 1, 2)


def to_deepseek(state):
  """transformers' tensors under the names of the original release."""
  out, fused = {}, {}
  for name, x in state.items():
    name = name.replace('model.vision_model.', 'vision_model.vision_tower.')
    for new, old in (
      ('embeddings.patch_embedding', 'patch_embed.proj'),
      ('encoder.layers', 'blocks'),
      ('self_attn.projection_layer', 'attn.proj'),
      ('layer_norm', 'norm'), ('post_layernorm', 'norm'),
      ('model.aligner.fc1', 'aligner.layers.0'),
      ('model.aligner.hidden_layers.0', 'aligner.layers.2'),
      ('model.generation_aligner.fc1', 'gen_aligner.layers.0'),
      ('model.generation_aligner.hidden_layers.0', 'gen_aligner.layers.2'),
      ('model.generation_embeddings', 'gen_embed'),
      ('model.generation_head.proj_out', 'gen_head.output_mlp_projector'),
      ('model.generation_head', 'gen_head'),
      ('model.language_model', 'language_model.model'),
      ('lm_head', 'language_model.lm_head'),
      ('model.vqmodel', 'gen_vision_model'),
      ('encoder.down.', 'encoder.conv_blocks.'),
      ('decoder.up.', 'decoder.conv_blocks.'),
      ('.block.', '.res.'), ('mid.block_1', 'mid.0'), ('mid.attn_1', 'mid.1'),
      ('mid.block_2', 'mid.2'),
    ):  # fmt: skip
      name = name.replace(new, old)
    if name.endswith('position_embedding.weight'):
      out['vision_model.vision_tower.pos_embed'] = x[None]
    elif '.self_attn.' in name and 'vision_tower' in name:
      head, tail = name.split('.self_attn.')
      key = f'{head}.attn.qkv.{tail.split(".")[-1]}'
      fused.setdefault(key, {})[tail[0]] = x
    else:
      out[name] = x
  for key, parts in fused.items():
    out[key] = torch.cat([parts[p] for p in 'qkv'])
  out['gen_vision_model.quantize.codebook_used'] = torch.zeros(8)
  out['vision_model.vision_tower.attn_pool.latent'] = torch.zeros(1, 1, 32)
  return {k: v.contiguous() for k, v in out.items()}
