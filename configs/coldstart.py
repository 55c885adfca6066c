"""Cold start of the embedded models. `--config=configs/coldstart.py:PART`.

Parts, in order: `reward`, `judge_clip`, `judge_views` (towers), `policy`
(captioner, connector and MM-DiT together), `decoder` (connector and MM-DiT
further, language model frozen), `one_step` (the same, half of the rows at
pure noise, so that one Euler step draws as well as several), `blind` (a
second captioner for an ablation: new eyes for the same language model, from
captions whose shape words are random, so that they never learn shapes).

Three more teach the finished models letters, for `configs/umm1.py:glyphs`:
`glyphs_policy` goes on from the bundled policy and decoder, `glyphs_decoder`
and `glyphs_one_step` from `bundled:umm1/glyphs`. That folder is made by them,
in this order: after each, all that is in `runs/coldstart-PART/export` is
copied into `uae_jax/assets/umm1/glyphs` (`policy` and `decoder` of the first,
`decoder` alone of the other two).

The weights in `uae_jax/assets/umm1` were made by these commands with the
seeds below; see the README there.
"""

import importlib.util
from pathlib import Path

from ml_collections import ConfigDict

TOWERS = {
  'reward': dict(seed=1, views='captions'),
  'judge_clip': dict(seed=2, views='captions'),
  'judge_views': dict(seed=3, views='images'),
}

PRETRAIN = {
  'policy': dict(
    trainable=('policy/.*', 'connector/.*', 'decoder/.*'), fresh=(),
    caption_weight=0.3, flow_weight=1.0, wrong_shape=0.08,
    noise_rows=0.0, seed=4, steps=2500, lr=1e-3,
  ),
  'decoder': dict(
    trainable=('connector/.*', 'decoder/.*'), fresh=(),
    caption_weight=0.0, flow_weight=1.0, wrong_shape=0.08,
    noise_rows=0.0, seed=5, steps=900, lr=8e-4,
  ),
  'one_step': dict(
    trainable=('connector/.*', 'decoder/.*'), fresh=(),
    caption_weight=0.0, flow_weight=1.0, wrong_shape=0.08,
    noise_rows=0.5, seed=7, steps=700, lr=6e-4,
  ),
  'blind': dict(
    trainable=('policy/vision/.*',), fresh=('policy/vision/.*',),
    caption_weight=1.0, flow_weight=0.0, wrong_shape=0.75,
    noise_rows=0.0, seed=6, steps=1500, lr=1e-3,
  ),
}  # fmt: skip
PRETRAIN |= {
  'glyphs_policy': {**PRETRAIN['policy'], 'seed': 21, 'steps': 1200},
  'glyphs_decoder': {**PRETRAIN['decoder'], 'seed': 22},
  'glyphs_one_step': {**PRETRAIN['one_step'], 'seed': 23},
}


def load(name: str):
  """configs/NAME.py, whose keys a cold start shares."""
  path = Path(__file__).with_name(f'{name}.py')
  spec = importlib.util.spec_from_file_location(name, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def get_config(part: str = '') -> ConfigDict:
  """The config of one part."""
  c = load('umm1').get_config()
  del c.grpo, c.lora, c.flow
  c.optim.schedule = 'cosine'
  c.optim.warmup = 100
  c.optim.b2 = 0.99
  c.optim.weight_decay = 0.01
  c.ckpt.every = 500
  c.ckpt.keep_best = False  # nothing is judged
  c.eval.every = 500
  c.ckpt.reward = ''
  c.ckpt.policy = ''
  c.ckpt.decoder = ''
  c.ckpt.judges = ''
  c.data.source = 'scenes:train'
  c.rollout.environment = 'policy'  # the language model is what it is
  if part in TOWERS:
    c.stage = 'tower'
    c.tower = ConfigDict()
    c.tower.views = TOWERS[part]['views']  # captions | images
    c.train.seed = TOWERS[part]['seed']
    c.train.steps = 700
    c.train.images = 128
    c.train.lr = 1e-3
    c.data.source = 'scenes:edits'
  elif part in PRETRAIN:
    c.stage = 'pretrain'
    c.pretrain = load('pretrain').get_config('align').pretrain
    spec = PRETRAIN[part]
    for key in (
      'noise_rows', 'trainable', 'fresh', 'caption_weight', 'flow_weight',
      'wrong_shape',
    ):  # fmt: skip
      c.pretrain[key] = spec[key]
    c.train.seed = spec['seed']
    c.train.steps = spec['steps']
    c.train.lr = spec['lr']
    c.train.images = 64
    if part != 'policy':
      c.ckpt.policy = 'bundled:umm1/policy'
      c.ckpt.decoder = 'bundled:umm1/decoder'
    if part.startswith('glyphs_'):
      c.data.source = 'glyphs:train'
      c.data.heldout = 'glyphs:heldout'
      c.rollout.length = 28
    if part in ('glyphs_decoder', 'glyphs_one_step'):
      c.ckpt.policy = 'bundled:umm1/glyphs/policy'
      c.ckpt.decoder = 'bundled:umm1/glyphs/decoder'
  else:
    raise ValueError(f'configs/coldstart.py:{part} is none of the parts')
  return c
