"""CLIP at its real sizes, by shape only; and at the tiny size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.sharding import PartitionSpec as P
from transformers import CLIPConfig, CLIPModel

from uae_jax import trees
from uae_jax.ckpt import hf, maps_clip
from uae_jax.errors import UserError
from uae_jax.models.clip import CLIP, VARIANTS, end_of_caption, patches
from uae_jax.sharding import rules, table_clip

COUNTS = {'vit-l-14': 427_616_513, 'vit-l-14-336': 427_944_193}


def shapes_of(name):
  model, fields = CLIP(**VARIANTS[name]), VARIANTS[name]
  size = fields['vision']['size']
  return jax.eval_shape(
    model.init,
    jax.random.key(0),
    jnp.zeros((1, size, size, 3)),
    jnp.zeros((1, fields['language']['ctx']), jnp.int32),
  )['params']


@pytest.mark.parametrize('name', VARIANTS)
def test_every_name_and_shape_of_transformers(name):
  fields, shapes = VARIANTS[name], shapes_of(name)
  with torch.device('meta'):
    theirs = CLIPModel(CLIPConfig(**maps_clip.to_hf(**fields)))
  found = {k: tuple(v.shape) for k, v in theirs.named_parameters()}
  ours = {k: v.shape for k, v in trees.flatten(shapes).items()}
  assert hf.check(maps_clip.table(**fields), ours, found) == []
  assert trees.count(shapes) == sum(np.prod(s) for s in found.values())
  assert trees.count(shapes) == COUNTS.get(name, trees.count(shapes))


@pytest.mark.parametrize('name', VARIANTS)
def test_sharding_table_covers_all_parameters(name):
  specs = rules.specs(shapes_of(name), table_clip.RULES)
  blocks = specs['vision_tower']['layers']['block']
  assert blocks['q']['kernel'] == P(None, 'data', 'model', None)


def test_a_config_without_keys_is_vit_b_32():
  """transformers leaves class defaults out of old config files."""
  fields = maps_clip.from_hf({'model_type': 'clip'})
  want = VARIANTS['vit-b-32']
  # Only the id of EOS differs: the class default is the repaired one.
  language = {**want['language'], 'eos': 49407}
  assert fields == {**want, 'language': language}
  theirs = CLIPConfig()
  assert theirs.text_config.eos_token_id == 49407


def test_early_config_dicts_win_as_upstream():
  config = dict(
    projection_dim=768,
    text_config=dict(hidden_size=512, eos_token_id=2),
    text_config_dict=dict(hidden_size=768, num_attention_heads=12),
  )
  language = maps_clip.from_hf(config)['language']
  theirs = CLIPConfig(**config).text_config
  assert language['width'] == theirs.hidden_size == 768
  assert language['heads'] == theirs.num_attention_heads == 12
  assert language['eos'] == theirs.eos_token_id == 49407


@pytest.mark.parametrize(
  'section, key, value',
  [
    ('vision_config', 'num_channels', 1),
    ('vision_config', 'image_size', [224, 336]),
    ('text_config', 'hidden_act', 'relu'),
  ],
)
def test_unsupported_config_values_are_user_errors(section, key, value):
  with pytest.raises(UserError, match=key):
    maps_clip.from_hf({section: {key: value}})


def test_patches_are_the_windows_of_a_torch_convolution():
  x = np.arange(2 * 4 * 6 * 3, dtype=np.float32).reshape(2, 4, 6, 3)
  want = torch.nn.functional.unfold(
    torch.tensor(x).permute(0, 3, 1, 2), 2, stride=2
  ).transpose(1, 2)
  np.testing.assert_array_equal(patches(x, 2), want.numpy())


def test_end_of_caption_rules():
  ids = jnp.array([[1, 7, 3, 7, 9], [1, 4, 4, 4, 5]])
  np.testing.assert_array_equal(end_of_caption(ids, 7), [1, 0])
  np.testing.assert_array_equal(end_of_caption(ids, 2), [4, 4])


def test_tiny_is_causal_and_trains_both_towers():
  model = CLIP(**VARIANTS['tiny'])
  pixels = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
  ids = jax.random.randint(jax.random.key(1), (2, 24), 6, 64)
  params = model.init(jax.random.key(2), pixels, ids)['params']
  states = lambda x: model.apply({'params': params}, x, method='text_states')
  changed = states(ids.at[:, 9].set(5)).hidden
  np.testing.assert_array_equal(states(ids).hidden[:, :9], changed[:, :9])
  assert np.abs(states(ids).hidden[:, 9:] - changed[:, 9:]).max() > 1e-3

  def loss(params):
    image, text, scale = model.apply({'params': params}, pixels, ids)
    return jnp.sum(image * text) * jnp.exp(scale)

  for path, g in trees.flatten(jax.grad(loss)(params)).items():
    # A key's bias shifts every score of a row alike: softmax ignores it.
    assert path.endswith('/k/bias') or np.abs(g).max() > 0, path


def test_bfloat16_inputs_are_computed_in_bfloat16():
  model = CLIP(**VARIANTS['tiny'])
  pixels, ids = jnp.zeros((1, 32, 32, 3), jnp.bfloat16), jnp.ones((1, 5), int)
  params = model.init(jax.random.key(0), pixels, ids)['params']
  image, text, _ = model.apply({'params': params}, pixels, ids)
  assert image.dtype == text.dtype == jnp.bfloat16
