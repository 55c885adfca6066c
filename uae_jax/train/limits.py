"""What the numbers of a config may be.

Looked up before anything is built. Where a number has to fit to others, or is
of one stage alone, whoever reads it checks that too.
"""

import math
import re

from uae_jax.errors import UserError
from uae_jax.train.workdir import flat

ANY, SMALL, MOST = math.inf, 1e-9, 2**31 - 1
COUNT, NUMBER = (1, MOST), (0, MOST)  # at least one; may be none
FACTOR, RATE, SHARE, POSITIVE = (0, 1e9), (0, 1e6), (0, 1), (SMALL, 1e9)
LIMITS = {
  'train.steps': NUMBER,
  'train.images': COUNT,
  'train.oversample': COUNT,
  'train.group_size': COUNT,
  'train.seed': NUMBER,
  'train.lr': (0, 1e38),
  'train.max_skipped': COUNT,
  'guard.spike': FACTOR,
  'guard.rollbacks': NUMBER,
  'lora.rank': NUMBER,
  'lora.alpha': FACTOR,
  'optim.warmup': NUMBER,
  'optim.lr_floor': SHARE,
  'optim.b1': (0, 1 - SMALL),
  'optim.b2': (0, 1 - SMALL),
  'optim.eps': (0, 1e9),
  'optim.weight_decay': RATE,
  'optim.clip_norm': POSITIVE,
  'optim.accumulate': COUNT,
  'optim.ema': (0, 1 - SMALL),
  'optim.inner_epochs': COUNT,
  'optim.minibatches': COUNT,
  'grpo.beta': FACTOR,
  'grpo.image_beta': FACTOR,
  'grpo.kl_target': FACTOR,
  'grpo.clip_low': SHARE,
  'grpo.clip_high': FACTOR,
  'grpo.entropy': (-1e9, 1e9),
  'grpo.caption_weight': FACTOR,
  'grpo.image_weight': FACTOR,
  'flow.lr': RATE,
  'flow.noise': POSITIVE,
  'flow.window': COUNT,
  'flow.clip': FACTOR,
  'flow.beta': FACTOR,
  'flow.weight': FACTOR,
  'flow.lora_rank': NUMBER,
  'flow.lora_alpha': FACTOR,
  'rewards.reconstruction_weight': FACTOR,
  'rewards.length_weight': FACTOR,
  'rewards.length_target': NUMBER,
  'rewards.repetition_weight': FACTOR,
  'rewards.ngram': COUNT,
  'rewards.text_weight': FACTOR,
  'rewards.mine_weight': FACTOR,
  'rollout.length': (2, MOST),  # a word and its end
  'rollout.temperature': FACTOR,
  'rollout.top_k': NUMBER,
  'rollout.top_p': (SMALL, 1),
  'rollout.image_temperature': FACTOR,
  'rollout.image_top_k': NUMBER,
  'rollout.image_top_p': (SMALL, 1),
  'rollout.draw_steps': COUNT,
  'rollout.shift': FACTOR,
  'rollout.guidance': FACTOR,
  'data.threads': (0, 1024),
  'data.max_bad': SHARE,
  'data.side': (1, 2**14),
  'data.max_pixels': COUNT,
  'model.chunk': NUMBER,
  'memory.rollout_images': NUMBER,
  'memory.drawings': NUMBER,
  'memory.update_images': NUMBER,
  'ckpt.every': COUNT,
  'ckpt.keep': COUNT,
  'eval.every': COUNT,
  'eval.images': COUNT,
  'eval.batch': COUNT,
  'eval.gallery': COUNT,
  'eval.draw_steps': NUMBER,
  'eval.patience': NUMBER,
  'log.every': (0, ANY),
  'mesh.data': (-1, MOST),
  'mesh.model': COUNT,
  'pretrain.caption_weight': FACTOR,
  'pretrain.code_weight': FACTOR,
  'pretrain.pixel_weight': FACTOR,
  'pretrain.flow_weight': FACTOR,
  'pretrain.t_mean': (-1e9, 1e9),
  'pretrain.t_std': FACTOR,
  'pretrain.noise_rows': SHARE,
  'pretrain.full_rows': SHARE,
  'pretrain.drop_rows': SHARE,
  'pretrain.wrong_shape': SHARE,
  'pretrain.min_snr': FACTOR,
  'pretrain.lora_rank': NUMBER,
  'pretrain.lora_alpha': FACTOR,
}


PATTERNS = (
  'train.trainable', 'lora.targets', 'flow.trainable', 'pretrain.trainable',
  'pretrain.fresh', 'flow.lora_targets', 'pretrain.lora_targets',
)  # fmt: skip


def check(config) -> None:
  """Looks at all numbers and patterns.

  Raises:
    UserError: one is out of its range, or no regular expression.
  """
  for key, value in flat(config.to_dict()).items():
    if key in PATTERNS:
      _check_patterns(key, value)
    if key not in LIMITS:
      continue
    low, high = LIMITS[key]
    if not low <= value <= high:  # nor is NaN
      if high >= 1e6:
        raise UserError(f'{key}={value} must be at least {low:g}')
      raise UserError(f'{key}={value} is not between {low:g} and {high:g}')


def _check_patterns(key: str, value) -> None:
  for pattern in value:
    try:
      re.compile(pattern)
    except (re.error, TypeError, RecursionError, OverflowError) as e:
      raise UserError(
        f'{key}: {pattern!r} is no regular expression: {e}'
      ) from None
