"""Fused attention: splash on TPUs, cuDNN on GPUs.

A kernel works through blocks of queries and keys and never writes the scores
to memory. Both get one geometry, [B T N H] queries against [B S K H] keys:
the G captions of an image lie one after the other before what they share,

    queries      caption 0 | caption 1 | shared prefix
    caption 0    causal    | nothing   | all
    caption 1    nothing   | causal    | all

and blocks of nothing are skipped. In bf16 a kernel's output is within 2e-2 of
the largest value of the written-out products (tests/nn/attention_test.py).
"""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from uae_jax.errors import UserError

KINDS = ('auto', 'splash', 'cudnn', 'xla')
SHORTEST = 128  # queries; decoding, one at a time, is not worth a kernel
BLOCKS = (512, 384, 256, 128)
_KIND = contextvars.ContextVar('attention', default='auto')


@contextlib.contextmanager
def use(kind: str) -> Iterator[None]:
  """What is traced inside attends by `kind`, one of `KINDS`.

  'auto' is splash on TPUs and written-out products elsewhere: cuDNN has to be
  asked for.

  Raises:
    UserError: no such kind.
  """
  if kind not in KINDS:
    raise UserError(f'model.attention={kind!r} is none of {KINDS}')
  token = _KIND.set(kind)
  try:
    yield
  finally:
    _KIND.reset(token)


def platform() -> str:
  """Of the devices that a program is traced for."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  return device.platform if device else jax.default_backend()


def in_pieces() -> bool:
  """Are products written out image by image? On CPUs, unless 'xla' is said."""
  return platform() == 'cpu' and _KIND.get() != 'xla'


def choose(q: Any, segments: Sequence[Any]) -> Callable[..., Any] | None:
  """The kernel for these [B G L N H] queries; None where there is none."""
  on, kind = platform(), _KIND.get()
  if kind == 'auto':
    kind = 'splash' if on == 'tpu' else 'xla'
  long = q.shape[2] >= SHORTEST and q.dtype == jnp.bfloat16
  if any(s.k.ndim == 4 and np.ndim(s.there) == 3 for s in segments):
    return None  # what is shared would be padded differently for each
  if kind == 'splash' and on == 'tpu' and long:
    return splash
  small = q.shape[-1] % 8 == 0 and q.shape[-1] <= 128
  if kind == 'cudnn' and on in ('gpu', 'cuda') and long and small:
    return functools.partial(dot_product, implementation='cudnn')
  return None


def flattened(q, segments) -> tuple[Any, Any, Any, np.ndarray, Any]:
  """(queries [B T N H], keys, values [B S K H], static mask, which are there).

  The static mask [T S] is of numpy; `there` is [B S] or None for all.
  """
  b, g, l = q.shape[:3]
  keys, values, masks, there = [], [], [], []
  # First what is cut at the same places as the queries: blocks fit.
  for segment in sorted(segments, key=lambda segment: segment.k.ndim == 4):
    size, shared = segment.k.shape[-3], segment.k.ndim == 4
    n = size if shared else g * size
    keys.append(segment.k.reshape(b, n, *segment.k.shape[-2:]))
    values.append(segment.v.reshape(b, n, *segment.v.shape[-2:]))
    mask = np.ones((l, size), bool)
    mask = np.tril(mask) if segment.causal else mask
    masks.append(np.kron(np.ones((g, 1)) if shared else np.eye(g), mask) > 0)
    one = segment.there
    shape = (b, n) if shared else (b, g, size)
    one = jnp.ones(shape, bool) if one is None else one
    there.append(jnp.broadcast_to(one, shape).reshape(b, n))
  known = all(segment.there is None for segment in segments)
  join = lambda parts: jnp.concatenate(parts, 1)
  return (
    q.reshape(b, g * l, *q.shape[3:]), join(keys), join(values),
    np.concatenate(masks, 1), None if known else join(there),
  )  # fmt: skip


def apart(q, segments) -> tuple[Any, list[Any]]:
  """Queries and keys of each rollout, padded to the smallest block."""

  def pad(x):
    width = [(0, 0)] * x.ndim
    width[2] = (0, -x.shape[2] % BLOCKS[-1])
    return jnp.pad(x, width)

  def one(segment):
    if segment.k.ndim == 4:
      return segment
    there = segment.there
    if there is None:
      there = jnp.ones(segment.k.shape[:3], bool)
    there = jnp.broadcast_to(there, segment.k.shape[:3])
    k, v, there = map(pad, (segment.k, segment.v, there))
    return segment._replace(k=k, v=v, there=there)

  return pad(q), [one(segment) for segment in segments]


def block(n: int, most: int = BLOCKS[0]) -> tuple[int, int]:
  """(block, n rounded up to blocks): little padding, and few blocks."""
  sizes = [size for size in BLOCKS if size <= most]
  padded = {size: -(-n // size) * size for size in sizes}
  size = min(sizes, key=lambda size: padded[size] * (1 + 128 / size))
  return size, padded[size]


def splash(q, segments, ids=None, *, interpret: bool = False):
  """Attention of scaled queries [B G L N H] by the TPU kernel of JAX."""
  length, most = q.shape[2], BLOCKS[0]
  if q.shape[1] > 1:  # blocks that belong to one caption, so that most of the
    q, segments = apart(q, segments)  # others' are skipped
    most = 256
  shape, (q, k, v, mask, there) = q.shape, flattened(q, segments)
  b, t, n, _ = q.shape
  s, heads = k.shape[1:3]
  (q_block, t_pad), (k_block, s_pad) = block(t, most), block(s, most)
  if ids is None:
    q_ids, k_ids = jnp.zeros((b, t), jnp.int32), jnp.zeros((b, s), jnp.int32)
  else:
    q_ids = k_ids = ids.astype(jnp.int32)
  if there is not None:
    k_ids = jnp.where(there, k_ids, -2)  # an id that no query has
  pad = lambda x, most, value=0: jnp.pad(
    x, [(0, 0), (0, most - x.shape[1]), *[(0, 0)] * (x.ndim - 2)],
    constant_values=value,
  )  # fmt: skip
  q_ids, k_ids = pad(q_ids, t_pad), pad(k_ids, s_pad, -2)
  full = np.zeros((t_pad, s_pad), bool)
  full[:t, :s], full[t:, :s] = mask, mask[-1]  # rows of nothing would be NaN

  mesh = jax.sharding.get_abstract_mesh()
  data, model = (mesh.shape.get(a, 1) for a in ('data', 'model'))
  if n % model == 0 and heads % model and model % heads == 0:
    # Fewer key heads than devices: each device gets a copy of its own.
    k, v = (jnp.repeat(x, model // heads, axis=2) for x in (k, v))
    heads = model
  split = 'model' if heads % model == 0 and n % model == 0 else None
  rows = 'data' if b % data == 0 else None
  across = model if split else 1
  sizes = (q_block, k_block)

  def local(q, k, v, q_ids, k_ids):
    run = jax.vmap(_splash_kernel(full, n // across, sizes, interpret))
    heads_first = [jnp.swapaxes(x, 1, 2) for x in (q, k, v)]
    if q.dtype == jnp.float32:
      return run(*heads_first, (q_ids, k_ids))
    with jax.default_matmul_precision('default'):  # it has no other in bf16
      return run(*heads_first, (q_ids, k_ids))

  if not mesh.empty:
    spec, ids_spec = P(rows, None, split), P(rows)
    local = jax.shard_map(
      local, in_specs=(spec,) * 3 + (ids_spec,) * 2,
      out_specs=P(rows, split), check_vma=False,
    )  # fmt: skip
  out = local(pad(q, t_pad), pad(k, s_pad), pad(v, s_pad), q_ids, k_ids)
  out = jnp.swapaxes(out, 1, 2)[:, :t].reshape(shape)
  return out[:, :, :length]


def _splash_kernel(mask, heads, sizes, interpret):
  """The kernel for a mask; blocks of nothing are found here."""
  from jax.experimental.pallas.ops.tpu import splash_attention as lib

  one = lib.FullMask(mask.shape) if mask.all() else lib.NumpyMask(mask)
  bq, bk = sizes
  make = lib.make_splash_mha(
    lib.MultiHeadMask([one] * heads), head_shards=1, q_seq_shards=1,
    block_sizes=lib.BlockSizes(
      block_q=bq, block_kv=bk, block_kv_compute=bk,
      block_q_dkv=bq, block_kv_dkv=bk, block_kv_dkv_compute=bk,
      block_q_dq=bq, block_kv_dq=bk,
    ),
    interpret=interpret,
  )  # fmt: skip
  return lambda q, k, v, ids: make(q, k, v, lib.SegmentIds(*ids))


def dot_product(q, segments, ids=None, *, implementation: str = 'cudnn'):
  """Attention of scaled queries [B G L N H] by `jax.nn`'s kernels."""
  shape, (q, k, v, mask, there) = q.shape, flattened(q, segments)
  seen = None if mask.all() else jnp.asarray(mask)[None, None]
  both = lambda other: other if seen is None else seen & other
  if ids is not None:
    seen = both((ids[:, :, None] == ids[:, None, :])[:, None])
  if there is not None:
    seen = both(there[:, None, None])
  if seen is not None:  # cuDNN broadcasts over rows and heads alone
    seen = jnp.broadcast_to(seen, (*seen.shape[:2], *mask.shape))
  out = jax.nn.dot_product_attention(
    q, k, v, mask=seen, scale=1.0, implementation=implementation
  )
  return out.reshape(shape)
