"""The only attention. Grouped queries, shared prefixes, softmax in fp32.

Every caption of a group attends to the same image prefix. A segment of keys
and values is stored once per image, [B S K H], or once per rollout,
[B G S K H]; the queries [B G L N H] meet all segments in one softmax without
a shared segment ever being copied G times.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from uae_jax.sharding.rules import constrain

MASKED = -1e30  # finite, so that a fully masked row stays finite

# keys, values, mask broadcastable to [B G L S] or None (all visible)
Segment = tuple[Array, Array, Array | None]


def attend(
  q: Float[Array, 'B L N H'],
  k: Float[Array, 'B S K H'],
  v: Float[Array, 'B S K H'],
  mask: Bool[Array, '#B #L S'] | None = None,
  *,
  bias: Float[Array, 'N L S'] | None = None,
  scale: float | None = None,
) -> Float[Array, 'B L N H']:
  """softmax(scale q k + bias) v; N is a multiple of K (grouped queries).

  The scale is 1 / sqrt(H) unless given.
  """
  mask = None if mask is None else mask[:, None]
  return attend_group(q[:, None], [(k, v, mask)], bias=bias, scale=scale)[:, 0]


def attend_group(
  q: Float[Array, 'B G L N H'],
  segments: Sequence[Segment],
  *,
  bias: Float[Array, 'N L S'] | None = None,
  scale: float | None = None,
) -> Float[Array, 'B G L N H']:
  """One softmax over the keys of all segments, shared or per rollout.

  A `bias` is added to the scores of all rows; its keys are those of all
  segments, one after the other.
  """
  b, g, l, n, h = q.shape
  heads = segments[0][0].shape[-2]
  scale = np.asarray(h**-0.5 if scale is None else scale, q.dtype)
  q = constrain(q, 'batch', 'group', 'len', 'heads', 'emb') * scale
  q = q.reshape(b, g, l, heads, n // heads, h)
  scores = []
  for k, _, mask in segments:
    keys = 'BSKH' if k.ndim == 4 else 'BGSKH'
    score = jnp.einsum(f'BGLKMH,{keys}->BGKMLS', q, k).astype(jnp.float32)
    if mask is not None:
      score = jnp.where(mask[:, :, None, None], score, MASKED)
    scores.append(score)
  scores = jnp.concatenate(scores, -1)
  if bias is not None:
    scores = scores + bias.reshape(heads, n // heads, *bias.shape[1:])
  probs = jax.nn.softmax(scores, -1).astype(q.dtype)
  out, start = 0, 0
  for _, v, _ in segments:
    size = v.shape[-3]
    values = 'BSKH' if v.ndim == 4 else 'BGSKH'
    part = probs[..., start : start + size]
    out = out + jnp.einsum(f'BGKMLS,{values}->BGLKMH', part, v)
    start += size
  out = out.reshape(b, g, l, n, h)
  return constrain(out, 'batch', 'group', 'len', 'heads', 'emb')
