"""UMM-2: one autoregressive model that describes and draws.

Janus-Pro reads an image as tokens and draws one as codes of a VQ tokenizer;
see "Unified Multimodal Models as Auto-Encoders", section on UMM-2. Caption
ids go into the text-to-image template on the device and are never decoded.
Letters as in `types`; R and Q sides of an image.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from uae_jax.models.detokenizer import CodeConnector
from uae_jax.models.janus import Janus
from uae_jax.models.vq import VQ
from uae_jax.nn.stack import by_chunks
from uae_jax.rewards.features import Tower
from uae_jax.rewards.terms import Terms
from uae_jax.rollout import caption, image_tokens
from uae_jax.rollout.sampler import Sampler
from uae_jax.sharding import chunks
from uae_jax.types import Batch, Captions, Codes, Prefix, Prompt, Rollout
from uae_jax.umm.base import UMM, Params, for_tokens
from uae_jax.umm.painter import Painter


@dataclasses.dataclass(frozen=True)
class Tokens:
  """Special ids and the text-to-image template around a caption.

  Attributes:
    draw_before: opens with the begin-of-sentence token.
    draw_after: ends with the begin-of-image token.
    eos: ends a caption.
    pad: fills captions, and is what the unconditional prompt is made of.
  """

  draw_before: tuple[int, ...]
  draw_after: tuple[int, ...]
  eos: int
  pad: int


@dataclasses.dataclass(frozen=True)
class UMM2(UMM):
  """Modules and options; parameters travel separately.

  Frozen parameters are a dict: `policy` (the untrained rest), `reference`
  (trained leaves before training, where a KL needs them), `vq`, `decoder`,
  `vae` and `connector` (of a detokenizer, where there is one), `reward` and
  `judges` (by tower name).

  Attributes:
    vlm: reads and draws.
    vq: codes -> pixels.
    rows: of the code grid; its columns are the rest of `codes`.
    codes: I of one image.
    length: caption budget L, EOS included.
    sampler: of captions.
    code_sampler: of image codes, over guided logits.
    guidance: of image codes; 1 is off.
    weights: reward weight by tower name.
    terms: what the reward is made of.
    painter: of a flow-matching detokenizer; None: the VQ decoder renders.
    connector: from codes to its conditioning.
    chunk: tokens whose logits exist at once when they are scored; 0 is all.
    size: drawings of a data shard that exist at once; 0 is all.
  """

  vlm: Janus
  vq: VQ
  towers: Mapping[str, Tower]
  judges: Mapping[str, Tower]
  tokens: Tokens
  sampler: Sampler
  code_sampler: Sampler
  guidance: float
  length: int
  rows: int
  codes: int
  weights: Mapping[str, float]
  terms: Terms = Terms()
  painter: Painter | None = None
  connector: CodeConnector | None = None
  chunk: int = 0
  size: int = 0

  def prompt_ids(self, captions: Captions) -> tuple[Array, Array]:
    """Captions in the text-to-image template: ids and mask [B G S]."""
    t = self.tokens
    return caption.in_template(
      captions, t.draw_before, t.draw_after, eos=t.eos, pad=t.pad
    )

  def unconditional(
    self, ids: Int[Array, 'B G S'], mask: Bool[Array, 'B G S']
  ) -> Int[Array, 'B G S']:
    """What guidance leads away from, as Janus-Pro's own sampling has it.

    The first and the last token are kept; pads between are attended to.
    """
    last = jnp.sum(mask, -1, keepdims=True) - 1
    at = jnp.arange(ids.shape[-1])
    return jnp.where((at > 0) & (at < last), self.tokens.pad, ids)

  def prompt(self, policy: Params, captions: Captions) -> Prompt:
    """Captions -> what precedes their images; [B 2G] with guidance."""
    ids, mask = self.prompt_ids(captions)
    prompt = self._apply(policy, ids, mask, method='read_prompt')
    if self.guidance == 1:
      return prompt
    t = self.tokens
    ends = t.draw_before[0], t.pad, t.draw_after[-1]
    other = self._apply(policy, prompt, *ends, method='read_unconditional')
    join = lambda axis: lambda x, y: jnp.concatenate([x, y], axis)
    return Prompt(
      kv=jax.tree.map(join(2), prompt.kv, other.kv),
      mask=join(1)(prompt.mask, other.mask),
      hidden=join(1)(prompt.hidden, other.hidden),
      position=join(1)(prompt.position, other.position),
    )

  def draw_codes(
    self, policy: Params, captions: Captions, rng: Key[Array, '']
  ) -> Codes:
    """Samples the codes of one image for every caption."""
    prompt = self.prompt(policy, captions)
    b, h = prompt.position.shape
    sampled = for_tokens(policy)
    codes, logp = image_tokens.sample(
      lambda cache, codes, t: self._apply(
        sampled, prompt, cache, codes, t, method='decode_code'
      ),
      self._apply(sampled, prompt.hidden, method='code_logits'),
      self.vlm.empty_cache(b, h, self.codes),
      rng,
      self.code_sampler,
      length=self.codes,
      guidance=self.guidance,
    )
    return Codes(codes, logp)

  def score_codes(
    self, policy: Params, captions: Captions, codes: Int[Array, 'B G I']
  ) -> tuple[Float[Array, 'B G I'], Float[Array, 'B G I']]:
    """Log-probability of each code and entropy, guided as when sampled."""
    prompt = self.prompt(policy, captions)
    sampler = self.code_sampler

    def piece(states, codes):
      logits = self._apply(policy, states, method='code_logits')
      logits = image_tokens.guide(logits, self.guidance)
      return sampler.score(logits, codes), sampler.entropy(logits)

    states = self._apply(
      policy, prompt, image_tokens.twice(codes, self.guidance),
      method='code_states',
    )  # fmt: skip
    return by_chunks(piece, self.chunk, states, codes)

  def render(
    self,
    frozen: Params,
    codes: Int[Array, 'B G I'],
    rng: Key[Array, ''] | None = None,
  ) -> Float[Array, 'B G R Q 3']:
    """Codes -> pixels in [0, 1].

    Args:
      frozen: parameters of what renders.
      codes: of the images.
      rng: of the detokenizer's noise, the same for all; unused without one.
    """
    b, g, n = codes.shape
    if self.painter is not None:
      images = self.paint(frozen, codes.reshape(b * g, n), rng)
      return images.reshape(b, g, *images.shape[1:])
    pixels = lambda _, codes: self.vq.apply(
      {'params': frozen['vq']}, codes, self.rows, method='decode'
    )
    with jax.named_scope('render'):
      x = chunks.map_pieces(pixels, self.size, codes.reshape(b * g, n))
    x = jnp.clip(x.astype(jnp.float32) * 0.5 + 0.5, 0.0, 1.0)
    return x.reshape(b, g, *x.shape[1:])

  def condition(
    self, frozen: Params, codes: Int[Array, 'N I']
  ) -> dict[str, Array]:
    """What the detokenizer draws codes by: tokens, and channels in place."""
    vectors = self.vq.apply({'params': frozen['vq']}, codes, method='vectors')
    context, pooled = self.connector.apply(
      {'params': frozen['connector']}, vectors
    )
    grid = vectors.reshape(len(codes), self.rows, -1, vectors.shape[-1])
    h, w, _ = self.painter.shape
    shape = (len(codes), h, w, vectors.shape[-1])
    return dict(
      context=context,
      pooled=pooled,
      grid=jax.image.resize(grid, shape, 'nearest'),
    )

  def paint(
    self, frozen: Params, codes: Int[Array, 'N I'], rng: Key[Array, '']
  ) -> Float[Array, 'N R Q 3']:
    """Codes -> pixels by flow matching, all from the same noise."""
    noise = self.painter.noise(rng, 1)
    noise = jnp.broadcast_to(noise, (len(codes), *noise.shape[1:]))
    return self.painter(frozen, noise, self.condition(frozen, codes))

  def encode(
    self, frozen: Params, source: Float[Array, 'B R Q 3']
  ) -> Int[Array, 'B I']:
    """Images in [0, 1] -> codes."""
    return self.vq.apply(
      {'params': frozen['vq']}, source * 2 - 1, method='encode'
    )

  def ceiling(
    self, frozen: Params, source: Float[Array, 'B R Q 3'], rng: Key[Array, '']
  ) -> Float[Array, 'B R Q 3']:
    """Sources through the image tokenizer and back."""
    codes = self.encode(frozen, source)
    return self.render(frozen, codes[:, None], rng)[:, 0]

  def draw(
    self,
    policy: Params,
    frozen: Params,
    captions: Captions,
    prefix: Prefix | None,
    rng: Key[Array, ''],
  ) -> Float[Array, 'B G R Q 3']:
    """Draws every caption; the captioned image is nowhere behind it."""
    del prefix
    sample, noise = jax.random.split(rng)
    codes = self.draw_codes(policy, captions, sample)
    return self.render(frozen, codes.tokens, noise)

  def draw_from_text(
    self,
    policy: Params,
    frozen: Params,
    captions: Captions,
    rng: Key[Array, ''],
  ) -> Float[Array, 'B G R Q 3']:
    """The same as `draw`."""
    return self.draw(policy, frozen, captions, None, rng)

  def rollout(
    self,
    policy: Params,
    frozen: Params,
    batch: Batch,
    rng: Key[Array, ''],
    group: int,
  ) -> Rollout:
    """The loop of `UMM`, and the codes that its images were drawn by."""
    words, sample, noise = jax.random.split(rng, 3)
    prefix = self.prefill(policy, batch)
    captions = self.describe(policy, prefix, words, group)
    codes = images = None
    if self.terms.looks:
      codes = self.draw_codes(policy, captions, sample)
      images = self.render(frozen, codes.tokens, noise)
    reward, scores = self.reward(frozen, batch.image, images, captions)
    return Rollout(captions, images, reward, codes, scores)

  def _apply(self, policy, *args, method):
    return self.vlm.apply({'params': policy}, *args, method=method)
