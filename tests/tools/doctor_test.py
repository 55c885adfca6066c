"""What tools.doctor finds, and what it says to change."""

import dataclasses
import json
import os

import jax
import pytest
from etils import epath
from packaging.requirements import Requirement

from tests.tools.commands import run
from uae_jax.infer import self_test
from uae_jax.nn import kernels
from uae_jax.plan import attention
from uae_jax.tools import doctor


@pytest.fixture(scope='module')
def said(tmp_path_factory):
  """(code, stdout, stderr): as people read it, as programs do, in trouble."""
  folder = tmp_path_factory.mktemp('doctor')
  (folder / 'file').write_text('')
  blocked = f'--folder={folder / "file" / "runs"}'
  return run(
    'doctor', [f'--folder={folder}'], ['--json', '--test=false'],
    ['--test=false', blocked], ['--json', '--test=false', blocked],
    ['--test=false', '--attention=magic'],
  )  # fmt: skip


def test_all_is_well_here(said):
  code, out, err = said[0]
  assert (code, err) == (0, ''), err
  assert out.splitlines()[-1] == 'all is well'
  for name in ('python', 'jaxlib', 'orbax-checkpoint', 'cpu 0', 'SD3.5-medium',
               'vm.max_map_count', 'caption', 'reward'):  # fmt: skip
    assert any(line.split()[:1] == name.split()[:1]
               for line in out.splitlines()), name  # fmt: skip


def test_json_is_one_object(said):
  code, out, err = said[1]
  found = json.loads(out)
  assert (code, err, found['problems']) == (0, '', [])
  assert found['versions']['jax'] == jax.__version__
  assert found['devices'] and 'self test' not in found
  assert (
    found['packages']['test'] == 'installed'
    or 'lacks' in (found['packages']['test'])
  )


def test_a_problem_is_one_line_and_exit_2(said):
  for i in (2, 3):
    code, out, err = said[i]
    assert code == 2 and len(err.splitlines()) == 1
    assert 'cannot be written' in err and '--folder=' in err
  assert len(json.loads(said[3][1])['problems']) == 1
  code, _, err = said[4]
  assert code == 2 and 'magic' in err


def test_the_self_test_is_what_was_recorded():
  found = self_test.run(jax.devices())
  assert not self_test.differences(found)
  assert found.caption.startswith('red circle top left')
  assert 0.5 < found.reward <= 1 and found.error < 0.2


@pytest.mark.parametrize(
  'change, says',
  [
    ({'caption': 'a cat'}, 'caption'),
    ({'reward': 0.3}, 'reward'),
    ({'error': self_test.RECORDED.error + 0.01}, 'error'),
  ],
)
def test_other_numbers_are_seen(change, says):
  found = dataclasses.replace(self_test.RECORDED, **change)
  [line] = self_test.differences(found)
  assert line.startswith(says)


def test_a_self_test_that_is_off_is_a_problem(monkeypatch):
  wrong = dataclasses.replace(self_test.RECORDED, reward=0.3)
  monkeypatch.setattr(self_test, 'run', lambda: wrong)
  monkeypatch.setattr(doctor.mesh_lib, 'use_compilation_cache', lambda: None)
  _, [problem] = doctor.self_test()
  assert 'reward' in problem and '\n' not in problem


def test_attention_is_what_the_kernels_choose(monkeypatch):
  here = attention.chosen()
  if jax.default_backend() == 'cpu':
    assert set(here.values()) == {'products, in pieces'}
  monkeypatch.setattr(kernels, 'platform', lambda: 'tpu')
  tpu = attention.chosen()
  assert tpu['SD3.5-medium'] == tpu['Qwen2.5-VL-3B, prompt'] == 'splash'
  assert tpu['Qwen2.5-VL-3B, captions sampled'] == 'products'  # one query
  assert tpu['CLIP ViT-L/14'] == 'products'  # float32
  monkeypatch.setattr(kernels, 'platform', lambda: 'gpu')
  assert set(attention.chosen().values()) == {'products'}
  with kernels.use('cudnn'):
    gpu = attention.chosen()
  assert gpu['FLUX.1-dev'] == gpu['Janus-Pro-7B, captions scored'] == 'cudnn'
  assert gpu['VAE of SD3'] == 'products'  # heads of 512
  assert here.keys() == tpu.keys() == gpu.keys()


@pytest.mark.parametrize(
  'used, cards, environment, tpus, says',
  [
    ('cpu', ['H100, 535'], {}, (), 'cuda'),
    ('cpu', ['H100, 535'], {'JAX_PLATFORMS': 'cpu'}, (), None),
    ('cpu', [], {}, (os.devnull,), 'tpu'),
    ('cpu', [], {}, ('/absent',), None),
    ('gpu', ['H100, 580'], {}, (), None),
  ],
)
def test_accelerators_that_are_not_used(used, cards, environment, tpus, says):
  found = doctor.unused(used, cards, environment, tpus)
  assert (says in found[0]) if says else found == []


def test_requirements_and_extras():
  plain, extra = Requirement('numpy>=2'), Requirement('x; extra == "a"')
  assert doctor.needed(plain, '') and not doctor.needed(plain, 'a')
  assert doctor.needed(extra, 'a') and not doctor.needed(extra, '')
  assert not doctor.needed(extra, 'b')
  assert doctor.there(plain)
  assert not doctor.there(Requirement('numpy>=99'))
  assert not doctor.there(Requirement('no-such-package'))


def test_extras_of_what_is_needed_are_needed(monkeypatch):
  wants = {'jax': ['numpy>=2', 'jax-cuda13-plugin; extra == "cuda13"']}
  monkeypatch.setattr(doctor.metadata, 'requires', lambda name: wants.get(name))
  assert doctor.there(Requirement('jax[other]'))
  assert not doctor.there(Requirement('jax[cuda13]'))


def test_what_is_missing_is_named(monkeypatch):
  lines = ['numpy>=99', 'x>1; extra == "data"']
  monkeypatch.setattr(doctor.metadata, 'requires', lambda name: lines)
  found, [problem] = doctor.packages()
  assert found['data'] == 'lacks x>1' and 'numpy>=99' in problem


def test_few_memory_maps_are_a_problem(monkeypatch, tmp_path):
  file = tmp_path / 'maps'
  monkeypatch.setattr(doctor, 'MAPS', file)
  assert 'vm.max_map_count' not in doctor.system()[0]
  file.write_text('65530\n')
  assert doctor.system()[1] == []
  file.write_text('1000\n')
  _, [problem] = doctor.system()
  assert 'sysctl' in problem


def test_a_bucket_is_tried_and_nothing_is_left(bucket):
  assert doctor.unusable(bucket) == ''
  assert not epath.Path(bucket).exists()
  assert 'gs://nowhere/runs/doctor cannot be' in doctor.unusable(
    'gs://nowhere/runs'
  )
  assert 'neither a folder nor gs://' in doctor.unusable('s3://box/runs')


def test_folders_that_do_not_exist_yet_can_be_written(tmp_path):
  assert doctor.writable(tmp_path / 'a' / 'b')
  (tmp_path / 'file').write_text('')
  assert not doctor.writable(tmp_path / 'file' / 'b')
