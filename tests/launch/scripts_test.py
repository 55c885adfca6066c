"""Launch scripts: shellcheck and the Kubernetes schema."""

import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

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
