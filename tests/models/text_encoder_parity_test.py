"""Prompts through tokenizers and text encoders, against diffusers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import FluxPipeline, StableDiffusion3Pipeline
from tokenizers import (
  Tokenizer,
  models,
  normalizers,
  pre_tokenizers,
  processors,
)
from transformers import (
  CLIPTextConfig,
  CLIPTextModel,
  CLIPTextModelWithProjection,
  PreTrainedTokenizerFast,
  T5Config,
  T5EncoderModel,
)

from tests.torch_fixtures import close, close_rms, randomise
from uae_jax import trees
from uae_jax.ckpt import hf, maps_clip, maps_t5
from uae_jax.data.prompts import CLIP_LENGTH, PromptTokenizer
from uae_jax.errors import UserError
from uae_jax.models import clip, t5, text_encoder
from uae_jax.sharding import rules, table_clip

PROMPTS = ['a red cube', '', 'two small blue boats ' * 20]
WORDS = ['a', 'red', 'cube', 'two', 'small', 'blue', 'boats']


def tokenizer(pad, bos, eos, length):
  """A word tokenizer with the ends and padding of CLIP's or T5's."""
  special = [x for x in dict.fromkeys((pad, bos, eos, '<unk>')) if x]
  vocab = {w: i for i, w in enumerate([*special, *WORDS])}
  out = Tokenizer(models.WordLevel(vocab, '<unk>'))
  out.normalizer = normalizers.Lowercase()
  out.pre_tokenizer = pre_tokenizers.Whitespace()
  start = f'{bos} ' if bos else ''
  out.post_processor = processors.TemplateProcessing(
    single=f'{start}$A {eos}',
    special_tokens=[(x, vocab[x]) for x in (bos, eos) if x],
  )
  return PreTrainedTokenizerFast(
    tokenizer_object=out, pad_token=pad, eos_token=eos, bos_token=bos,
    unk_token='<unk>', model_max_length=length,
  )  # fmt: skip


def clip_text(kind, width, act, eos):
  return randomise(
    kind(
      CLIPTextConfig(
        vocab_size=40, hidden_size=width, intermediate_size=2 * width,
        num_hidden_layers=3, num_attention_heads=4, projection_dim=width,
        max_position_embeddings=CLIP_LENGTH, hidden_act=act,
        bos_token_id=0, eos_token_id=eos,
      )
    )
  )  # fmt: skip


def load_clip(folder):
  """Our tower, its parameters and its fields, from the folder."""
  fields = maps_clip.text_from_hf(hf.read_config(folder))
  module = clip.TextTower(**fields)
  ids = jnp.zeros((1, 1), jnp.int32)
  shapes = jax.eval_shape(module.init, jax.random.key(0), ids)['params']
  params = hf.load(
    folder, maps_clip.text_table(**fields), shapes,
    ignore=maps_clip.IGNORE, rename=maps_clip.text_rename,
  )  # fmt: skip
  rules.specs(shapes, table_clip.text_rules(**fields))
  return module, params, fields


def ours_of(folder, ids, dtype=jnp.float32):
  """`TextOut` of ours, loaded from the folder."""
  module, params, _ = load_clip(folder)
  with jax.default_matmul_precision('highest'):
    return module.apply({'params': params}, jnp.asarray(ids), dtype)


def t5_of(folder, ids, dtype=jnp.float32):
  fields = maps_t5.from_hf(hf.read_config(folder))
  module = t5.T5(**fields)
  shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.asarray(ids))
  params = hf.load(
    folder, maps_t5.table(**fields), shapes['params'], ignore=maps_t5.IGNORE
  )
  with jax.default_matmul_precision('highest'):
    return module.apply({'params': params}, jnp.asarray(ids), dtype)


def sd3_of(out, prompts, length, dtype=jnp.float32):
  """Context and pooled vector of ours, from a pipeline's folder."""
  ids = lambda name, n: PromptTokenizer(out / name)(prompts, n)
  clip_l, clip_g = (
    ours_of(out / f'text_encoder{i}', ids(f'tokenizer{i}', CLIP_LENGTH), dtype)
    for i in ('', '_2')
  )
  states = t5_of(out / 'text_encoder_3', ids('tokenizer_3', length), dtype)
  return text_encoder.sd3_prompt(clip_l, clip_g, states)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Encoders and tokenizers, saved as in a pipeline's folder."""
  out = tmp_path_factory.mktemp('pipeline')
  parts = dict(
    # `<end>` is 0 to CLIP-L's tokenizer; 2 asks for the largest id.
    text_encoder=clip_text(CLIPTextModelWithProjection, 16, 'quick_gelu', 0),
    text_encoder_2=clip_text(CLIPTextModelWithProjection, 24, 'gelu', 2),
    flux_text_encoder=clip_text(CLIPTextModel, 16, 'quick_gelu', 0),
    text_encoder_3=randomise(
      T5EncoderModel(
        T5Config(
          vocab_size=40, d_model=48, d_kv=8, d_ff=64, num_layers=2,
          num_heads=4, feed_forward_proj='gated-gelu',
          tie_word_embeddings=False,
        )
      )
    ),
    tokenizer=tokenizer('<end>', '<start>', '<end>', CLIP_LENGTH),
    tokenizer_2=tokenizer('!', '<start>', '<end>', CLIP_LENGTH),
    tokenizer_3=tokenizer('<pad>', None, '</s>', 512),
  )  # fmt: skip
  for name, part in parts.items():
    part.save_pretrained(out / name)
  return out, parts


def pipeline(kind, **parts):
  """A pipeline of diffusers with text encoders and nothing else."""
  out = kind.__new__(kind)
  super(kind, out).__init__()
  none = dict.fromkeys(
    ('transformer', 'vae', 'scheduler', 'image_encoder', 'feature_extractor')
  )
  out.register_modules(**{**none, **parts})
  out.tokenizer_max_length = CLIP_LENGTH
  return out


def sd3_pipeline(parts):
  names = [f'{kind}{i}' for kind in ('text_encoder', 'tokenizer')
           for i in ('', '_2', '_3')]  # fmt: skip
  return pipeline(StableDiffusion3Pipeline, **{n: parts[n] for n in names})


@pytest.mark.parametrize('length', [77, 256, 512])
def test_sd3_prompts(folder, length):
  out, parts = folder
  negative = ['', 'blue boats', 'small']
  with torch.no_grad():
    want = sd3_pipeline(parts).encode_prompt(
      PROMPTS, None, None, negative_prompt=negative,
      max_sequence_length=length,
    )  # fmt: skip
  got = sd3_of(out, PROMPTS, length)
  assert got[0].shape == (3, CLIP_LENGTH + length, 48)
  against = sd3_of(out, negative, length)
  for ours, theirs in zip((got[0], against[0], got[1], against[1]), want):
    close(ours, theirs)
  # Each prompt is pooled at its end, not at the start that all share.
  for half in np.split(np.asarray(got[1]), [16], axis=1):
    assert np.abs(half[0] - half[1]).max() > 1e-3


def test_sd3_prompts_in_bfloat16(folder):
  out, parts = folder
  with torch.no_grad():
    context, _, pooled, _ = sd3_pipeline(parts).encode_prompt(
      PROMPTS, None, None, do_classifier_free_guidance=False,
      max_sequence_length=77,
    )  # fmt: skip
  got = sd3_of(out, PROMPTS, 77, jnp.bfloat16)
  assert got[0].dtype == got[1].dtype == jnp.bfloat16
  close_rms(got[0], context)
  close_rms(got[1], pooled)


@pytest.mark.parametrize('name', ['text_encoder', 'flux_text_encoder'])
def test_export_is_read_back_by_transformers(folder, name, tmp_path):
  out, parts = folder
  _, params, fields = load_clip(out / name)
  table = maps_clip.text_table(**fields)
  hf.save(tmp_path, table, params, maps_clip.text_to_hf(fields))
  theirs = parts[name]
  again, info = type(theirs).from_pretrained(tmp_path, output_loading_info=True)
  assert not info['missing_keys'] and not info['unexpected_keys']
  for key, tensor in theirs.state_dict().items():
    assert torch.equal(tensor, again.state_dict()[key]), key
  ids = torch.tensor(PromptTokenizer(out / 'tokenizer')(PROMPTS, CLIP_LENGTH))
  with torch.no_grad():
    got, want = again.eval()(ids), theirs(ids)
  for key in want:
    assert torch.equal(got[key], want[key]), key


def test_sd3_without_t5_is_zeros(folder):
  out, parts = folder
  names = ('text_encoder', 'text_encoder_2', 'tokenizer', 'tokenizer_2')
  theirs = pipeline(
    StableDiffusion3Pipeline,
    **{n: parts[n] for n in names},
    text_encoder_3=None,
    tokenizer_3=None,
  )
  joint = type('Sized', (), {'config': type('C', (), dict(
    joint_attention_dim=48))})()  # fmt: skip
  theirs.transformer = joint
  with torch.no_grad():
    context, *_ = theirs.encode_prompt(
      PROMPTS, None, None, do_classifier_free_guidance=False,
      max_sequence_length=256,
    )  # fmt: skip
  ids = lambda name: PromptTokenizer(out / name)(PROMPTS, CLIP_LENGTH)
  got, _ = text_encoder.sd3_prompt(
    ours_of(out / 'text_encoder', ids('tokenizer')),
    ours_of(out / 'text_encoder_2', ids('tokenizer_2')),
    jnp.zeros((3, 256, 48)),
  )
  close(got, context)


def test_flux_prompts(folder):
  out, parts = folder
  theirs = pipeline(
    FluxPipeline,
    text_encoder=parts['flux_text_encoder'],
    tokenizer=parts['tokenizer'],
    text_encoder_2=parts['text_encoder_3'],
    tokenizer_2=parts['tokenizer_3'],
  )
  with torch.no_grad():
    context, pooled, _ = theirs.encode_prompt(
      PROMPTS, None, max_sequence_length=512
    )
  got = text_encoder.flux_prompt(
    ours_of(
      out / 'flux_text_encoder',
      PromptTokenizer(out / 'tokenizer')(PROMPTS, CLIP_LENGTH),
    ),
    t5_of(
      out / 'text_encoder_3',
      PromptTokenizer(out / 'tokenizer_3')(PROMPTS, 512),
    ),
  )
  close(got[0], context)
  close(got[1], pooled)


@pytest.mark.parametrize(
  'name, count',
  [
    ('sd3-clip-l', 123_650_304),
    ('sd3-clip-g', 694_659_840),
    ('flux-clip-l', 123_060_480),
  ],
)
def test_real_sizes(name, count):
  fields = clip.TEXT_VARIANTS[name]
  ids = jnp.zeros((1, 1), jnp.int32)
  module = clip.TextTower(**fields)
  shapes = jax.eval_shape(module.init, jax.random.key(0), ids)['params']
  assert trees.count(shapes) == count
  rules.specs(shapes, table_clip.text_rules(**fields))
  config = maps_clip.text_to_hf(fields)
  assert maps_clip.text_from_hf(config) == fields
  [kind] = config.pop('architectures')
  kind = {k.__name__: k for k in (CLIPTextModel, CLIPTextModelWithProjection)}[
    kind
  ]
  with torch.device('meta'):
    theirs = kind(CLIPTextConfig(**config))
  hub = {k: tuple(v.shape) for k, v in theirs.state_dict().items()}
  hub = {k: v for k, v in hub.items() if 'position_ids' not in k}
  ours = {p: x.shape for p, x in trees.flatten(shapes).items()}
  hub = {maps_clip.text_rename(k): v for k, v in hub.items()}
  assert not hf.check(maps_clip.text_table(**fields), ours, hub)


def test_mistakes_are_one_line(folder, tmp_path):
  with pytest.raises(UserError, match='nothing'):
    PromptTokenizer(tmp_path / 'nothing')
  with pytest.raises(UserError, match='no tokenizer'):
    PromptTokenizer(tmp_path)
  with pytest.raises(UserError, match='no prompt'):
    PromptTokenizer(folder[0] / 'tokenizer')([], 8)


def test_ids_are_cut_and_padded(folder):
  ids = PromptTokenizer(folder[0] / 'tokenizer_2')(PROMPTS, 6)
  assert ids.shape == (3, 6) and ids.dtype == np.int32
  # '!' is 0, <start> 1, <end> 2.
  assert ids[1].tolist() == [1, 2, 0, 0, 0, 0]
  assert ids[2, 0] == 1 and ids[2, -1] == 2
