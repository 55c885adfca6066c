"""Qwen2.5-VL at its real sizes: every path, shape and the total, no weights."""

import pytest
import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from uae_jax import trees, zoo
from uae_jax.ckpt import hf, maps_qwen
from uae_jax.models import vlm

# Counted on the published checkpoints' configs.
TOTALS = {
  'qwen2.5-vl-3b': 3_754_622_976,
  'qwen2.5-vl-7b': 8_292_166_656,
}
TOKENS = dict(
  image_token_id=151655,
  video_token_id=151656,
  vision_start_token_id=151652,
  vision_end_token_id=151653,
)


def on_disk(name: str) -> str:
  """transformers 5 names in memory -> names in the files."""
  return maps_qwen.rename(name)


@pytest.mark.parametrize('variant', TOTALS)
def test_real_sizes_match_transformers_name_by_name(variant):
  fields = dict(vlm.VARIANTS[variant], image_pad=151655)
  model = zoo.policy(fields, TOKENS)
  shapes = model.shapes()
  assert trees.count(shapes) == TOTALS[variant]
  config = maps_qwen.to_hf(fields['vision'], fields['lm'], TOKENS)
  with torch.device('meta'):
    theirs = Qwen2_5_VLForConditionalGeneration(
      Qwen2_5_VLConfig.from_dict(config)
    )
  found = {on_disk(k): tuple(v.shape) for k, v in theirs.state_dict().items()}
  if fields['lm']['tied']:
    found.pop('lm_head.weight')
  ours = {p: x.shape for p, x in trees.flatten(shapes).items()}
  assert not hf.check(model.table, ours, found, maps_qwen.IGNORE)


@pytest.mark.parametrize('variant', ['qwen2.5-vl-3b', 'qwen2.5-vl-7b', 'tiny'])
def test_config_json_round_trip(variant):
  fields = vlm.VARIANTS[variant]
  config = maps_qwen.to_hf(fields['vision'], fields['lm'], TOKENS)
  again = maps_qwen.from_hf(config)
  assert again['vision'] == fields['vision']
  assert {k: again['lm'][k] for k in fields['lm']} == fields['lm']
  assert again['image_pad'] == 151655


def test_flat_configs_of_older_transformers_are_read():
  fields = vlm.VARIANTS['qwen2.5-vl-3b']
  config = maps_qwen.to_hf(fields['vision'], fields['lm'], TOKENS)
  text = config.pop('text_config')
  rope = text.pop('rope_parameters')
  flat = {
    **text,
    **config,
    'rope_scaling': {'type': 'mrope', 'mrope_section': rope['mrope_section']},
    'rope_theta': rope['rope_theta'],
  }
  flat.pop('head_dim')
  assert maps_qwen.from_hf(flat)['lm']['sections'] == (16, 24, 24)
  assert maps_qwen.from_hf(flat)['lm']['head_dim'] == 128


def test_every_parameter_has_a_place_on_the_mesh():
  from uae_jax.sharding import rules

  for variant in TOTALS:
    model = zoo.policy(dict(vlm.VARIANTS[variant], image_pad=1), TOKENS)
    specs = trees.flatten(rules.specs(model.shapes(), model.rules))
    for path, leaf in trees.flatten(model.shapes()).items():
      big = leaf.size * 4 > 2**20 and not path.endswith(('bias', 'scale'))
      assert not big or any(specs[path]), f'{path} is replicated'
