"""A whole run whose steps train captioner and decoder by turns."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.train.loop_test import config, rows
from uae_jax import zoo
from uae_jax.errors import UserError
from uae_jax.infer.load import load
from uae_jax.sharding.mesh import make_mesh
from uae_jax.train import loop, tasks
from uae_jax.train.parts import Loader

CHANGES = {
  'train.steps': 4, 'eval.every': 4, 'ckpt.every': 2, 'rollout.draw_steps': 3,
  'eval.draw_steps': 2, 'flow.window': 1, 'flow.lr': 1e-3, 'optim.warmup': 0,
  'optim.ema': 0.5, 'train.oversample': 2,
}  # fmt: skip


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """The run."""
  folder = tmp_path_factory.mktemp('alternate') / 'run'
  c = config('umm1', 'alternate', **CHANGES)
  assert loop.run(c, folder) == 0
  return folder


def test_captioner_and_decoder_take_turns(run):
  steps = rows(run, 'reward/')
  assert [r['step'] for r in steps] == [1, 2, 3, 4]
  for row in steps:
    turn = 'decoder' if row['step'] % 2 == 0 else 'policy'
    other = {'decoder': 'policy', 'policy': 'decoder'}[turn]
    assert f'{turn}/ratio_max' in row and f'{other}/ratio_max' not in row
    assert row['rollout/train_gap'] < 1e-4
    assert row['optim/skipped'] == 0


def test_both_are_exported_and_drawn_as_evaluated(run):
  options = json.loads((run / 'export' / 'umm.json').read_text())
  assert options['steps'] == 2
  for at, start in (
    ('policy', 'bundled:umm1/policy'),
    ('decoder/transformer', 'bundled:umm1/decoder/transformer'),
  ):
    (before,) = zoo.resolve(start).glob('*.safetensors')
    (after,) = (run / 'export' / at).glob('*.safetensors')
    before, after = load_file(before), load_file(after)
    assert set(before) == set(after)
    moved = [
      k for k in after if (before[k].astype(np.float32) != after[k]).any()
    ]
    assert moved, at


def test_a_later_stage_begins_where_an_earlier_one_ended(run):
  last = rows(run, 'eval/')[-1]
  export = run / 'export'
  c = config('umm1', 'decoder', **{
    **CHANGES, 'ckpt.policy': str(export / 'policy'),
    'ckpt.decoder': str(export / 'decoder'),
  })  # fmt: skip
  mesh = make_mesh(-1, 1)
  with jax.set_mesh(mesh):
    task = tasks.build(c, mesh)
    found, _ = task.evaluate(task.state)
  assert 'reader' in task.state.frozen  # not the captioner that was trained
  for key in ('eval/reward', 'eval/unified_score', 'eval/caption_length'):
    np.testing.assert_allclose(found[key], last[key], rtol=1e-3, err_msg=key)


@pytest.mark.parametrize(
  'part, changes',
  [('', {'rollout.environment': 'policy'}), ('align', {})],
)
def test_a_reader_that_nothing_would_read_by_is_refused(part, changes):
  name = 'pretrain' if part else 'umm1'
  c = config(name, part, **changes, **{'ckpt.reader': 'bundled:umm1/policy'})
  with pytest.raises(UserError, match='ckpt.reader'):
    tasks.load(c, Loader(c, make_mesh(1, 1, jax.devices()[:1])))


def test_tools_draw_as_the_run_did(run):
  export, mesh = run / 'export', make_mesh(1, 1, jax.devices()[:1])
  model = load(str(export), mesh, {})
  drawn = model.draw(['large red circle top left'], jax.random.key(0))
  options = json.loads((export / 'umm.json').read_text())
  assert options['policy'] == 'policy' and options['decoder'] == 'decoder'
  assert options['reader'] == 'bundled:umm1/policy'
  (export / 'umm.json').write_text(
    json.dumps({**options, 'decoder': 'bundled:umm1/decoder'})
  )
  old = load(str(export), mesh, {})
  other = old.draw(['large red circle top left'], jax.random.key(0))
  (export / 'umm.json').write_text(json.dumps(options))
  assert (drawn[0] != other[0]).any()


def test_what_is_unchanged_is_exported_by_name_or_copied(tmp_path):
  c = config('umm1', 'decoder', **CHANGES)
  mesh = make_mesh(1, 1, jax.devices()[:1])
  parts = tasks.load(c, Loader(c, mesh))
  parts.export(tmp_path, parts.params, changed=['decoder'])
  parts.write_options(tmp_path)
  options = json.loads((tmp_path / 'umm.json').read_text())
  assert options['policy'] == options['reader'] == 'bundled:umm1/policy'
  assert options['decoder'] == 'decoder'
  folders = {p.name for p in (tmp_path / 'decoder').iterdir()}
  assert folders == {'transformer', 'connector'}
  model = load(str(tmp_path), mesh, {})
  rng = jax.random.key(0)
  text = model.describe(model.draw(['large red circle'], rng), rng)
  assert isinstance(text[0], str)


@pytest.mark.slow
def test_adapters_of_the_decoder_start_from_their_reference(tmp_path):
  c = config('umm1', 'decoder', **{
    **CHANGES, 'flow.lora_rank': 2, 'flow.lora_export': 'adapter',
    'flow.beta': 0.1, 'train.steps': 2, 'eval.every': 8, 'flow.lr': 1e-2,
  })  # fmt: skip
  assert loop.run(c, tmp_path / 'run') == 0
  first, later = rows(tmp_path / 'run', 'decoder/')
  assert abs(first['decoder/ratio_max'] - 1) < 1e-4
  assert abs(first['decoder/kl']) < 1e-9 < later['decoder/kl']
  export = tmp_path / 'run' / 'export'
  names = load_file(export / 'decoder/adapter/adapter_model.safetensors')
  assert names and all('.attn.' in name for name in names)
  assert not (export / 'decoder' / 'transformer').exists()
