"""What Weights & Biases is told, by a module that records its calls."""

import importlib.machinery
import json
import math
import sys
import types

import numpy as np
import pytest

from uae_jax.errors import UserError
from uae_jax.train import wandb_writer, writers
from uae_jax.train.wandb_writer import WandbWriter


class Run:
  """A run of W&B."""

  def __init__(self, calls, id_):
    self.id, self._calls = id_, calls
    self.config = types.SimpleNamespace(
      update=lambda *a, **kw: calls.append(('config', a, kw))
    )

  def __getattr__(self, name):
    return lambda *a, **kw: self._calls.append((name, a, kw))


@pytest.fixture
def calls(monkeypatch):
  """What was called, with a `wandb` that can be imported."""
  calls, module = [], types.ModuleType('wandb')

  class Error(Exception):
    pass

  def init(**kw):
    calls.append(('init', (), kw))
    if kw['project'] == 'closed':
      raise Error('no such project\nand more')
    return Run(calls, kw['id'] or 'abc')

  module.init, module.Error = init, Error
  module.Image = lambda picture: ('image', picture.shape)
  module.Html = lambda text: ('html', text)
  module.__spec__ = importlib.machinery.ModuleSpec('wandb', None)
  monkeypatch.setitem(sys.modules, 'wandb', module)
  return calls


def test_everything_is_sent_with_its_step(calls, tmp_path):
  folder = tmp_path / 'first'
  folder.mkdir()
  writer = WandbWriter(folder, 'umm')
  writer.write_hparams({'train.lr': 0.1})
  writer.truncate_after(0)
  writer.write_scalars(1, {'a': 0.5, 'b': math.nan})
  writer.write_images(1, {'redrawn': np.zeros((2, 4, 6, 3), np.uint8)})
  writer.write_texts(1, {'captions': '0. a < b'})
  writer.flush()
  writer.close()
  assert calls[0] == (
    'init',
    (),
    dict(project='umm', name='first', dir=str(folder), id=None, resume='allow'),
  )
  assert calls[1:] == [
    ('define_metric', ('*',), {'step_metric': 'step'}),
    ('config', ({'train.lr': 0.1},), {'allow_val_change': True}),
    ('log', ({'step': 1, 'a': 0.5},), {}),
    ('log', ({'step': 1, 'redrawn': [('image', (4, 6, 3))] * 2},), {}),
    (
      'log',
      ({'step': 1, 'captions': ('html', '<pre>0. a &lt; b</pre>')},),
      {},
    ),
    ('finish', (), {}),
  ]


def test_a_resumed_run_goes_on_in_the_same(calls, tmp_path):
  WandbWriter(tmp_path, 'umm')
  assert json.loads((tmp_path / 'wandb.json').read_text()) == {'id': 'abc'}
  (tmp_path / 'wandb.json').write_text('{"id": "kept"}')
  WandbWriter(tmp_path, 'umm')
  assert [kw['id'] for name, _, kw in calls if name == 'init'] == [None, 'kept']


def test_what_wandb_refuses_is_one_line(calls, tmp_path):
  with pytest.raises(UserError, match='^log.wandb: no such project$'):
    WandbWriter(tmp_path, 'closed')


def test_a_run_opens_it_where_a_project_is_named(calls, tmp_path):
  writers.open_all(tmp_path, '').close()
  assert not calls
  writers.open_all(tmp_path, 'umm').close()
  assert calls[0][2]['project'] == 'umm' and calls[-1][0] == 'finish'


def test_without_the_package_nothing_is_asked_for_but_one_line(monkeypatch):
  monkeypatch.setitem(sys.modules, 'wandb', None)
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  wandb_writer.check('')
  with pytest.raises(UserError, match='pip install'):
    wandb_writer.check('umm')
