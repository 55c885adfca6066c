"""Rules of the house that a reader cannot check by eye.

Each rule is a function from source text to the offences in it, so that the
last test can show every one of them an offender.
"""

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
MODULES = sorted(PACKAGE.rglob('*.py'))

# What each part may import from the package, itself aside.
LOW = {'errors', 'trees', 'types'}
ARROWS = {
  '__init__': set(),
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
  'umm': LOW | {'sharding', 'nn', 'models', 'zoo', 'rollout', 'rewards'},
  'eval': LOW | {'sharding', 'data', 'rollout', 'umm'},
  'train': LOW
  | {
    'sharding', 'nn', 'models', 'data', 'rollout', 'rewards', 'rl', 'ckpt',
    'zoo', 'umm', 'eval', 'infer',
  },
  'main': LOW | {'sharding', 'train'},
  'plan': LOW
  | {'sharding', 'nn', 'models', 'data', 'ckpt', 'zoo', 'train'},
  'infer': LOW
  | {
    'sharding', 'models', 'data', 'rollout', 'rewards', 'ckpt', 'zoo', 'umm',
    'eval',
  },
  'tools': LOW
  | {
    'sharding', 'nn', 'data', 'rewards', 'ckpt', 'zoo', 'umm', 'infer', 'eval',
    'train', 'plan',
  },
  'notebook': LOW | {'eval'},
}  # fmt: skip

FOREIGN = ('torch', 'torchvision', 'tensorflow', 'diffusers')
MODULE_LINES, FUNCTION_LINES = 400, 120


def imported(source: str) -> list[str]:
  """Dotted names of all a module imports, at any depth; relative: '.…'."""
  names = []
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Import):
      names += [a.name for a in node.names]
    elif isinstance(node, ast.ImportFrom):
      start = '.' * node.level + (node.module or '')
      names += [f'{start}.{a.name}' for a in node.names]
  return names


def broken_arrows(source: str, part: str) -> list[str]:
  """Imports that `part` must not make: against the arrows, or relative."""
  bad = []
  for name in imported(source):
    top, *rest = name.split('.')
    against = top == 'uae_jax' and rest and rest[0] not in ARROWS[part] | {part}
    if against or top in ('', 'configs', 'tests'):
      bad.append(name)
  return bad


def foreign(source: str) -> list[str]:
  """Frameworks that have no place in the package."""
  return [n for n in imported(source) if n.split('.')[0] in FOREIGN]


def lifted(source: str) -> list[str]:
  """Scans over modules, and remats."""
  names = r'\bnn\.(?:scan|remat\w*|checkpoint)\b|\bjax\.(?:checkpoint|remat)\b'
  imports = [
    n
    for n in imported(source)
    if re.fullmatch(r'flax\.linen\.(scan|remat\w*)|jax\.(checkpoint|remat)', n)
  ]
  return re.findall(names, source) + imports


def too_long(source: str) -> list[str]:
  """Names of functions that are, and 'module'."""
  out = ['module'] if len(source.splitlines()) > MODULE_LINES else []
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.FunctionDef):
      if node.end_lineno - node.lineno + 1 > FUNCTION_LINES:
        out.append(node.name)
  return out


def undocumented(source: str) -> list[str]:
  """'module' if no docstring starts on line 1."""
  first = ast.parse(source).body[:1]
  found = ast.get_docstring(ast.parse(source)) and first[0].lineno == 1
  return [] if found else ['module']


def hidden_defaults(source: str) -> list[str]:
  """`config.get(`, `config.x.get(` and getattr with a default."""
  bad = re.findall(r'\bconfig(?:\.\w+)*\.get\(', source)
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Call) and len(node.args) == 3:
      if isinstance(node.func, ast.Name) and node.func.id == 'getattr':
        bad.append(ast.unparse(node))
  return bad


def reads(source: str) -> set[str]:
  """Config keys a module reads: `config.a.b`, or `g.b` after `g = config.a`.

  A key at the top level is read as `config.a`.
  """
  tree = ast.parse(source)
  sections = {}  # name of a variable -> sections it may be
  for node in ast.walk(tree):
    if isinstance(node, ast.Assign) and _is_section(node.value):
      for target in node.targets:
        if isinstance(target, ast.Name):
          sections.setdefault(target.id, set()).add(node.value.attr)
  out = set()
  for node in ast.walk(tree):
    if not isinstance(node, ast.Attribute):
      continue
    base = node.value
    if _is_section(base):
      out.add(f'{base.attr}.{node.attr}')
    elif _is_section(node):
      out.add(node.attr)
    elif isinstance(base, ast.Name) and base.id in sections:
      out |= {f'{name}.{node.attr}' for name in sections[base.id]}
  return out


def _is_section(node):
  """Is it `config.name`?"""
  base = getattr(node, 'value', None)
  return (
    isinstance(node, ast.Attribute)
    and isinstance(base, ast.Name)
    and base.id == 'config'
  )


def leaves(config, prefix: str = '') -> set[str]:
  """Dotted names of a nested config's values."""
  out = set()
  for key, value in config.items():
    nested = isinstance(value, dict)
    out |= leaves(value, f'{prefix}{key}.') if nested else {prefix + key}
  return out


def get_config(name: str, arg: str):
  """What configs/`name`.py gives for `arg`, as nested dicts."""
  path = ROOT / 'configs' / f'{name}.py'
  spec = importlib.util.spec_from_file_location(name, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(arg).to_dict()


def run(script: str) -> None:
  """Runs `script` in a Python of its own, so that nothing is imported yet."""
  subprocess.run([sys.executable, '-c', script], check=True, cwd=ROOT)


@pytest.mark.parametrize(
  'path', MODULES, ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_module(path):
  source = path.read_text()
  part = path.relative_to(PACKAGE).with_suffix('').parts[0]
  assert not broken_arrows(source, part)
  assert not foreign(source)
  assert not too_long(source)
  assert not undocumented(source)
  # ckpt and data read the hub's config.json files, which do leave keys out.
  if part not in ('ckpt', 'data'):
    assert not hidden_defaults(source)
  if path != PACKAGE / 'nn' / 'stack.py':
    assert not lifted(source)


def test_the_arrows_have_no_circle():
  done = set()
  while todo := ARROWS.keys() - done:
    free = {part for part in todo if ARROWS[part] <= done}
    assert free, f'circle among {sorted(todo)}'
    done |= free


CONFIGS = {
  'umm1': [
    '', 'blind', 'glyphs', 'decoder', 'qwen3b-sd35m', 'qwen3b-sd35l',
    'uniworld',
  ],
  'umm2': ['', 'caption', 'image', 'flow', 'janus-pro-1b', 'janus-pro-7b'],
  'coldstart': [
    'reward', 'judge_clip', 'judge_views', 'policy', 'decoder', 'one_step',
    'blind', 'glyphs_policy', 'glyphs_decoder', 'glyphs_one_step',
  ],
  'pretrain': ['align', 'longcap', 'align-qwen3b-sd35m', 'longcap-uniworld'],
  'ablations': ['bottleneck-hidden', 'direct-caption', 'stage-joint'],
  'coldstart_umm2': ['tokenizer', 'policy', 'longer', 'detokenizer'],
}  # fmt: skip


def test_every_config_file_is_known():
  assert {p.stem for p in (ROOT / 'configs').glob('*.py')} == set(CONFIGS)


@pytest.mark.parametrize(
  'name, arg', [(name, arg) for name, args in CONFIGS.items() for arg in args]
)
def test_every_config_key_is_read(name, arg):
  read = set().union(*(reads(p.read_text()) for p in MODULES))
  assert not leaves(get_config(name, arg)) - read


def test_import_is_light():
  script = (
    'import sys, uae_jax; '
    'bad = {"jax", "torch", "tensorflow"} & set(sys.modules); '
    'assert not bad, bad'
  )
  times = []
  for _ in range(3):
    start = time.perf_counter()
    run(script)
    times.append(time.perf_counter() - start)
  assert min(times) < 1.5


def test_the_run_imports_neither_torch_nor_tensorflow():
  run(
    'import sys, uae_jax.main, uae_jax.train.loop; '
    'bad = {"torch", "tensorflow"} & set(sys.modules); '
    'assert not bad, bad'
  )


@pytest.mark.parametrize(
  'part, line',
  [
    ('rl', 'from uae_jax.models import lm'),
    ('rl', 'from uae_jax import models'),
    ('nn', 'import uae_jax.train.loop'),
    ('data', 'def f():\n  from uae_jax import zoo'),
    ('rewards', 'from ..models import clip'),
    ('rewards', 'from . import features'),
    ('train', 'import configs.umm1'),
    ('train', 'from configs import umm1'),
  ],
)
def test_broken_arrows_are_seen(part, line):
  assert broken_arrows(line, part)
  assert not broken_arrows('from uae_jax.errors import UserError', part)


@pytest.mark.parametrize(
  'rule, bad, good',
  [
    (foreign, 'def f():\n  import torch.nn', 'import torchless'),
    (foreign, 'from diffusers import X', '# like diffusers'),
    (lifted, 'x = nn.remat(y)', 'x = jax.lax.scan(y)'),
    (lifted, 'x = nn.scan(y)', 'remat = 1'),
    (lifted, '@jax.checkpoint\ndef f(): pass', 'import jax'),
    (lifted, 'from flax.linen import scan', 'from flax.linen import Dense'),
    (too_long, '\n' * 401, '\n' * 400),
    (
      too_long,
      'def f():\n' + '  x = 1\n' * 120,
      'def f():\n' + '  x = 1\n' * 119,
    ),
    (undocumented, '\n"""Late."""', '"""Here."""'),
    (undocumented, '# No.\nimport os', '"""Here."""\nimport os'),
    (undocumented, '', '"""Here."""'),
    (hidden_defaults, 'config.get("x", 3)', 'config.x'),
    (hidden_defaults, 'config.rollout.get("x")', 'row.get("x")'),
    (hidden_defaults, 'getattr(c, "x", 3)', 'getattr(c, "x")'),
  ],
)
def test_offences_are_seen(rule, bad, good):
  assert rule(bad)
  assert not rule(good)


def test_reads_are_seen_in_their_section_only():
  source = 'g = config.a\nprint(config.b.x, g.y, config.top, other.b.z)\n# .w'
  assert reads(source) >= {'b.x', 'a.y', 'top'}
  assert not reads(source) & {'a.x', 'b.y', 'b.z', 'b.w', 'x', 'y'}
  assert leaves({'a': {'y': 1}, 'top': 2}) == {'a.y', 'top'}
