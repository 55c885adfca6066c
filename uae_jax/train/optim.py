"""AdamW, schedules and clipping from optax; an optimizer for each part."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax
import optax

from uae_jax import trees
from uae_jax.errors import UserError
from uae_jax.train.parts import MATRICES


@dataclasses.dataclass(frozen=True)
class ByPart:
  """An optimizer for each part of the parameters; some may stay as they are.

  Has the two functions of `optax.GradientTransformation`.

  Attributes:
    parts: by name of the part.
  """

  parts: Mapping[str, optax.GradientTransformation]

  def init(self, params: Mapping[str, Any]) -> dict[str, Any]:
    """The state of every part."""
    return {k: one.init(params[k]) for k, one in self.parts.items()}

  def update(
    self, grads: Mapping[str, Any], state: Mapping[str, Any], params: Any
  ) -> tuple[dict[str, Any], dict[str, Any]]:
    """Updates of the parts that have a gradient; the others' state stays."""
    done = {
      k: self.parts[k].update(grad, state[k], params[k])
      for k, grad in grads.items()
    }
    after = {k: one for k, (_, one) in done.items()}
    return {k: one for k, (one, _) in done.items()}, {**state, **after}


def schedule(config, peak: float, share: float) -> optax.Schedule:
  """Learning rate by update; `optim.schedule` is constant|linear|cosine.

  Args:
    config: of the run.
    peak: the rate after the warm-up.
    share: of the steps, that change this part.

  Raises:
    UserError: on another name.
  """
  updates = config.optim.inner_epochs * config.optim.minibatches
  updates = int(config.train.steps * updates * share)
  updates //= config.optim.accumulate
  floor = peak * config.optim.lr_floor
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


def make(
  config, lr: float | None = None, share: float = 1.0
) -> optax.GradientTransformation:
  """Clip by global norm, then AdamW; only matrices decay.

  Args:
    config: of the run.
    lr: instead of `train.lr`.
    share: see `schedule`.
  """
  o, lr = config.optim, config.train.lr if lr is None else lr
  made = optax.chain(
    optax.clip_by_global_norm(o.clip_norm),
    optax.adamw(
      schedule(config, lr, share),
      b1=o.b1,
      b2=o.b2,
      eps=o.eps,
      weight_decay=o.weight_decay,
      mask=lambda params: trees.mask(params, (MATRICES,)),
    ),
    *(_scaled(*one.rsplit('=', 1)) for one in o.groups),
  )
  if o.accumulate > 1:
    return optax.MultiSteps(made, o.accumulate).gradient_transformation()
  return made


def check(config) -> None:
  """Raises UserError for what no optimizer can be made of."""
  o = config.optim
  for one in o.groups:
    pattern, _, factor = one.rpartition('=')
    try:
      re.compile(pattern)
      ok = float(factor) >= 0
    except (ValueError, re.error):
      ok = False
    if not ok:
      raise UserError(f'optim.groups: {one!r} is not REGEX=FACTOR')
  if o.accumulate < 1:
    raise UserError(f'optim.accumulate={o.accumulate} must be at least 1')
  if not 0 <= o.ema < 1:
    raise UserError(f'optim.ema={o.ema} is not in [0, 1)')


def _scaled(pattern: str, factor: str) -> optax.GradientTransformation:
  """Updates of matching paths times a factor; 0 freezes them."""

  def update(updates, state, params=None):
    del params
    chosen = trees.mask(updates, (pattern,))
    scale = lambda x, yes: x * float(factor) if yes else x
    return jax.tree.map(scale, updates, chosen), state

  return optax.GradientTransformation(lambda _: optax.EmptyState(), update)
