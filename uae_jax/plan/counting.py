"""Counting what a compiled program does on each device.

`compiled.cost_analysis()` counts the body of a loop once; here it counts as
often as it runs.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping

import numpy as np

from uae_jax.plan.hlo import Module, Op

# Moves or names memory without reading it.
_FREE = {
  'parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'while',
  'conditional', 'call', 'after-all', 'partition-id', 'replica-id',
  'opt-barrier', 'copy-done', 'async-done', 'async-update', 'slice-done',
  'dynamic-slice-done',
}  # fmt: skip

COLLECTIVES = (
  'all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all',
  'collective-permute', 'send',
)  # fmt: skip
# Matrix products of a block, by the kernel's name.
PRODUCTS = {'splash_mha_fwd': 2, 'splash_mha_dkv': 4, 'splash_mha_dq': 3}
LARGE = 2.5 * 2**20  # bytes sent; biases and norms together are less


@dataclasses.dataclass
class Counts:
  """What one run of a program costs on one device.

  Attributes:
    flops: of matrix products and convolutions.
    bytes: read from and written to HBM, as far as instructions tell.
    sent: bytes by collective.
    whole: bytes of large all-reduces over all of the data axis, by what they
      are of: gradients, or weights that are put together, at twice the cost.
  """

  flops: float = 0.0
  bytes: float = 0.0
  sent: dict[str, float] = dataclasses.field(default_factory=dict)
  whole: dict[str, float] = dataclasses.field(default_factory=dict)

  def add(self, other: 'Counts', times: float = 1.0) -> None:
    """Adds `other`, `times` over."""
    self.flops += times * other.flops
    self.bytes += times * other.bytes
    for mine, theirs in (
      (self.sent, other.sent), (self.whole, other.whole),
    ):  # fmt: skip
      for key, value in theirs.items():
        mine[key] = mine.get(key, 0.0) + times * value

  @property
  def ici(self) -> float:
    """Bytes sent within a slice."""
    return sum(v for k, v in self.sent.items() if k != 'send')

  @property
  def dcn(self) -> float:
    """Bytes sent to another slice."""
    return self.sent.get('send', 0.0)


def count(text: str, data: int | None = None) -> Counts:
  """Counts a compiled module, the text of `compiled.as_text()`.

  Args:
    text: of the module.
    data: size of the data axis; all devices if not told.
  """
  module = Module(text)
  return Counter(module, data or module.devices).of(module.entry, False)


class Counter:
  """Counts the computations of a module, each once."""

  def __init__(self, module: Module, data: int):
    """Counts nothing yet."""
    self.module = module
    self.data = data
    self._started = dict(started(module))
    self._known: dict[tuple[str, bool], Counts] = {}

  def of(self, name: str, fused: bool) -> Counts:
    if (name, fused) not in self._known:
      self._known[name, fused] = self._count(name, fused)
    return self._known[name, fused]

  def _count(self, name: str, fused: bool) -> Counts:
    out, ops = Counts(), self.module.computations[name]
    for op in ops.values():
      out.flops += flops(op, ops)
      if self._started.get(again(op), name) != name:
        continue  # a later part of one that another fusion has started
      for key, sent in collective(op, ops, name, self.module.devices):
        out.sent[key] = out.sent.get(key, 0.0) + sent
        if key == 'all-reduce' and sent > LARGE and self._is_whole(op):
          where = op.attribute('op_name', '"[^"]*"') or op.name
          out.whole[where] = out.whole.get(where, 0.0) + sent
      if not fused and op.code not in _FREE:
        out.bytes += self._traffic(op, ops)
      self._add_called(op, ops, out, fused)
    return out

  def _is_whole(self, op: Op) -> bool:
    """Is it over all of the data axis?"""
    n = group_size(op, self.module.devices)
    return n in (self.data, self.module.devices)

  def _add_called(self, op: Op, ops, out: Counts, fused: bool) -> None:
    called = [n for n in op.calls() if n in self.module.computations]
    if op.code == 'while':
      body = op.attribute('body').removeprefix('%')
      out.add(self.of(body, fused), self.module.trips(op, ops))
    elif op.code == 'conditional':
      branches = [self.of(n, fused) for n in called]
      out.add(max(branches, key=lambda c: (c.flops, c.bytes)))
    elif op.code == 'fusion':
      for n in called:
        out.add(self.of(n, True))
    elif op.code in ('call', 'async-start', 'custom-call'):
      for n in called:
        out.add(self.of(n, fused))

  def _traffic(self, op: Op, ops: Mapping[str, Op]) -> float:
    """HBM bytes of one instruction: what it reads and what it writes."""
    far = lambda arrays: sum(a.bytes for a in arrays if not a.near)
    reads = [far(ops[x].out) if x in ops else 0 for x in op.operands]
    writes = far(op.out)
    if op.code in ('dynamic-slice', 'gather', 'slice'):
      return 2 * writes
    if op.code == 'dynamic-update-slice':
      return 2 * reads[1]
    if op.code in ('slice-start', 'dynamic-slice-start'):
      return op.out[1].bytes + far(op.out[1:2])  # out[0] is what is cut
    if op.code in ('copy-start', 'async-start'):
      return reads[0] + far(op.out[:1])
    if op.code == 'fusion':
      inner = self.module.computations[op.calls()[0]]
      for i, p in parameters(inner).items():
        if i < len(reads):
          reads[i] = min(reads[i], read_of(p, inner, self.module))
      root = next(p for p in inner.values() if p.root)
      writes = min(writes, written_by(root, inner))
    return sum(reads) + writes


def read_of(parameter: Op, ops: Mapping[str, Op], module: Module) -> float:
  """Bytes of a fusion's parameter that are read: slices are read alone."""
  whole, read = sum(a.bytes for a in parameter.out), 0.0
  for op in ops.values():
    if parameter.name not in op.operands:
      continue
    first = op.operands[0] == parameter.name
    if op.code in ('dynamic-slice', 'slice', 'gather') and first:
      read += sum(a.bytes for a in op.out)
    elif op.code == 'dynamic-update-slice' and first:
      continue  # written in place
    elif op.code == 'bitcast':
      read += read_of(op, ops, module)
    elif op.code == 'fusion':
      inner = module.computations[op.calls()[0]]
      place = op.operands.index(parameter.name)
      read += read_of(parameters(inner)[place], inner, module)
    else:
      return whole
  return min(read, whole)


def parameters(ops: Mapping[str, Op]) -> dict[int, Op]:
  """The parameters of a computation, by their place."""
  found = [op for op in ops.values() if op.code == 'parameter']
  return {int(op.rest.split(')')[0]): op for op in found}


def written_by(root: Op, ops: Mapping[str, Op]) -> float:
  """Bytes that a fusion writes: updates in place write what they update."""
  if root.code == 'bitcast':
    return written_by(ops[root.operands[0]], ops)
  if root.code == 'tuple':
    return sum(written_by(ops[x], ops) for x in root.operands)
  if root.code == 'dynamic-update-slice':
    return sum(a.bytes for a in ops[root.operands[1]].out)
  return sum(a.bytes for a in root.out)


def flops(op: Op, ops: Mapping[str, Op]) -> float:
  """Of a matrix product, a convolution, or a kernel that says what it does."""
  if op.code == 'convolution':
    return _convolution(op, ops)
  if op.code == 'dot':
    lhs = ops[op.operands[0]].out[0].dims
    inner = op.attribute('lhs_contracting_dims', r'\{[\d,]*\}')
    axes = [int(n) for n in re.findall(r'\d+', inner or '')]
    size = np.prod([lhs[a] for a in axes], dtype=np.float64)
    return 2 * size * np.prod(op.out[0].dims, dtype=np.float64)
  if op.code == 'custom-call' and 'tpu_custom_call' in op.rest:
    return _kernel(op, ops)
  return 0.0


def _kernel(op: Op, ops: Mapping[str, Op]) -> float:
  """Of splash attention: the products of the blocks that are worked on.

  Its operands are [1, a, b] tables of those blocks; queries, keys and values
  [B N T H] (without B if that is 1); ids; and, where a mask is more than its
  ids, the masks of blocks, [n, queries, keys], which then have a third table.
  """
  products = [n for kind, n in PRODUCTS.items() if kind in op.name]
  if not products:
    return 0.0
  put = [ops[x].out[0] for x in op.operands]
  first = next(i for i, x in enumerate(put) if x.dtype in ('bf16', 'f32'))
  *rows, t, h = put[first].dims
  pairs = t * put[first + 1].dims[-2]
  if first == 3:
    pairs = math.prod(put[0].dims[-2:]) * math.prod(put[-1].dims[-2:])
  return 2.0 * products[0] * math.prod(rows) * pairs * h


def _convolution(op: Op, ops: Mapping[str, Op]) -> float:
  labels = op.attribute('dim_labels', r'\w+_\w+->\w+')
  lhs_labels, rest = labels.split('_')
  rhs_labels, out_labels = rest.split('->')
  lhs = dict(zip(lhs_labels, ops[op.operands[0]].out[0].dims))
  rhs = dict(zip(rhs_labels, ops[op.operands[1]].out[0].dims))
  out = dict(zip(out_labels, op.out[0].dims))
  total = 2.0 * out['b'] * out['f'] * rhs['i']
  window = op.attribute('window', r'\{[^}]*\}') or ''
  spatial = sorted(c for c in out if c.isdigit())

  def field(name, default):
    found = re.search(rf'\b{name}=([\w\-]+)', window)
    values = found[1].split('x') if found else [default] * len(spatial)
    return dict(zip(spatial, values))

  pads = field('pad', '0_0')
  strides, lhs_dilate, rhs_dilate = (
    field(n, '1') for n in ('stride', 'lhs_dilate', 'rhs_dilate')
  )
  for c in spatial:
    total *= _pairs(
      lhs[c], rhs[c], out[c], int(pads[c].split('_')[0]), int(strides[c]),
      int(lhs_dilate[c]), int(rhs_dilate[c]),
    )  # fmt: skip
  return total


@functools.cache
def _pairs(lhs, rhs, out, pad, stride, lhs_dilate, rhs_dilate) -> int:
  """(output, kernel) places along one axis that meet an input."""
  at = np.arange(out)[:, None] * stride - pad
  at = at + np.arange(rhs) * rhs_dilate
  inside = (at >= 0) & (at <= (lhs - 1) * lhs_dilate)
  return int(np.sum(inside & (at % lhs_dilate == 0)))


def started(module: Module) -> Iterator[tuple[tuple, str]]:
  """(what `again` gives, computation) of collectives that start in a fusion.

  The same collective is written once more in the fusions that it runs beside
  and in the one that waits for it.
  """
  for name, ops in module.computations.items():
    if any('AsyncCollectiveStart' in op.rest for op in ops.values()):
      for op in ops.values():
        if again(op):
          yield again(op), name


def again(op: Op) -> tuple | None:
  """What two mentions of one collective have in common."""
  if op.code not in COLLECTIVES:
    return None
  return op.attribute('channel_id'), op.code, op.out[0].dims


def collective(
  op: Op, ops: Mapping[str, Op], computation: str, devices: int
) -> Iterator[tuple[str, float]]:
  """(kind, bytes that a device sends) of a collective."""
  kind = op.code.removesuffix('-start')
  if kind not in COLLECTIVES:
    return
  put = sum(a.bytes for x in op.operands if x in ops for a in ops[x].out)
  n = 1 if kind in ('collective-permute', 'send') else group_size(op, devices)
  if kind == 'all-gather':
    yield kind, put * (n - 1)
  elif kind == 'all-reduce' and 'all-reduce-scatter' in computation:
    yield 'reduce-scatter', put * (n - 1) / n
  elif kind == 'all-reduce':
    yield kind, 2 * put * (n - 1) / n
  elif kind in ('reduce-scatter', 'all-to-all'):
    yield kind, put * (n - 1) / n
  elif kind == 'send':
    yield kind, ops[op.operands[0]].out[0].bytes
  else:
    yield kind, put


def group_size(op: Op, devices: int) -> int:
  """Devices that take part in a collective together, of so many in all.

  Groups are written as lists, none being all devices, as [groups, size], or
  as axes of a mesh, of which 'axis':(a)b is a part of size b.
  """
  if 'replica_groups={}' in op.rest:
    return devices
  axes = r'replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}'
  found = re.search(axes, op.rest)
  if found:
    sizes = dict(re.findall(r"'([^']+)'=(\d+)", found[1]))
    axes = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", found[2])
    return math.prod(int(part or sizes[axis]) for axis, part in axes)
  found = re.search(r'replica_groups=\[(\d+),(\d+)\]', op.rest)
  if found:
    return int(found[2])
  found = re.search(r'replica_groups=\{\{([\d,]*)\}', op.rest)
  if not found:
    raise ValueError(f'the groups of {op.name} cannot be read: {op.rest[:200]}')
  return len(found[1].split(','))
