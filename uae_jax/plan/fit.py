"""Does it fit, what does it do, how long would a step take?"""

import dataclasses
import re
import time
from collections.abc import Iterator
from typing import Any

import jax
from jax.sharding import Mesh

from uae_jax.plan import counting, programs
from uae_jax.plan.topology import Chip

UNITS = {'': 1, 'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}


@dataclasses.dataclass(frozen=True)
class Report:
  """One program on one device of a mesh.

  Attributes:
    fits: the compiler accepts it, and by every reading it is within the HBM.
    needed: bytes by the largest reading.
    hbm: bytes that there are.
    arguments: bytes of what goes in; most of it is given back in place.
    temporaries: bytes beside those.
    peak: bytes in use at once, as the compiler has it.
    counts: what it does; None where it does not compile.
    model_flops: what the model needs of one device.
    seconds: of compilation.
  """

  fits: bool
  needed: int
  hbm: int
  arguments: int = 0
  temporaries: int = 0
  peak: int = 0
  counts: counting.Counts | None = None
  model_flops: float = 0.0
  seconds: float = 0.0

  @property
  def spare(self) -> float:
    """Share of the HBM that is left; negative where it does not fit."""
    return 1 - self.needed / self.hbm

  def times(self, chip: Chip) -> dict[str, float]:
    """Seconds that each resource is busy for, at its peak rate."""
    c = self.counts
    return {
      'compute': c.flops / chip.flops,
      'memory': c.bytes / chip.bandwidth,
      'network': c.ici / chip.ici + c.dcn / chip.dcn,
    }

  def least_seconds(self, chip: Chip) -> float:
    """The slowest resource: a bound from below, all else hidden behind it."""
    return max(self.times(chip).values())


def compiled(config, mesh: Mesh, chip: Chip, name: str) -> Report:
  """Compiles a program and measures it; refusal is an answer too.

  Raises:
    UserError: it cannot be built.
  """
  program = programs.build(config, mesh, name)
  start = time.perf_counter()
  try:
    done = program.lower().compile()
  except jax.errors.JaxRuntimeError as e:
    needed = refused(str(e))
    if needed is None:
      raise
    return Report(False, needed, chip.hbm)
  seconds = time.perf_counter() - start
  m = done.memory_analysis()
  through = m.output_size_in_bytes - m.alias_size_in_bytes
  total = m.argument_size_in_bytes + m.temp_size_in_bytes + through
  needed = max(total, m.peak_memory_in_bytes)
  free = programs.build(programs.unrestricted(config), mesh, name)
  return Report(
    fits=needed <= chip.hbm,
    needed=needed,
    hbm=chip.hbm,
    arguments=m.argument_size_in_bytes,
    temporaries=m.temp_size_in_bytes,
    peak=m.peak_memory_in_bytes,
    counts=counting.count(done.as_text(), mesh.shape['data']),
    model_flops=free.flops(config.rollout.length) / mesh.size,
    seconds=seconds,
  )


def refused(message: str) -> int | None:
  """Bytes that a program would need, of the compiler's refusal."""
  if 'RESOURCE_EXHAUSTED' not in message:
    return None
  found = re.search(r'\(?([\d.]+)([KMGT]?)\)? exceeds', message)
  if not found:
    return 0
  return int(float(found[1]) * UNITS[found[2]])


def levers(config, name: str) -> Iterator[tuple[str, Any]]:
  """(key, value) to try where a program does not fit, the cheapest first."""
  memory, model = config.memory, config.model
  if name != 'rollout' and name != 'sampler':
    if memory.update_images != 1:
      yield 'memory.update_images', 1
    if model.remat != 'full':
      yield 'model.remat', 'full'
    if not model.chunk or model.chunk > 64:
      yield 'model.chunk', 64
  if name != 'update':
    if memory.drawings != 1:
      yield 'memory.drawings', 1
    if memory.rollout_images != 1:
      yield 'memory.rollout_images', 1
  if name != 'rollout' and name != 'sampler' and not memory.offload:
    yield 'memory.offload', 'optimizer,reference'
  if model.dtype == 'float32':
    yield 'model.dtype', 'bfloat16'
  if model.frozen_dtype == 'float32':
    yield 'model.frozen_dtype', 'bfloat16'


def set_key(config, key: str, value: Any) -> Any:
  """A copy of the config with one key changed."""
  config = config.copy_and_resolve_references()
  section, name = key.split('.')
  with config.unlocked():
    config[section][name] = value
  return config
