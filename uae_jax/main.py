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
  'workdir', None, "The run's folder; default runs/<config name>."
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
  path = re.sub(r'\.py:.*$', '.py', config_file)
  if not Path(path).is_file():
    raise UserError(f'config file {path} does not exist')
  workdir = Path(WORKDIR.value or default_workdir(config_file)).expanduser()

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
    return FLAGS(argv)
  except flags.Error as e:
    raise UserError(first_line(e)) from None
  except (
    AttributeError, KeyError, ValueError, TypeError, OSError, ImportError
  ) as e:  # fmt: skip
    raise UserError(f'--config: {first_line(e)}') from None


def first_line(e: BaseException) -> str:
  """The first line of an error's text."""
  text = str(e.args[0]) if isinstance(e, KeyError) and e.args else str(e)
  lines = text.strip().splitlines()
  return lines[0] if lines else type(e).__name__


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
