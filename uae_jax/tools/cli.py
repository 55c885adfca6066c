"""What every command does around its work: flags in, exit code out."""

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from uae_jax.data.pipeline import ImageSource
from uae_jax.errors import UserError
from uae_jax.infer.options import Options
from uae_jax.infer.results import Results
from uae_jax.sharding import hosts

_DEFINE = {
  int: flags.DEFINE_integer,
  float: flags.DEFINE_float,
  float | None: flags.DEFINE_float,
  str: flags.DEFINE_string,
  bool: flags.DEFINE_bool,
}
_HELP = {
  'prompt': 'What the captioner is asked.',
  'system': 'System turn of the chat template.',
  'max_pixels': 'Of an image as the captioner sees it.',
  'length': 'Caption budget in tokens.',
  'temperature': '0 is greedy.',
  'top_k': 'Tokens drawn from; 0 is all.',
  'top_p': 'Probability mass drawn from.',
  'height': 'Of a drawing in pixels.',
  'width': 'Of a drawing in pixels.',
  'steps': 'Of the decoder.',
  'shift': 'Of its noise levels.',
  'guidance': 'Strength of the guidance.',
  'negative': 'What guidance leads away from.',
  'image_temperature': 'Of image codes (Janus); 0 is greedy.',
  'image_top_k': 'Image codes drawn from; 0 is all.',
  'image_top_p': 'Probability mass of image codes drawn from.',
  'joint': 'Text encoders of the decoder beside the captioner (UniWorld).',
  'dtype': 'float32 or bfloat16.',
  'batch': 'Items at once.',
}
CAPTION = (
  'prompt', 'system', 'max_pixels', 'length', 'temperature', 'top_k', 'top_p',
)  # fmt: skip
DRAW = (
  'height', 'width', 'steps', 'shift', 'guidance', 'negative', 'joint',
  'image_temperature', 'image_top_k', 'image_top_p',
)  # fmt: skip
BOTH = ('dtype', 'batch')


def define_options(*names: str) -> Callable[[], dict[str, Any]]:
  """Flags for fields of `Options`, unset unless said; returns their reader."""
  kinds = {field.name: field.type for field in dataclasses.fields(Options)}
  for name in names:
    _DEFINE[kinds[name]](name, None, _HELP[name])
  return lambda: {name: flags.FLAGS[name].value for name in names}


def define_hosts() -> Callable[[], None]:
  """Flags of `hosts.join`, those of `uae_jax.main`; returns what joins."""
  flags.DEFINE_enum(
    'distributed', 'auto', hosts.MODES,
    'Whether this is one of several processes; auto asks the environment.',
  )  # fmt: skip
  flags.DEFINE_string('coordinator', None, 'HOST:PORT of process 0.')
  flags.DEFINE_integer('processes', None, 'How many there are.')
  flags.DEFINE_integer('process', None, 'Which one this is, from 0.')
  said = ('distributed', 'coordinator', 'processes', 'process')
  return lambda: hosts.join(*(flags.FLAGS[name].value for name in said))


def batches(
  items: Sequence[Any], size: int, done: Iterable[Any]
) -> Iterator[tuple[int, list[Any]]]:
  """(number, items) of every batch that has something left to do.

  Batches are cut from the whole list, so that a batch is the same one
  whenever it is made.
  """
  done = set(done)
  for start in range(0, len(items), size):
    part = list(items[start : start + size])
    if not done.issuperset(part):
      yield start // size, part


def read_prompts(file: str | None, said: Sequence[str]) -> list[str]:
  """The prompts of the command line, then those of --prompts.

  Args:
    file: one prompt a line; `.jsonl`, of whose objects `prompt` is taken; or
      a folder, each of whose .txt files is a prompt.
    said: on the command line.

  Raises:
    UserError: none at all, an empty one, or a file that cannot be read.
  """
  prompts = list(said)
  if file:
    path = Path(file).expanduser()
    try:
      if path.is_dir():
        lines = [
          p.read_text('utf-8').strip() for p in sorted(path.glob('*.txt'))
        ]
      else:
        lines = path.read_text('utf-8').splitlines()
      if path.suffix == '.jsonl':
        lines = [json.loads(line)['prompt'] for line in lines if line.strip()]
    except (OSError, ValueError, KeyError, TypeError) as e:
      raise UserError(f'--prompts={file} cannot be read: {e!r}') from None
    prompts += [line for line in lines if line.strip()]
  if not prompts or not all(p.strip() for p in prompts):
    raise UserError('say which prompts: --prompt=TEXT or --prompts=FILE')
  return prompts


def settings(options: Options) -> dict[str, Any]:
  """What decides how an item is made, for `Results`."""
  return dataclasses.asdict(options)


def names(source: ImageSource) -> list[str]:
  """The images' paths below their folder."""
  return [os.path.relpath(path, source.folder) for path in source.paths]


def read(
  source: ImageSource,
  names: Sequence[str],
  part: Sequence[str],
  results: Results,
) -> dict[str, Any]:
  """The images of a batch; a corrupt one becomes a row of its own."""
  index = {name: i for i, name in enumerate(names)}
  records = {name: source.read(index[name]) for name in part}
  results.add(
    [
      {'name': name, 'error': 'cannot be read'}
      for name, record in records.items()
      if record is None and name not in results.rows
    ]
  )
  return {n: r['image'] for n, r in records.items() if r is not None}


def summary(results: Results) -> str:
  """How many items there are, and how many could not be read."""
  bad = sum('error' in row for row in results.rows.values())
  done = f'{len(results.rows) - bad} done'
  return f'{done}, {bad} could not be read' if bad else done


def _parse() -> list[str]:
  """What is left of the command line; a config file may raise anything.

  Raises:
    UserError: it did.
  """
  try:
    return flags.FLAGS(sys.argv)
  except flags.Error:
    raise
  except Exception as e:
    raise UserError(f'the command line: {e or type(e).__name__}') from None


def run(main: Callable[[], None]) -> None:
  """Parses the flags, runs `main`, exits.

  The exit code is 0, 130 after Ctrl-C, or 2 with one line on stderr for what
  a user can fix: a flag, a folder, a file.
  """
  try:
    rest = _parse()[1:]
    if rest:
      raise UserError(f'unexpected argument {rest[0]!r}: flags start with --')
    main()
  except KeyboardInterrupt:
    print('\nstopped; run the same command to go on', file=sys.stderr)
    sys.exit(130)
  except (UserError, flags.Error, OSError) as e:
    lines = str(e).strip().splitlines() or [type(e).__name__]
    print(f'uae_jax: {lines[0]}', file=sys.stderr)
    sys.exit(2)
