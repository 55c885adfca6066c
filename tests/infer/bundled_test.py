"""Bundled models, at what they were trained for."""

import dataclasses
import importlib

import jax
import numpy as np
import pytest

from uae_jax.data.pipeline import SceneSource
from uae_jax.data.scenes import score
from uae_jax.infer.load import load
from uae_jax.sharding.mesh import make_mesh
from uae_jax.train import assemble_umm1, assemble_umm2


def test_the_letter_world_has_a_captioner_that_reads():
  model = load('bundled:umm1/glyphs', make_mesh(1, 1, jax.devices()[:1]), {})
  source = SceneSource('heldout', text=True, max_objects=3)
  records = [source[i] for i in range(8)]
  texts = model.describe([r['image'] for r in records], jax.random.key(0))
  strings = np.stack([r['glyphs'] for r in records])
  assert score.glyph_scores(texts, strings)['glyph_recall'] > 0.8
  drawn = model.draw(texts[:2], jax.random.key(1))
  shape = records[0]['image'].shape
  assert [x.shape for x in drawn] == [shape, shape]
  # Something white is where the string is, if no letters.
  for picture, string in zip(drawn, strings):
    rows, cols = (slice(at * 32 // 3, (at + 1) * 32 // 3) for at in string[:2])
    assert picture[rows, cols].max() > 150


@pytest.mark.parametrize('name', ['umm1', 'umm2'])
def test_tools_use_a_bundled_model_as_its_run_does(name):
  assemble = {'umm1': assemble_umm1, 'umm2': assemble_umm2}[name]
  config = importlib.import_module(f'configs.{name}').get_config()
  said = assemble.options(config)
  mesh = make_mesh(1, 1, jax.devices()[:1])
  options = load(f'bundled:{name}', mesh, {}, describes=False).options
  assert (options.height, options.width) == (config.data.side,) * 2
  for field in dataclasses.fields(options):
    if field.name in said:
      assert getattr(options, field.name) == said[field.name], field.name
