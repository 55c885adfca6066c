"""Rewards of captions against what is truly there; drawn scenes only.

For `rewards.mine`: a symbolic term beside the reconstruction's, or in its
place. Scenes are read off the source, where the detector is exact, so that a
run needs nothing that photographs lack. See docs/rewards.md.
"""

from typing import Any

import numpy as np
from jaxtyping import Float

from uae_jax.data.scenes import detect, score


def caption_truth(given: Any) -> Float[np.ndarray, 'B G']:
  """How much of the scene a caption tells, and how truly.

  The F1 of attribute words: 2 x right / (there + said), 1 for a caption that
  says everything and nothing else.

  Args:
    given: a `rewards.mine.Given` on the host.
  """
  scenes = detect.detect_batch(given.source)
  return np.array(
    [
      [_f1(score.caption_counts(text, scene)) for text in texts]
      for scene, texts in zip(scenes, given.texts, strict=True)
    ]
  )


def letters_said(given: Any) -> Float[np.ndarray, 'B G']:
  """Share of the letters in the scene's string that a caption tells.

  0 where there is no string.

  Args:
    given: a `rewards.mine.Given` on the host.
  """
  strings = detect.read_strings(given.source)
  counts = [
    [score.glyph_counts(text, string) for text in texts]
    for string, texts in zip(strings, given.texts, strict=True)
  ]
  return np.array(
    [[n['said'] / max(n['letters'], 1) for n in row] for row in counts]
  )


def _f1(counts) -> float:
  return 2 * counts['correct'] / max(counts['truth'] + counts['said'], 1)


# Detectors are numpy's.
caption_truth.on_host = letters_said.on_host = True
