"""Launch scripts: shellcheck and the Kubernetes schema."""

import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from kubeflow_trainer_api import models

LAUNCH = Path(__file__).parent.parent.parent / 'launch'


@pytest.mark.parametrize(
  'script', ['launch/tpu_pod.sh', 'launch/slurm_gpu.sh', 'benchmarks/plans.sh']
)
def test_scripts_pass_shellcheck(script):
  done = subprocess.run(
    ['shellcheck', LAUNCH.parent / script], capture_output=True, text=True
  )
  assert done.returncode == 0, done.stdout


def test_a_wrong_use_says_how():
  env = dict(PROJECT='p', ZONE='z', PATH='/usr/bin:/bin')
  done = subprocess.run(
    [LAUNCH / 'tpu_pod.sh'], capture_output=True, text=True, env=env
  )
  assert done.returncode == 2 and 'usage' in done.stderr


def dropped(given, kept, path=''):
  """Fields of a document that its model does not know."""
  if isinstance(given, list):
    pairs = dict(enumerate(given)), dict(enumerate(kept))
  else:
    pairs = given, kept
  for key, value in pairs[0].items():
    if key not in pairs[1]:
      yield f'{path}/{key}'
    elif isinstance(value, dict | list):
      yield from dropped(value, pairs[1][key], f'{path}/{key}')


def test_the_set_has_no_field_that_jobsets_lack():
  job_set = yaml.safe_load((LAUNCH / 'gke.yaml').read_text())
  read = lambda: models.JobsetV1alpha2JobSet.from_dict(job_set).to_dict()
  assert not [*dropped(job_set, read())]
  job_set['spec']['failurePolicy']['maxRestart'] = 1
  assert [*dropped(job_set, read())] == ['/spec/failurePolicy/maxRestart']
  job_set['spec']['failurePolicy']['maxRestarts'] = 'many'
  with pytest.raises(ValueError, match='maxRestarts'):
    read()


def test_the_jobs_of_the_set_are_valid():
  job_set = yaml.safe_load((LAUNCH / 'gke.yaml').read_text())
  assert job_set['kind'] == 'JobSet'
  for replicated in job_set['spec']['replicatedJobs']:
    job = {
      'apiVersion': 'batch/v1',
      'kind': 'Job',
      'metadata': {'name': replicated['name']},
      **replicated['template'],
    }
    kubernetes_validate.validate(
      job, kubernetes_validate.latest_version(), True
    )
    spec = replicated['template']['spec']
    pod = spec['template']['spec']
    rows, cols = pod['nodeSelector']['cloud.google.com/gke-tpu-topology'].split(
      'x'
    )
    chips = pod['containers'][0]['resources']['limits']['google.com/tpu']
    assert spec['parallelism'] * chips == int(rows) * int(cols)
