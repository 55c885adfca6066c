"""Host memory that loading a sharded checkpoint takes beyond its result.

`python benchmarks/load_memory.py [--gb=2.5] [--devices=1]`

Writes a bf16 checkpoint with the proportions of a large language model
(layers of attention and gated-MLP kernels, an embedding, a head) in several
safetensors files, loads it sharded as fp32 in a process of its own, samples
that process's memory, and prints one line:

  seconds: to load; gb: size on disk; result_bytes: of the placed parameters;
  peak_bytes: largest resident memory above that before loading;
  extra_bytes: peak_bytes - result_bytes (the CPU backend's devices are the
  host's own memory); largest_bytes: of the largest parameter, a stack of
  layers; bound_bytes: 1.25 x largest_bytes + 1 GiB; ok: extra <= bound.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

LAYERS = 8
MESH = {1: (1, 1), 4: (2, 2), 8: (4, 2)}


def sizes(gb: float) -> dict[str, int]:
  """Widths at which the model takes about `gb` on disk in bf16."""
  # One layer: 4 D^2 of attention, 3 * 3.5 D^2 of MLP; embedding, head: V D.
  numbers = gb * 1e9 / 2
  width = int((numbers / (LAYERS * 14.5 + 2 * 12)) ** 0.5) // 128 * 128
  return dict(width=width, mlp=7 * width // 2, vocab=12 * width)


def model(width: int, mlp: int, vocab: int):
  """(table, shapes, sharding rules) of the synthetic model."""
  import jax
  import numpy as np
  from jax.sharding import PartitionSpec as P

  from uae_jax import trees
  from uae_jax.ckpt import hf

  y = dict(bias=False, layers=tuple(range(LAYERS)))
  block, hub = 'layers/block', 'model.layers.{i}'
  heads = (width // 128, 128)
  rows = [
    hf.Row('embed/embedding', 'model.embed_tokens.weight'),
    *hf.linear('head', 'lm_head', bias=False),
    *hf.linear(f'{block}/o', f'{hub}.self_attn.o_proj', n_in=2, **y),
  ]
  shapes = {
    'embed/embedding': (vocab, width),
    'head/kernel': (width, vocab),
    f'{block}/o/kernel': (LAYERS, *heads, width),
  }
  for part in 'qkv':
    rows += hf.linear(f'{block}/{part}', f'{hub}.self_attn.{part}_proj', **y)
    shapes[f'{block}/{part}/kernel'] = (LAYERS, width, *heads)
  for part in ('gate', 'up', 'down'):
    rows += hf.linear(f'{block}/mlp/{part}', f'{hub}.mlp.{part}_proj', **y)
    shape = (mlp, width) if part == 'down' else (width, mlp)
    shapes[f'{block}/mlp/{part}/kernel'] = (LAYERS, *shape)
  rules = (
    (r'embed/embedding', P('model', 'data')),
    (r'head/kernel', P('data', 'model')),
    (r'.*/[qkv]/kernel', P(None, 'data', 'model')),
    (r'.*/o/kernel', P(None, 'model', None, 'data')),
    (r'.*/(gate|up)/kernel', P(None, 'data', 'model')),
    (r'.*/down/kernel', P(None, 'model', 'data')),
  )
  structs = {p: jax.ShapeDtypeStruct(s, np.float32) for p, s in shapes.items()}
  return rows, trees.unflatten(structs), rules


def write(folder: Path, gb: float) -> None:
  """The checkpoint, in four files or so, random bytes repeated."""
  import ml_dtypes
  import numpy as np

  from uae_jax import trees
  from uae_jax.ckpt import export, safetensors_io

  table, shapes, _ = model(**sizes(gb))
  flat = trees.flatten(shapes)
  noise = np.random.default_rng(0).standard_normal(1 << 20)
  noise = noise.astype(ml_dtypes.bfloat16)
  tensors = {
    name: (row.shape_on_hub(flat[row.path].shape), noise.dtype)
    for row in table
    for name in row.names()
  }
  weight_map = {}
  for i, names in enumerate(export.shards(tensors, int(gb * 1e9 / 4))):
    file = f'model-{i + 1:05d}.safetensors'
    weight_map |= dict.fromkeys(names, file)
    safetensors_io.write(
      folder / file,
      {n: tensors[n] for n in names},
      lambda n: np.resize(noise, tensors[n][0]),
    )
  index = folder / 'model.safetensors.index.json'
  index.write_text(json.dumps({'weight_map': weight_map}))


class Peak(threading.Thread):
  """Samples this process's resident memory until asked to stop."""

  def __init__(self):
    super().__init__(daemon=True)
    self.bytes, self._done = 0, threading.Event()

  def run(self):
    while not self._done.wait(0.002):
      self.bytes = max(self.bytes, resident())

  def stop(self) -> int:
    """The largest sample."""
    self._done.set()
    self.join()
    return max(self.bytes, resident())


def resident() -> int:
  """This process's memory in RAM, file pages included, in bytes."""
  pages = int(Path('/proc/self/statm').read_text().split()[1])
  return pages * os.sysconf('SC_PAGE_SIZE')


def measure(folder: Path, gb: float, devices: int) -> dict:
  """Loads and measures; in a process that has done nothing else."""
  import jax
  import jax.numpy as jnp

  from uae_jax.ckpt import hf
  from uae_jax.sharding import mesh as mesh_lib
  from uae_jax.sharding import rules as rules_lib

  table, shapes, rules = model(**sizes(gb))
  mesh = mesh_lib.make_mesh(*MESH[devices])
  shardings = rules_lib.shardings(shapes, rules, mesh)
  jax.block_until_ready(jnp.zeros(8) + 1)
  before = resident()
  peak, start = Peak(), time.perf_counter()
  peak.start()
  params = hf.load(folder, table, shapes, shardings=shardings)
  jax.block_until_ready(params)
  seconds = time.perf_counter() - start
  leaves = jax.tree.leaves(params)
  result = sum(s.data.nbytes for x in leaves for s in x.addressable_shards)
  largest = max(x.nbytes for x in leaves)
  peak_bytes = peak.stop() - before
  on_host = result if jax.default_backend() == 'cpu' else 0
  bound = largest * 5 // 4 + 2**30
  files = folder.glob('*.safetensors')
  return {
    'gb': round(sum(f.stat().st_size for f in files) / 1e9, 3),
    'devices': devices,
    'seconds': round(seconds, 2),
    'result_bytes': result,
    'peak_bytes': peak_bytes,
    'extra_bytes': peak_bytes - on_host,
    'largest_bytes': largest,
    'bound_bytes': bound,
    'ok': peak_bytes - on_host <= bound,
  }


def main() -> int:
  """Writes, starts the measuring process, and passes its line on."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--gb', type=float, default=2.5)
  parser.add_argument('--devices', type=int, default=1, choices=sorted(MESH))
  parser.add_argument('--measure', help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.measure:
    print(json.dumps(measure(Path(args.measure), args.gb, args.devices)))
    return 0
  flags = os.environ.get('XLA_FLAGS', '')
  count = f'--xla_force_host_platform_device_count={args.devices}'
  with tempfile.TemporaryDirectory() as folder:
    write(Path(folder), args.gb)
    command = [
      sys.executable, __file__, '--measure', folder,
      '--gb', str(args.gb), '--devices', str(args.devices),
    ]  # fmt: skip
    env = {**os.environ, 'XLA_FLAGS': f'{flags} {count}'.strip()}
    return subprocess.run(command, env=env).returncode


if __name__ == '__main__':
  sys.exit(main())
