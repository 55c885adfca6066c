"""Tokens that an update runs through the language model, counted.

`python -m benchmarks.counted [--prefix=1000] [--length=250] [--group=8]
[--json]`

Nothing is run: the update of Qwen2.5-VL-3B is traced at these sizes, once as
it is, with the image and its prompt read once for all captions of a group,
and once as if every caption had an image of its own, as a loop around a
library's model does it. Counted are the rows of the products with the
feed-forward kernels, of which each token is one.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

# Not this folder: its profile.py is not Python's.
sys.path[0] = str(Path(__file__).parent.parent)

import jax  # noqa: E402

from configs import umm1  # noqa: E402
from uae_jax.models import lm, qwen_vision  # noqa: E402
from uae_jax.nn import kernels  # noqa: E402
from uae_jax.plan import model_flops, programs, stand_ins  # noqa: E402
from uae_jax.sharding.mesh import make_mesh  # noqa: E402

MODEL = 'qwen2.5-vl-3b'
PARTS = {
  'reference': lambda scope: 'reference' in scope,
  'forward': lambda scope: 'gradient' in scope and 'transpose' not in scope,
  'backward': lambda scope: 'gradient' in scope and 'transpose' in scope,
}


def update(prefix: int, length: int, group: int, images: int):
  """The program of an update without rematerialisation."""
  fields = qwen_vision.VARIANTS[MODEL]
  side = fields['patch'] * fields['merge']
  config = umm1.get_config('qwen3b-sd35m')
  config.train.images, config.train.group_size = images, group
  config.rollout.length = length
  config.data.max_pixels = side**2 * prefix
  with tempfile.TemporaryDirectory() as folder, config.unlocked():
    stand_ins.fill_in(config, Path(folder))
    mesh = make_mesh(1, 1, jax.devices()[:1])
    read = programs.build(config, mesh, 'update').args[1].prefix_ids.shape[1]
    config.data.max_pixels = side**2 * (2 * prefix - read)  # less the prompt
    return programs.build(programs.unrestricted(config), mesh, 'update')


def counted(program, state, batch, rollout, key) -> dict:
  """Tokens and operations by part."""
  args = state, batch, rollout, key
  with kernels.use('xla'):  # nothing is computed twice
    scopes = model_flops.by_scope(program.fn, *args, loop=1)
  fields = lm.VARIANTS[MODEL]
  one = 2 * fields['width'] * fields['mlp'] * fields['layers']
  out = {}
  for part, of in PARTS.items():
    gates = sum(
      n
      for k, n in scopes.items()
      if of(k) and k.endswith('/lm/layers/block/mlp/gate')
    )
    out[part] = dict(
      tokens=gates / one / (2 if part == 'backward' else 1),
      flops=sum(n for k, n in scopes.items() if of(k)),
    )
  return out


def main() -> None:
  """Counts, prints."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--prefix', type=int, default=1000)
  parser.add_argument('--length', type=int, default=250)
  parser.add_argument('--group', type=int, default=8)
  parser.add_argument('--json', action='store_true')
  args = parser.parse_args()
  sizes = args.prefix, args.length
  program = update(*sizes, args.group, 1)
  shared = counted(program, *program.args)
  program = update(*sizes, 2, args.group)
  state, batch, rollout, key = program.args
  alone = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(
      (len(x), *([1] if x.ndim > 1 else []), *x.shape[2:]), x.dtype,
      sharding=x.sharding,
    ),
    rollout,
  )  # fmt: skip
  repeated = counted(program, state, batch, alone, key)
  print('| one image | shared: tokens | Tflop | repeated: tokens | Tflop | |')
  print('|---|---|---|---|---|---|')
  for part in PARTS:
    a, b = shared[part], repeated[part]
    print(
      f'| {part} | {a["tokens"]:.0f} | {a["flops"] / 1e12:.1f} | '
      f'{b["tokens"]:.0f} | {b["flops"] / 1e12:.1f} | '
      f'{a["tokens"] / b["tokens"]:.3f} |'
    )
  if args.json:
    print(json.dumps(dict(shared=shared, repeated=repeated)))


if __name__ == '__main__':
  main()
