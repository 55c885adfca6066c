"""Supervised stages before reinforcement. `--config=configs/pretrain.py:STAGE`.

`align` fits a connector between a captioner and a decoder that do not know
each other, `longcap` the decoder (adapters; `--config.pretrain.lora_rank=0`
and `--config.pretrain.trainable='("decoder/.*",)'` for all of it) to long
captions: stages 0 and 1 of the paper's earlier version. Both are flow matching
on images with captions, the language model frozen.

The embedded default aligns a new connector with the bundled models on drawn
scenes and their full captions. `:align-MODEL` and `:longcap-MODEL`, MODEL one
of the real sizes of `configs/umm1.py`, read photographs with captions: any
source of docs/data.md that has them.
"""

import importlib.util
from pathlib import Path

from ml_collections import ConfigDict

STAGES = ('align', 'longcap')


def get_config(arg: str = 'align') -> ConfigDict:
  """The config of a stage, at the embedded or a real size."""
  path = Path(__file__).with_name('umm1.py')
  spec = importlib.util.spec_from_file_location('umm1', path)
  umm1 = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(umm1)
  stage, _, model = arg.partition('-')
  if stage not in STAGES or model not in ('', *umm1.REAL):
    raise ValueError(
      f'configs/pretrain.py:{arg} is none of {STAGES}, alone or with '
      f'-{"|".join(umm1.REAL)}'
    )
  c = umm1.get_config(model)
  long = stage == 'longcap'
  del c.grpo, c.lora, c.flow
  c.stage = 'pretrain'
  c.train.steps = 10_000 if model else 300
  c.train.images = 256 if model else 64
  c.train.lr = 1e-4 if model else 1e-3
  c.optim.warmup = 500 if model else 20
  c.optim.b2 = 0.99
  c.optim.weight_decay = 0.01
  c.rollout.environment = 'policy'  # the language model is what it is
  c.data.source = 'images:data/captioned' if model else 'scenes:train'
  if model:
    c.data.heldout = 'images:data/captioned-heldout'
    c.rollout.length = 512 if long else 256  # 250 words and more

  c.pretrain = ConfigDict()
  c.pretrain.trainable = () if long else ('connector/.*',)  # PART/parameter
  c.pretrain.fresh = ()  # regexes, too: parameters drawn anew
  if stage == 'align' and not model:
    c.pretrain.fresh = ('connector/.*',)
  c.pretrain.caption_weight = 0.0  # of captions of images, for the captioner
  c.pretrain.flow_weight = 1.0  # of flow matching
  c.pretrain.captions = 'full'  # full | partial: what flow matching reads
  c.pretrain.t_mean = 0.0  # of the logit of the flow time, which is normal
  c.pretrain.t_std = 1.0 if model else 1.2
  c.pretrain.noise_rows = 0.0  # share of rows at time 1
  c.pretrain.min_snr = 0.0  # gamma of Min-SNR; 0: all times weigh the same
  c.pretrain.wrong_shape = 0.08  # of drawn scenes' shape words, in captions
  # Adapters of the decoder, beside what is trainable; 0: none.
  c.pretrain.lora_rank = (32 if model else 8) if long else 0
  c.pretrain.lora_alpha = 2.0 * c.pretrain.lora_rank
  c.pretrain.lora_targets = umm1.ATTENTION
  c.pretrain.lora_export = 'merged'  # merged | adapter (a PEFT folder)
  return c
