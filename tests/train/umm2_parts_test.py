"""The other parts of UMM-2: the detokenizer, and the cold start."""

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.train.loop_test import config, rows
from uae_jax import zoo
from uae_jax.infer.load import load
from uae_jax.sharding.mesh import make_mesh
from uae_jax.train import loop

START = 'bundled:umm2/policy'


@pytest.mark.slow
def test_a_flow_matching_detokenizer_draws_in_place_of_the_vq(tmp_path):
  folder = tmp_path / 'run'
  changes = {'train.steps': 2, 'eval.every': 8}
  assert loop.run(config('umm2', 'flow', **changes), folder) == 0
  flow = rows(folder, 'eval/')[0]
  assert flow['eval/ceiling_object_recall'] > 0.25
  model = load(str(folder / 'export'), make_mesh(-1, 1), {'batch': 8})
  assert model.options.steps == config('umm2', 'flow').rollout.draw_steps
  [drawn] = model.draw(['large red circle top left'], jax.random.key(1))
  assert drawn.shape == (32, 32, 3)


@pytest.mark.slow
@pytest.mark.parametrize(
  'part',
  ['policy', 'tokenizer', 'detokenizer'],
)
def test_the_cold_start_recipe_trains_its_part_alone(part, tmp_path):
  folder = tmp_path / 'run'
  changes = {'train.steps': 2, 'eval.every': 8}
  c = config('coldstart_umm2', part, **changes)
  assert loop.run(c, folder) == 0
  losses = [r['optim/loss'] for r in rows(folder, 'optim/')]
  assert len(losses) == 2 and np.isfinite(losses).all()
  export = folder / 'export'
  if part == 'detokenizer':
    assert not (export / 'policy').exists()
    for name in ('transformer', 'connector'):
      at = export / 'decoder' / name
      zoo.from_folder(at).load(at)
    return
  end = load_file(export / 'policy' / 'model.safetensors')
  zoo.janus_from_folder(export / 'policy')[0].load(export / 'policy')
  if part == 'policy':
    start = load_file(zoo.resolve(START) / 'model.safetensors')
    moved = {k for k in end if (start[k] != end[k]).any()}
    assert moved and not any('vqmodel' in name for name in moved)
