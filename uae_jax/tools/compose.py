"""A released UMM-1 -> the folder that all other commands and training read.

`python -m uae_jax.tools.compose --from=UAE --to=OUT`
`python -m uae_jax.tools.compose --from=UNIWORLD --flux=FLUX --siglip=SIGLIP
--to=OUT`

OUT has `policy`, `decoder` and `umm.json`; it appears when it is whole. The
same command goes on where it was stopped. To train from it:
`python -m uae_jax.main --config=configs/umm1.py
--config.ckpt.policy=OUT/policy --config.ckpt.decoder=OUT/decoder`
"""

from pathlib import Path

import jax
import jax.numpy as jnp
from absl import flags

from uae_jax import zoo
from uae_jax.errors import UserError
from uae_jax.infer import compose, releases
from uae_jax.tools import cli

FROM = flags.DEFINE_string(
  'from', None, 'Folder or ORG/REPOSITORY of UAE or UniWorld-V1.',
  required=True,
)  # fmt: skip
TO = flags.DEFINE_string('to', None, 'Folder to write.', required=True)
FLUX = flags.DEFINE_string('flux', None, 'FLUX.1-dev, for UniWorld-V1.')
SIGLIP = flags.DEFINE_string(
  'siglip', None, 'SigLIP 2, for the reference images of UniWorld-V1.'
)
PROCESSOR = flags.DEFINE_string(
  'processor', None, 'Qwen2.5-VL, where --from has no tokenizer.'
)
DTYPE = flags.DEFINE_enum(
  'dtype', None, ['float32', 'bfloat16', 'float16'], 'On disk; as it is.'
)


def read(folder: Path, others: dict[str, Path]) -> compose.Contents:
  """What becomes of a release.

  Raises:
    UserError: from `infer.releases`, or flags of the other release.
  """
  if releases.is_uae(folder):
    if wrong := sorted({'flux', 'siglip'} & set(others)):
      raise UserError(f'{folder} is UAE: leave out {wrong}')
    return releases.uae(folder, **others)
  if 'flux' not in others:
    raise UserError(
      f'{folder} is not UAE; for UniWorld-V1 say --flux=FOLDER of FLUX.1-dev'
    )
  return releases.uniworld(folder, **others)


def main() -> None:
  """Composes the folder, and says what is done."""
  jax.config.update('jax_platforms', 'cpu')
  source, out = zoo.resolve(FROM.value), Path(TO.value).expanduser()
  others = {
    flag.name: zoo.resolve(flag.value)
    for flag in (FLUX, SIGLIP, PROCESSOR)
    if flag.value
  }
  settings = {name: str(at.resolve()) for name, at in others.items()}
  settings |= {'from': str(source.resolve()), 'dtype': DTYPE.value}
  dtype = jnp.dtype(DTYPE.value) if DTYPE.value else None
  contents = read(source, others)
  for name in compose.write(contents, out, settings, dtype):
    print(name, flush=True)
  print(out)


if __name__ == '__main__':
  cli.run(main)
