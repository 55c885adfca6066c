"""What readers of the paper ask, one switch each.

`--config=configs/ablations.py:QUESTION-RUN`, such as `:bottleneck-hidden`; all
runs of a question, and their comparison, by `python -m uae_jax.tools.sweep
--config=configs/ablations.py --question=bottleneck`. Every run is the default
of `configs/umm1.py`, or what `BASES` names, but for the keys below.
"""

import importlib.util
from pathlib import Path

from ml_collections import ConfigDict

TOWERS = 'bundled:umm1/reward,bundled:umm1/judge_views'
ENSEMBLE = {'ckpt.reward': TOWERS, 'ckpt.judges': 'bundled:umm1/judge_clip'}
# Of a question, or of one run of it: config file and its argument.
BASES = {
  'glyphs': ('umm1', 'glyphs'),
  'captions': ('pretrain', 'longcap'),
  'alignment-supervised': ('pretrain', 'align'),
}
SEVERAL = {'rollout.draw_steps': 4}  # the decoder's stages draw in as many

QUESTIONS = {
  # Does the decoder read words, or states that have seen the image?
  'bottleneck': {'text': {}, 'hidden': {'rollout.bottleneck': 'hidden'}},
  # Does the reader of captions drift with the policy?
  'environment': {
    'reference': {},
    'policy': {'rollout.environment': 'policy'},
  },
  # Do a group's drawings start from one noise?
  'noise': {'shared': {}, 'own': {'rollout.share_noise': False}},
  # One backbone, another, or several?
  'reward': {
    'clip': {'ckpt.judges': 'bundled:umm1/judge_clip'},
    'views': {
      'ckpt.reward': 'bundled:umm1/judge_views',
      'ckpt.judges': 'bundled:umm1/judge_clip',
    },
    'ensemble': ENSEMBLE,
    'standardised': {**ENSEMBLE, 'rewards.standardise': 'group'},
  },
  # Can a reward that hardly sees shapes teach a captioner that sees none?
  'eyes': {'shapes': {}, 'blind': {'ckpt.policy': 'bundled:umm1/blind'}},
  # Would rewarding the caption directly do, without a reconstruction?
  'direct': {
    'reconstruction': {},
    'caption': {
      'rewards.reconstruction_weight': 0.0,
      'rewards.text': 'source',
    },
    'both': {'rewards.text': 'source'},
  },
  # Do captions grow because length pays?
  'length': {
    'free': {},
    'costly': {'rewards.length_weight': 0.01, 'rewards.length_target': 12},
  },
  # What does a decoder learn from captions that leave things out?
  'captions': {'long': {}, 'short': {'pretrain.captions': 'partial'}},
  # Would reconstruction do as a supervised loss, without any reinforcement?
  'alignment': {
    'grpo': {},
    'supervised': {
      'rollout.bottleneck': 'hidden',
      'pretrain.captions': 'partial',
      'pretrain.caption_weight': 0.3,
      'pretrain.trainable': ('policy/lm/.*', 'connector/.*'),
      'pretrain.fresh': (),
      'train.steps': 500,
    },
  },
  # A symbolic term beside the reconstruction's.
  'symbolic': {
    'none': {},
    'hybrid': {
      'rewards.mine': 'uae_jax.data.scenes.rewards:caption_truth',
      'rewards.mine_weight': 0.3,
    },
  },
  # What becomes of letters, which no tower of the reward has ever seen?
  'glyphs': {
    'clip': {'ckpt.judges': 'bundled:umm1/judge_clip'},
    'ensemble': ENSEMBLE,
    'letters': {
      'ckpt.judges': 'bundled:umm1/judge_clip',
      'rewards.mine': 'uae_jax.data.scenes.rewards:letters_said',
      'rewards.mine_weight': 0.3,
    },
  },
  # As many captions a step, in larger groups of fewer images.
  'group': {
    '2': {'train.group_size': 2, 'train.images': 96},
    '4': {'train.group_size': 4, 'train.images': 48},
    '8': {},
    '16': {'train.group_size': 16, 'train.images': 12},
  },
  'kl': {
    '0': {'grpo.beta': 0.0},
    '0.005': {},
    '0.05': {'grpo.beta': 0.05},
  },
  # GRPO, DAPO, Dr.GRPO, GSPO.
  'objective': {
    'token': {},
    'sequence': {'grpo.aggregation': 'sequence'},
    'constant': {'grpo.aggregation': 'constant', 'grpo.scale': 'none'},
    'gspo': {'grpo.aggregation': 'sequence', 'grpo.ratio': 'sequence'},
  },
  'adapters': {'full': {}, 'lora': {'lora.rank': 8}},
  # Which of the two is trained?
  'stage': {
    'encoder': SEVERAL,
    'decoder': {**SEVERAL, 'stage': 'decoder'},
    'alternate': {**SEVERAL, 'stage': 'alternate'},
    'joint': {**SEVERAL, 'stage': 'joint'},
  },
}

# One run of several questions beside the default, scored by one judge that
# none of them is rewarded by: a first look.
_TOUR = {
  'default': {},
  'shape-blind': QUESTIONS['eyes']['blind'],
  'views-reward': QUESTIONS['reward']['views'],
  'hidden-states': QUESTIONS['bottleneck']['hidden'],
  'group-of-2': QUESTIONS['group']['2'],
  'no-kl': QUESTIONS['kl']['0'],
}
QUESTIONS['tour'] = {
  run: {**QUESTIONS['reward']['clip'], **changes}
  for run, changes in _TOUR.items()
}


def get_config(arg: str = '') -> ConfigDict:
  """The config of one run."""
  question, _, run = arg.partition('-')
  if question not in QUESTIONS or run not in QUESTIONS[question]:
    known = [f'{q}-{r}' for q, runs in QUESTIONS.items() for r in runs]
    raise ValueError(f'configs/ablations.py:{arg} is none of {known}')
  name, variant = BASES.get(arg, BASES.get(question, ('umm1', '')))
  path = Path(__file__).with_name(f'{name}.py')
  spec = importlib.util.spec_from_file_location(name, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  c = module.get_config(variant)
  c.update_from_flattened_dict(QUESTIONS[question][run])
  return c
