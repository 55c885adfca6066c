"""Every run of configs/ablations.py starts, takes two steps, and reports."""

import importlib.util

import numpy as np
import pytest

from tests.train.loop_test import ROOT, config, rows
from uae_jax.train import loop

SPEC = importlib.util.spec_from_file_location(
  'ablations', ROOT / 'configs' / 'ablations.py'
)
ablations = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(ablations)
NOTEBOOK = ROOT / 'notebooks' / '3_ablations.ipynb'


def marked(question, run, changes):
  """A run; a slow test where tests/notebooks_test.py takes two steps of it."""
  toured = changes in ablations._TOUR.values()
  marks = [pytest.mark.slow] if toured else []
  return pytest.param(f'{question}-{run}', marks=marks)


RUNS = [
  marked(question, run, changes)
  for question, runs in ablations.QUESTIONS.items()
  for run, changes in runs.items()
  if changes and question != 'tour'  # whose runs are those of others
]
# What `config` sets, whatever an ablation says.
SHORTENED = ('train.steps', 'train.images', 'rollout.length')


@pytest.mark.parametrize('run', RUNS)
def test_a_run_starts_and_takes_two_steps(run, tmp_path):
  question, _, name = run.partition('-')
  changes = ablations.QUESTIONS[question][name]
  c = config('ablations', run, **{
    'train.steps': 2, 'eval.every': 2,
    'train.group_size': changes.get('train.group_size', 2),
  })  # fmt: skip
  for key, value in changes.items():
    if key not in SHORTENED:
      section = c
      for part in key.split('.'):
        section = section[part]
      assert section == value
  assert loop.run(c, tmp_path / 'run') == 0
  steps = [r for r in rows(tmp_path / 'run') if 'optim/loss' in r]
  assert [r['step'] for r in steps] == [1, 2]
  assert all(np.isfinite(r['optim/loss']) for r in steps)
  assert (tmp_path / 'run' / 'report.html').exists()


def test_the_notebook_runs_the_tour():
  assert '--question=tour' in NOTEBOOK.read_text()
  slow = [run.values[0] for run in RUNS if run.marks]
  assert len(slow) == len(ablations._TOUR) - 1 == 5


def test_every_question_has_something_to_compare():
  for question, runs in ablations.QUESTIONS.items():
    assert len(runs) > 1 and '-' not in question
  with pytest.raises(ValueError, match='bottleneck-hidden'):
    ablations.get_config('bottleneck')
