"""Losses of the stages before reinforcement: towers, captioner, decoder.

Each is `loss(params, frozen, batch, rng) -> (loss, metrics)`, the form that
`train.step.supervised_step` differentiates.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from uae_jax import trees
from uae_jax.rewards.features import Tower, unit
from uae_jax.rollout import flow
from uae_jax.types import Batch, Captions
from uae_jax.umm.umm1 import UMM1


@dataclasses.dataclass(frozen=True)
class Contrastive:
  """InfoNCE over a batch whose neighbours are one edit apart.

  `views='captions'` is CLIP's loss, image against caption; `views='images'`
  is SimCLR's, an image against a noisy, shifted copy of itself
  (https://arxiv.org/abs/2103.00020, https://arxiv.org/abs/2002.05709).
  """

  tower: Tower
  views: str

  def __call__(self, params, frozen, batch: Batch, rng):
    del frozen
    first = unit(self.tower.embed(params, batch.image))
    if self.views == 'captions':
      second = unit(self.tower.embed_text(params, batch.full_ids))
    else:
      second = unit(self.tower.embed(params, augment(rng, batch.image)))
    scale = jnp.exp(jnp.minimum(params['logit_scale'], jnp.log(100.0)))
    logits = scale * first @ second.T
    labels = jnp.arange(len(logits))
    ce = optax.softmax_cross_entropy_with_integer_labels
    loss = 0.5 * (ce(logits, labels) + ce(logits.T, labels)).mean()
    hits = jnp.mean(jnp.argmax(logits, -1) == labels)
    return loss, {'tower/accuracy': hits, 'tower/scale': scale}


def augment(rng, images):
  """Noise, brightness and a shift by at most one pixel; images [B R R 3]."""
  noise, gain, shift = jax.random.split(rng, 3)
  b = images.shape[0]
  x = images * jax.random.uniform(gain, (b, 1, 1, 1), minval=0.8, maxval=1.2)
  x = x + 0.06 * jax.random.normal(noise, x.shape)
  dy, dx = jax.random.randint(shift, (2, b), -1, 2)
  roll = jax.vmap(lambda im, y, x: jnp.roll(im, (y, x), (0, 1)))
  return jnp.clip(roll(x, dy, dx), 0.0, 1.0)


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
    t_mean: mean of logit(t).
    t_std: its standard deviation.
    noise_rows: share of rows at time 1, where a drawing's first step is.
  """

  umm: UMM1
  caption_weight: float
  flow_weight: float
  t_mean: float
  t_std: float
  noise_rows: float

  def __call__(self, params, frozen, batch: Batch, rng):
    params = trees.merge(frozen, params)
    loss, metrics, described = 0.0, {}, batch
    if self.flow_weight:
      described = jax.tree.map(lambda x: x[: (len(x) + 1) // 2], batch)
      flow_loss = self.flow_loss(params, batch, rng)
      loss = self.flow_weight * flow_loss
      metrics['flow/loss'] = flow_loss
    if self.caption_weight:
      describe, accuracy = self.caption_loss(params['policy'], described)
      loss = loss + self.caption_weight * describe
      metrics |= {'caption/loss': describe, 'caption/accuracy': accuracy}
    return loss, metrics

  def caption_loss(self, policy: Any, batch: Batch):
    """Cross-entropy per token of the partial captions, and its accuracy."""
    vlm = lambda *a, method: self.umm.vlm.apply(
      {'params': policy}, *a, method=method
    )
    ids, mask = batch.caption_ids[:, None], batch.caption_mask[:, None]
    logits = vlm(vlm(batch, method='prefill'), ids, mask, method='teach')
    ce = optax.softmax_cross_entropy_with_integer_labels(logits, ids)
    mean = lambda x: jnp.sum(x * mask) / jnp.maximum(jnp.sum(mask), 1)
    return mean(ce), mean(jnp.argmax(logits, -1) == ids)

  def flow_loss(self, params: Any, batch: Batch, rng):
    """Mean squared error of the velocity on full captions."""
    umm = self.umm
    captions = Captions(
      batch.full_ids[:, None],
      batch.full_mask[:, None],
      jnp.zeros(batch.full_ids[:, None].shape),
    )
    cond = umm.condition(params['policy'], params['connector'], captions)
    cond = jax.tree.map(lambda x: x[:, 0], cond)
    x0 = umm.painter.encode(params, batch.image)
    time_rng, noise_rng = jax.random.split(rng)
    t = flow.sample_t(time_rng, x0.shape[0], mean=self.t_mean, std=self.t_std)
    t = t.at[: round(self.noise_rows * len(t))].set(1.0)
    noise = jax.random.normal(noise_rng, x0.shape)
    x = flow.noised(x0, noise, t)
    v = umm.painter.velocity(params, x, t * flow.TIMES, cond)
    return jnp.mean((v - flow.velocity_target(x0, noise)) ** 2)
