"""Losses of the cold start, before any reinforcement.

Each is `loss(params, frozen, batch, rng) -> (loss, metrics)`, the form that
`train.step.supervised_step` differentiates; parameters by part.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from uae_jax.models.vq import unit
from uae_jax.nn import lora
from uae_jax.nn.lora import LoRA
from uae_jax.rollout import flow
from uae_jax.types import Batch, Captions
from uae_jax.umm.umm1 import UMM1
from uae_jax.umm.umm2 import UMM2

_cross_entropy = optax.softmax_cross_entropy_with_integer_labels


def caption_loss(umm: Any, policy: Any, batch: Batch):
  """Cross-entropy per token of the partial captions, and its accuracy."""
  vlm = lambda *a, method: umm.vlm.apply({'params': policy}, *a, method=method)
  ids, mask = batch.caption_ids[:, None], batch.caption_mask[:, None]
  logits = vlm(vlm(batch, method='prefill'), ids, mask, method='teach')
  mean = lambda x: jnp.sum(x * mask) / jnp.maximum(jnp.sum(mask), 1)
  return mean(_cross_entropy(logits, ids)), mean(jnp.argmax(logits, -1) == ids)


def given(ids, mask) -> Captions:
  """Captions [B 1 L] that were written, not sampled."""
  return Captions(ids[:, None], mask[:, None], jnp.zeros(ids[:, None].shape))


LEVELS = 8  # times of a held-out loss


@dataclasses.dataclass(frozen=True)
class Times:
  """Where flow matching is learned, and what each time weighs.

  Attributes:
    mean: of logit(t), which is normal.
    std: its standard deviation.
    noise_rows: share of rows at time 1, where a drawing's first step is.
    min_snr: gamma of Min-SNR (https://arxiv.org/abs/2303.09556), 0 for the
      same weight everywhere. An error of x_0 weighs min(SNR, gamma), with
      SNR = ((1 - t) / t)^2; one of v is 1 / t of it.

  Raises:
    ValueError: rows at time 1 would weigh nothing.
  """

  mean: float
  std: float
  noise_rows: float
  min_snr: float = 0.0

  def __post_init__(self):
    if self.min_snr < 0 or self.min_snr and self.noise_rows:
      raise ValueError(
        f'pretrain.min_snr={self.min_snr} must not be negative, and needs '
        'pretrain.noise_rows=0: at time 1 nothing has any weight'
      )

  def sample(self, rng: Any, n: int):
    """n times, fp32 [n]."""
    t = flow.sample_t(rng, n, mean=self.mean, std=self.std)
    return t.at[: round(self.noise_rows * n)].set(1.0)

  def weights(self, t: Any):
    """Of the squared error of v at times [n]."""
    if not self.min_snr:
      return jnp.ones_like(t)
    return jnp.minimum((1 - t) ** 2, self.min_snr * t**2)


def flow_errors(painter: Any, params: Any, images: Any, cond: Any, rng, t: Any):
  """Squared errors [N] of the velocity towards images [N R Q 3] at t [N]."""
  x0 = painter.encode(params, images)
  noise = jax.random.normal(rng, x0.shape)
  v = painter.velocity(params, flow.noised(x0, noise, t), t * flow.TIMES, cond)
  error = (v - flow.velocity_target(x0, noise)) ** 2
  return jnp.mean(error, tuple(range(1, error.ndim)))


def flow_loss(
  painter: Any, params: Any, images: Any, cond: Any, rng, times: Times
):
  """Weighted squared error of the velocity, a mean over images [N R Q 3]."""
  time_rng, noise_rng = jax.random.split(rng)
  t = times.sample(time_rng, len(images))
  errors = flow_errors(painter, params, images, cond, noise_rng, t)
  return jnp.mean(times.weights(t) * errors)


def heldout_flow(painter: Any, params: Any, images: Any, cond: Any, rng):
  """{'flow_loss': [N]}: unweighted, a mean over `LEVELS` times."""
  levels = (np.arange(LEVELS) + 0.5) / LEVELS
  errors = [
    flow_errors(
      painter, params, images, cond, jax.random.fold_in(rng, i),
      jnp.full(len(images), t, jnp.float32),
    )
    for i, t in enumerate(levels)
  ]  # fmt: skip
  return {'flow_loss': jnp.mean(jnp.stack(errors), 0)}


class Whole:
  """What supervised losses have in common: `adapters`."""

  def whole(self, frozen: Any, params: Any) -> dict[str, Any]:
    """All parts, with what is trained."""
    return {**frozen, **lora.whole(frozen, params, self.adapters)}


@dataclasses.dataclass(frozen=True)
class Pretrain(Whole):
  """Captioning and drawing together, before any reinforcement.

  The captioner learns from the batch's partial, noisy captions; connector
  and MM-DiT learn flow matching from full captions, read by the same LLM
  (x_t = (1 - t) x_0 + t eps, target eps - x_0, logit-normal t). Beside flow
  matching, captioning is the easier half and sees half of the batch.

  With `rollout.bottleneck=hidden` the decoder reads the captioner's states,
  which have seen the image: reconstruction as a supervised loss, as RecA
  (https://arxiv.org/abs/2509.07295) has it with embeddings of the tower.

  Attributes:
    umm: the modules.
    caption_weight: weight of the captioner's cross-entropy; 0 leaves it out.
    flow_weight: weight of flow matching; 0 leaves it out.
    t: of flow matching.
    partial: it is learnt from partial captions.
    adapters: that are trained in the stead of parts, by part.
  """

  umm: UMM1
  caption_weight: float
  flow_weight: float
  t: Times
  partial: bool = False
  adapters: Mapping[str, LoRA] = dataclasses.field(default_factory=dict)

  def __call__(self, params, frozen, batch: Batch, rng):
    params = self.whole(frozen, params)
    loss, metrics, described = 0.0, {}, batch
    if self.flow_weight:
      described = jax.tree.map(lambda x: x[: (len(x) + 1) // 2], batch)
      flow_loss = self.flow_loss(params, batch, rng)
      loss = self.flow_weight * flow_loss
      metrics['flow/loss'] = flow_loss
    if self.caption_weight:
      describe, accuracy = caption_loss(self.umm, params['policy'], described)
      loss = loss + self.caption_weight * describe
      metrics |= {'caption/loss': describe, 'caption/accuracy': accuracy}
    return loss, metrics

  def flow_loss(self, params: Any, batch: Batch, rng):
    """Weighted squared error of the velocity on the captions to learn."""
    words = batch.full_ids, batch.full_mask
    if self.partial:
      words = batch.caption_ids, batch.caption_mask
    cond = self._cond(params, batch, given(*words))
    return flow_loss(self.umm.painter, params, batch.image, cond, rng, self.t)

  def heldout(self, params: Any, batch: Batch, rng) -> dict[str, Any]:
    """See `heldout_flow`; of images with full captions."""
    captions = given(batch.full_ids, batch.full_mask)
    cond = self._cond(params, batch, captions)
    return heldout_flow(self.umm.painter, params, batch.image, cond, rng)

  def _cond(self, params, batch, captions):
    prefix = None
    if self.umm.bottleneck == 'hidden':
      prefix = self.umm.prefill(params['policy'], batch)
    cond = self.umm.condition(
      params['policy'], params['connector'], captions, prefix
    )
    return jax.tree.map(lambda x: x[:, 0], cond)


SHARP = 0.05  # temperature of the soft assignment to codes
FLAT = 0.02  # contrast of a cell of [-1, 1] pixels that shows nothing


@dataclasses.dataclass(frozen=True)
class TokenPretrain(Whole):
  """Image tokenizer, captioner and drawing by codes, each where weighted.

  The tokenizer learns as VQ-GAN's (https://arxiv.org/abs/2012.09841, eq. 4)
  from pixels alone, with the entropy term of MAGVIT-v2's
  (https://arxiv.org/abs/2310.05737, eq. 6) in place of a discriminator: cells
  that show something are to use many codes, flat ones few, which leaves the
  policy less to guess. The policy learns partial captions of images, and
  codes of images after full and partial captions; some prompts are the
  unconditional one, for guidance.

  Attributes:
    umm: the modules.
    caption_weight: of the captioner's cross-entropy; 0 leaves it out.
    code_weight: of the codes' cross-entropy; 0 leaves it out.
    pixel_weight: of the tokenizer's loss; 0 leaves it out.
    flow_weight: of the detokenizer's flow matching; 0 leaves it out.
    full_rows: share of rows drawn after full captions; the rest are partial.
    drop_rows: share of rows drawn after the unconditional prompt.
    t: of flow matching.
    adapters: that are trained in the stead of parts, by part.
  """

  umm: UMM2
  caption_weight: float
  code_weight: float
  pixel_weight: float
  flow_weight: float
  full_rows: float
  drop_rows: float
  t: Times
  adapters: Mapping[str, LoRA] = dataclasses.field(default_factory=dict)

  def __call__(self, params, frozen, batch: Batch, rng):
    params = self.whole(frozen, params)
    loss, metrics = 0.0, {}
    if self.pixel_weight:
      pixels, found = self.pixel_loss(params['vq'], batch)
      loss, metrics = loss + self.pixel_weight * pixels, metrics | found
    if self.flow_weight:
      codes = self.umm.encode(params, batch.image)
      cond = self.umm.condition(params, codes)
      flowed = flow_loss(
        self.umm.painter, params, batch.image, cond, rng, self.t
      )
      loss = loss + self.flow_weight * flowed
      metrics['flow/loss'] = flowed
    if self.code_weight:
      codes, accuracy = self.code_loss(params, batch, rng)
      loss = loss + self.code_weight * codes
      metrics |= {'code/loss': codes, 'code/accuracy': accuracy}
    if self.caption_weight:
      words, accuracy = caption_loss(self.umm, params['policy'], batch)
      loss = loss + self.caption_weight * words
      metrics |= {'caption/loss': words, 'caption/accuracy': accuracy}
    return loss, metrics

  def heldout(self, params: Any, batch: Batch, rng) -> dict[str, Any]:
    """See `heldout_flow`; of the detokenizer."""
    cond = self.umm.condition(params, self.umm.encode(params, batch.image))
    return heldout_flow(self.umm.painter, params, batch.image, cond, rng)

  def code_loss(self, params: Any, batch: Batch, rng):
    """Cross-entropy per code, and its accuracy."""
    umm, policy = self.umm, params['policy']
    which, drop = jax.random.uniform(rng, (2, len(batch.image), 1))
    pick = lambda full, part: jnp.where(which < self.full_rows, full, part)
    captions = given(
      pick(batch.full_ids, batch.caption_ids),
      pick(batch.full_mask, batch.caption_mask),
    )
    codes = umm.encode(params, batch.image)[:, None]
    ids, mask = umm.prompt_ids(captions)
    dropped = drop[..., None] < self.drop_rows
    ids = jnp.where(dropped, umm.unconditional(ids, mask), ids)
    apply = lambda *a, method: umm.vlm.apply(
      {'params': policy}, *a, method=method
    )
    logits = apply(apply(ids, mask, method='read_prompt'), codes,
                   method='teach_codes')  # fmt: skip
    hits = jnp.argmax(logits, -1) == codes
    return jnp.mean(_cross_entropy(logits, codes)), jnp.mean(hits)

  def pixel_loss(self, params: Any, batch: Batch):
    """Squared error of the pixels, codebook, commitment and entropy."""
    vq = lambda *a, method: self.umm.vq.apply(
      {'params': params}, *a, method=method
    )
    pixels = batch.image * 2 - 1
    z, book = unit(vq(pixels, method='latents')), unit(params['codebook'])
    scores = jnp.einsum('bhwc,kc->bhwk', z, book)
    codes = jnp.argmax(scores, -1)
    nearest, still = book[codes], jax.lax.stop_gradient
    through = z + still(nearest - z)
    error = jnp.mean((vq(through, method='render') - pixels) ** 2)
    pull = jnp.mean(jnp.sum((still(z) - nearest) ** 2, -1))
    commit = jnp.mean(jnp.sum((z - still(nearest)) ** 2, -1))
    log_p = jax.nn.log_softmax(scores / SHARP)
    sure = -jnp.mean(jnp.sum(jnp.exp(log_p) * log_p, -1))
    busy = contrast(pixels, self.umm.vq.factor) > FLAT
    used = lambda cells: entropy_of_use(jnp.exp(log_p), cells)
    variety = used(busy) - used(~busy)
    loss = 10 * error + pull + 0.25 * commit + 0.05 * (sure - variety)
    return loss, {
      'pixel/error': error,
      'pixel/commit': commit,
      'pixel/perplexity': jnp.exp(used(busy)),
      'pixel/flat_perplexity': jnp.exp(used(~busy)),
    }


def contrast(pixels: Any, side: int):
  """Standard deviation of the pixels [B R Q C] of every cell, [B h w]."""
  b, r, q, c = pixels.shape
  cells = pixels.reshape(b, r // side, side, q // side, side, c)
  return jnp.std(cells, (2, 4)).mean(-1)


def entropy_of_use(p: Any, cells: Any):
  """Entropy in nats of the mean of p [B h w K] over some cells [B h w]."""
  share = cells / jnp.maximum(jnp.sum(cells), 1)
  mean = jnp.einsum('bhw,bhwk->k', share, p)
  return -jnp.sum(mean * jnp.log(mean + 1e-9))
