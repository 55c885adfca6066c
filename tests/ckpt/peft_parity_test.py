"""Adapters between our trees and the peft library, on a tiny Qwen2.5-VL."""

import json

import jax
import numpy as np
import peft as theirs_peft
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from tests.models.qwen_parity_test import (
  END,
  IMAGE,
  START,
  their_logits,
  two_images,
)
from tests.torch_fixtures import close, randomise
from uae_jax import trees, zoo
from uae_jax.ckpt import peft
from uae_jax.errors import UserError
from uae_jax.nn.lora import LoRA, merge

TARGETS = {
  'attention': (r'lm/layers/block/[qkvo]/kernel',),
  'everything': (r'.*/kernel',),
}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A random tiny checkpoint written by transformers."""
  config = Qwen2_5_VLConfig(
    text_config=dict(
      vocab_size=200, hidden_size=32, intermediate_size=44,
      num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
      max_position_embeddings=512, tie_word_embeddings=False,
      rope_parameters=dict(
        rope_type='default', rope_theta=1e6, mrope_section=[1, 1, 2]
      ),
    ),
    vision_config=dict(
      depth=2, hidden_size=32, intermediate_size=44, num_heads=2,
      out_hidden_size=32, fullatt_block_indexes=[1], window_size=112,
      patch_size=14, spatial_merge_size=2, temporal_patch_size=2,
      tokens_per_second=2,
    ),
    image_token_id=IMAGE, video_token_id=191, vision_start_token_id=START,
    vision_end_token_id=END, tie_word_embeddings=False,
  )  # fmt: skip
  folder = tmp_path_factory.mktemp('base')
  randomise(Qwen2_5_VLForConditionalGeneration(config)).save_pretrained(folder)
  return folder


def reference(folder):
  """The torch model, fresh: peft changes it in place."""
  load = Qwen2_5_VLForConditionalGeneration.from_pretrained
  return load(folder, dtype=torch.float32).eval()


@pytest.fixture(scope='module')
def ours(folder):
  model = zoo.policy_from_folder(folder)
  return model, model.load(folder)


@pytest.fixture(scope='module')
def our_logits(ours):
  """Parameters -> logits of the two images' tokens."""
  batch, _, ids = two_images()
  model, _ = ours
  run = jax.jit(lambda p: model.module.apply({'params': p}, batch))
  return lambda params: run(params)[0, : len(ids)]


def random_tree(lora, params, table):
  """Adapters with B away from zero."""
  tree = lora.init(jax.random.key(0), params, table)
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda x: np.asarray(0.1 * rng.normal(size=x.shape), np.float32), tree
  )


@pytest.mark.parametrize('targets', TARGETS)
def test_peft_reads_our_export(folder, ours, our_logits, tmp_path, targets):
  model, params = ours
  lora = LoRA(rank=3, alpha=5.0, targets=TARGETS[targets])
  tree = random_tree(lora, params, model.table)
  peft.save(
    tmp_path, tree, model.table, alpha=5.0, model_type='qwen2_5_vl',
    base=str(folder),
  )  # fmt: skip
  wrapped = theirs_peft.PeftModel.from_pretrained(reference(folder), tmp_path)
  adapted = [
    name for name, _ in wrapped.named_parameters() if '.lora_A.' in name
  ]
  table = {r.path: len(r.names()) for r in lora.rows(model.table)}
  assert len(adapted) == sum(table.values())
  _, patches, ids = two_images()
  base, got = our_logits(params), our_logits(lora.apply(params, tree))
  want = their_logits(wrapped, patches, ids)
  assert np.abs(got - base).max() > 0.05 * np.abs(base).max()
  close(got, want)
  with wrapped.disable_adapter():
    close(base, their_logits(wrapped, patches, ids))


def made_by_peft(folder, out, **kw):
  """An adapter that peft made and wrote; (wrapped model, folder)."""
  config = theirs_peft.LoraConfig(**(dict(r=2, lora_alpha=6) | kw))
  wrapped = theirs_peft.get_peft_model(reference(folder), config)
  generator = torch.Generator().manual_seed(3)
  for name, p in wrapped.named_parameters():
    if 'lora_' in name:
      p.data = 0.1 * torch.randn(p.shape, generator=generator)
  wrapped.eval().save_pretrained(out)
  return wrapped


@pytest.mark.parametrize(
  'kw',
  [
    dict(target_modules=['q_proj', 'v_proj', 'qkv']),
    dict(target_modules='all-linear', use_rslora=True),
    dict(target_modules=r'.*\.mlp\.(up|down)_proj'),
  ],
  ids=['list', 'all', 'regex'],
)
def test_we_read_what_peft_wrote(folder, ours, our_logits, tmp_path, kw):
  model, params = ours
  wrapped = made_by_peft(folder, tmp_path, **kw)
  adapter = peft.load(tmp_path, model.table, model.shapes(), model.rename)
  merged = merge(params, adapter.tree, adapter.alpha / adapter.rank)
  _, patches, ids = two_images()
  close(our_logits(merged), their_logits(wrapped, patches, ids))


def test_the_merged_export_is_that_of_peft(folder, ours, tmp_path):
  model, params = ours
  adapter_folder = tmp_path / 'adapter'
  wrapped = made_by_peft(folder, adapter_folder, target_modules='all-linear')
  wrapped.merge_and_unload().save_pretrained(tmp_path / 'theirs')
  a = peft.load(adapter_folder, model.table, model.shapes(), model.rename)
  model.save(tmp_path / 'ours', merge(params, a.tree, a.alpha / a.rank))
  got = load_file(tmp_path / 'ours' / 'model.safetensors')
  want = load_file(tmp_path / 'theirs' / 'model.safetensors')
  assert got.keys() == want.keys()
  for name in got:
    close(got[name], want[name], 1e-6)


def test_round_trip_is_byte_equal(folder, ours, tmp_path):
  model, params = ours
  made_by_peft(folder, tmp_path / 'a', target_modules='all-linear')
  a = peft.load(tmp_path / 'a', model.table, model.shapes(), model.rename)
  peft.save(
    tmp_path / 'b', a.tree, model.table, alpha=a.alpha,
    model_type='qwen2_5_vl',
  )  # fmt: skip
  before = load_file(tmp_path / 'a' / 'adapter_model.safetensors')
  after = load_file(tmp_path / 'b' / 'adapter_model.safetensors')
  assert before.keys() == after.keys()
  assert all(before[k].tobytes() == after[k].tobytes() for k in before)


@pytest.mark.parametrize(
  'change, says',
  [
    (dict(use_dora=True), 'use_dora'),
    (dict(bias='all'), "'bias'"),
    (dict(peft_type='IA3'), 'IA3'),
    (dict(r=None), 'r and lora_alpha'),
    (dict(r=4), r'lora_A.weight is \[2, 32\], expected \[4, 32\]'),
  ],
  ids=lambda x: '-'.join(x) if isinstance(x, dict) else '',
)
def test_other_adapters_are_refused(folder, ours, tmp_path, change, says):
  model, _ = ours
  made_by_peft(folder, tmp_path, target_modules=['q_proj'])
  file = tmp_path / 'adapter_config.json'
  file.write_text(json.dumps(json.loads(file.read_text()) | change))
  with pytest.raises(UserError, match=says):
    peft.load(tmp_path, model.table, model.shapes(), model.rename)


def test_missing_and_unknown_adapters_are_listed(folder, ours, tmp_path):
  model, _ = ours
  made_by_peft(folder, tmp_path, target_modules=['q_proj'])
  file = tmp_path / 'adapter_model.safetensors'
  tensors = load_file(file)
  gone = next(name for name in tensors if 'layers.1' in name)
  del tensors[gone]
  tensors['base_model.model.ghost.lora_A.weight'] = np.zeros((2, 3), np.float32)
  save_file(tensors, file)
  with pytest.raises(UserError) as e:
    peft.load(tmp_path, model.table, model.shapes(), model.rename)
  assert 'missing model.layers.1.self_attn.q_proj.lora' in str(e.value)
  assert 'unknown ghost.lora_A.weight' in str(e.value)


def test_a_pickled_adapter_comes_with_its_own_command(ours, tmp_path):
  model, _ = ours
  config = {'peft_type': 'LORA', 'r': 2, 'lora_alpha': 2}
  (tmp_path / 'adapter_config.json').write_text(json.dumps(config))
  torch.save({'a': torch.zeros(2)}, tmp_path / 'adapter_model.bin')
  with pytest.raises(UserError) as e:
    peft.load(tmp_path, model.table, model.shapes(), model.rename)
  command = str(e.value).split('once with: ')[1]
  exec(command.removeprefix('python -c "').removesuffix('"'), {})
  with pytest.raises(UserError, match='unknown a'):
    peft.load(tmp_path, model.table, model.shapes(), model.rename)


def test_paths_of_the_tree_are_those_of_the_kernels(ours):
  model, params = ours
  lora = LoRA(rank=1, alpha=1.0, targets=(r'.*/kernel',))
  tree = lora.init(jax.random.key(0), params, model.table)
  kernels = {p for p in trees.flatten(params) if p.endswith('/kernel')}
  assert {p.rpartition('/')[0] for p in trees.flatten(tree)} == kernels


def test_an_adapter_of_the_mmdit(tmp_path):
  """As UAE's decoder LoRA: modules of diffusers, a part of the layers."""
  from diffusers import SD3Transformer2DModel

  from tests.models.mmdit_parity_test import CONFIG, KINDS

  theirs = randomise(SD3Transformer2DModel(**CONFIG, **KINDS['dual']))
  theirs.save_pretrained(tmp_path / 'base')
  config = theirs_peft.LoraConfig(
    r=2, lora_alpha=4, target_modules=['to_k', 'to_out.0', 'attn2.to_q', 'proj']
  )
  wrapped = theirs_peft.get_peft_model(theirs, config)
  for name, p in wrapped.named_parameters():
    if 'lora_' in name:
      p.data = 0.1 * torch.randn(p.shape)
  wrapped.save_pretrained(tmp_path / 'adapter')
  model = zoo.decoder_from_folder(tmp_path / 'base')
  a = peft.load(tmp_path / 'adapter', model.table, model.shapes())
  merged = merge(model.load(tmp_path / 'base'), a.tree, a.alpha / a.rank)
  model.save(tmp_path / 'ours', merged)
  peft.save(tmp_path / 'again', a.tree, model.table, alpha=a.alpha)
  fresh = SD3Transformer2DModel.from_pretrained(tmp_path / 'base')
  again = theirs_peft.PeftModel.from_pretrained(fresh, tmp_path / 'again')
  want = again.merge_and_unload().state_dict()
  file = tmp_path / 'ours' / 'diffusion_pytorch_model.safetensors'
  for name, got in load_file(file).items():
    close(got, want[name].numpy(), 1e-6)
  for name, p in wrapped.merge_and_unload().state_dict().items():
    torch.testing.assert_close(p, want[name])
