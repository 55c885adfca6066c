"""What is reported of held-out scenes, of models whose answers are known."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uae_jax.data import pipeline, tokenize
from uae_jax.data.scenes import draw
from uae_jax.eval.scenes_bench import Evaluator
from uae_jax.rewards.terms import Terms
from uae_jax.sharding.mesh import make_mesh
from uae_jax.types import Captions

N, BATCH = 20, 8
OBJECTS = ('eval/attribute_recall', 'eval/exact_caption', 'eval/exact_scene')
STRINGS = ('eval/glyph_recall', 'eval/glyph_exact', 'eval/glyph_redrawn')


@dataclasses.dataclass(frozen=True)
class Knowing:
  """Says the first words of the full caption; draws the image or nothing."""

  words: int
  draws: bool
  sampler: Any = None
  terms: Terms = Terms(reconstruction=0.0)
  judges: tuple = ()

  def prefill(self, policy, batch):
    return batch

  def describe(self, policy, prefix, rng, group):
    said = prefix.full_mask & (jnp.arange(28) < self.words)
    ids, mask = prefix.full_ids[:, None], said[:, None]
    return Captions(ids, mask, jnp.zeros(ids.shape))

  def draw(self, policy, frozen, captions, prefix, rng):
    if self.draws:
      return prefix.image[:, None]
    blank = jnp.asarray(draw.BACKGROUND) / 255
    return jnp.broadcast_to(blank, prefix.image[:, None].shape)

  def draw_from_text(self, policy, frozen, captions, rng):
    return jnp.full((len(captions.tokens), 1, 32, 32, 3), 0.15)

  def similarities(self, towers, frozen, source, images):
    return {}

  def ceiling(self, frozen, source, rng):
    return source


@pytest.fixture(scope='module')
def tok(tmp_path_factory):
  folder = str(tmp_path_factory.mktemp('tokenizer'))
  tokenize.build_word_tokenizer(folder)
  return tokenize.load_tokenizer(folder)


def evaluate(tok, uri, words=28, draws=True):
  """The rows of `Knowing` on a source."""
  source = pipeline.make_source(uri)
  example = pipeline.MakeExample(
    lambda image: {}, image_side=32, caption_length=28, tokenizer=tok
  )
  evaluator = Evaluator(
    Knowing(words, draws),
    lambda: pipeline.take(source, example, n=N, batch=BATCH),
    lambda ids: tokenize.decode(tok, ids),
    make_mesh(1, 1, jax.devices()[:1]),
    lambda state: {},
    lambda state: {'judges': {}},
    gallery=2,
  )
  rows, gallery = evaluator(None)
  assert len(gallery.captions) == 2
  return rows


def test_who_says_and_redraws_everything_has_every_string(tok):
  rows = evaluate(tok, 'glyphs:heldout')
  assert {rows[key] for key in (*OBJECTS, *STRINGS)} == {1.0}
  assert rows['eval/full_glyph_redrawn'] == rows['eval/full_exact_scene'] == 0
  assert rows['eval/ceiling_glyph_redrawn'] == 1
  assert rows['eval/ceiling_exact_scene'] == 1


def test_who_stops_early_and_draws_nothing_has_few(tok):
  source = pipeline.make_source('glyphs:heldout')
  first = [len(source[i]['truth']) == 1 for i in range(N)]
  # One object, a comma, 'text' and one letter.
  rows = evaluate(tok, 'glyphs:heldout', words=8, draws=False)
  assert rows['eval/glyph_recall'] == pytest.approx(np.mean(first) / 3)
  assert rows['eval/glyph_exact'] == rows['eval/glyph_redrawn'] == 0
  assert rows['eval/exact_scene'] == 0


def test_scenes_without_strings_have_no_such_rows(tok):
  rows = evaluate(tok, 'scenes:heldout')
  assert {rows[key] for key in OBJECTS} == {1.0}
  assert not [key for key in rows if 'glyph' in key]
