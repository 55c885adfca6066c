"""What Markdown tells readers to type, taken apart and checked, not run.

A command of ours is parsed by its own parser: absl's flags with the config
file loaded and its overrides applied, or argparse up to `parse_args`. What
follows the parsing never runs.
"""

import ast
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement

ROOT = Path(__file__).parent.parent
FENCE = re.compile(r'^( *)```bash.*?\n(.*?)^\1```', re.M | re.S)
SPAN = re.compile(r'`([^`]+)`')
TYPED = re.compile(r'(python|pip|pytest) |--config|\S+/\S+\.sh\b')
ENDS = {'&&', '||', '|', ';', '&'}
# Programs of others; files of ours among their words are checked.
OTHERS = {
  'export', 'source', 'sudo', 'sysctl', 'kubectl', 'sed', 'hf', 'cd',
  'tensorboard', 'nvidia-smi', 'uv', 'pre-commit', 'ruff', 'mkdocs',
}  # fmt: skip
OURS = re.compile(r'(?:uae_jax|configs|launch|benchmarks|tests|docs)/[\w./-]+')
CONFIGS = ('configs/umm1.py', 'configs/umm2.py', 'configs/coldstart.py')


def blocks(text: str) -> list[str]:
  """The contents of the ```bash blocks of a page."""
  return [m[2] for m in FENCE.finditer(text)]


def code(text: str) -> list[str]:
  """What stands in backticks in the midst of sentences and tables."""
  text = re.sub(r'^ *```.*?^ *```', '', text, flags=re.M | re.S)
  return [' '.join(m[1].split()) for m in SPAN.finditer(text)]


def spans(text: str) -> list[str]:
  """Commands and flags among them."""
  return [span for span in code(text) if TYPED.match(span)]


def commands(block: str) -> list[list[str]]:
  """Words of every command of a block; environment and operators are gone."""
  found = []
  for line in re.sub(r'\\\n', ' ', block).splitlines():
    lexer = shlex.shlex(line, posix=True, punctuation_chars='|&;')
    lexer.whitespace_split, lexer.commenters = True, '#'
    words = []
    for word in [*lexer, ';']:
      if word not in ENDS:
        words.append(word)
        continue
      while words and re.match(r'[A-Z_]+=', words[0]):
        words = words[1:]
      if words:
        found.append(words)
      words = []
  return found


def problems(found: list[list[str]]) -> list[str]:
  """What is wrong with commands, a line each."""
  out, parsed = [], []
  for words in found:
    out += [f'{" ".join(words)}: {p}' for p in _problems(words, parsed)]
  if parsed:
    said = subprocess.run(
      [sys.executable, '-c', PARSE], input=json.dumps(parsed), text=True,
      capture_output=True, cwd=ROOT,
      env={**os.environ, 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(ROOT)},
    )  # fmt: skip
    assert said.returncode == 0, said.stderr
    out += json.loads(said.stdout.splitlines()[-1])
  return out


def _problems(words: list[str], parsed: list) -> list[str]:
  """Of one command; those that a parser of ours must see join `parsed`."""
  first, rest = words[0], words[1:]
  if re.fullmatch(r'(\S*/)?python3?', first):
    return _python(rest, parsed)
  if re.fullmatch(r'(\S*/)?pip', first):
    return _pip(rest)
  if first == 'pytest':
    return _pytest(rest)
  if first == 'sbatch':
    parsed.append(('uae_jax.main', rest[1:]))
    return _script(rest[0])
  if first.endswith('.sh'):
    wrong = _script(first) or _cases(first, rest)
    if not wrong and rest[:1] == ['run']:
      parsed.append(('uae_jax.main', rest[1:]))
    return wrong
  if first.startswith('--'):
    parsed.append(('flags', [re.sub('=N$', '=1', word) for word in words]))
    return []
  if first not in OTHERS:
    return [f'{first} is no program that is known here']
  files = [file for word in rest for file in OURS.findall(word)]
  return [f'there is no {file}' for file in files if not (ROOT / file).exists()]


def _python(rest, parsed) -> list[str]:
  if rest[0] != '-m':
    if not (ROOT / rest[0]).is_file():
      return [f'there is no {rest[0]}']
    module, rest = rest[0].removesuffix('.py').replace('/', '.'), rest[1:]
  else:
    module, rest = rest[1], rest[2:]
  if module.split('.')[0] not in ('uae_jax', 'benchmarks', 'tests'):
    found = importlib.util.find_spec(module)
    return [] if found else [f'there is no module {module}']
  if not (ROOT / f'{module.replace(".", "/")}.py').is_file():
    return [f'there is no module {module}']
  parsed.append((module, rest))
  return []


def _pip(rest) -> list[str]:
  if rest[0] != 'install':
    return ['only pip install is known here']
  out = []
  for word in rest[1:]:
    if word.startswith('-'):
      continue
    text = re.sub(r'^\.', 'uae_jax', word)
    try:
      wanted = Requirement(text)
    except InvalidRequirement:
      out.append(f'{word} is no requirement')
      continue
    if wanted.name == 'uae_jax':
      out += [f'no extra {x}' for x in sorted(wanted.extras - extras())]
  return out


def extras() -> set[str]:
  """The names in EXTRAS of setup.py."""
  tree = ast.parse((ROOT / 'setup.py').read_text())
  [node] = [
    x.value
    for x in tree.body
    if isinstance(x, ast.Assign) and x.targets[0].id == 'EXTRAS'
  ]
  return {key.value for key in node.keys}


def _pytest(rest) -> list[str]:
  known = re.findall(r'^  (\w+):', (ROOT / 'pytest.ini').read_text(), re.M)
  out, words = [], iter(rest)
  for word in words:
    if word == '-m':
      marks = re.findall(r'\w+', next(words))
      out += [
        f'no marker {mark}'
        for mark in marks
        if mark not in (*known, 'not', 'and', 'or')
      ]
    elif word == '-n':
      next(words)
    elif word.startswith('-') or not (ROOT / word.split('::')[0]).exists():
      out.append(f'{word} is no file of tests')
  return out


def _script(path) -> list[str]:
  if not (ROOT / path).is_file():
    return [f'there is no {path}']
  return [] if os.access(ROOT / path, os.X_OK) else [f'{path} cannot be run']


def _cases(path, rest) -> list[str]:
  """A script with a `case` has one for the first word."""
  text = (ROOT / path).read_text()
  known = re.findall(r'^  (\w+)\)$', text, re.M)
  wrong = known and (not rest or rest[0] not in known)
  return [f'{path} takes one of {known}'] if wrong else []


# In a process of its own: flags are global, and our modules define the same.
PARSE = f"""
import argparse, contextlib, importlib, io, json, pathlib, runpy, sys
from absl import flags
from uae_jax.errors import UserError

CONFIGS = {CONFIGS!r}
"""
PARSE += '''
class Parsed(Exception):
  pass


def parse_args(self, *args, **kw):
  real(self, *args, **kw)
  raise Parsed


real = argparse.ArgumentParser.parse_args
argparse.ArgumentParser.parse_args = parse_args


def by_flags(module, args):
  before = set(flags.FLAGS)
  sys.modules.pop(module, None)
  sys.argv = [module, *args]
  try:
    tool = importlib.import_module(module)
    rest = flags.FLAGS(sys.argv)[1:]
    if rest:
      raise UserError(f'unexpected argument {rest[0]!r}')
    more(module, tool)
  finally:
    flags.FLAGS.unparse_flags()
    for name in set(flags.FLAGS) - before:
      delattr(flags.FLAGS, name)


def more(module, tool):
  """Values that only the command itself would look at."""
  flag = flags.FLAGS['config'] if 'config' in flags.FLAGS else None
  said = flag is not None and flag.value is not None
  if said and hasattr(flag, 'config_filename'):
    file = flag.config_filename.split('.py')[0] + '.py'
    if not pathlib.Path(file).is_file():
      raise UserError(f'there is no {file}')
  if module == 'uae_jax.main' and sys.argv[1:] and tool.CONFIG.value is None:
    raise UserError('no --config')
  if module == 'uae_jax.tools.sweep':
    known = tool.questions(tool.CONFIG.value)
    if tool.QUESTION.value not in known:
      raise UserError(f'{tool.QUESTION.value} is none of {[*known]}')
  if module == 'uae_jax.tools.evaluate':
    for name in tool.NAMES.value:
      if name not in (*tool.BUILDERS, 'NAME'):
        raise UserError(f'there is no benchmark {name}')


def alone(args):
  """Flags without their command: those of a run, of some config."""
  said = []
  configs = [()] if args[0].startswith('--config=') else [
    (f'--config={name}',) for name in CONFIGS
  ]
  for config in configs:
    try:
      return by_flags('uae_jax.main', [*config, *args])
    except Exception as e:
      said.append(e)
  raise said[0]


def check(module, args):
  if module == 'flags':
    return alone(args)
  with open(module.replace('.', '/') + '.py') as f:
    source = f.read()
  if 'argparse.ArgumentParser(' not in source:
    if args and 'flags' not in source:
      raise UserError('takes no arguments')
    return by_flags(module, args)
  sys.argv = [module, *args]
  try:
    runpy.run_module(module, run_name='__main__')
  except Parsed:
    pass


out = []
for module, args in json.load(sys.stdin):
  said = io.StringIO()
  try:
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
      check(module, args)
  except (Exception, SystemExit) as e:
    why = said.getvalue().strip() if isinstance(e, SystemExit) else str(e)
    why = why.splitlines()[-1] if why else type(e).__name__
    out.append(f'{module} {" ".join(args)}: {why}')
print(json.dumps(out))
'''
