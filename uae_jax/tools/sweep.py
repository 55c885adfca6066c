"""All runs of an ablation, one after the other, and their comparison.

`python -m uae_jax.tools.sweep --config=configs/ablations.py
--question=bottleneck --out=runs/bottleneck [--runs=text,hidden]
[--seeds=0,1,2] [--set=train.steps=100]`

A config file of ablations has `QUESTIONS`: runs by question, and what each
changes. Leaves a workdir for every run and seed, `compare.html` and the table
`compare.md`. The same command goes on where it was stopped.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from absl import flags

from uae_jax.errors import UserError
from uae_jax.eval import compare
from uae_jax.tools import cli

CONFIG = flags.DEFINE_string('config', None, 'A file of ablations.',
                             required=True)  # fmt: skip
QUESTION = flags.DEFINE_string('question', None, 'One of its QUESTIONS.',
                               required=True)  # fmt: skip
OUT = flags.DEFINE_string('out', None, 'Folder to fill.', required=True)
RUNS = flags.DEFINE_list('runs', [], 'Some of its runs; all.')
SEEDS = flags.DEFINE_list('seeds', ['0'], 'Of every run, comma separated.')
SET = flags.DEFINE_multi_string(
  'set', [], 'KEY=VALUE of the config, for every run; may repeat.'
)


def main() -> None:
  """Runs what is not finished; compares what is."""
  runs = questions(CONFIG.value)
  if QUESTION.value not in runs:
    raise UserError(f'--question={QUESTION.value!r} is none of {[*runs]}')
  chosen = RUNS.value or [*runs[QUESTION.value]]
  if not set(chosen) <= set(runs[QUESTION.value]):
    known = [*runs[QUESTION.value]]
    raise UserError(f'--runs={",".join(chosen)}: known are {known}')
  if len(chosen) * len(SEEDS.value) < 2:
    raise UserError(f'--runs={chosen[0]} alone has nothing beside it')
  if not all(seed.isdecimal() for seed in SEEDS.value):
    raise UserError(f'--seeds={",".join(SEEDS.value)} are not whole numbers')
  if not all('=' in one for one in SET.value):
    raise UserError('--set is KEY=VALUE, such as --set=train.steps=100')
  out, folders = Path(OUT.value).expanduser(), []
  jobs = [(run, seed) for run in chosen for seed in SEEDS.value]
  for i, (run, seed) in enumerate(jobs, 1):
    name = run if len(SEEDS.value) == 1 else f'{run}-seed{seed}'
    print(f'run {i}/{len(jobs)}: {QUESTION.value} {name}', flush=True)
    args = [f'train.seed={seed}', *SET.value]
    code = subprocess.run(
      [
        sys.executable, '-m', 'uae_jax.main', f'--workdir={out / name}',
        f'--config={CONFIG.value}:{QUESTION.value}-{run}',
        *(f'--config.{arg}' for arg in args),
      ]
    ).returncode  # fmt: skip
    if code:
      raise UserError(f'{name} ended with exit code {code}: see above')
    folders.append(out / name)
  table = compare.markdown(compare.read(folders))
  part = out / 'compare.part'
  part.write_text(table + '\n')
  os.replace(part, out / 'compare.md')
  print(table)
  print(compare.write(folders, out / 'compare.html'))


def questions(file: str) -> dict[str, dict]:
  """QUESTIONS of a config file.

  Raises:
    UserError: there is no such file, or it has none.
  """
  path = Path(file)
  if not path.is_file():
    raise UserError(f'--config={file} does not exist')
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  if 'QUESTIONS' not in vars(module):
    raise UserError(f'{file} has no QUESTIONS: it is no file of ablations')
  return module.QUESTIONS


if __name__ == '__main__':
  cli.run(main)
