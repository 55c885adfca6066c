"""The only attention. Grouped queries, shared prefixes, softmax in fp32.

Every caption of a group attends to the same image prefix. A segment of keys
and values is stored once per image, [B S K H], or once per rollout,
[B G S K H]; the queries [B G L N H] meet all segments in one softmax without
a shared segment ever being copied G times.

A fused kernel, which never writes the scores to memory, is used where there
is one for the device, see `nn.kernels`; the products below are what it is
measured against.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from uae_jax.nn import kernels
from uae_jax.sharding.rules import constrain

MASKED = -1e30  # finite, so that a fully masked row stays finite


class Segment(NamedTuple):
  """Keys and values that queries may look at.

  Attributes:
    k: keys, [B S K H] shared by a group, or [B G S K H].
    v: values of the same shape.
    there: bool [B S] or [B G S], False where padded; None is all there.
    causal: key s is seen from query s on; else from every query.
  """

  k: Array
  v: Array
  there: Array | None = None
  causal: bool = False


def attend(
  q: Float[Array, 'B L N H'],
  k: Float[Array, 'B S K H'],
  v: Float[Array, 'B S K H'],
  there: Bool[Array, 'B S'] | None = None,
  *,
  causal: bool = False,
  ids: Int[Array, 'B S'] | None = None,
  bias: Float[Array, 'N L S'] | None = None,
  scale: float | None = None,
) -> Float[Array, 'B L N H']:
  """softmax(scale q k + bias) v; N is a multiple of K (grouped queries).

  Args:
    q: queries.
    k: keys.
    v: values.
    there: False where a key is padding.
    causal: query l sees keys up to l.
    ids: of queries and keys alike, of which equal ones see each other.
    bias: added to the scores.
    scale: 1 / sqrt(H) unless given.
  """
  segment = Segment(k, v, there, causal)
  out = attend_group(q[:, None], [segment], ids=ids, bias=bias, scale=scale)
  return out[:, 0]


def attend_group(
  q: Float[Array, 'B G L N H'],
  segments: Sequence[Segment],
  *,
  ids: Int[Array, 'B S'] | None = None,
  bias: Float[Array, 'N L S'] | None = None,
  scale: float | None = None,
) -> Float[Array, 'B G L N H']:
  """One softmax over the keys of all segments, shared or per rollout.

  A `bias` is added to the scores of all rows; its keys are those of all
  segments, one after the other. `ids` are for one segment, and G = 1.
  """
  h = q.shape[-1]
  scale = np.asarray(h**-0.5 if scale is None else scale, q.dtype)
  q = constrain(q, 'batch', 'group', 'len', 'heads', 'emb') * scale
  kernel = None if bias is not None else kernels.choose(q, segments)
  if kernel is not None:
    out = kernel(q, segments, ids)
  else:
    out = _attend(q, segments, ids, bias)
  return constrain(out, 'batch', 'group', 'len', 'heads', 'emb')


def _attend(q, segments, ids=None, bias=None):
  """Scores, softmax and mean as products that are written out."""
  b, g, l, n, h = q.shape
  heads = segments[0].k.shape[-2]
  q = q.reshape(b, g, l, heads, n // heads, h)
  scores = []
  for segment in segments:
    keys = 'BSKH' if segment.k.ndim == 4 else 'BGSKH'
    score = jnp.einsum(f'BGLKMH,{keys}->BGKMLS', q, segment.k)
    score = score.astype(jnp.float32)
    seen = visible(segment, l, ids)
    if seen is not None:
      score = jnp.where(seen[:, :, None, None], score, MASKED)
    scores.append(score)
  scores = jnp.concatenate(scores, -1)
  if bias is not None:
    scores = scores + bias.reshape(heads, n // heads, *bias.shape[1:])
  probs = jax.nn.softmax(scores, -1).astype(q.dtype)
  out, start = 0, 0
  for segment in segments:
    size = segment.v.shape[-3]
    values = 'BSKH' if segment.v.ndim == 4 else 'BGSKH'
    part = probs[..., start : start + size]
    out = out + jnp.einsum(f'BGKMLS,{values}->BGLKMH', part, segment.v)
    start += size
  return out.reshape(b, g, l, n, h)


def visible(
  segment: Segment, l: int, ids: Int[Array, 'B S'] | None = None
) -> Bool[Array, '#B #G #L S'] | None:
  """Which of a segment's keys each of l queries sees; None is all."""
  seen = None
  both = lambda mask: mask if seen is None else seen & mask
  if segment.causal:
    size = segment.k.shape[-3]
    seen = jnp.tril(jnp.ones((l, size), bool))[None, None]
  if ids is not None:
    seen = both((ids[:, :, None] == ids[:, None, :])[:, None])
  if segment.there is not None:
    there = segment.there
    there = there[:, None] if there.ndim == 2 else there
    seen = both(there[:, :, None])
  return seen
