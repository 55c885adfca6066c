"""Reading a compiled program: its instructions, and how often loops run.

A loop runs as often as the bound in its condition says; an exit before that
is taken to be never.
"""

import dataclasses
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


class Module:
  """A parsed program."""

  def __init__(self, text: str):
    """Reads every computation."""
    self.computations: dict[str, dict[str, Op]] = {}
    self.entry = ''
    parts = re.search(r'num_partitions=(\d+)', text.partition('\n')[0])
    self.devices = int(parts[1]) if parts else 1
    here: dict[str, Op] | None = None
    for line in text.splitlines():
      head = _HEAD.match(line)
      if head:
        here = self.computations.setdefault(head[2], {})
        if head[1]:
          self.entry = head[2]
      elif here is not None and (op := parse(line)):
        here[op.name] = op

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
