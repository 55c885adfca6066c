"""UAE and UniWorld-V1 at the smallest sizes, on disk as they were released.

Everything is drawn at random, what is laid over and what is merged too.
"""

import json
import shutil

import peft
import torch
from safetensors.torch import save_file
from transformers import (
  PreTrainedTokenizerFast,
  Qwen2_5_VLConfig,
  Qwen2_5_VLForConditionalGeneration,
  SiglipConfig,
  SiglipModel,
)

from tests.infer.pipelines_test import flux, sd3
from tests.torch_fixtures import randomise
from uae_jax import zoo

PROCESSORS = zoo.ASSETS / 'umm1' / 'processors'
IMAGE_PAD, VISION_START, VISION_END = 4, 2, 3
VOCAB, WIDTH, EYE_WIDTH, CONTEXT = 38, 32, 24, 48
TEXT = dict(
  vocab_size=VOCAB, hidden_size=WIDTH, intermediate_size=48,
  num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
  rms_norm_eps=1e-6, max_position_embeddings=512,
)  # fmt: skip
VISION = dict(
  depth=2, hidden_size=16, intermediate_size=24, num_heads=2,
  out_hidden_size=WIDTH, fullatt_block_indexes=[1], window_size=16,
  patch_size=4, tokens_per_second=2,
)  # fmt: skip
TOKENS = dict(
  image_token_id=IMAGE_PAD, video_token_id=37,
  vision_start_token_id=VISION_START, vision_end_token_id=VISION_END,
)  # fmt: skip
SECTIONS = [2, 1, 1]


class WithProjector(Qwen2_5_VLForConditionalGeneration):
  """UAE's language model."""

  def __init__(self, config):
    super().__init__(config)
    self.projector = mlp(WIDTH, 40, CONTEXT, torch.nn.GELU())


def mlp(width, hidden, out, act):
  return torch.nn.Sequential(
    torch.nn.Linear(width, hidden), act, torch.nn.Linear(hidden, out)
  )


def qwen(tied, kind=Qwen2_5_VLForConditionalGeneration):
  config = Qwen2_5_VLConfig(
    text_config=dict(
      tie_word_embeddings=tied,
      rope_parameters=dict(
        rope_type='default', rope_theta=1e6, mrope_section=SECTIONS
      ),
      **TEXT,
    ),
    vision_config=dict(VISION, spatial_merge_size=2),
    tie_word_embeddings=tied,
    **TOKENS,
  )
  return randomise(kind(config))


def shake(module, seed, scale=0.05):
  """The module with every parameter moved, in place."""
  generator = torch.Generator().manual_seed(seed)
  for p in module.parameters():
    p.data += scale * torch.randn(p.shape, generator=generator)
  return module


def state_of(module):
  """Tensors by their names in memory, tied ones once."""
  state = {name: x.clone() for name, x in module.state_dict().items()}
  if module.config.tie_word_embeddings:
    del state['lm_head.weight']
  return state


def released(name):
  """Names of transformers 4.50."""
  name = name.replace('model.visual.', 'visual.')
  return name.replace('model.language_model.', 'model.')


def shards(folder, state, count, index=True):
  """Writes the tensors into so many files."""
  folder.mkdir(parents=True, exist_ok=True)
  where = {}
  for i in range(count):
    part = {name: state[name].contiguous() for name in sorted(state)[i::count]}
    file = f'model-{i + 1:05d}-of-{count:05d}.safetensors'
    save_file(part, folder / file)
    where |= dict.fromkeys(part, file)
  if index:
    write_json(folder / 'model.safetensors.index.json', {'weight_map': where})


def processors(folder):
  folder.mkdir(parents=True, exist_ok=True)
  for file in PROCESSORS.iterdir():
    shutil.copy(file, folder / file.name)


def words():
  """transformers' tokenizer of the captioner."""
  return PreTrainedTokenizerFast.from_pretrained(PROCESSORS)


@torch.no_grad()
def uae(folder):
  """Writes UAE; (language model, SD3 pipeline) as they are to be used."""
  language = qwen(True, WithProjector)
  llm = folder / 'llm_model'
  language.config.save_pretrained(llm)
  base = {released(n): x for n, x in state_of(language).items()}
  # A tied head may be stored beside what it is tied to.
  base['lm_head.weight'] = base['model.embed_tokens.weight'].clone()
  shards(llm, base, 4)
  processors(llm)
  # Of what is laid over it, names as in memory and no vision tower.
  shake(language, 3)
  language.tie_weights()
  state = {n: x for n, x in state_of(language).items() if 'visual' not in n}
  shards(folder / 'llm_lora', state, 3, index=False)
  both = state_of(qwen(True, WithProjector)) | state
  language.load_state_dict(both, strict=False)
  language.tie_weights()
  pipeline = sd3()
  pipeline.save_pretrained(folder / 'SD3')
  shutil.rmtree(folder / 'SD3' / 'transformer')
  shake(pipeline.transformer, 4).save_pretrained(folder / 'dit')
  config = peft.LoraConfig(
    r=2, lora_alpha=4,
    target_modules=[
      'attn.to_q', 'attn.to_k', 'attn.to_v', 'attn.to_out.0', 'attn.add_q_proj',
      'attn.add_k_proj', 'attn.add_v_proj', 'pos_embed.proj',
    ],
  )  # fmt: skip
  adapted = peft.get_peft_model(pipeline.transformer, config)
  generator = torch.Generator().manual_seed(6)
  for name, p in adapted.named_parameters():
    if 'lora_' in name:
      p.data = 0.2 * torch.randn(p.shape, generator=generator)
  adapted.eval().save_pretrained(folder / 'dit_lora')
  pipeline.transformer = adapted.merge_and_unload()
  return language, pipeline


@torch.no_grad()
def uniworld(root):
  """Writes UniWorld, FLUX and SigLIP; the torch modules, by name."""
  parts = dict(
    language=qwen(False),
    denoise=randomise(mlp(WIDTH, 40, CONTEXT, torch.nn.SiLU())),
    eye=randomise(mlp(EYE_WIDTH, 56, CONTEXT, torch.nn.SiLU())),
    pipeline=flux(True),
    siglip=siglip(),
  )
  pipeline = parts['pipeline']
  pipeline.save_pretrained(root / 'flux')
  # What the release has of the transformer is its own.
  for file in (root / 'flux' / 'transformer').glob('*.safetensors'):
    file.unlink()
  shake(pipeline.transformer, 5)
  parts['siglip'].save_pretrained(root / 'siglip')
  view = dict(
    image_processor_type='SiglipImageProcessor', resample=2,
    size=dict(height=24, width=24), image_mean=[0.5] * 3, image_std=[0.5] * 3,
  )  # fmt: skip
  write_json(root / 'siglip' / 'preprocessor_config.json', view)
  folder = root / 'uniworld'
  processors(folder)
  state = {released(n): x for n, x in state_of(parts['language']).items()}
  under = {
    'denoiser': pipeline.transformer,
    'denoise_projector': parts['denoise'],
    'siglip_projector': parts['eye'],
    'vae_projector': randomise(mlp(16, 20, 24, torch.nn.SiLU())),
  }
  for name, module in under.items():
    for key, x in module.state_dict().items():
      state[f'denoise_tower.{name}.{key}'] = x
  shards(folder, state, 2)
  # As transformers 4.50 wrote it: the text's keys flat, defaults left out.
  config = dict(
    architectures=['UnivaQwen2p5VLForConditionalGeneration'],
    model_type='univa_qwen2p5vl',
    rope_theta=1e6,
    rope_scaling=dict(type='mrope', mrope_section=SECTIONS),
    tie_word_embeddings=False,
    vision_config=dict(VISION, model_type='qwen2_5_vl', in_chans=3),
    denoise_tower=dict(denoise_projector_type='mlp2x_gelu'),
    **TEXT,
    **TOKENS,
  )
  write_json(folder / 'config.json', config)
  return parts


def siglip():
  tower = dict(
    hidden_size=EYE_WIDTH, intermediate_size=32, num_hidden_layers=2,
    num_attention_heads=2,
  )  # fmt: skip
  return randomise(
    SiglipModel(
      SiglipConfig(
        text_config=dict(tower, vocab_size=50, max_position_embeddings=8),
        vision_config=dict(tower, image_size=24, patch_size=8),
      )
    )
  )


def write_json(file, value):
  file.write_text(json.dumps(value))
