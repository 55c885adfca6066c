"""What a rollout is worth: a weighted sum of terms.

Towers compare the drawing with its source (`rewards.reconstruction`), a CLIP
compares an image with the caption (`rewards.text`), captions cost by the
token (`rewards.captions`), and a user's function says what it likes
(`rewards.mine`).
"""

import dataclasses
from collections.abc import Mapping

from jaxtyping import Array, Float

from uae_jax.rewards import captions as of_captions
from uae_jax.rewards.mine import Mine
from uae_jax.rewards.reconstruction import ensemble, standardised
from uae_jax.rewards.text import TextTerm
from uae_jax.types import Captions

STANDARDISE = ('none', 'group')
# Names of metrics, which no tower may have.
TERMS = ('text', 'length', 'repetition', 'mine')
TAKEN = (*TERMS, 'mean', 'std', 'zero_std', 'invalid', 'failed')


@dataclasses.dataclass(frozen=True)
class Terms:
  """The terms and their weights; 0 and None leave a term out.

  Attributes:
    reconstruction: weight of the towers together.
    standardise: 'group' lets every tower, and the text's, count by its place
      in the group and not by how far its cosines are spread.
    length: weight of each token beyond the target.
    length_target: tokens of a caption that cost nothing, EOS included.
    repetition: weight of the share of repeated n-grams.
    ngram: n of these.
    text: a CLIP that reads captions.
    mine: a user's function.
  """

  reconstruction: float = 1.0
  standardise: str = 'none'
  length: float = 0.0
  length_target: int = 0
  repetition: float = 0.0
  ngram: int = 1
  text: TextTerm | None = None
  mine: Mine | None = None

  @property
  def weights(self) -> dict[str, float]:
    """Of the terms of `TERMS` that there are."""
    out = dict(length=self.length, repetition=self.repetition)
    for name, term in (('text', self.text), ('mine', self.mine)):
      out[name] = 0.0 if term is None else term.weight
    return {name: weight for name, weight in out.items() if weight}

  @property
  def looks(self) -> bool:
    """Does any term look at what is drawn?"""
    reads = self.text is not None and self.text.image == 'drawn'
    return bool(self.reconstruction) or reads or self.mine is not None

  @property
  def some(self) -> bool:
    """Is there any term?"""
    return bool(self.reconstruction or self.weights)

  def of_tokens(
    self, captions: Captions, eos: int
  ) -> dict[str, Float[Array, 'B G']]:
    """The terms of the captions alone."""
    out = {}
    if self.length:
      out['length'] = of_captions.length(captions.mask, self.length_target)
    if self.repetition:
      words = captions.mask & (captions.tokens != eos)
      out['repetition'] = of_captions.repetition(
        captions.tokens, words, self.ngram
      )
    return out

  def total(
    self,
    scores: Mapping[str, Float[Array, 'B G']],
    towers: Mapping[str, float],
  ) -> Float[Array, 'B G']:
    """The reward of raw scores.

    Args:
      scores: by name, of towers and of terms.
      towers: weights of the towers, by name.

    Raises:
      UserError: towers and their weights do not have the same names.
    """
    scores = {k: self._seen(k, v) for k, v in scores.items()}
    cosines = {k: v for k, v in scores.items() if k not in TERMS}
    parts = [w * scores[k] for k, w in self.weights.items()]
    if self.reconstruction:
      parts = [self.reconstruction * ensemble(cosines, towers), *parts]
    return sum(parts)

  def _seen(self, name, scores):
    """Scores as they are weighted."""
    # A caption that is alone, as in evaluation, has no place in a group.
    alone = scores.shape[-1] == 1
    cosines = name not in TERMS or name == 'text'
    if self.standardise == 'none' or alone or not cosines:
      return scores
    return standardised(scores)
