"""Every run of configs/ablations.py builds, and its step can be traced."""

import importlib.util

import jax
import pytest

from tests.train.loop_test import ROOT, config
from uae_jax.plan import programs
from uae_jax.sharding.mesh import make_mesh

SPEC = importlib.util.spec_from_file_location(
  'ablations', ROOT / 'configs' / 'ablations.py'
)
ablations = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(ablations)
RUNS = [
  f'{question}-{run}'
  for question, runs in ablations.QUESTIONS.items()
  for run, changes in runs.items()
  # Weights of glyphs have to be made; a tour's runs are those of others.
  if changes and question not in ('glyphs', 'tour')
]


@pytest.mark.parametrize('run', RUNS)
def test_a_run_takes_a_step(run):
  question, _, name = run.partition('-')
  changes = ablations.QUESTIONS[question][name]
  c = config('ablations', run)
  for key, value in changes.items():
    if key not in ('train.images', 'train.group_size', 'rollout.length'):
      section = c
      for part in key.split('.'):
        section = section[part]
      assert section == value
  mesh = make_mesh(1, 1, jax.devices()[:1])
  step = programs.build(c, mesh, 'train_step')
  with jax.set_mesh(mesh):
    state, metrics = jax.eval_shape(step.fn, *step.args)
  assert jax.tree.structure(state) == jax.tree.structure(step.args[0])
  assert metrics['reward/mean'].shape == ()


def test_every_question_has_something_to_compare():
  for question, runs in ablations.QUESTIONS.items():
    assert len(runs) > 1 and '-' not in question
  with pytest.raises(ValueError, match='bottleneck-hidden'):
    ablations.get_config('bottleneck')
