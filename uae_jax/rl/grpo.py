"""The clipped policy objective with a KL penalty; arithmetic, no models.

GRPO: DeepSeekMath, https://arxiv.org/abs/2402.03300, eq. 3 (objective) and
eq. 4 (KL). DAPO (two clip bounds, token aggregation):
https://arxiv.org/abs/2503.14476, eq. 8. Dr.GRPO (constant divisor):
https://arxiv.org/abs/2503.20783. GSPO (sequence ratio):
https://arxiv.org/abs/2507.18071, eq. 7. KL estimators: Schulman,
http://joschu.net/blog/kl-approx.html.

Letters: B images, G rollouts per image, L caption tokens.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

KLS = ('k1', 'k2', 'k3')
AGGREGATIONS = ('sequence', 'token', 'constant')
RATIOS = ('token', 'sequence')

# Log-ratios are cut at +-20 (zero gradient beyond), so that a token outside
# of one policy's top-k/top-p set gives a finite ratio and a finite KL.
BOUND = 20.0


@dataclasses.dataclass(frozen=True)
class GRPO:
  """Options of `grpo_loss`.

  Attributes:
    clip_low: the ratio is clipped below 1 - clip_low.
    clip_high: and above 1 + clip_high; DAPO sets it larger than clip_low.
    beta: weight of the KL to the reference; 0 needs no reference.
    kl: estimator, see `kl_estimate`.
    aggregation: from tokens to a number, see `aggregate`.
    ratio: 'token' (GRPO) or 'sequence' (GSPO).
  """

  clip_low: float = 0.2
  clip_high: float = 0.2
  beta: float = 0.0
  kl: str = 'k3'
  aggregation: str = 'sequence'
  ratio: str = 'token'

  def __post_init__(self):
    for name, known in (
      ('kl', KLS),
      ('aggregation', AGGREGATIONS),
      ('ratio', RATIOS),
    ):
      value = dataclasses.asdict(self)[name]
      if value not in known:
        raise ValueError(f'{name}={value!r} is none of {known}')
    if not 0 <= self.clip_low < 1 or self.clip_high < 0 or self.beta < 0:
      raise ValueError(
        f'{self}: set 0 <= clip_low < 1, clip_high >= 0 and beta >= 0'
      )


def _log_ratio(logp, old_logp, mask):
  """log(new / old), 0 where masked, whatever the masked numbers are."""
  gap = jnp.where(mask, logp - jax.lax.stop_gradient(old_logp), 0.0)
  return jnp.clip(gap, -BOUND, BOUND)


def token_ratio(
  logp: Float[Array, 'B G L'],
  old_logp: Float[Array, 'B G L'],
  mask: Bool[Array, 'B G L'],
) -> Float[Array, 'B G L']:
  """pi / pi_old of each token (DeepSeekMath eq. 3); 1 where masked."""
  return jnp.exp(_log_ratio(logp, old_logp, mask))


def sequence_ratio(
  logp: Float[Array, 'B G L'],
  old_logp: Float[Array, 'B G L'],
  mask: Bool[Array, 'B G L'],
) -> Float[Array, 'B G L']:
  """(pi / pi_old)^(1 / length) of each caption (GSPO eq. 7), at each token.

  1 where masked. Under aggregation 'sequence' this is the GSPO objective.
  """
  total = jnp.sum(_log_ratio(logp, old_logp, mask), -1, keepdims=True)
  length = jnp.maximum(jnp.sum(mask, -1, keepdims=True), 1)
  return jnp.where(mask, jnp.exp(total / length), 1.0)


def clipped_gain(
  ratio: Float[Array, '*s'],
  adv: Float[Array, '*s'],
  clip_low: float,
  clip_high: float,
) -> Float[Array, '*s']:
  """min(r A, clip(r, 1 - clip_low, 1 + clip_high) A) (DAPO eq. 8)."""
  clipped = jnp.clip(ratio, 1 - clip_low, 1 + clip_high)
  return jnp.minimum(ratio * adv, clipped * adv)


def kl_estimate(
  logp: Float[Array, '*s'], ref_logp: Float[Array, '*s'], kind: str = 'k3'
) -> Float[Array, '*s']:
  """Per-token estimate of KL(pi || ref) from tokens drawn from pi.

  With d = log ref - log pi: k1 = -d (unbiased; as a loss term its expected
  gradient is zero), k2 = d^2 / 2 (biased, low variance), k3 = e^d - d - 1
  (unbiased, never negative; DeepSeekMath eq. 4).

  Raises:
    ValueError: for an unknown kind.
  """
  gap = jnp.clip(jax.lax.stop_gradient(ref_logp) - logp, -BOUND, BOUND)
  if kind == 'k1':
    return -gap
  if kind == 'k2':
    return gap**2 / 2
  if kind == 'k3':
    return jnp.exp(gap) - gap - 1
  raise ValueError(f'kl={kind!r} is none of {KLS}')


def shares(
  mask: Bool[Array, 'B G L'], how: str, budget: int
) -> Float[Array, 'B G L']:
  """What each token weighs in the number that `aggregate` makes; 0 if masked.

  Known before any model has run, so that a batch can be added up in pieces.
  Captions without a token under the mask are in no numerator and in no
  denominator.

  Args:
    mask: True where a token counts.
    how: 'sequence', mean over a caption's tokens, then over captions (GRPO);
      'token', mean over all tokens (DAPO); 'constant', sum over all tokens
      divided by captions * budget (Dr.GRPO).
    budget: the token budget L of a caption, for 'constant'.

  Raises:
    ValueError: for an unknown `how`.
  """
  lengths = jnp.sum(mask, -1, keepdims=True)
  captions = jnp.maximum(jnp.sum(lengths > 0), 1)
  if how == 'sequence':
    divisor = jnp.maximum(lengths, 1) * captions
  elif how == 'token':
    divisor = jnp.maximum(jnp.sum(lengths), 1)
  elif how == 'constant':
    divisor = captions * budget
  else:
    raise ValueError(f'aggregation={how!r} is none of {AGGREGATIONS}')
  return jnp.where(mask, 1.0 / divisor, 0.0)


def add_up(
  values: Float[Array, 'B G L'],
  mask: Bool[Array, 'B G L'],
  share: Float[Array, 'B G L'],
) -> Float[Array, '']:
  """Sum of values times shares; values are anything, NaN too, where masked."""
  return jnp.sum(jnp.where(mask, values, 0.0) * share)


def aggregate(
  values: Float[Array, 'B G L'],
  mask: Bool[Array, 'B G L'],
  how: str,
  budget: int,
) -> Float[Array, '']:
  """One number from the tokens under the mask; see `shares`."""
  return add_up(values, mask, shares(mask, how, budget))


def grpo_loss(
  logp: Float[Array, 'B G L'],
  old_logp: Float[Array, 'B G L'],
  ref_logp: Float[Array, 'B G L'] | None,
  adv: Float[Array, 'B G'],
  mask: Bool[Array, 'B G L'],
  options: GRPO,
  loss_share: Float[Array, 'B G L'] | None = None,
  mean_share: Float[Array, 'B G L'] | None = None,
  kl: Float[Array, 'B G L'] | None = None,
  kl_scale: float | Float[Array, ''] = 1.0,
) -> tuple[Float[Array, ''], dict[str, Array]]:
  """-aggregate(clipped gain - beta KL), to be minimised.

  Masked tokens contribute neither value nor gradient, even where their
  log-probabilities are NaN. The gradient flows through `logp` only.

  Args:
    logp: fp32, under the policy that is updated.
    old_logp: fp32, under the distribution drawn from.
    ref_logp: fp32, under the reference; None where beta is 0.
    adv: one advantage per caption.
    mask: tokens that count; all False for a caption left out.
    options: see `GRPO`.
    loss_share: of each token in the loss, where these are a piece of a batch;
      None: they are all of it.
    mean_share: of each token in the metrics that are means.
    kl: of each token, where it is known and need not be estimated.
    kl_scale: times beta is the KL's weight.

  Returns:
    The loss, and metrics: policy/clip_frac_low|high (fraction of tokens
    whose gradient the bound removed), policy/ratio_max, policy/ratio_gap
    (max |r - 1|) and, with a reference, policy/kl (mean over tokens).

  Raises:
    ValueError: when beta > 0 comes without a reference.
  """
  if options.beta > 0 and ref_logp is None and kl is None:
    raise ValueError('beta > 0 needs the reference log-probabilities')
  mask = mask.astype(bool)
  ratio_of = {'token': token_ratio, 'sequence': sequence_ratio}[options.ratio]
  ratio = ratio_of(logp, old_logp, mask)
  adv = jnp.where(mask, jax.lax.stop_gradient(adv)[..., None], 0.0)
  gain = clipped_gain(ratio, adv, options.clip_low, options.clip_high)
  budget = mask.shape[-1]
  if loss_share is None:
    loss_share = shares(mask, options.aggregation, budget)
  if mean_share is None:
    mean_share = shares(mask, 'token', budget)
  fraction = lambda x: add_up(x.astype(jnp.float32), mask, mean_share)
  metrics = {
    'policy/clip_frac_low': fraction(
      (ratio < 1 - options.clip_low) & (adv < 0)
    ),
    'policy/clip_frac_high': fraction(
      (ratio > 1 + options.clip_high) & (adv > 0)
    ),
    'policy/ratio_max': jnp.max(jnp.where(mask, ratio, 0.0)),
    'policy/ratio_gap': jnp.max(jnp.abs(ratio - 1)),
  }
  if ref_logp is not None:
    # Where masked both are 0 before the exponential: no NaN can come back.
    kl = kl_estimate(
      jnp.where(mask, logp, 0.0), jnp.where(mask, ref_logp, 0.0), options.kl
    )
  if kl is not None:
    metrics['policy/kl'] = fraction(kl)
    gain = gain - options.beta * kl_scale * kl
  loss = -add_up(gain, mask, loss_share)
  return loss, jax.lax.stop_gradient(metrics)
