"""Janus-Pro: one LLaMA decoder that reads images and draws them.

Chen et al. 2025, https://arxiv.org/abs/2501.17811; numerics follow
transformers `modeling_janus.py`. Reading: a SigLIP tower whose 576 states
become tokens. Drawing: image codes of `models.vq`, each embedded, aligned and
fed back, with a head of their own. The calls for captions are those of
`models.vlm.Captioner`. Letters as in `types`; K codebook size.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from uae_jax.models import lm
from uae_jax.models.clip import Block
from uae_jax.models.vlm import Captioner
from uae_jax.nn.attention import attend
from uae_jax.nn.linear import Linear
from uae_jax.nn.mlp import MLP
from uae_jax.nn.norms import LayerNorm
from uae_jax.nn.stack import Stack
from uae_jax.sharding.rules import constrain
from uae_jax.types import KV, Batch, Prompt

_SIGLIP = dict(
  width=1024, layers=24, heads=16, mlp=4096, patch=16, size=384, fused=False
)
_CODES = dict(codes=16384, code_dim=8)
VARIANTS = {
  'janus-pro-1b': dict(
    vision=_SIGLIP,
    lm=lm.VARIANTS['janus-pro-1b'],
    draw=dict(hidden=2048, **_CODES),
  ),
  'janus-pro-7b': dict(
    vision=_SIGLIP,
    lm=lm.VARIANTS['janus-pro-7b'],
    draw=dict(hidden=4096, **_CODES),
  ),
  'tiny': dict(
    vision=dict(
      width=96, layers=2, heads=3, mlp=192, patch=4, size=32, fused=False
    ),
    lm=dict(
      vocab=64, width=128, layers=4, heads=4, kv_heads=4, head_dim=32,
      mlp=384, sections=(16, 0, 0), tied=False, bias=False, theta=1e4,
    ),
    draw=dict(hidden=128, codes=512, code_dim=8),
  ),
}  # fmt: skip


class FusedBlock(nn.Module):
  """`clip.Block` with queries, keys and values as one map, as first saved."""

  heads: int
  mlp: int
  act: str
  eps: float

  @nn.compact
  def __call__(self, x, xs):
    width = x.shape[-1]
    heads = (3, self.heads, width // self.heads)
    qkv = Linear(heads, name='qkv')(LayerNorm(self.eps, name='norm1')(x))
    q, k, v = (qkv[:, :, i] for i in range(3))
    x = x + Linear(width, n_in=2, name='o')(attend(q, k, v))
    h = LayerNorm(self.eps, name='norm2')(x)
    x = x + MLP(self.mlp, width, self.act, name='mlp')(h)
    return constrain(x, 'batch', 'len', 'emb'), None


class Vision(nn.Module):
  """Patches of a square image -> states after the last norm.

  Attributes:
    size: side of the image in pixels.
    fused: whether the checkpoint holds queries, keys and values as one map.
  """

  width: int
  layers: int
  heads: int
  mlp: int
  patch: int
  size: int
  fused: bool
  remat: str = 'none'

  @nn.compact
  def __call__(self, patches: Float[Array, 'B P E']) -> Float[Array, 'B P D']:
    tokens = (self.size // self.patch) ** 2
    table = self.param(
      'positions', nn.initializers.normal(0.02), (tokens, self.width)
    )
    x = Linear(self.width, name='patch_embed')(patches)
    x = x + table.astype(x.dtype)
    kwargs = dict(heads=self.heads, mlp=self.mlp, act='gelu', eps=1e-6)
    block = FusedBlock if self.fused else Block
    stack = Stack(block, kwargs, self.layers, self.remat, name='layers')
    x, _ = stack(x, None)
    return LayerNorm(name='post_norm')(x)


class Janus(Captioner):
  """Reads and draws.

  Attributes:
    vision: fields of `Vision`.
    lm: fields of `models.lm.LM`.
    draw: codebook size, width of a code's embedding, hidden width of the head.
    image_pad: the id that image tokens replace in a prefix.
  """

  DECODES = (r'(lm|code_embed|code_aligner|code_head)/.*',)
  MATRICES = (r'.*/kernel', r'lm/embed/embedding')  # of products
  SEES = (r'(vision|aligner)/.*',)

  vision: dict
  lm: dict
  draw: dict
  image_pad: int
  remat: str = 'none'
  dtype: str = 'float32'

  def setup(self):
    width = self.lm['width']
    self.vision_tower = Vision(**self.vision, remat=self.remat, name='vision')
    self.aligner = MLP(width, width, 'gelu')
    self.decoder = lm.LM(**self.lm, remat=self.remat, name='lm')
    self.code_embed = nn.Embed(
      self.draw['codes'], self.draw['code_dim'],
      embedding_init=nn.initializers.normal(1.0),
    )  # fmt: skip
    self.code_aligner = MLP(width, width, 'gelu')
    self.code_head = MLP(self.draw['hidden'], self.draw['codes'], 'gelu')

  def image_tokens(self, batch: Batch) -> Float[Array, 'B P D']:
    """Every patch of the one image of a row is a token."""
    states = self.vision_tower(batch.patches.astype(self.dtype))
    return self.aligner(states)

  def read_prompt(
    self, ids: Int[Array, 'B G S'], mask: Bool[Array, 'B G S']
  ) -> Prompt:
    """Text before image codes, right padded, begin-of-image token included."""
    b, g, s = ids.shape
    at = jnp.broadcast_to(jnp.arange(s), (b, 3, g, s))
    hidden, kv = self.decoder(self.embed(ids), at, mask)
    length = jnp.sum(mask, -1)
    last = jnp.take_along_axis(hidden, (length - 1)[..., None, None], 2)
    return Prompt(kv, mask, last[:, :, 0], length)

  def read_unconditional(
    self, prompt: Prompt, first: int, pad: int, last: int
  ) -> Prompt:
    """`first`, pads, `last` in the place of every row of a prompt.

    Rows differ in their length alone, so all but their last token are read
    once and shared by everyone.
    """
    b, g, s = prompt.mask.shape
    ids = jnp.full((1, 1, s), pad).at[..., 0].set(first)
    n = prompt.position - 1  # where the last token is
    at = jnp.broadcast_to(jnp.arange(s), (1, 3, 1, s))
    everyone = jnp.ones((1, 1, s), bool)
    kv = self.decoder(self.embed(ids), at, everyone)[1]
    shared = jax.tree.map(
      lambda x: jnp.broadcast_to(x[:, 0], (x.shape[0], b, *x.shape[3:])), kv
    )
    before = jnp.arange(s) < n[..., None]
    hidden, own = self.decoder(
      self.embed(jnp.full((b, g, 1), last)),
      jnp.broadcast_to(n[:, None, :, None], (b, 3, g, 1)),
      jnp.ones((b, g, 1), bool),
      ((shared, before),),
    )
    is_last = (jnp.arange(s) == n[..., None])[..., None, None]
    kv = jax.tree.map(
      lambda one, many: jnp.where(is_last, one, many[:, :, None]), own, shared
    )
    return prompt.replace(kv=kv, hidden=hidden[:, :, 0])

  def code_logits(self, hidden: Float[Array, '*b D']) -> Float[Array, '*b K']:
    """fp32 logits of the next image code."""
    return self.code_head(hidden).astype(jnp.float32)

  def embed_codes(self, codes: Int[Array, '*b']) -> Float[Array, '*b D']:
    """What the decoder is fed for a code."""
    return self.code_aligner(self.code_embed(codes).astype(self.dtype))

  def _after_prompt(self, prompt: Prompt, codes, t, past=()):
    """Runs codes [B G I] that start at index t of the image."""
    b, g, i = codes.shape
    at = prompt.position[..., None] + t + jnp.arange(i)
    at = jnp.broadcast_to(at[:, None], (b, 3, g, i))
    own = jnp.ones(codes.shape, bool)
    shared = (prompt.kv, prompt.mask)
    return self.decoder(self.embed_codes(codes), at, own, (shared, *past))

  def decode_code(
    self,
    prompt: Prompt,
    cache: KV,
    codes: Int[Array, 'B G'],
    t: Int[Array, ''],
  ) -> tuple[Float[Array, 'B G K'], KV]:
    """Feeds image code t, returns the logits of code t + 1.

    Args:
      prompt: of every rollout.
      cache: KV [Y B G I K H] of codes 0..t-1.
      codes: code t.
      t: its index.
    """
    seen = (jnp.arange(cache.k.shape[3]) < t)[None, None]
    hidden, new = self._after_prompt(
      prompt, codes[..., None], t, ((cache, seen),)
    )
    put = lambda old, one: jax.lax.dynamic_update_slice(
      old, one.astype(old.dtype), (0, 0, 0, t, 0, 0)
    )
    cache = KV(put(cache.k, new.k), put(cache.v, new.v))
    return self.code_logits(hidden[:, :, 0]), cache

  def teach_codes(
    self, prompt: Prompt, codes: Int[Array, 'B G I']
  ) -> Float[Array, 'B G I K']:
    """Teacher-forced logits of every code given the ones before it."""
    return self.code_logits(self.code_states(prompt, codes))

  def code_states(
    self, prompt: Prompt, codes: Int[Array, 'B G I']
  ) -> Float[Array, 'B G I D']:
    """Hidden states that predict codes 0..I-1."""
    hidden, _ = self._after_prompt(prompt, codes[..., :-1], 0)
    return jnp.concatenate([prompt.hidden[:, :, None], hidden], 2)

  def __call__(self, batch: Batch) -> Float[Array, 'B S V']:
    """Logits at every prefix token (and creates every parameter)."""
    if self.is_initializing():
      self.code_logits(self.embed_codes(jnp.zeros((1, 1, 1), jnp.int32)))
    return self.logits(self.run_prefix(batch)[0])
