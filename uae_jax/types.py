"""The dimension letters, and the structs that travel between the modules.

Letters: B images, G rollouts per image (the group), L query or caption
tokens, S key or prefix tokens, N query heads, K key/value heads, H head dim,
D width, F mlp width, V vocabulary, P image patches, E patch vector, M merged
image tokens, I image codes, C channels, R rows and Q columns of an image's
pixels, T denoising steps, Y layers. A group is always an axis: arrays are
[B, G, ...].
"""

from typing import Any

import flax.struct
import jax
from jaxtyping import Array, Bool, Float, Int


@flax.struct.dataclass
class Batch:
  """B source images as the policy, the reward and the judges see them.

  Fields that a stage does not read are None (towers read image and full_ids).
  """

  image: Float[Array, 'B R Q 3']  # in [0, 1]: what the reward compares with
  patches: Float[Array, 'B P E'] | None = None  # merge-group-major, 0 padded
  patch_hw: Int[Array, 'B P 2'] | None = None  # row, column in the patch grid
  patch_window: Int[Array, 'B P'] | None = None  # attention window, -1 padded
  patch_image: Int[Array, 'B P'] | None = None  # image in the row, -1 padded
  prefix_ids: Int[Array, 'B S'] | None = None  # chat template, right padded
  prefix_positions: Int[Array, 'B 3 S'] | None = None  # M-RoPE
  prefix_mask: Bool[Array, 'B S'] | None = None
  image_tokens: Float[Array, 'B M D'] | None = None  # once they are seen
  caption_ids: Int[Array, 'B L'] | None = None  # partial caption with EOS
  caption_mask: Bool[Array, 'B L'] | None = None
  full_ids: Int[Array, 'B L'] | None = None  # full caption with EOS
  full_mask: Bool[Array, 'B L'] | None = None
  prompt_ids: Int[Array, 'B N L'] | None = None  # N texts to be drawn
  prompt_mask: Bool[Array, 'B N L'] | None = None


@flax.struct.dataclass
class KV:
  """Stacked keys and values [Y, B, (G,) S, K, H]."""

  k: Array
  v: Array


@flax.struct.dataclass
class Prefix:
  """What one image leaves for its G captions: computed once, shared."""

  kv: KV  # [Y B S K H]
  mask: Bool[Array, 'B S']
  hidden: Float[Array, 'B D']  # at the last prefix token, after the final norm
  position: Int[Array, 'B']  # M-RoPE position of the first caption token


@flax.struct.dataclass
class Prompt:
  """What each rollout's own text leaves for the image tokens after it."""

  kv: KV  # [Y B G S K H]
  mask: Bool[Array, 'B G S']
  hidden: Float[Array, 'B G D']  # at the last prompt token, final norm
  position: Int[Array, 'B G']  # of the first image token


@flax.struct.dataclass
class Captions:
  """Sampled captions with the log-probability they were drawn with."""

  tokens: Int[Array, 'B G L']  # pad after EOS
  mask: Bool[Array, 'B G L']  # True up to and including EOS
  logp: Float[Array, 'B G L']  # fp32, 0 where not mask


@flax.struct.dataclass
class Codes:
  """Images sampled as codes, with the log-probability drawn with."""

  tokens: Int[Array, 'B G I']
  logp: Float[Array, 'B G I']  # fp32


@flax.struct.dataclass
class Rollout:
  """One pass image -> text -> image -> reward."""

  captions: Captions
  images: Float[Array, 'B G R Q 3'] | None  # in [0, 1]; None where not drawn
  reward: Float[Array, 'B G']  # fp32, may be non-finite
  codes: Codes | None = None  # of the images, where they were sampled
  scores: dict[str, Float[Array, 'B G']] | None = None  # the reward's, raw
  path: Any = None  # of the images, where steps of their flow are trained


@flax.struct.dataclass
class TrainState:
  """Everything a step changes, and the frozen weights it reads."""

  step: Int[Array, '']
  params: Any  # what the optimizer trains; by part in a UMM: policy, decoder
  opt_state: Any
  skipped: Int[Array, '']  # updates in a row that were not made
  frozen: Any  # never changes, never saved
  ema: Any = None  # a moving average of params, where one is kept
  kl_scale: Any = None  # of the KL's weight, where it is steered
  norms: Any = None  # of gradients by turn, where spikes are skipped

  def saved(self) -> 'TrainState':
    """The part that a checkpoint holds."""
    return self.replace(frozen=None)

  def shown(self) -> 'TrainState':
    """With averages for parameters, where they are kept: what is evaluated."""
    return self if self.ema is None else self.replace(params=self.ema)


Metrics = dict[str, jax.Array]
