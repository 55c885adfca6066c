"""Rules of the house that a reader cannot check by eye."""

import ast
import importlib.util
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / 'uae_jax'

# What each part may import from the package, itself aside.
LOW = {'trees', 'errors', 'types'}
ARROWS = {
  'errors': set(),
  'trees': set(),
  'types': set(),
  'sharding': LOW,
  'nn': LOW | {'sharding'},
  'models': LOW | {'sharding', 'nn'},
  'data': LOW,
  'rollout': LOW,
  'rewards': LOW,
  'rl': LOW,
  'ckpt': LOW,
  'zoo': LOW | {'sharding', 'models', 'ckpt'},
  'umm': LOW | {'models', 'rollout', 'rewards'},
  'eval': LOW | {'sharding', 'data', 'rollout', 'umm'},
  'train': LOW
  | {
    'sharding', 'models', 'data', 'rollout', 'rewards', 'rl', 'ckpt', 'zoo',
    'umm', 'eval',
  },
  'main': LOW | {'train'},
  'tools': LOW | {'train', 'eval', 'zoo', 'umm'},
  '__init__': set(),
}  # fmt: skip


def modules():
  return sorted(PACKAGE.rglob('*.py'))


def imported(source: str) -> list[str]:
  """Dotted names of everything a module imports, at any depth."""
  names = []
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Import):
      names += [a.name for a in node.names]
    elif isinstance(node, ast.ImportFrom) and node.module:
      names += [f'{node.module}.{a.name}' for a in node.names]
  return names


def broken_arrows(part: str, source: str) -> list[str]:
  """Imports of the package that `part` must not make."""
  bad = []
  for name in imported(source):
    if name.split('.')[0] == 'configs':
      bad.append(name)
    if name.startswith('uae_jax.'):
      other = name.split('.')[1]
      if other != part and other not in ARROWS[part]:
        bad.append(name)
  return bad


def foreign(source: str) -> list[str]:
  """Frameworks that have no place in the package."""
  heavy = ('torch', 'tensorflow', 'diffusers')
  return [n for n in imported(source) if n.split('.')[0] in heavy]


def scans(source: str) -> list[str]:
  """Lifted scans and remats."""
  return re.findall(r'nn\.scan|nn\.remat|jax\.checkpoint\(', source)


def too_long(source: str) -> list[str]:
  """Functions over 120 lines, and 'module' over 400."""
  out = ['module'] if source.count('\n') > 400 else []
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.FunctionDef):
      if node.end_lineno - node.lineno + 1 > 120:
        out.append(node.name)
  return out


def unread(keys: list[str], source: str) -> list[str]:
  """Config keys whose leaf is read nowhere as an attribute."""
  return [
    k for k in keys if not re.search(rf'\.{k.rsplit(".")[-1]}\b', source)
  ]


@pytest.mark.parametrize('path', modules(), ids=str)
def test_module(path):
  source = path.read_text()
  part = path.relative_to(PACKAGE).with_suffix('').parts[0]
  assert not broken_arrows(part, source)
  assert not foreign(source)
  assert not too_long(source)
  assert source.startswith('"""'), 'no docstring on line 1'
  if part in ('train', 'main', 'umm', 'eval', 'tools'):
    assert 'config.get(' not in source
  if path != PACKAGE / 'nn' / 'stack.py':
    assert not scans(source)


CONFIGS = {
  'umm1': ['', 'blind'],
  'coldstart': ['reward', 'judge_clip', 'judge_views', 'policy', 'decoder'],
}


@pytest.mark.parametrize('name', CONFIGS)
def test_every_config_key_is_read(name):
  spec = importlib.util.spec_from_file_location(
    name, ROOT / 'configs' / f'{name}.py'
  )
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  source = '\n'.join(p.read_text() for p in modules())
  from uae_jax.train.workdir import flat

  for arg in CONFIGS[name]:
    keys = flat(module.get_config(arg).to_dict())
    assert not unread(list(keys), source)


def test_import_is_light():
  script = (
    'import sys, uae_jax; '
    'assert not {"torch", "tensorflow", "jax"} & set(sys.modules)'
  )
  times = []
  for _ in range(3):
    start = time.perf_counter()
    subprocess.run([sys.executable, '-c', script], check=True, cwd=ROOT)
    times.append(time.perf_counter() - start)
  assert min(times) < 1.5


def test_the_run_imports_neither_torch_nor_tensorflow():
  script = (
    'import sys, uae_jax.main, uae_jax.train.loop; '
    'bad = {"torch", "tensorflow"} & set(sys.modules); '
    'assert not bad, bad'
  )
  subprocess.run([sys.executable, '-c', script], check=True, cwd=ROOT)


def test_the_checkers_see_what_they_look_for():
  assert broken_arrows('rl', 'from uae_jax.models import lm')
  assert broken_arrows('nn', 'import uae_jax.train.loop')
  assert broken_arrows('train', 'import configs.umm1')
  assert not broken_arrows('train', 'from uae_jax import zoo')
  assert foreign('def f():\n  import torch.nn')
  assert scans('x = nn.remat(y)')
  assert too_long('\n' * 401) == ['module']
  assert too_long('def f():\n' + '  x = 1\n' * 121) == ['f']
  assert unread(['a.steps', 'a.ghost'], 'config.a.steps') == ['a.ghost']
