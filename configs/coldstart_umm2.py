"""Cold start of the embedded UMM-2. `--config=configs/coldstart_umm2.py:PART`.

Parts, in order: `tokenizer` (image <-> codes), `policy` (captions of images,
and codes after captions), `longer` (the same again), `detokenizer` (codes ->
image by flow matching, for `configs/umm2.py:flow`). The towers are those of
`configs/coldstart.py`.
The weights in `uae_jax/assets/umm2` were made by these commands with the
seeds below; see the README there.
"""

import importlib.util
from pathlib import Path

from ml_collections import ConfigDict

PARTS = {
  'tokenizer': dict(
    trainable=('vq/.*',), start='', seed=11, steps=1200, lr=1e-3, images=32,
    caption_weight=0.0, code_weight=0.0, pixel_weight=1.0, flow_weight=0.0,
  ),
  'policy': dict(
    trainable=('policy/.*',), start='bundled:umm2/policy', seed=12,
    steps=1700, lr=1.5e-3, images=48,
    caption_weight=0.5, code_weight=1.0, pixel_weight=0.0, flow_weight=0.0,
  ),
  'longer': dict(
    trainable=('policy/.*',), start='bundled:umm2/policy', seed=14,
    steps=1200, lr=1e-3, images=48,
    caption_weight=0.5, code_weight=1.0, pixel_weight=0.0, flow_weight=0.0,
  ),
  'detokenizer': dict(
    trainable=('connector/.*', 'decoder/.*'), start='bundled:umm2/policy',
    seed=13, steps=500, lr=1e-3, images=64,
    caption_weight=0.0, code_weight=0.0, pixel_weight=0.0, flow_weight=1.0,
  ),
}  # fmt: skip


def base() -> ConfigDict:
  """The keys of configs/umm2.py, which a cold start shares."""
  path = Path(__file__).with_name('umm2.py')
  spec = importlib.util.spec_from_file_location('umm2', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config()


def get_config(part: str = '') -> ConfigDict:
  """The config of one part."""
  if part not in PARTS:
    raise ValueError(
      f'configs/coldstart_umm2.py:{part} is none of {sorted(PARTS)}'
    )
  spec = PARTS[part]
  c = base()
  del c.grpo, c.lora
  c.stage = 'pretrain'
  c.optim.schedule = 'cosine'
  c.optim.warmup = 100
  c.optim.b2 = 0.99
  c.optim.weight_decay = 0.01
  c.ckpt.every = 500
  c.ckpt.keep_best = False  # nothing is judged
  c.eval.every = 500
  c.ckpt.reward = ''
  c.ckpt.judges = ''
  c.ckpt.policy = spec['start']
  c.ckpt.decoder = ''
  c.model.renderer = 'flow' if spec['flow_weight'] else 'vq'
  c.data.source = 'scenes:train'
  c.train.seed = spec['seed']
  c.train.steps = spec['steps']
  c.train.lr = spec['lr']
  c.train.images = spec['images']
  c.pretrain = ConfigDict()
  c.pretrain.trainable = spec['trainable']  # regexes over PART/parameter
  c.pretrain.fresh = ()  # regexes, too: parameters drawn anew
  c.pretrain.caption_weight = spec['caption_weight']
  c.pretrain.code_weight = spec['code_weight']
  c.pretrain.pixel_weight = spec['pixel_weight']
  c.pretrain.flow_weight = spec['flow_weight']
  c.pretrain.t_mean = 0.0  # of the logit of the flow time
  c.pretrain.t_std = 1.2
  c.pretrain.min_snr = 0.0  # gamma of Min-SNR; 0: all times weigh the same
  c.pretrain.lora_rank = 0  # of adapters of the detokenizer; 0: none
  c.pretrain.lora_alpha = 16.0
  c.pretrain.lora_targets = (r'.*/(q|k|v|((image|text)_)?out)/kernel',)
  c.pretrain.lora_export = 'merged'  # merged | adapter (a PEFT folder)
  c.pretrain.noise_rows = 0.25  # share of rows at time 1
  c.pretrain.wrong_shape = 0.08  # share of shape words, .75: they say nothing
  c.pretrain.full_rows = 0.6  # share of drawings after full captions
  c.pretrain.drop_rows = 0.1  # share after the unconditional prompt
  return c
