"""Weights between the hub's layout and Orbax, with LoRA merged on the way.

`python -m uae_jax.tools.convert --from=HUB --to=OUT --format=orbax`
`python -m uae_jax.tools.convert --from=HUB --to=OUT --merge=ADAPTER`
`python -m uae_jax.tools.convert --from=runs/umm1/checkpoints/500 --base=HUB
--to=OUT`
"""

from pathlib import Path

import jax
import jax.numpy as jnp
from absl import flags

from uae_jax import trees, zoo
from uae_jax.ckpt import convert, peft
from uae_jax.errors import UserError
from uae_jax.nn import lora
from uae_jax.tools import cli

FROM = flags.DEFINE_string(
  'from', None, "Hub folder, Orbax folder, or a step of a run's checkpoints/.",
  required=True,
)  # fmt: skip
TO = flags.DEFINE_string('to', None, 'Folder to write; must be empty.')
FORMAT = flags.DEFINE_enum('format', 'hub', ['hub', 'orbax'], 'What to write.')
BASE = flags.DEFINE_string(
  'base', None, 'Hub folder of what an Orbax folder lacks.'
)
MERGE = flags.DEFINE_string('merge', None, 'Folder of a PEFT LoRA adapter.')
DTYPE = flags.DEFINE_enum(
  'dtype', None, ['float32', 'bfloat16', 'float16'], 'On disk; as it is.'
)
SHARD = flags.DEFINE_float(
  'max_shard_gb', None, 'Size of a safetensors file; one file.', 0.0
)
DRY_RUN = flags.DEFINE_bool('dry_run', False, 'Print the table of tensors.')


def merged(params, model: zoo.Model, folder: Path, dtype):
  """Adds an adapter in fp32, one kernel after the other."""
  adapter = peft.load(folder, model.table, model.shapes(), model.rename)
  flat, scale = trees.flatten(params), adapter.alpha / adapter.rank
  for path, (a, b) in lora.pairs(adapter.tree).items():
    w = flat[path]
    new = lora.update(jnp.asarray(w, jnp.float32), a, b, scale)
    flat[path] = new.astype(dtype or w.dtype)
  return trees.unflatten(flat)


def main() -> None:
  """Converts, or says what would be converted."""
  jax.config.update('jax_platforms', 'cpu')
  source = zoo.resolve(FROM.value)
  base = zoo.resolve(BASE.value) if BASE.value else None
  model = zoo.from_folder(base or source)
  if DRY_RUN.value:
    print(*convert.describe(model, source, base), sep='\n')
    return
  if not TO.value:
    raise UserError('say --to=FOLDER or --dry_run')
  out = Path(TO.value).expanduser()
  if out.exists() and (not out.is_dir() or any(out.iterdir())):
    raise UserError(f'--to={out} is not an empty folder')
  dtype = jnp.dtype(DTYPE.value) if DTYPE.value else None
  params = convert.read(model, source, base=base, dtype=dtype)
  if MERGE.value:
    params = merged(params, model, zoo.resolve(MERGE.value), dtype)
  if FORMAT.value == 'orbax':
    convert.write_orbax(out, params, base or source, dtype=dtype)
  else:
    shard = int(SHARD.value * 1e9) if SHARD.value else None
    convert.write_hub(
      model, out, params, base or source, dtype=dtype, max_shard=shard
    )
  print(out)


if __name__ == '__main__':
  cli.run(main)
