"""Slices of TPUs to compile for, and what their chips can do.

libtpu compiles for a slice on any machine; `pip install libtpu` is enough.
Peak rates are those of Google's pages on each generation
(https://docs.cloud.google.com/tpu/docs/v5e and its neighbours); the memory is
what the compiler leaves to a program.
"""

import dataclasses
import importlib.util
import os
import re
from typing import Any

import jax

from uae_jax.errors import UserError

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """One device as a program sees it.

  Attributes:
    hbm: bytes that a program may use.
    flops: of bfloat16 matrix products, per second.
    bandwidth: of that memory, bytes per second.
    ici: bytes per second that a device sends over all its links of a slice.
    dcn: the same between slices.
    options: of the topology's name.
  """

  hbm: int
  flops: float
  bandwidth: float
  ici: float
  dcn: float
  options: tuple[tuple[str, Any], ...] = ()


CHIPS = {
  'v4': Chip(
    int(30.75 * GIB), 275e12, 1228e9, 300e9, 3.1e9,
    (('chip_config_name', 'megacore'),),
  ),
  'v5e': Chip(int(15.75 * GIB), 197e12, 819e9, 200e9, 3.1e9),
  'v5p': Chip(int(95.74 * GIB), 459e12, 2765e9, 600e9, 6.2e9),
  'v6e': Chip(int(31.25 * GIB), 918e12, 1600e9, 400e9, 12.5e9),
  # Two devices a chip.
  'tpu7x': Chip(int(94.75 * GIB), 1153e12, 3690e9, 300e9, 6.2e9),
}  # fmt: skip

# Known to be offered, for the message about one that is not.
EXAMPLES = {
  'v4': '2x2x1, 2x2x4, 4x4x4',
  'v5e': '2x2, 4x4, 8x8, 16x16',
  'v5p': '2x2x1, 2x2x4, 4x4x4, 8x8x8',
  'v6e': '2x4, 4x4, 8x8, 16x16',
  'tpu7x': '2x2x1, 4x4x4',
}


def prepare() -> None:
  """Sets what libtpu reads, before JAX starts: a CPU host, no TPU around.

  Raises:
    UserError: libtpu is not installed.
  """
  if importlib.util.find_spec('libtpu') is None:
    raise UserError(
      "compiling for TPUs needs libtpu: pip install 'uae_jax[tpu]'"
    )
  os.environ.update(
    JAX_PLATFORMS='cpu',
    TPU_SKIP_MDS_QUERY='1',  # no metadata server to ask
    ALLOW_MULTIPLE_LIBTPU_LOAD='1',  # several plans at a time
    TPU_WORKER_HOSTNAMES='localhost',
    TPU_ACCELERATOR_TYPE='v5litepod-1',
  )
  jax.config.update('jax_platforms', 'cpu')


def parse(name: str) -> tuple[Chip, str]:
  """'v5e:4x4' -> what its chips can do, and their arrangement.

  Raises:
    UserError: no such chip or arrangement.
  """
  found = re.fullmatch(r'(\w+):(\d+(?:x\d+){1,2})', name)
  if not found or found[1] not in CHIPS:
    some = ', '.join(f'{k}:{v.split(",")[0]}' for k, v in EXAMPLES.items())
    raise UserError(f'topology {name!r}: say one such as {some}')
  return CHIPS[found[1]], found[2]


def devices(name: str, slices: int = 1) -> list[Any]:
  """The devices of so many slices, of which nothing can run.

  Raises:
    UserError: no such slice.
  """
  from jax.experimental import topologies

  chip, _ = parse(name)
  options = dict(chip.options)
  if slices > 1:
    options['num_slices'] = slices
  try:
    topology = topologies.get_topology_desc(
      platform='tpu', topology_name=name, **options
    )
  except Exception as e:  # the runtime's own classes
    kind = name.split(':')[0]
    reason = str(e).splitlines()[0][:160]
    raise UserError(
      f'topology {name!r} is not offered ({reason}); {kind} has for example '
      f'{EXAMPLES[kind]}'
    ) from None
  return list(topology.devices)
