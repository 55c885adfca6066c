"""Group-relative advantages.

GRPO: Shao et al. 2024, DeepSeekMath, https://arxiv.org/abs/2402.03300,
section 4.1.2. Dr.GRPO, without the division: Liu et al. 2025,
https://arxiv.org/abs/2503.20783. Dropping groups that teach nothing: DAPO's
dynamic sampling, Yu et al. 2025, https://arxiv.org/abs/2503.14476.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

SCALES = ('std', 'none')


def group_advantage(
  reward: Float[Array, 'B G'],
  valid: Bool[Array, 'B'],
  scale: str = 'std',
  *,
  filter_zero_std: bool = False,
  eps: float = 1e-6,
  zero: float = 1e-5,
) -> tuple[Float[Array, 'B G'], Bool[Array, 'B'], dict[str, Array]]:
  """(reward - group mean) / (group std + eps), std over all G (ddof 0).

  A group whose std is at most `zero` times its largest |reward| differs only
  by rounding: its advantage is exactly 0, not amplified noise. Groups that
  are not `valid` get 0 too and count in no statistic but `reward/invalid`.

  Args:
    reward: fp32, finite where valid.
    valid: groups whose rewards are all finite.
    scale: 'std', or 'none' for Dr.GRPO.
    filter_zero_std: also leave zero-variance groups out of the loss's
      denominator; otherwise they count there with zero gain.
    eps: added to the std.
    zero: relative floor below which a std is zero.

  Returns:
    The advantages, the groups that belong in the loss, and metrics:
    reward/mean, reward/std (mean of the group stds), reward/zero_std
    (fraction of the valid groups), reward/invalid (number of groups).

  Raises:
    ValueError: for an unknown scale.
  """
  if scale not in SCALES:
    raise ValueError(f'scale={scale!r} is none of {SCALES}')
  reward = jnp.where(valid[:, None], reward.astype(jnp.float32), 0.0)
  mean = jnp.mean(reward, -1, keepdims=True)
  centred = reward - mean
  std = jnp.sqrt(jnp.mean(centred**2, -1))
  flat = std <= zero * jnp.max(jnp.abs(reward), -1)
  adv = centred / (std[:, None] + eps) if scale == 'std' else centred
  adv = jnp.where((valid & ~flat)[:, None], adv, 0.0)

  groups = jnp.maximum(jnp.sum(valid), 1)
  over_valid = lambda x: jnp.sum(jnp.where(valid, x, 0.0)) / groups
  metrics = {
    'reward/mean': over_valid(mean[:, 0]),
    'reward/std': over_valid(std),
    'reward/zero_std': over_valid(flat.astype(jnp.float32)),
    'reward/invalid': jnp.sum(~valid).astype(jnp.float32),
  }
  return adv, valid & ~flat if filter_zero_std else valid, metrics
