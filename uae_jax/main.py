"""`python -m uae_jax.main --config=configs/umm1.py [--workdir=DIR]`.

Trains what the config says. Running the same command again resumes. On
several hosts all run the same command. Exit code 0 when done, 2 with one line
when the user can fix it, 3 when another host of the run is gone.
"""

import re
import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from uae_jax.errors import UserError

FLAGS = flags.FLAGS
CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'Config file, such as configs/umm1.py.', lock_config=True
)
WORKDIR = flags.DEFINE_string(
  'workdir',
  None,
  "The run's folder, or gs://BUCKET/FOLDER; default runs/<config name>.",
)
DISTRIBUTED = flags.DEFINE_enum(
  'distributed', 'auto', ['auto', 'on', 'off'],
  'Whether this is one of several processes; auto asks the environment.',
)  # fmt: skip
COORDINATOR = flags.DEFINE_string(
  'coordinator', None, 'HOST:PORT of process 0, where auto cannot know it.'
)
PROCESSES = flags.DEFINE_integer('processes', None, 'How many there are.')
PROCESS = flags.DEFINE_integer('process', None, 'Which one this is, from 0.')


def default_workdir(config_file: str) -> str:
  """configs/coldstart.py:policy -> runs/coldstart-policy."""
  name = re.sub(r'\.py(:|$)', r'\1', Path(config_file).name)
  return 'runs/' + name.rstrip(':').replace(':', '-')


def main(argv: list[str]) -> int:
  """Runs the loop; returns the exit code."""
  if len(argv) > 1:
    raise UserError(f'unexpected argument {argv[1]!r}: flags start with --')
  if CONFIG.value is None:
    raise UserError('say --config=configs/umm1.py')
  config_file = FLAGS['config'].config_filename
  workdir = WORKDIR.value or default_workdir(config_file)
  if '://' not in workdir:
    workdir = Path(workdir).expanduser()

  from uae_jax.sharding import hosts, mesh
  from uae_jax.train import loop

  hosts.join(
    DISTRIBUTED.value, COORDINATOR.value, PROCESSES.value, PROCESS.value
  )
  mesh.use_compilation_cache()
  return loop.run(CONFIG.value, workdir)


def parse(argv: list[str]) -> list[str]:
  """absl's flag parser with every complaint as a UserError.

  Raises:
    UserError: unknown flag, config file, key, or a value of another type.
  """
  try:
    rest = FLAGS(argv)
    if CONFIG.value is not None:
      _check_file(FLAGS['config'].config_filename)
      CONFIG.value.to_dict()  # raises where the file could not be loaded
    return rest
  except UserError:
    raise
  except flags.Error as e:
    raise UserError(first_line(e)) from None
  except Exception as e:  # a config file is a program: it raises anything
    raise UserError(f'--config: {first_line(e)}') from None


def _check_file(name: str) -> None:
  path = re.sub(r'\.py:.*$', '.py', name)
  try:
    there = Path(path).is_file()
  except OSError:  # its name alone is too long
    there = False
  if not there:
    raise UserError(f'there is no config file {path[:200]}')


def first_line(e: BaseException) -> str:
  """The first line of an error's text, and the last where the first is none.

  ml_collections puts a traceback below what it says about a config file.
  """
  text = str(e.args[0]) if isinstance(e, KeyError) and e.args else str(e)
  lines = text.strip().splitlines() or [type(e).__name__]
  if len(lines) > 1 and lines[0].endswith(':'):
    return f'{lines[0]} {lines[-1]}'
  return lines[0]


def cli() -> None:
  """Parses, runs, and turns a UserError into one line and exit code 2."""
  try:
    code = main(parse(sys.argv))
  except UserError as e:
    print(f'uae_jax: {e}', file=sys.stderr)
    code = 2
  sys.exit(code)


if __name__ == '__main__':
  cli()
