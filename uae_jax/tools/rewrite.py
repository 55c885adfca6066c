"""Prompts rewritten by a captioner, before they are drawn.

`python -m uae_jax.tools.rewrite --model=runs/umm1/export
--prompts=data/geneval/evaluation_metadata.jsonl --out=rewritten`

`tools.evaluate --rewrite=rewritten/results.jsonl` draws them in the prompts'
places; what is scored stays the prompt. `--prompts` is a file of lines, a
`.jsonl` whose objects have a `prompt`, or a folder of .txt files. The same
command goes on where it was stopped.
"""

import time
from pathlib import Path

import jax
from absl import flags

from uae_jax.errors import UserError
from uae_jax.eval.choice import Question
from uae_jax.infer.ask import load_asker
from uae_jax.infer.results import Results
from uae_jax.sharding import mesh as mesh_lib
from uae_jax.tools import cli
from uae_jax.train.writers import Progress

MODEL = flags.DEFINE_string(
  'model', None, 'Folder, bundled:NAME or ORG/REPOSITORY.', required=True
)
OUT = flags.DEFINE_string('out', None, 'Folder to fill.', required=True)
PROMPT = flags.DEFINE_multi_string('prompt', [], 'A prompt; may repeat.')
PROMPTS = flags.DEFINE_string('prompts', None, 'File or folder of prompts.')
INSTRUCTION = flags.DEFINE_string(
  'instruction',
  'Rewrite the following prompt for an image generator. Keep its meaning; say '
  'plainly which objects there are, how many of each, their colours, sizes and '
  'places, and what is around them. Answer with the new prompt alone.\n{}',
  'What is asked of the captioner; {} is the prompt.',
)
SEED = flags.DEFINE_integer('seed', 0, 'Of sampling.')
SHARDS = flags.DEFINE_integer('model_shards', 1, 'Devices that share weights.')
OPTIONS = cli.define_options(
  'system', 'length', 'temperature', 'top_k', 'top_p', *cli.BOTH
)


def main() -> None:
  """Rewrites what is not rewritten yet."""
  mesh_lib.use_compilation_cache()
  if INSTRUCTION.value.count('{}') != 1:
    raise UserError('--instruction needs one {}, where the prompt goes')
  prompts = list(dict.fromkeys(cli.read_prompts(PROMPTS.value, PROMPT.value)))
  asker = load_asker(
    MODEL.value, mesh_lib.make_mesh(-1, SHARDS.value), OPTIONS()
  )
  results = Results(
    Path(OUT.value).expanduser(),
    {'tool': 'rewrite', 'model': MODEL.value, 'seed': SEED.value,
     'instruction': INSTRUCTION.value, **cli.settings(asker.options)},
  )  # fmt: skip
  progress = Progress(len(prompts), len(results.rows), 5, (), 'prompt')
  seed = jax.random.key(SEED.value)
  for i, part in cli.batches(prompts, asker.options.batch, results.rows):
    start = time.perf_counter()
    asked = [Question([], INSTRUCTION.value.format(text)) for text in part]
    answers = asker.ask(asked, jax.random.fold_in(seed, i))
    rows = [
      # An answer of nothing would draw nothing.
      {'name': p, 'prompt': p, 'rewritten': a.text.strip() or p}
      for p, a in zip(part, answers)
    ]
    results.add([row for row in rows if row['name'] not in results.rows])
    seconds = (time.perf_counter() - start) / len(part)
    progress.update(len(results.rows), {'time/step': seconds})
  progress.say(f'{cli.summary(results)}: {results.file}')


if __name__ == '__main__':
  cli.run(main)
