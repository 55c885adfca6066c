"""Janus-Pro's folders: both layouts in and out, and the published sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import JanusConfig, JanusForConditionalGeneration

from tests import tiny_janus
from tests.tiny_janus import IMAGE, apply, batch_of, chw, reading
from tests.torch_fixtures import close
from uae_jax import trees, zoo
from uae_jax.ckpt import hf, maps_janus
from uae_jax.errors import UserError
from uae_jax.models import janus, vq
from uae_jax.sharding import rules
from uae_jax.types import KV


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """(torch model, its folder, zoo model, parameters)."""
  theirs = tiny_janus.build()
  folder = tmp_path_factory.mktemp('janus')
  theirs.save_pretrained(folder)
  both, _ = zoo.janus_from_folder(folder)
  return theirs, folder, both, both.load(folder)


def test_export_is_read_back_by_transformers(saved, tmp_path):
  theirs, folder, both, params = saved
  both.save(tmp_path, params)
  want = load_file(folder / 'model.safetensors')
  got = load_file(tmp_path / 'model.safetensors')
  assert set(got) == set(want)
  for name, tensor in want.items():
    assert torch.equal(tensor, got[name]), name
  again, info = JanusForConditionalGeneration.from_pretrained(
    tmp_path, output_loading_info=True
  )
  assert not info['missing_keys'] and not info['unexpected_keys']
  for key in maps_janus.TOKENS:
    config = (m.config.text_config for m in (theirs, again))
    assert len({getattr(c, key) for c in config}) == 1
  again.generation_config = theirs.generation_config
  ids, pixels = reading(30)
  with torch.no_grad():
    a, b = (
      m(input_ids=torch.tensor(ids), pixel_values=chw(pixels)).logits
      for m in (theirs, again.eval())
    )
  assert torch.equal(a, b)
  ids = [[tiny_janus.BOS, 5, 6, tiny_janus.BOI]]
  a, b = (tiny_janus.draw(m, ids) for m in (theirs, again))
  np.testing.assert_array_equal(a, b)


def unfused(policy):
  """The tower's queries, keys and values as transformers has them."""
  out = {}
  for path, x in trees.flatten(policy).items():
    if '/qkv/' not in path:
      out[path] = x
      continue
    axis = 2 if path.endswith('kernel') else 1
    for i, part in enumerate('qkv'):
      out[path.replace('qkv', part)] = np.take(x, i, axis)
  return trees.unflatten(out)


def test_the_original_layout_gives_the_same_parameters(saved, tmp_path):
  theirs, folder, ours, params = saved
  state = tiny_janus.to_deepseek(theirs.state_dict())
  save_file(state, tmp_path / 'model.safetensors')
  fields = maps_janus.from_hf(hf.read_config(folder))
  fields = {**fields, 'vision': {**fields['vision'], 'fused': True}}
  both, _ = zoo.janus(fields, IMAGE, {})
  loaded = both.load(tmp_path)
  jax.tree.map(np.testing.assert_array_equal, loaded['vq'], params['vq'])
  jax.tree.map(
    np.testing.assert_array_equal, unfused(loaded['policy']), params['policy']
  )
  batch = batch_of(*reading(40))
  close(
    apply(both.module, loaded['policy'], batch),
    apply(ours.module, params['policy'], batch),
  )
  # And back: every tensor that the model uses, byte for byte.
  out = tmp_path / 'out'
  both.save(out, loaded)
  got = load_file(out / 'model.safetensors')
  unused = {k for k in state if 'attn_pool' in k or 'codebook_used' in k}
  assert set(got) == set(state) - unused
  for name, tensor in got.items():
    assert torch.equal(tensor, state[name]), name


def test_bfloat16_goes_through_unchanged(saved, tmp_path):
  theirs, folder, both, _ = saved
  state = {k: v.bfloat16() for k, v in theirs.state_dict().items()}
  save_file(state, tmp_path / 'model.safetensors')
  params = both.load(tmp_path, jnp.bfloat16)
  both.save(tmp_path / 'out', params)
  got = load_file(tmp_path / 'out' / 'model.safetensors')
  assert all(torch.equal(got[name], state[name]) for name in state)


# Tower, aligner, embeddings, aligner and head of codes, decoder, its head.
COUNTS = {
  'janus-pro-1b': 303_688_704 + 6_295_552 + 131_072 + 4_214_784 + 37_767_168
  + 1_442_940_928 + 102400 * 2048,
  'janus-pro-7b': 303_688_704 + 20_979_712 + 131_072 + 16_818_176 + 83_906_560
  + 6_490_935_296 + 102400 * 4096,
}  # fmt: skip


def published(name, layout):
  """What the released config.json says of shapes."""
  big = name == 'janus-pro-7b'
  width, layers, heads, mlp = (
    (4096, 30, 32, 11008) if big else (2048, 24, 16, 5632)
  )
  if layout == 'deepseek':
    part = lambda **params: dict(params=params)
    text = dict(num_hidden_layers=layers, vocab_size=102400)
    if not big:  # the rest is what LlamaConfig assumes
      text |= dict(
        hidden_size=width, intermediate_size=mlp, num_attention_heads=heads,
        num_key_value_heads=heads,
      )  # fmt: skip
    return dict(
      model_type='multi_modality',
      language_config=dict(model_type='llama', **text),
      vision_config=part(
        image_size=384, model_name='siglip_large_patch16_384', select_layer=-1
      ),
      aligner_config=part(depth=2, input_dim=1024, n_embed=width),
      gen_aligner_config=part(depth=2, input_dim=8, n_embed=width),
      gen_head_config=part(
        image_token_embed=width, image_token_size=16384, n_embed=width
      ),
      gen_vision_config=part(image_token_size=16384, n_embed=8),
    )
  return dict(
    model_type='janus',
    image_token_id=100594 if big else 100581,
    text_config=dict(
      model_type='llama', head_dim=128, hidden_size=width,
      intermediate_size=mlp, num_attention_heads=heads,
      num_hidden_layers=layers, num_key_value_heads=heads, rms_norm_eps=1e-6,
      rope_scaling=None, rope_theta=1e4, vocab_size=102400,
      max_position_embeddings=16384,
    ),
    vision_config=dict(
      depth=2, hidden_act='gelu', hidden_size=1024, image_size=384,
      layer_norm_eps=1e-6, mlp_ratio=4.0, num_attention_heads=16,
      num_hidden_layers=24, num_image_tokens=576, patch_size=16,
      projection_dim=width, use_qk_norm=False,
    ),
    vq_config=dict(
      base_channels=128, channel_multiplier=[1, 1, 2, 2, 4], embed_dim=8,
      image_token_embed_dim=width, latent_channels=256, num_embeddings=16384,
      num_hidden_layers=2, num_patches=24, num_res_blocks=2,
      projection_dim=width,
    ),
  )  # fmt: skip


@pytest.mark.parametrize('name', list(COUNTS))
@pytest.mark.parametrize('layout', ['transformers', 'deepseek'])
def test_real_sizes(name, layout):
  config = published(name, layout)
  read = maps_janus.from_hf(config)
  fields = {**janus.VARIANTS[name], 'vq': vq.VARIANTS[name]}
  fields['vision'] = {**fields['vision'], 'fused': layout == 'deepseek'}
  for part, wanted in fields.items():
    assert {key: read[part][key] for key in wanted} == wanted
  both, _ = zoo.janus(read, 100581, {})
  shapes = both.shapes()
  assert trees.count(shapes['policy']) == COUNTS[name]
  assert trees.count(shapes['vq']) == 71_883_403
  rules.specs(shapes, both.rules)
  assert maps_janus.from_hf(both.hub_config) == read
  if layout == 'deepseek':
    return
  for written in (config, both.hub_config):
    kw = {k: v for k, v in written.items() if k.endswith(('_config', '_id'))}
    with torch.device('meta'):
      theirs = JanusForConditionalGeneration(
        JanusConfig(**kw, tie_word_embeddings=False)
      )
    hub = {k: tuple(v.shape) for k, v in theirs.state_dict().items()}
    ours = {p: x.shape for p, x in trees.flatten(shapes).items()}
    assert not hf.check(both.table, ours, hub, both.ignore)


def test_the_tiny_variant_has_a_place_for_everything():
  fields = {**janus.VARIANTS['tiny'], 'vq': vq.VARIANTS['tiny']}
  both, _ = zoo.janus(fields, 3, {})
  rules.specs(both.shapes(), both.rules)
  cache = both.module.apply({}, 2, 3, 4, method='empty_cache')
  assert isinstance(cache, KV) and cache.k.shape == (4, 2, 3, 4, 4, 32)


def test_mistakes_are_one_line(saved, tmp_path):
  config = published('janus-pro-1b', 'deepseek')
  tower = {'params': {'image_size': 384, 'model_name': 'siglip_so400m'}}
  bad = {
    'is not a Janus': {'model_type': 'llama'},
    'siglip_so400m': {**config, 'vision_config': tower},
    'gen_head_config': {k: v for k, v in config.items() if 'head' not in k},
  }
  for says, one in bad.items():
    with pytest.raises(UserError, match=says):
      maps_janus.from_hf(one)
  _, folder, both, _ = saved
  state = load_file(folder / 'model.safetensors')
  del state['model.vqmodel.quant_conv.bias']
  state['model.surprise'] = torch.zeros(1)
  save_file(state, tmp_path / 'model.safetensors')
  with pytest.raises(UserError) as error:
    both.load(tmp_path)
  for says in ('surprise', 'quant_conv.bias'):
    assert says in str(error.value)
