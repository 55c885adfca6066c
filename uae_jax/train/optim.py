"""AdamW, schedules and clipping from optax."""

import optax

from uae_jax import trees
from uae_jax.errors import UserError
from uae_jax.train.parts import MATRICES


def schedule(config) -> optax.Schedule:
  """Learning rate by update; `train.schedule` is constant|linear|cosine.

  Raises:
    UserError: on another name.
  """
  t = config.train
  updates = t.steps * config.optim.inner_epochs * config.optim.minibatches
  peak, floor = t.lr, t.lr * config.optim.lr_floor
  body = max(updates - config.optim.warmup, 1)
  if config.optim.schedule == 'constant':
    after = optax.constant_schedule(peak)
  elif config.optim.schedule == 'linear':
    after = optax.linear_schedule(peak, floor, body)
  elif config.optim.schedule == 'cosine':
    after = optax.cosine_decay_schedule(peak, body, alpha=config.optim.lr_floor)
  else:
    raise UserError(
      f'optim.schedule={config.optim.schedule!r}: use constant, linear or '
      'cosine'
    )
  if not config.optim.warmup:
    return after
  start = optax.linear_schedule(0.0, peak, config.optim.warmup)
  return optax.join_schedules([start, after], [config.optim.warmup])


def make(config) -> optax.GradientTransformation:
  """Clip by global norm, then AdamW; only matrices decay."""
  o = config.optim
  return optax.chain(
    optax.clip_by_global_norm(o.clip_norm),
    optax.adamw(
      schedule(config),
      b1=o.b1,
      b2=o.b2,
      eps=o.eps,
      weight_decay=o.weight_decay,
      mask=lambda params: trees.mask(params, (MATRICES,)),
    ),
  )
