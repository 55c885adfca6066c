"""A user's function: found, tried, called, failing."""

import logging
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uae_jax.data.scenes import draw, grammar
from uae_jax.data.scenes import rewards as truths
from uae_jax.errors import UserError
from uae_jax.rewards import mine
from uae_jax.rewards.mine import Given

MODULE = """
import numpy as np, jax.numpy as jnp

def traced(given):
  return jnp.mean(given.images, (2, 3, 4))

def counted(given):
  return [[len(text) for text in texts] for texts in given.texts]

def fixed(given):
  return np.full(given.tokens.shape[:2], float(len(given.texts or '')))
fixed.on_host = True

def not_traced(given):
  return np.asarray(given.images).mean((2, 3, 4))
not_traced.on_host = False

def one(given): return jnp.zeros(())
def per_image(given): return jnp.zeros(given.source.shape[0])
def host_per_image(given): return [0.0 for _ in given.texts]
def nothing(given): pass
def raises(given): raise ValueError('no\\nway')

number = 3
"""
DECODE = lambda ids: ''.join(chr(96 + i) for i in ids)


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
  (tmp_path / 'users_own.py').write_text(MODULE)
  (tmp_path / 'users_broken.py').write_text('import users_absent')
  monkeypatch.syspath_prepend(tmp_path)


def given(images=2, group=3, length=4):
  rng = np.random.default_rng(0)
  mask = np.arange(length) < rng.integers(0, length, (images, group, 1))
  return Given(
    rng.uniform(size=(images, 8, 8, 3)).astype(np.float32),
    rng.uniform(size=(images, group, 8, 8, 3)).astype(np.float32),
    rng.integers(1, 26, mask.shape).astype(np.int32),
    mask,
  )


def rows(x):
  return x.source, x.images, x.tokens, x.mask


@pytest.mark.parametrize(
  'name, on_host', [('traced', 0), ('counted', 1), ('fixed', 1)]
)
def test_what_jax_cannot_trace_runs_on_the_host(name, on_host):
  assert mine.load(f'users_own:{name}', DECODE, 8).on_host == on_host


def test_a_host_function_gets_numpy_and_texts():
  own = mine.load('users_own:counted', DECODE, 8)
  x = given()
  np.testing.assert_array_equal(own.say(*rows(x)), x.mask.sum(-1))


def test_a_traced_function_is_called_as_it_is():
  own = mine.load('users_own:traced', DECODE, 8)
  x = given()
  got = jax.jit(lambda x: own(x, None))(x)
  np.testing.assert_allclose(got, x.images.mean((2, 3, 4)), rtol=1e-5)
  assert got.dtype == jnp.float32


@pytest.mark.parametrize(
  'path, says',
  [
    ('users_own', "'module:function'"),
    ('users_own:', "'module:function'"),
    ('users_absent:fn', 'importing users_absent failed'),
    ('users_broken:fn', "No module named 'users_absent'"),
    ('users_own:absent', 'no function absent'),
    ('users_own:number', 'no function number'),
    ('users_own:one', r'an array \(\): it must give an array \(2, 3\)'),
    ('users_own:per_image', r'an array \(2,\)'),
    ('users_own:host_per_image', r'an array \(2,\)'),
    ('users_own:nothing', 'gives NoneType'),
    ('users_own:raises', 'on blank images: ValueError: no$'),
    ('users_own:not_traced', 'Tracer'),
  ],
)
def test_a_mistake_is_one_line_at_the_start(path, says):
  with pytest.raises(UserError, match=says) as e:
    mine.load(path, DECODE, 8)
  assert len(str(e.value).splitlines()) == 1


def test_images_on_which_it_raises_have_failed_and_no_others(caplog):
  x, calls = given(images=4), []

  def fn(given):
    calls.append(len(given.source))
    if (given.source == x.source[2]).all((1, 2, 3)).any():
      raise RuntimeError('no such luck')
    return given.images.mean((2, 3, 4))

  own = mine.Mine('users_own:fn', fn, True, DECODE)
  with caplog.at_level(logging.WARNING):
    for _ in range(2):
      got = own.ask(*rows(x))
  want = x.images.mean((2, 3, 4))
  want[2] = np.nan
  np.testing.assert_allclose(got, want, rtol=1e-6)
  assert calls == [4, 1, 1, 1, 1] * 2
  assert caplog.text.count('RuntimeError: no such luck') == 1  # said once


def test_another_shape_later_on_is_a_failure():
  own = mine.Mine('users_own:fn', lambda x: np.zeros(3), True, DECODE)
  assert np.isnan(own.ask(*rows(given()))).all()


def seen(scenes, captions):
  """What a host function is given of scenes and [B][G] captions."""
  images = np.stack([draw.render(scene) for scene in scenes]) / np.float32(255)
  return Given(images, None, None, None, captions)


def test_the_truth_of_a_caption_is_its_f1():
  rng = np.random.default_rng(0)
  scene = draw.sample_scene(rng)
  full = grammar.describe(scene)
  first = ' '.join(full.split()[:2])  # size and colour of the first object
  got = truths.caption_truth(seen([scene], [[full, first, '', 'nonsense']]))
  want = 2 * 2 / (scene.size + 2)
  np.testing.assert_allclose(got, [[1, want, 0, 0]], rtol=1e-6)


@pytest.mark.parametrize('name', ['caption_truth', 'letters_said'])
def test_the_examples_are_accepted(name):
  path = f'uae_jax.data.scenes.rewards:{name}'
  assert mine.load(path, DECODE, 32).on_host


def test_the_example_of_the_docs_runs(tmp_path):
  page = Path(__file__).parents[2] / 'docs' / 'rewards.md'
  [code] = re.findall('```python\n(.*?)```', page.read_text(), re.DOTALL)
  (tmp_path / 'my_rewards.py').write_text(code)
  x = given()
  close = mine.load('my_rewards:close', DECODE, 8)
  assert not close.on_host
  want = -np.abs(x.images - x.source[:, None]).mean((2, 3, 4))
  np.testing.assert_allclose(close(x, None), want, rtol=1e-5)
  words = lambda ids: 'red , ' * len(ids)
  colours = mine.load('my_rewards:names_colours', words, 8)
  assert colours.on_host
  want = x.mask.sum(-1)
  np.testing.assert_array_equal(colours.say(*rows(x)), want)
