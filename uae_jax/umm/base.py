"""What every architecture has in common: captions, rewards, scores.

A UMM is a frozen dataclass with fields `vlm` (a captioner of `models.vlm`),
`tokens` (with `eos` and `pad`), `sampler`, `length`, `towers`, `judges`,
`weights` (of the towers), `terms` (what the reward is made of), `chunk`
(tokens whose logits exist at once when they are scored; 0 is all) and `size`
(drawings of a data shard that are rendered or looked at at once; 0 is all);
it adds `draw`, `draw_from_text` and `rollout`. The rest of the loop is here.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from uae_jax import trees
from uae_jax.nn import kernels
from uae_jax.nn.stack import apart, by_chunks
from uae_jax.rewards import reconstruction
from uae_jax.rewards.features import Tower
from uae_jax.rewards.mine import Given
from uae_jax.rollout import caption
from uae_jax.sharding import chunks, offload
from uae_jax.sharding.on_host import call_rows
from uae_jax.sharding.rules import constrain
from uae_jax.types import Batch, Captions, Prefix

Params = Mapping[str, Any]
COPIED = 2**30  # bytes


class UMM:
  """image -> text -> image -> reward, but for the drawing."""

  def sized(self, height: int, width: int) -> 'UMM':
    """The architecture where it draws in this size, in pixels; its own here."""
    del height, width
    return self

  def see(self, policy: Params, batch: Batch) -> Batch:
    """The batch with its image tokens, for all that reads it afterwards."""
    with jax.named_scope('see'):
      return self.vlm.apply({'params': policy}, batch, method='see')

  def prefill(self, policy: Params, batch: Batch) -> Prefix:
    """Image + prompt through the LLM, once per image."""
    with jax.named_scope('prefill'):
      return self.vlm.apply({'params': policy}, batch, method='prefill')

  def describe(
    self, policy: Params, prefix: Prefix, rng: Key[Array, ''], group: int
  ) -> Captions:
    """Samples `group` captions per image."""
    b, d = prefix.hidden.shape
    first = jnp.broadcast_to(prefix.hidden[:, None], (b, group, d))
    policy = for_tokens(policy)
    apply = lambda *a, method: self.vlm.apply(
      {'params': policy}, *a, method=method
    )
    return caption.sample(
      lambda cache, ids, t: apply(prefix, cache, ids, t, method='decode'),
      apply(first, method='logits'),
      self.vlm.empty_cache(b, group, self.length),
      rng,
      self.sampler,
      length=self.length,
      eos=self.tokens.eos,
      pad=self.tokens.pad,
    )

  def reward(
    self,
    frozen: Params,
    source: Float[Array, 'B R Q 3'],
    images: Float[Array, 'B G R Q 3'] | None,
    captions: Captions,
  ) -> tuple[Float[Array, 'B G'], dict[str, Float[Array, 'B G']]]:
    """What rollouts are worth: the one place where that is said.

    Args:
      frozen: `reward` has the towers' parameters.
      source: what was described.
      images: what was drawn; None where `terms.looks` is False.
      captions: in between.

    Returns:
      The weighted sum of all terms, and what each is by itself, by tower or
      by name of the term.
    """
    terms, params = self.terms, frozen['reward']
    with jax.named_scope('reward'):
      scores = terms.of_tokens(captions, self.tokens.eos)
      if terms.reconstruction:
        scores |= self.similarities(self.towers, params, source, images)
      if terms.text is not None:
        scores['text'] = self.fit(params, source, images, captions)
      if terms.mine is not None:
        given = Given(source, images, captions.tokens, captions.mask)
        scores['mine'] = terms.mine(given, call_rows)
      return terms.total(scores, self.weights), scores

  def fit(
    self,
    params: Params,
    source: Float[Array, 'B R Q 3'],
    images: Float[Array, 'B G R Q 3'] | None,
    captions: Captions,
  ) -> Float[Array, 'B G']:
    """How well captions fit the image that `terms.text` compares them with."""
    term = self.terms.text
    mine = params[term.params]
    ids = term.retokenise(captions.tokens, captions.mask, call_rows)
    ids = constrain(ids, 'batch', 'group', 'len')
    b, g, _ = ids.shape
    texts = chunks.map_pieces(
      lambda _, x: term.tower.embed_text(mine, x),
      self.size,
      ids.reshape(b * g, -1),
    ).reshape(b, g, -1)
    if term.image == 'source':
      looked = term.tower.embed(mine, source)[:, None]
    else:
      looked = self.embeddings(term.tower, mine, images)
    return term.score(mine, looked, texts)

  def embeddings(
    self, tower: Tower, params: Params, images: Float[Array, 'B G R Q 3']
  ) -> Float[Array, 'B G E']:
    """Drawings as a tower sees them."""
    b, g = images.shape[:2]
    flat = images.reshape(b * g, *images.shape[2:])
    return chunks.map_pieces(
      lambda _, x: tower.embed(params, x), self.size, flat
    ).reshape(b, g, -1)

  def similarities(
    self,
    towers: Mapping[str, Tower],
    params: Params,
    source: Float[Array, 'B R Q 3'],
    images: Float[Array, 'B G R Q 3'],
  ) -> dict[str, Float[Array, 'B G']]:
    """Cosine of source and reconstruction, by tower."""
    out = {}
    for name, tower in towers.items():
      ours = tower.embed(params[name], source)
      theirs = self.embeddings(tower, params[name], images)
      out[name] = reconstruction.similarity(ours, theirs)
    return out

  def ceiling(
    self, frozen: Params, source: Array, rng: Key[Array, '']
  ) -> Array | None:
    """Sources [B R Q 3] as no drawing can be better, where that is known."""
    del frozen, source, rng
    return None

  def score(
    self, policy: Params, batch: Batch, captions: Captions
  ) -> tuple[Float[Array, 'B G L'], Float[Array, 'B G L']]:
    """Log-probability of each token and entropy, under the sampler."""
    prefix = self.prefill(policy, batch)
    apply = lambda *a, method: self.vlm.apply(
      {'params': policy}, *a, method=method
    )

    def piece(states, tokens):
      logits = apply(states, method='logits')
      return self.sampler.score(logits, tokens), self.sampler.entropy(logits)

    states = apply(prefix, captions.tokens, captions.mask, method='states')
    logp, entropy = by_chunks(piece, self.chunk, states, captions.tokens)
    zero = lambda x: jnp.where(captions.mask, x, 0.0)
    return zero(logp), zero(entropy)


def for_tokens(policy: Params) -> Params:
  """The policy as a loop over tokens reads it fastest.

  On a CPU, and where a second copy of the language model is small.
  """
  lm = policy['lm']
  size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(lm))
  if kernels.platform() != 'cpu' or size > COPIED:
    return policy
  return {**policy, 'lm': apart(lm)}


def reference(frozen: Params, policy: Params) -> Params:
  """The policy as it was before training.

  Its trained leaves are kept in `frozen['reference']`; where adapters are
  trained beside a whole frozen policy, that is the reference.
  """
  if 'reference' not in frozen:
    return frozen['policy']
  return trees.merge(policy, offload.fetch(frozen['reference']))
