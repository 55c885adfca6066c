"""Win rates of captions against others' captions, by LLM judges.

`python -m uae_jax.tools.duel --images=photos --captions=ours/results.jsonl
--baseline=before=captions/results.jsonl --judge=gpt-4o --out=duel`

A file of captions is what tools.caption or tools.reconstruct leaves, or a
.json object of captions by file name. A judge is MODEL[@BASE_URL[@KEY_ENV]],
an OpenAI-compatible endpoint and the environment variable of its key. Leaves
`results.jsonl` with every answer, `summary.json` and, in `answers/`, what
makes the same command ask nothing twice.
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import flags

from uae_jax.data.pipeline import ImageSource
from uae_jax.errors import UserError
from uae_jax.eval import benchmark
from uae_jax.eval.caption_duel import NAME, CaptionDuel
from uae_jax.eval.judge_client import Judge, make_judge
from uae_jax.infer.results import Results
from uae_jax.tools import cli
from uae_jax.train.writers import Progress

IMAGES = flags.DEFINE_string('images', None, 'Folder.', required=True)
CAPTIONS = flags.DEFINE_string('captions', None, 'Ours.', required=True)
BASELINES = flags.DEFINE_multi_string(
  'baseline', None, 'NAME=FILE of others; may be repeated.', required=True
)
JUDGES = flags.DEFINE_multi_string(
  'judge', None, 'MODEL[@BASE_URL[@KEY_ENV]]; may be repeated.', required=True
)
OUT = flags.DEFINE_string('out', None, 'Folder to fill.', required=True)
LABEL = flags.DEFINE_string('label', 'ours', 'Of our model in tables.')
PRICES = flags.DEFINE_multi_string(
  'price', [], 'JUDGE=INPUT,OUTPUT: USD for a million tokens.'
)
CACHE = flags.DEFINE_string(
  'cache', None, 'Folder of answers that several commands share.'
)
TEMPERATURE = flags.DEFINE_float(
  'temperature', 0.0, 'Of the judges; left out where one does not take it.'
)
MAX_SIDE = flags.DEFINE_integer('max_side', 1024, 'Of an image, in pixels.')
CONCURRENCY = flags.DEFINE_integer('concurrency', 8, 'Questions at once.')
RETRIES = flags.DEFINE_integer('retries', 6, 'Of a question.')
TIMEOUT = flags.DEFINE_float('timeout', 120.0, 'Seconds of silence.')
BATCH = flags.DEFINE_integer('batch', 16, 'Images at once.', lower_bound=1)


def main() -> None:
  """Asks what is not answered yet."""
  source = ImageSource(IMAGES.value)
  images = dict(zip(cli.names(source), map(Path, source.paths)))
  baselines = {
    name: read_captions(Path(file))
    for name, file in pairs('baseline', BASELINES.value).items()
  }
  ours = read_captions(Path(CAPTIONS.value))
  judges = make_judges()
  duel = CaptionDuel(images, ours, baselines, judges)
  settings = {'tool': 'duel', 'images': IMAGES.value, **duel.settings}
  results = Results(Path(OUT.value), settings)
  for what, names in duel.unpaired.items():
    more = f' and {len(names) - 10} more' if len(names) > 10 else ''
    print(f'no {what}: {", ".join(names[:10])}{more}')
  progress = Progress(
    len(duel.items), len(results.rows), 5, ('win rate', 'missing'), 'image'
  )
  for _, part in cli.batches(duel.items, BATCH.value, results.rows):
    start = time.perf_counter()
    todo = [name for name in part if name not in results.rows]
    results.add(duel.run(todo, results.folder, None))
    scores = duel.scores(results.rows)
    row = {'time/step': (time.perf_counter() - start) / len(todo)}
    if 'win_rate' in scores:
      row['win rate'] = scores['win_rate'].value
    if duel.missing:
      row['missing'] = len(duel.missing)
    progress.update(len(results.rows), row)
  finish(duel, judges, results, progress)


def finish(
  duel: CaptionDuel,
  judges: Mapping[str, Judge],
  results: Results,
  progress: Progress,
) -> None:
  """Writes the summary, prints the table.

  Raises:
    UserError: images are left to be asked about again.
  """
  scores = duel.scores(results.rows)
  spent = {
    'tokens': {'/'.join(k): v for k, v in duel.tokens(results.rows).items()},
    'unpaired': duel.unpaired,
    'missing': duel.missing,
    'dropped': duel.dropped(results.rows),
  }
  file = benchmark.write_summary(
    results.folder, NAME, LABEL.value, scores, {**duel.settings, **spent}
  )
  progress.say(duel.table(results.rows, scores))
  asked = sum(judge.usage['answered'] for judge in judges.values())
  dollars = [judge.spent() for judge in judges.values()]
  cost = '' if None in dollars else f' for {sum(dollars):.4f} USD'
  progress.say(f'{asked} answers{cost} in this run')
  progress.say(f'{cli.summary(results)}: {file}')
  if duel.missing:
    name, why = next(iter(duel.missing.items()))
    raise UserError(
      f'{len(duel.missing)} images are not judged ({name}, {why}): run the '
      'same command again'
    )


def make_judges() -> dict[str, Judge]:
  """The judges by what they are called in tables.

  Raises:
    UserError: two are the same, or a price is of none or not two numbers.
  """
  prices = {k: _numbers(v) for k, v in pairs('price', PRICES.value).items()}
  cache = Path(CACHE.value or Path(OUT.value) / 'answers').expanduser()
  judges = {}
  for spec in JUDGES.value:
    model = spec.split('@http')[0]
    judge = make_judge(
      spec,
      concurrency=CONCURRENCY.value,
      retries=RETRIES.value,
      timeout=TIMEOUT.value,
      temperature=TEMPERATURE.value,
      max_side=MAX_SIDE.value,
      cache=cache,
      prices=prices.get(model),
    )
    label, url = judge.model, judge.settings['base_url']
    if any(judge.settings == other.settings for other in judges.values()):
      raise UserError(f'--judge={label}@{url} is named twice')
    judges[f'{label}@{url}' if label in judges else label] = judge
  unknown = sorted(set(prices) - {judge.model for judge in judges.values()})
  if unknown:
    raise UserError(f'--price of {unknown}, which is no --judge')
  return judges


def pairs(flag: str, values: list[str]) -> dict[str, str]:
  """`NAME=VALUE` flags by name.

  Raises:
    UserError: one is not of this form, or two have one name.
  """
  out = {}
  for text in values:
    name, _, value = text.partition('=')
    if not (name and value) or name in out:
      raise UserError(
        f'--{flag}={text} is not NAME=VALUE, with each name used once'
      )
    out[name] = value
  return out


def _numbers(text: str) -> tuple[float, float]:
  try:
    first, second = map(float, text.split(','))
  except ValueError:
    raise UserError(f'--price: {text} is not INPUT,OUTPUT') from None
  return first, second


def read_captions(file: Path) -> dict[str, str]:
  """Captions by name of image.

  Raises:
    UserError: it cannot be read, or holds something else.
  """
  try:
    text = file.expanduser().read_text('utf-8')
    if file.suffix == '.json':
      captions = dict(json.loads(text))
    else:
      rows: list[dict[str, Any]] = [*map(json.loads, text.splitlines())]
      captions = {
        row['name']: row['caption'] for row in rows if 'error' not in row
      }
  except OSError:
    raise UserError(
      f'{file} cannot be read: give a file of captions, such as the '
      'results.jsonl of tools.caption'
    ) from None
  except (ValueError, KeyError, TypeError):
    captions = None
  if captions is None or not all(
    isinstance(x, str) for x in [*captions, *captions.values()]
  ):
    raise UserError(
      f'{file} holds no captions: lines with a name and a caption (.jsonl), or '
      'one object of captions by file name (.json)'
    )
  return captions


if __name__ == '__main__':
  cli.run(main)
