"""The loss of towers: `loss(params, frozen, batch, rng) -> (loss, metrics)`.

`train.step.supervised_step` differentiates it.
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from uae_jax.rewards.features import Tower, unit
from uae_jax.types import Batch


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
