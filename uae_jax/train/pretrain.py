"""Losses of the cold start, before any reinforcement.

Each is `loss(params, frozen, batch, rng) -> (loss, metrics)`, the form that
`train.step.supervised_step` differentiates; parameters by part.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from uae_jax import trees
from uae_jax.models.vq import unit
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


@dataclasses.dataclass(frozen=True)
class Times:
  """Where flow matching is learned: t is logit-normal, or 1.

  Attributes:
    mean: of logit(t).
    std: its standard deviation.
    noise_rows: share of rows at time 1, where a drawing's first step is.
  """

  mean: float
  std: float
  noise_rows: float


def flow_loss(painter: Any, params: Any, images: Any, cond: Any, rng, t: Times):
  """Mean squared error of the velocity towards `images` [N R Q 3]."""
  x0 = painter.encode(params, images)
  time_rng, noise_rng = jax.random.split(rng)
  level = flow.sample_t(time_rng, x0.shape[0], mean=t.mean, std=t.std)
  level = level.at[: round(t.noise_rows * len(level))].set(1.0)
  noise = jax.random.normal(noise_rng, x0.shape)
  x = flow.noised(x0, noise, level)
  v = painter.velocity(params, x, level * flow.TIMES, cond)
  return jnp.mean((v - flow.velocity_target(x0, noise)) ** 2)


@dataclasses.dataclass(frozen=True)
class Pretrain:
  """Captioning and drawing together, before any reinforcement.

  The captioner learns from the batch's partial, noisy captions; connector
  and MM-DiT learn flow matching from full captions, read by the same LLM
  (x_t = (1 - t) x_0 + t eps, target eps - x_0, logit-normal t). Beside flow
  matching, captioning is the easier half and sees half of the batch.

  Attributes:
    umm: the modules.
    caption_weight: weight of the captioner's cross-entropy; 0 leaves it out.
    flow_weight: weight of flow matching; 0 leaves it out.
    t: of flow matching.
  """

  umm: UMM1
  caption_weight: float
  flow_weight: float
  t: Times

  def __call__(self, params, frozen, batch: Batch, rng):
    params = trees.merge(frozen, params)
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
    """Mean squared error of the velocity on full captions."""
    captions = given(batch.full_ids, batch.full_mask)
    cond = self.umm.condition(params['policy'], params['connector'], captions)
    cond = jax.tree.map(lambda x: x[:, 0], cond)
    return flow_loss(self.umm.painter, params, batch.image, cond, rng, self.t)


SHARP = 0.05  # temperature of the soft assignment to codes
FLAT = 0.02  # contrast of a cell of [-1, 1] pixels that shows nothing


@dataclasses.dataclass(frozen=True)
class TokenPretrain:
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
  """

  umm: UMM2
  caption_weight: float
  code_weight: float
  pixel_weight: float
  flow_weight: float
  full_rows: float
  drop_rows: float
  t: Times

  def __call__(self, params, frozen, batch: Batch, rng):
    params = trees.merge(frozen, params)
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
