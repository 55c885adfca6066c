"""Qwen2.5 decoder with M-RoPE and grouped queries (transformers qwen2_5_vl).

The text half of Qwen2.5-VL, https://arxiv.org/abs/2502.13923; without biases
and with one position axis it is LLaMA, the decoder of Janus-Pro. Hidden states
are [B G L D] throughout: G captions of one image are a second batch axis, so
that what they share is stored once. Keys and values are arguments and
results: `past` is read, the call's own are returned.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from uae_jax.nn import rope
from uae_jax.nn.attention import Segment, attend_group
from uae_jax.nn.linear import Linear
from uae_jax.nn.mlp import GatedMLP
from uae_jax.nn.norms import RMSNorm
from uae_jax.nn.stack import Stack
from uae_jax.sharding.fsdp import product, whole
from uae_jax.sharding.rules import constrain
from uae_jax.types import KV

VARIANTS = {
  'qwen2.5-vl-3b': dict(
    vocab=151936, width=2048, layers=36, heads=16, kv_heads=2, head_dim=128,
    mlp=11008, sections=(16, 24, 24), tied=True,
  ),
  'qwen2.5-vl-7b': dict(
    vocab=152064, width=3584, layers=28, heads=28, kv_heads=4, head_dim=128,
    mlp=18944, sections=(16, 24, 24), tied=False,
  ),
  'janus-pro-1b': dict(
    vocab=102400, width=2048, layers=24, heads=16, kv_heads=16, head_dim=128,
    mlp=5632, sections=(64, 0, 0), tied=False, bias=False, theta=1e4,
  ),
  'janus-pro-7b': dict(
    vocab=102400, width=4096, layers=30, heads=32, kv_heads=32, head_dim=128,
    mlp=11008, sections=(64, 0, 0), tied=False, bias=False, theta=1e4,
  ),
  'tiny': dict(
    vocab=64, width=128, layers=3, heads=4, kv_heads=2, head_dim=32,
    mlp=384, sections=(4, 6, 6), tied=True,
  ),
}  # fmt: skip


class Layer(nn.Module):
  """Pre-norm attention and gated MLP."""

  heads: int
  kv_heads: int
  head_dim: int
  mlp: int
  bias: bool
  eps: float

  @nn.compact
  def __call__(self, x, past, angles, own, there):
    cos, sin = angles
    h = RMSNorm(self.eps, name='attn_norm')(x)
    q = Linear((self.heads, self.head_dim), bias=self.bias, name='q')(h)
    k = Linear((self.kv_heads, self.head_dim), bias=self.bias, name='k')(h)
    v = Linear((self.kv_heads, self.head_dim), bias=self.bias, name='v')(h)
    q, k = rope.rotate(q, cos, sin), rope.rotate(k, cos, sin)
    before = [Segment(p.k, p.v, m) for p, m in zip(past, there, strict=True)]
    out = attend_group(q, [*before, Segment(k, v, own, causal=True)])
    x = x + Linear(x.shape[-1], n_in=2, bias=False, name='o')(out)
    h = RMSNorm(self.eps, name='mlp_norm')(x)
    x = x + GatedMLP(self.mlp, name='mlp')(h)
    return constrain(x, 'batch', 'group', 'len', 'emb'), KV(k, v)


class LM(nn.Module):
  """Token ids or embeddings -> hidden states -> logits.

  Attributes:
    sections: frequencies that turn with time, row and column; the first
      takes all where there is one position axis.
    tied: the embedding table is the head.
    bias: of the queries, keys and values.
  """

  vocab: int
  width: int
  layers: int
  heads: int
  kv_heads: int
  head_dim: int
  mlp: int
  sections: tuple[int, int, int]
  tied: bool
  bias: bool = True
  theta: float = 1e6
  eps: float = 1e-6
  remat: str = 'none'

  def setup(self):
    init = nn.initializers.normal(0.02)
    self.embed_tokens = nn.Embed(
      self.vocab, self.width, embedding_init=init, name='embed'
    )
    self.stack = Stack(
      Layer,
      dict(
        heads=self.heads,
        kv_heads=self.kv_heads,
        head_dim=self.head_dim,
        mlp=self.mlp,
        bias=self.bias,
        eps=self.eps,
      ),
      self.layers,
      self.remat,
      name='layers',
    )
    self.norm = RMSNorm(self.eps, name='norm')
    if not self.tied:
      self.head = Linear(self.vocab, bias=False, name='head')

  def embed(self, ids: Int[Array, '*b']) -> Float[Array, '*b D']:
    """Token embeddings, in the dtype of the table."""
    return whole(self.embed_tokens.embedding)[ids]

  def __call__(
    self,
    x: Float[Array, 'B G L D'],
    positions: Int[Array, 'B 3 G L'],
    mask: Bool[Array, 'B G L'],
    past: Sequence[tuple[KV, Array]] = (),
  ) -> tuple[Float[Array, 'B G L D'], KV]:
    """Runs the decoder over L new tokens.

    Args:
      x: embeddings.
      positions: M-RoPE positions (time, row, column).
      mask: False where a new token is padding.
      past: pairs that every new token may look at: KV [Y B S K H] and what
        of it is there [B S], or [Y B G S K H] and [B G S].

    Returns:
      Hidden states after the final norm, and the new tokens' KV
      [Y B G L K H].
    """
    angles = rope.angles_mrope(
      positions, self.head_dim, self.theta, self.sections
    )
    angles = (jnp.cos(angles).astype(x.dtype), jnp.sin(angles).astype(x.dtype))
    with jax.named_scope('lm'):
      x, kv = self.stack(
        x,
        tuple(kv for kv, _ in past),
        angles,
        mask,
        tuple(m for _, m in past),
      )
      return self.norm(x), kv

  def logits(self, hidden: Float[Array, '*b D']) -> Float[Array, '*b V']:
    """fp32 logits; the embedding table is the head where tied."""
    if self.tied:
      out = product(hidden, self.embed_tokens.embedding, (1,))
    else:
      out = self.head(hidden)
    return out.astype(jnp.float32)
