"""Held-out evaluation: greedy caption, redraw, score; scenes add the truth.

Rows are named `eval/...`. The Unified-Score is 100 x the mean cosine over
towers that are not the reward. Photographs have no truth, so only similarity
and length are reported for them.
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from uae_jax.data.scenes import prompts, score
from uae_jax.rollout.sampler import Sampler
from uae_jax.sharding import hosts
from uae_jax.sharding.mesh import put_whole
from uae_jax.types import Batch, Captions


@dataclasses.dataclass
class Gallery:
  """What the report shows of an evaluation; n images.

  Attributes:
    source: uint8 [n, R, R, 3].
    reconstruction: uint8 [n, R, R, 3].
    captions: n strings.
    scores: n cosines by tower, the reward first.
  """

  source: np.ndarray
  reconstruction: np.ndarray
  captions: list[str]
  scores: dict[str, np.ndarray]


class Evaluator:
  """Scores a policy on a fixed list of held-out batches."""

  def __init__(
    self,
    umm: Any,
    batches: Callable[[], Iterable[dict[str, np.ndarray]]],
    decode: Callable[[np.ndarray], str],
    mesh: Any,
    policy_of: Callable,
    frozen_of: Callable,
    gallery: int,
    more: Callable | None = None,
  ):
    """Compiles nothing yet.

    Args:
      umm: the architecture; its sampler is replaced by the greedy one.
      batches: gives the held-out batches, the same ones every time.
      decode: caption ids -> text.
      mesh: where batches go.
      policy_of: state -> policy parameters.
      frozen_of: state -> connector, decoder, reward and judge parameters.
      gallery: images kept for the report.
      more: (parameters by part, batch, rng) -> further values [n] by name, of
        images that have a full caption.
    """
    self._batches, self._decode, self._mesh = batches, decode, mesh
    self._policy_of, self._frozen_of = policy_of, frozen_of
    self._gallery, self._more = gallery, more
    self._umm = dataclasses.replace(umm, sampler=Sampler(temperature=0))
    self._run = jax.jit(self._forward)

  def _forward(self, policy, frozen, batch, rng):
    umm = self._umm
    prefix = umm.prefill(policy, batch)
    captions = umm.describe(policy, prefix, rng, 1)
    images = umm.draw(policy, frozen, captions, prefix, rng)
    out = {'tokens': captions.tokens[:, 0], 'mask': captions.mask[:, 0]}
    out['image'] = images[:, 0]
    scores = umm.similarities(umm.judges, frozen['judges'], batch.image, images)
    if umm.terms.some:
      scores['reward'], _ = umm.reward(frozen, batch.image, images, captions)
    out['scores'] = {k: v[:, 0] for k, v in scores.items()}
    if batch.full_ids is not None:
      full = Captions(
        batch.full_ids[:, None],
        batch.full_mask[:, None],
        jnp.zeros(batch.full_ids[:, None].shape),
      )
      drawn = umm.draw_from_text(policy, frozen, full, rng)
      out['full'] = drawn[:, 0]
      found = umm.similarities(umm.judges, frozen['judges'], batch.image, drawn)
      out['full_scores'] = {k: v[:, 0] for k, v in found.items()}
    if batch.prompt_ids is not None:
      texts = Captions(
        batch.prompt_ids,
        batch.prompt_mask,
        jnp.zeros(batch.prompt_ids.shape),
      )
      out['prompted'] = umm.draw_from_text(policy, frozen, texts, rng)
    if self._more is not None and batch.full_ids is not None:
      parts = {**frozen, 'policy': policy}
      out['more'] = self._more(parts, batch, rng)
    if batch.full_ids is not None:
      ceiling = umm.ceiling(frozen, batch.image, rng)
      if ceiling is not None:
        out['ceiling'] = ceiling
    return out

  def __call__(self, state: Any) -> tuple[dict[str, float], Gallery]:
    """Returns the rows and the first images for the report."""
    policy, frozen = self._policy_of(state), self._frozen_of(state)
    parts, sources, truths, strings = [], [], [], []
    for i, (host, real) in enumerate(self._batches()):
      truth, string = host.pop('truth', None), host.pop('glyphs', None)
      rng = jax.random.fold_in(jax.random.key(0), i)
      batch = Batch(**put_whole(host, self._mesh))
      part = hosts.gather(self._run(policy, frozen, batch, rng))
      parts.append(jax.tree.map(lambda x, keep=real: x[keep], part))
      sources.append(host['image'][real])
      truths.append(None if truth is None else truth[real])
      strings.append(None if string is None else string[real])
    out = jax.tree.map(lambda *x: np.concatenate(x), *parts)
    text = [
      self._decode(t[m])
      for t, m in zip(out['tokens'], out['mask'], strict=True)
    ]
    scores = out['scores']
    rows = {f'eval/{k}': v.mean() for k, v in scores.items()}
    if 'reward' in scores:
      rows |= named('eval/', reward_rows(scores['reward']))
    rows |= {f'eval/{k}': v.mean() for k, v in out.get('more', {}).items()}
    rows['eval/caption_length'] = out['mask'].sum(-1).mean()
    judged = [rows[f'eval/{k}'] for k in self._umm.judges]
    if judged:
      rows['eval/unified_score'] = 100 * np.mean(judged)
    if out.get('full_scores'):
      found = [v.mean() for v in out['full_scores'].values()]
      rows['eval/full_unified_score'] = 100 * np.mean(found)
    if truths[0] is not None:
      truth = list(np.concatenate(truths))
      glyphs = None if strings[0] is None else np.concatenate(strings)
      rows |= scene_rows(out, text, truth, glyphs)
    n = self._gallery
    by_reward = lambda item: item[0] != 'reward'
    byte = lambda x: np.round(np.clip(x[:n], 0, 1) * 255).astype(np.uint8)
    gallery = Gallery(
      byte(np.concatenate(sources)),
      byte(out['image']),
      text[:n],
      {k: v[:n] for k, v in sorted(scores.items(), key=by_reward)},
    )
    return {k: float(v) for k, v in rows.items()}, gallery


def reward_rows(reward: np.ndarray) -> dict[str, float]:
  """The mean, without images whose reward failed; these are counted."""
  kept = np.isfinite(reward)
  if kept.all():
    return dict(reward=reward.mean())
  mean = reward[kept].mean() if kept.any() else np.nan
  return dict(reward=mean, reward_failed=(~kept).sum())


def scene_rows(
  out: dict[str, np.ndarray],
  captions: list[str],
  truth: list[np.ndarray],
  strings: np.ndarray | None,
) -> dict[str, float]:
  """What only drawn scenes give: scores against what is known to be there.

  Args:
    out: images drawn from captions, full captions and prompts, and through
      the image tokenizer, where they are.
    captions: n texts.
    truth: n scenes.
    strings: [n, 5], of scenes that have one.
  """
  text = strings is not None
  rows = named('eval/', score.caption_scores(captions, truth))
  if text:
    rows |= named('eval/', score.glyph_scores(captions, strings))

  def add(prefix, images):
    found = score.scene_scores(images, truth, text=text)
    if text:
      found |= score.glyphs_redrawn(images, strings)
    rows.update(named(prefix, found))

  add('eval/', out['image'])
  if 'full' in out:
    add('eval/full_', out['full'])
  if 'prompted' in out:
    drawn = prompts.prompt_scores(out['prompted'], truth, text)
    rows.update(named('eval/prompt_', drawn))
  if 'ceiling' in out:
    add('eval/ceiling_', out['ceiling'])
  return rows


def named(prefix: str, values: dict[str, float]) -> dict[str, float]:
  """Prefixes every key."""
  return {prefix + k: v for k, v in values.items()}
