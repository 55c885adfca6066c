"""The only attention. Grouped queries, shared prefixes, softmax in fp32.

Every caption of a group attends to the same image prefix. A segment of keys
and values is stored once per image, [B S K H], or once per rollout,
[B G S K H]; the queries [B G L N H] meet all segments in one softmax without
a shared segment ever being copied G times.

A fused kernel, which never writes the scores to memory, is used where there
is one for the device, see `nn.kernels`; the products below are what it is
measured against.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from uae_jax.nn import kernels
from uae_jax.nn.stack import recomputed
from uae_jax.sharding import chunks
from uae_jax.sharding.rules import constrain

MASKED = -1e30  # finite, so that a fully masked row stays finite
CACHE = 4 * 2**20  # bytes of scores that are worked on at once on a CPU


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
    out = _in_pieces(q, segments, ids, bias)
  return constrain(out, 'batch', 'group', 'len', 'heads', 'emb')


def _in_pieces(q, segments, ids, bias):
  """`_attend` of as many images at once as a CPU's caches hold the scores of.

  Their gradient computes the scores again: that is faster than to fetch them.
  """
  b, g, l, n, _ = q.shape
  size = sum(segment.k.shape[-3] for segment in segments)
  rows = max(1, CACHE // (4 * g * n * l * size))
  if not kernels.in_pieces() or chunks.pieces(b, rows) == 1:
    return _attend(q, segments, ids, bias)

  def whole(segment):  # a mask may stand for all images
    there = segment.there
    if there is not None and len(there) != b:
      there = jnp.broadcast_to(there, (b, *there.shape[1:]))
    return segment.k, segment.v, there

  causal = [segment.causal for segment in segments]

  @recomputed
  def piece(_, q, parts, ids):
    segments = [Segment(*part, c) for part, c in zip(parts, causal)]
    return _attend(q, segments, ids, bias)

  return chunks.map_pieces(piece, rows, q, [*map(whole, segments)], ids)


def _attend(q, segments, ids=None, bias=None):
  """Scores, softmax and mean as products that are written out.

  Heads come first, so that all queries of an image that meet one head of keys
  are the rows of one product. What is not yet divided by its sum is averaged.
  """
  b, g, l, n, h = q.shape
  heads = segments[0].k.shape[-2]
  q = q.reshape(b, g, l, heads, n // heads, h).transpose(0, 3, 1, 4, 2, 5)
  scores, values, start = [], [], 0
  for segment in segments:
    keys, order = 'BKSH', (0, 2, 1, 3)
    if segment.k.ndim == 5:
      keys, order = 'BKGSH', (0, 3, 1, 2, 4)
    score = jnp.einsum(
      f'BKGMLH,{keys}->BKGMLS', q, segment.k.transpose(order)
    ).astype(jnp.float32)
    seen = visible(segment, l, ids)
    if seen is not None:
      score = jnp.where(seen[:, None, :, None], score, MASKED)
    if bias is not None:
      size = score.shape[-1]
      part = bias[..., start : start + size]
      score = score + part.reshape(heads, 1, n // heads, *part.shape[1:])
      start += size
    scores.append(score)
    values.append((keys, segment.v.transpose(order)))
  top = [jnp.max(score, -1, keepdims=True) for score in scores]
  top = jax.lax.stop_gradient(functools.reduce(jnp.maximum, top))
  weights = [jnp.exp(score - top) for score in scores]
  total = sum(jnp.sum(weight, -1, keepdims=True) for weight in weights)
  out = sum(
    jnp.einsum(f'BKGMLS,{keys}->BKGMLH', weight.astype(q.dtype), v)
    for weight, (keys, v) in zip(weights, values)
  )
  out = (out / total).astype(q.dtype)
  return out.transpose(0, 2, 4, 1, 3, 5).reshape(b, g, l, n, h)


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
