"""Every command that the README and the docs tell is one that can be typed."""

import re

import pytest

from tests import commands
from tests.style_test import CONFIGS, get_config, leaves

ROOT = commands.ROOT
PAGES = [
  ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', ROOT / 'launch' / 'README.md',
  *sorted((ROOT / 'docs').glob('*.md')),
  *sorted((ROOT / 'uae_jax' / 'assets').glob('*/README.md')),
]  # fmt: skip


def told(text):
  """Commands of a page, in blocks and in sentences."""
  parts = [*commands.blocks(text), *commands.spans(text)]
  return [words for part in parts for words in commands.commands(part)]


def keys() -> set[str]:
  """Every key of every config."""
  return set().union(
    *(leaves(get_config(name, arg)) for name, args in CONFIGS.items()
      for arg in args)
  )  # fmt: skip


def unknown(text: str, known: set[str]) -> list[str]:
  """`section.key`s of a page that no config has, modules aside."""
  sections = {key.split('.')[0] for key in known if '.' in key}
  named = {name for key in known for name in (key, key.rpartition('.')[0])}
  out = []
  for span in commands.code(text):
    span = re.sub(r'(--)?\bconfig\.', '', span)
    for name in re.findall(r'(?<![\w./-])([a-z]+\.\w+)(?![\w.(])', span):
      section, key = name.split('.')
      module = ROOT / 'uae_jax' / section / f'{key}.py'
      if section in sections and name not in named and not module.exists():
        out.append(name)
  return out


def test_every_command_can_be_typed():
  found = [told(page.read_text()) for page in PAGES]
  assert len(found[0]) > 20  # the README's
  everything = {tuple(words): None for page in found for words in page}
  wrong = commands.problems([list(words) for words in everything])
  assert not wrong, '\n'.join(wrong)


@pytest.mark.parametrize('page', PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_key_that_is_named_is_one(page):
  assert not unknown(page.read_text(), keys())


def test_blocks_become_commands():
  text = (
    'a\n```bash # run\nA=1 pip install -e . && python -m x \\\n'
    "  --y='two words'  # why\n```\n- list\n\n"
    '  ```bash\n  cd z | tee b\n  ```\n'
    '```python\nno()\n```\nSay `pytest -n 2` or `x.y` or\n`python -m a\n--b`.\n'
  )
  assert told(text) == [
    ['pip', 'install', '-e', '.'], ['python', '-m', 'x', '--y=two words'],
    ['cd', 'z'], ['tee', 'b'], ['pytest', '-n', '2'],
    ['python', '-m', 'a', '--b'],
  ]  # fmt: skip


UMM1 = 'python -m uae_jax.main --config=configs/umm1.py'


WRONG = {
  'stepz': f'{UMM1} --config.train.stepz=3',
  'huge': f'{UMM1}:huge',
  'flag1': f'{UMM1} --flag1',
  'word': f'{UMM1} word',
  'many': f'{UMM1} --config.train.steps=many',
  'absent.py': 'python -m uae_jax.main --config=configs/absent.py',
  'no --config': 'python -m uae_jax.main --workdir=a',
  'other than None': 'python -m uae_jax.tools.generate --prompt=a',
  'bench1': 'python -m uae_jax.tools.evaluate --model=a --out=b '
  '--benchmark=bench1',
  'which': 'python -m uae_jax.tools.sweep --config=configs/ablations.py '
  '--question=which --out=b',
  'flag2': 'python -m benchmarks.counted --flag2=1',
  'key1': '--config.rollout.key1=1',
  'flag3': 'sbatch launch/slurm_gpu.sh --config=configs/umm1.py --flag3',
  'flag4': 'launch/tpu_pod.sh run --config=configs/umm1.py --flag4',
}


@pytest.fixture(scope='module')
def parsed():
  """What parsers say about commands, of which the last one is right."""
  typed = [*WRONG.values(), f'{UMM1}:blind --config.train.steps=3']
  return commands.problems([line.split() for line in typed])


@pytest.mark.parametrize('what', WRONG)
def test_wrong_flags_are_seen(parsed, what):
  assert sum(what in line for line in parsed) == 1, parsed


def test_right_flags_are_not(parsed):
  assert len(parsed) == len(WRONG)


@pytest.mark.parametrize(
  'line, says',
  [
    ('python -m uae_jax.absent', 'no module'),
    ('python -m nonsense', 'no module'),
    ('python benchmarks/absent.py', 'no benchmarks/absent.py'),
    ('pip install uae_jax[absent]', 'no extra absent'),
    ('pip install -e .[absent]', 'no extra absent'),
    ('pip instal x', 'pip install'),
    ('pytest tests/absent_test.py', 'no file of tests'),
    ('pytest -m absent', 'no marker absent'),
    ('launch/absent.sh run', 'no launch/absent.sh'),
    ('launch/tpu_pod.sh start', 'takes one of'),
    ('nonsense --flag', 'no program'),
    ('kubectl apply -f launch/absent.yaml', 'no launch/absent.yaml'),
  ],
)
def test_wrong_commands_are_seen(line, says):
  [problem] = commands.problems([line.split()])
  assert says in problem


def test_wrong_keys_are_seen():
  known = {'train.steps', 'rewards.mine', 'stage'}
  text = (
    '`train.stepz=3` `--config.train.steps=3` `train.loop` `rewards.mine` '
    '`--config.train.lrr=3` `train.steps`'
  )
  assert unknown(text, known) == ['train.stepz', 'train.lrr']
