"""Counting what a compiled program does, from its text.

`compiled.cost_analysis()` counts the body of a loop once. Here every
computation is counted as often as it runs: loops by the bound in their
condition, whose early exit is taken to be never. All numbers are per device.
"""

import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping

import numpy as np

BYTES = {
  'pred': 1, 's8': 1, 'u8': 1, 's16': 2, 'u16': 2, 'bf16': 2, 'f16': 2,
  's32': 4, 'u32': 4, 'f32': 4, 's64': 8, 'u64': 8, 'f64': 8, 'c64': 8,
}  # fmt: skip

_SHAPE = re.compile(r'(\w+)\[([\d,]*)\](\{[^{}]*\})?')
_NAME = re.compile(r'%([\w.\-]+)')
_HEAD = re.compile(r'^(ENTRY )?%?([\w.\-]+) \(.*\{$')
_LINE = re.compile(r'^\s+(ROOT )?%?([\w.\-]+) = ')
_CALLS = re.compile(
  r'(?:calls|to_apply|body|condition|branch_computations)='
  r'(\{[^}]*\}|%[\w.\-]+)'
)

# Moves or names memory without reading it.
_FREE = {
  'parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'while',
  'conditional', 'call', 'after-all', 'partition-id', 'replica-id',
  'opt-barrier', 'copy-done', 'async-done', 'async-update',
}  # fmt: skip

COLLECTIVES = (
  'all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all',
  'collective-permute', 'send',
)  # fmt: skip
LARGE = 2**20  # bytes of an all-reduce that is no mere number


@dataclasses.dataclass(frozen=True)
class Array:
  """One array of a program; `near` where it lies outside of the HBM."""

  dtype: str
  dims: tuple[int, ...]
  near: bool

  @property
  def bytes(self) -> int:
    return int(np.prod(self.dims, dtype=np.int64)) * BYTES.get(self.dtype, 4)


@dataclasses.dataclass(frozen=True)
class Op:
  """One instruction."""

  name: str
  code: str
  out: tuple[Array, ...]
  operands: tuple[str, ...]
  rest: str  # attributes
  root: bool

  def calls(self) -> list[str]:
    """Computations that it names."""
    return [n for c in _CALLS.findall(self.rest) for n in _NAME.findall(c)]

  def attribute(self, name: str, pattern: str = r'[^,\s]+') -> str | None:
    found = re.search(rf'\b{name}=({pattern})', self.rest)
    return found[1] if found else None


@dataclasses.dataclass
class Counts:
  """What one run of a program costs on one device.

  Attributes:
    flops: of matrix products and convolutions.
    bytes: read from and written to HBM, as far as instructions tell.
    sent: bytes by collective.
    gradients: bytes of large all-reduces in backward passes.
  """

  flops: float = 0.0
  bytes: float = 0.0
  sent: dict[str, float] = dataclasses.field(default_factory=dict)
  gradients: dict[str, float] = dataclasses.field(default_factory=dict)

  def add(self, other: 'Counts', times: float = 1.0) -> None:
    """Adds `other`, `times` over."""
    self.flops += times * other.flops
    self.bytes += times * other.bytes
    for mine, theirs in (
      (self.sent, other.sent), (self.gradients, other.gradients),
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


def count(text: str) -> Counts:
  """Counts a compiled module, the text of `compiled.as_text()`."""
  return Module(text).counts(None)


class Module:
  """A parsed program."""

  def __init__(self, text: str):
    """Reads every computation."""
    self.computations: dict[str, dict[str, Op]] = {}
    self.entry = ''
    self._known: dict[tuple[str, bool], Counts] = {}
    here: dict[str, Op] | None = None
    for line in text.splitlines():
      head = _HEAD.match(line)
      if head:
        here = self.computations.setdefault(head[2], {})
        if head[1]:
          self.entry = head[2]
      elif here is not None and (op := parse(line)):
        here[op.name] = op

  def counts(self, name: str | None) -> Counts:
    """Of one computation with all that it calls; None is the program."""
    return self._counts(self.entry if name is None else name, False)

  def _counts(self, name: str, fused: bool) -> Counts:
    if (name, fused) not in self._known:
      self._known[name, fused] = self._count(name, fused)
    return self._known[name, fused]

  def _count(self, name: str, fused: bool) -> Counts:
    out, ops = Counts(), self.computations[name]
    for op in ops.values():
      out.flops += flops(op, ops)
      for key, sent in collective(op, ops, name):
        out.sent[key] = out.sent.get(key, 0.0) + sent
        if key == 'all-reduce' and is_gradient(op) and sent > LARGE:
          where = op.attribute('op_name', '"[^"]*"') or op.name
          out.gradients[where] = out.gradients.get(where, 0.0) + sent
      if not fused and op.code not in _FREE:
        out.bytes += self._traffic(op, ops)
      self._add_called(op, ops, out, fused)
    return out

  def _add_called(self, op: Op, ops, out: Counts, fused: bool) -> None:
    called = [n for n in op.calls() if n in self.computations]
    if op.code == 'while':
      body = op.attribute('body').removeprefix('%')
      out.add(self._counts(body, fused), self.trips(op, ops))
    elif op.code == 'conditional':
      branches = [self._counts(n, fused) for n in called]
      out.add(max(branches, key=lambda c: (c.flops, c.bytes)))
    elif op.code == 'fusion':
      for n in called:
        out.add(self._counts(n, True))
    elif op.code in ('call', 'async-start', 'custom-call'):
      for n in called:
        out.add(self._counts(n, fused))

  def trips(self, op: Op, ops: Mapping[str, Op]) -> int:
    """How often a loop runs: (bound - start) / step of its counter."""
    condition = op.attribute('condition').removeprefix('%')
    found = list(self._compares(condition))
    if not found:
      return 1
    bound, index = max(found, key=lambda x: x[0])
    start, step = 0, 1
    if index is not None:
      carry = ops.get(op.operands[0])
      if carry is not None and carry.code == 'tuple':
        first = constant(ops.get(carry.operands[index]))
        start = 0 if first is None else first
      step = self._step(op.attribute('body').removeprefix('%'), index)
    return max(-(-(bound - start) // step), 0)

  def _compares(self, name: str) -> Iterator[tuple[int, int | None]]:
    """(bound, place in the carry) of `counter < bound` in a condition."""
    ops = self.computations[name]
    for op in ops.values():
      if op.code == 'compare' and op.attribute('direction') == 'LT':
        bound = constant(ops.get(op.operands[1]))
        counter = ops.get(op.operands[0])
        index = counter.attribute('index') if counter else None
        if bound is not None:
          yield bound, None if index is None else int(index)
      for called in op.calls():
        if called in self.computations:
          inner = [constant(ops.get(x)) for x in op.operands]
          yield from ((b, None) for b, _ in self._compares(called))
          yield from ((b, None) for b in inner if b is not None)

  def _step(self, body: str, index: int) -> int:
    """What a loop adds to its counter."""
    ops = self.computations[body]
    root = next((op for op in ops.values() if op.root), None)
    if root is None or root.code != 'tuple':
      return 1
    op = ops.get(root.operands[index])
    while op is not None and op.code in ('copy', 'bitcast'):
      op = ops.get(op.operands[0])
    if op is None:
      return 1
    if op.code == 'add':
      steps = [constant(ops.get(x)) for x in op.operands]
    elif op.code == 'fusion':
      inner = self.computations[op.calls()[0]]
      steps = [constant(x) for x in [*inner.values()]]
      steps += [constant(ops.get(x)) for x in op.operands]
    else:
      return 1
    steps = [s for s in steps if s]
    return steps[0] if len(steps) == 1 and steps[0] > 0 else 1

  def _traffic(self, op: Op, ops: Mapping[str, Op]) -> float:
    """HBM bytes of one instruction: what it reads and what it writes."""
    far = lambda arrays: sum(a.bytes for a in arrays if not a.near)
    reads = [far(ops[x].out) if x in ops else 0 for x in op.operands]
    writes = far(op.out)
    if op.code in ('dynamic-slice', 'gather', 'slice'):
      return 2 * writes
    if op.code == 'dynamic-update-slice':
      return 2 * reads[1]
    if op.code in ('copy-start', 'async-start'):
      return reads[0] + far(op.out[:1])
    if op.code == 'fusion':
      inner = self.computations[op.calls()[0]]
      params = {
        int(p.rest.split(')')[0]): p
        for p in inner.values()
        if p.code == 'parameter'
      }
      for i, p in params.items():
        if i < len(reads):
          reads[i] = min(reads[i], read_of(p, inner))
      root = next(p for p in inner.values() if p.root)
      writes = min(writes, written_by(root, inner))
    return sum(reads) + writes


def parse(line: str) -> Op | None:
  """One instruction, or None."""
  found = _LINE.match(line)
  if not found:
    return None
  text = line[found.end() :]
  kind, text = _typed(text)
  code, _, text = text.partition('(')
  inside, rest = _until_closed(text)
  arrays = tuple(
    Array(d, tuple(int(n) for n in dims.split(',') if n), 'S(1)' in layout)
    for d, dims, layout in _SHAPE.findall(kind)
  )
  if code in ('parameter', 'constant'):
    rest = f'{inside}){rest}'
  return Op(
    found[2], code.strip(), arrays, tuple(_NAME.findall(inside)), rest,
    bool(found[1]),
  )  # fmt: skip


def _typed(text: str) -> tuple[str, str]:
  """A type, perhaps a tuple, and what follows it."""
  if not text.startswith('('):
    kind, _, rest = text.partition(' ')
    return kind, rest
  inside, rest = _until_closed(text[1:])
  return inside, rest.lstrip()


def _until_closed(text: str) -> tuple[str, str]:
  """What is before the parenthesis that closes, and what is after it."""
  depth = 1
  for i, c in enumerate(text):
    depth += (c == '(') - (c == ')')
    if depth == 0:
      return text[:i], text[i + 1 :]
  return text, ''


def constant(op: Op | None) -> int | None:
  """The value of an integer constant."""
  if op is None or op.code != 'constant':
    return None
  found = re.match(r'(-?\d+)\)', op.rest)
  return int(found[1]) if found else None


def read_of(parameter: Op, ops: Mapping[str, Op]) -> float:
  """Bytes of a fusion's parameter that are read: slices are read alone."""
  uses = [op for op in ops.values() if parameter.name in op.operands]
  whole = sum(a.bytes for a in parameter.out)
  read = 0.0
  for op in uses:
    first = op.operands[0] == parameter.name
    if op.code in ('dynamic-slice', 'slice', 'gather') and first:
      read += sum(a.bytes for a in op.out)
    elif op.code == 'dynamic-update-slice' and first:
      continue  # written in place
    elif op.code == 'bitcast':
      read += min(read_of(op, ops), whole)
    else:
      return whole
  return min(read, whole)


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
    said = re.search(r'"?flops"?:\s*"?(\d+)', op.rest)
    return float(said[1]) if said else 0.0
  return 0.0


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


def collective(
  op: Op, ops: Mapping[str, Op], computation: str
) -> Iterator[tuple[str, float]]:
  """(kind, bytes that a device sends) of a collective."""
  kind = op.code.removesuffix('-start')
  if kind not in COLLECTIVES:
    return
  put = sum(a.bytes for x in op.operands if x in ops for a in ops[x].out)
  n = group_size(op)
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


def group_size(op: Op) -> int:
  """Devices that take part in a collective together."""
  found = re.search(r'replica_groups=\[(\d+),(\d+)\]', op.rest)
  if found:
    return int(found[2])
  found = re.search(r'replica_groups=\{\{([\d,]*)\}', op.rest)
  return len(found[1].split(',')) if found else 2


def is_gradient(op: Op) -> bool:
  """Was it made by a backward pass?"""
  return 'transpose(' in op.rest
