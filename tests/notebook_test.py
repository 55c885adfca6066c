"""What notebooks call: configs, steps, commands, pictures, live curves."""

import io
import types

import numpy as np
import pytest
from IPython import display
from PIL import Image

from tests.eval.compare_test import make
from uae_jax import notebook
from uae_jax.errors import UserError
from uae_jax.eval.scenes_bench import Gallery


def pixels(image):
  """Of what a function returned, and whether anything is drawn."""
  array = np.asarray(Image.open(io.BytesIO(image.data)).convert('RGB'))
  assert array.std() > 1 and image.alt
  return array


def test_a_config_is_changed_by_section():
  c = notebook.config('umm1', 'blind', train=dict(steps=3), grpo=dict(beta=0.0))
  assert (c.train.steps, c.grpo.beta, c.train.images) == (3, 0.0, 24)
  assert c.ckpt.policy == 'bundled:umm1/blind'


@pytest.mark.parametrize(
  'name, part, changes, says',
  [
    ('umm9', '', {}, 'umm9.py does not exist'),
    ('umm1', 'bland', {}, 'bland'),
    ('umm1', '', {'train': {'step': 3}}, 'step'),
    ('umm1', '', {'training': {'steps': 3}}, 'training'),
    ('umm1', '', {'train': {'steps': 'three'}}, 'steps'),
  ],
)
def test_mistakes_in_a_config_are_named(name, part, changes, says):
  with pytest.raises(UserError, match=says) as e:
    notebook.config(name, part, **changes)
  assert '\n' not in str(e.value)


def test_a_variable_makes_runs_shorter_and_never_longer(monkeypatch):
  monkeypatch.delenv('UAE_JAX_NOTEBOOK_STEPS', raising=False)
  assert notebook.steps(60) == 60 and notebook.some('abc') == ['a', 'b', 'c']
  monkeypatch.setenv('UAE_JAX_NOTEBOOK_STEPS', '2')
  assert notebook.steps(60) == 2 and notebook.steps(1) == 1
  assert notebook.some('abc') == ['a', 'b'] and notebook.some('a') == ['a']
  for wrong in ('0', '-1', 'two'):
    monkeypatch.setenv('UAE_JAX_NOTEBOOK_STEPS', wrong)
    with pytest.raises(UserError, match='say a number'):
      notebook.steps(60)


def test_commands_are_shown_and_their_failure_is_not_missed(capfd):
  with pytest.raises(UserError, match='ended with exit code 2'):
    notebook.command('tools.compare', '--runs=nowhere')
  said = capfd.readouterr().out
  assert said.startswith('$ python -m uae_jax.tools.compare --runs=nowhere')
  assert 'two or more runs' in said


def test_rows_of_pictures():
  images = [np.full((8, 8, 3), 200, np.uint8)] * 3
  one = pixels(notebook.pictures({'source': images}))
  two = pixels(notebook.pictures({'source': images, 'redrawn': images[:2]}))
  told = pixels(notebook.pictures({'source': images}, ['a , b', '', 'c']))
  assert one.shape[1] == two.shape[1] == told.shape[1]
  assert one.shape[0] < told.shape[0] < two.shape[0]


def test_a_table_has_the_keys_for_a_head():
  text = notebook.table([{'x': 0.12345, 'y': 'a'}, {'x': 2, 'y': 'b'}]).data
  assert text.splitlines() == [
    '| x | y |', '| --- | --- |', '| 0.123 | a |', '| 2 | b |'
  ]  # fmt: skip


def test_runs_are_drawn_side_by_side(tmp_path):
  runs = [make(tmp_path / name, 1.0, 50.0) for name in ('one', 'two')]
  pixels(notebook.compared(runs))
  with pytest.raises(UserError, match='two or more'):
    notebook.compared(runs[:1])


def test_live_shows_each_picture_once_and_then_changes_it(monkeypatch):
  shown, updated = [], []

  def show(image, display_id):
    shown.append(image)
    return types.SimpleNamespace(update=updated.append)

  monkeypatch.setattr(display, 'display', show)
  live = notebook.Live(columns=2, every=0)

  def gallery(words):
    images = np.full((3, 8, 8, 3), 90, np.uint8)
    return Gallery(images, images, [words] * 3, {})

  live.write_scalars(0, {'eval/reward': 0.5})
  live.write_gallery(0, gallery('first'))
  assert len(shown) == 2 and not updated
  live.write_scalars(1, {'reward/mean': 0.4, 'policy/kl': float('nan')})
  live.write_scalars(2, {'reward/mean': 0.5, 'policy/kl': 0.1})
  live.write_gallery(2, gallery('second'))
  assert len(shown) == 2 and len(updated) == 3
  before, after = pixels(shown[1]), pixels(updated[-1])
  assert after.shape[0] > before.shape[0]  # a row more: before and after
  assert updated[1].alt == 'Curves to step 2'


def test_live_does_not_draw_every_step(monkeypatch):
  shown = []
  handle = types.SimpleNamespace(update=shown.append)
  monkeypatch.setattr(display, 'display', lambda *_, **__: handle)
  live = notebook.Live(every=60)
  for step in range(1, 20):
    live.write_scalars(step, {'reward/mean': 0.1 * step})
  assert not shown
  live.write_scalars(20, {'eval/reward': 0.5})
  assert len(shown) == 1
