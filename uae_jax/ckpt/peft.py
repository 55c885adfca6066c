"""LoRA adapters in the layout of the `peft` library.

A folder holds adapter_config.json and adapter_model.safetensors, whose
tensors are `base_model.model.MODULE.lora_A.weight` [R, in] and
`.lora_B.weight` [out, R]. Both are linear maps like any other, so the strict
engine reads and writes them through two rows for each kernel.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from uae_jax import trees
from uae_jax.ckpt import export, hf
from uae_jax.ckpt.rows import Row
from uae_jax.ckpt.safetensors_io import Entry
from uae_jax.errors import UserError

STEM, CONFIG = 'adapter_model', 'adapter_config.json'
PREFIX = 'base_model.model.'
PARTS = {'a': 'lora_A.weight', 'b': 'lora_B.weight'}

# What an adapter may have beside A and B; we have none of it.
_EXTRAS = (
  'use_dora', 'lora_bias', 'modules_to_save', 'rank_pattern', 'alpha_pattern',
  'fan_in_fan_out', 'layer_replication', 'target_parameters',
  'trainable_token_indices', 'use_qalora', 'alora_invocation_tokens',
)  # fmt: skip

# Hub name -> module in memory, where transformers holds a model under other
# names than those of its files; by model_type.
_IN_MEMORY = {
  'qwen2_5_vl': (
    (r'^visual\.', 'model.visual.'),
    (r'^model\.layers\.', 'model.language_model.layers.'),
  ),
}


@dataclasses.dataclass(frozen=True)
class Adapter:
  """What a folder holds.

  Attributes:
    tree: `{path of a kernel: {a, b}}`, as `nn.lora` has it.
    rank: R.
    alpha: the update is scaled by alpha / rank.
  """

  tree: Any
  rank: int
  alpha: float


def rows(kernel: Row, rank: int, name: Callable[[str], str]) -> list[Row]:
  """The rows of A and B of one kernel.

  Args:
    kernel: its row in the model's table.
    rank: R.
    name: module on the hub -> module in the file.
  """
  module = name(kernel.hub.removesuffix('.weight'))
  a, b = (f'{module}.{PARTS[part]}' for part in 'ab')
  shape_a = shape_b = None
  if kernel.hub_shape is not None and len(kernel.hub_shape) > 2:
    out, *inner = kernel.hub_shape  # a convolution, then one of 1 x 1
    shape_a, shape_b = (rank, *inner), (out, rank, *[1] * (len(inner) - 1))
  y = dict(layers=kernel.layers)
  return [
    Row(f'{kernel.path}/a', a, 'linear', kernel.n_in, shape_a, **y),
    Row(f'{kernel.path}/b', b, 'linear', 1, shape_b, **y),
  ]


def save(
  folder: str | Path,
  tree: Mapping[str, Any],
  table: Sequence[Row],
  *,
  alpha: float,
  model_type: str = '',
  base: str = '',
  dtype: Any = None,
) -> None:
  """Writes an adapter that `peft.PeftModel.from_pretrained` reads.

  Args:
    folder: to write.
    tree: the LoRA tree.
    table: the model's rows.
    alpha: the update is scaled by alpha / rank.
    model_type: of the model's config.json.
    base: name or folder of the unadapted model, for the reader.
    dtype: dtype on disk; None keeps that of the tree.
  """
  flat = trees.flatten(tree)
  kernels = [row for row in table if f'{row.path}/a' in flat]
  rank = flat[f'{kernels[0].path}/a'].shape[-1]

  def module(name):
    for pattern, new in _IN_MEMORY.get(model_type, ()):
      name = re.sub(pattern, new, name)
    return name

  ours = []
  for kernel in kernels:
    ours += rows(kernel, rank, lambda name: PREFIX + module(name))
  config = {
    'peft_type': 'LORA',
    'base_model_name_or_path': base,
    'r': rank,
    'lora_alpha': int(alpha) if alpha == int(alpha) else alpha,
    'target_modules': '|'.join(
      _regex(module(kernel.hub.removesuffix('.weight')), kernel.layers)
      for kernel in kernels
    ),
    'lora_dropout': 0.0,
    'bias': 'none',
    'inference_mode': True,
  }
  export.save(
    folder, ours, tree, config, stem=STEM, dtype=dtype, config_name=CONFIG
  )


def _regex(module: str, layers: Sequence[int]) -> str:
  """A pattern of exactly these layers' module."""
  numbers = '|'.join(map(str, layers))
  return re.escape(module).replace(r'\{i\}', f'({numbers})')


def load(
  folder: str | Path,
  table: Sequence[Row],
  shapes: Mapping[str, Any],
  rename: Callable[[str], str] = lambda name: name,
) -> Adapter:
  """Reads an adapter that `peft` or `save` wrote.

  Args:
    folder: with adapter_config.json and adapter_model.safetensors.
    table: the model's rows.
    shapes: tree of the model's parameters.
    rename: folds names in memory into the table's, as for the model.

  Raises:
    UserError: for an adapter that has more than A and B, or does not fit.
  """
  rank, alpha = _strength(folder)
  fold = _fold(rename)
  ours, wanted = _fit(folder, table, shapes, rank, fold)
  tree = hf.load(folder, ours, wanted, stem=STEM, rename=fold)
  return Adapter(tree, rank, alpha)


def find(
  folder: str | Path,
  table: Sequence[Row],
  shapes: Mapping[str, Any],
  rename: Callable[[str], str] = lambda name: name,
) -> tuple[dict[str, tuple[Entry, Entry]], float]:
  """Where A and B of each adapted kernel are, by its hub name; the scale.

  Reads headers only. Args and errors are those of `load`.
  """
  rank, alpha = _strength(folder)
  fold = _fold(rename)
  ours, wanted = _fit(folder, table, shapes, rank, fold)
  entries = hf.find(folder, ours, wanted, stem=STEM, rename=fold)
  first, second = (f'.{part}' for part in PARTS.values())
  pairs = {
    name.removesuffix(first) + '.weight': (
      entry,
      entries[name.removesuffix(first) + second],
    )
    for name, entry in entries.items()
    if name.endswith(first)
  }
  return pairs, alpha / rank


def merged(
  kernel: Entry, pair: tuple[Entry, Entry] | None, scale: float
) -> np.ndarray:
  """A kernel as the hub has it; with an adapter, their sum in fp32."""
  if pair is None:
    return kernel.read()
  a, b = (part.read().astype(np.float32) for part in pair)
  rank = len(a)  # of convolutions, too, all axes but the first are inputs
  delta = b.reshape(-1, rank) @ a.reshape(rank, -1)
  scaled = np.float32(scale) * delta.reshape(kernel.shape)
  return kernel.read().astype(np.float32) + scaled


def _strength(folder) -> tuple[int, float]:
  """(rank, alpha) of adapter_config.json."""
  config = hf.read_config(folder, CONFIG)
  extras = [key for key in _EXTRAS if config.get(key)]
  if config.get('bias', 'none') != 'none':
    extras.append('bias')
  if config.get('peft_type') != 'LORA' or extras:
    raise UserError(
      f'{Path(folder) / CONFIG}: only plain LoRA is read, this is '
      f'{config.get("peft_type")} with {extras}'
    )
  rank, alpha = config.get('r'), config.get('lora_alpha')
  if not isinstance(rank, int) or not isinstance(alpha, int | float):
    raise UserError(f'{Path(folder) / CONFIG}: r and lora_alpha are no numbers')
  if config.get('use_rslora'):
    alpha *= rank**0.5  # it divides by the root
  return rank, float(alpha)


def _fold(rename):
  """Names of an adapter's file -> those of `rows` of the table."""

  def fold(name):
    for part in PARTS.values():
      if name.endswith(f'.{part}'):
        module = name.removeprefix(PREFIX).removesuffix(f'.{part}')
        return rename(f'{module}.weight').removesuffix('weight') + part
    return name

  return fold


def _fit(folder, table, shapes, rank, fold) -> tuple[list[Row], dict]:
  """Rows of the kernels that the file adapts, and what they load."""
  present = {fold(name) for name in hf.headers(folder, STEM)}
  flat = trees.flatten(shapes)
  ours, wanted = [], {}
  for kernel in table:
    pair = rows(kernel, rank, lambda name: name)
    names = {name for row in pair for name in row.names()}
    if kernel.op != 'linear' or not names & present:
      continue
    ours += pair
    sizes = kernel.factors(tuple(flat[kernel.path].shape), rank)
    for row, size in zip(pair, sizes):
      wanted[row.path] = jax.ShapeDtypeStruct(size, np.float32)
  return ours, trees.unflatten(wanted)
