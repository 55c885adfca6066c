"""What the zoo knows of one model, and where its folder is."""

import dataclasses
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from uae_jax import trees
from uae_jax.ckpt import hf
from uae_jax.errors import UserError
from uae_jax.sharding import rules as rules_lib

ASSETS = Path(__file__).parent.parent / 'assets'


@dataclasses.dataclass(frozen=True)
class Model:
  """A module with everything needed to place, load and save it.

  Attributes:
    module: the Flax module.
    init: key -> parameters.
    table: checkpoint rows.
    rules: sharding rules.
    hub_config: contents of config.json.
    stem: file stem of its safetensors.
    ignore: hub tensors that are known and unused.
    rename: folds a file's names into the table's.
  """

  module: Any
  init: Callable[[Any], Any]
  table: Sequence[hf.Row]
  rules: Sequence[rules_lib.Rule]
  hub_config: Mapping[str, Any]
  stem: str = 'model'
  ignore: Sequence[str] = ()
  rename: Callable[[str], str] = lambda name: name

  def shapes(self):
    """Parameter shapes, without computing them."""
    return jax.eval_shape(self.init, jax.random.key(0))

  def load(
    self, folder: Path, dtype: Any = np.float32, shardings: Any = None
  ) -> Any:
    """Parameters from a hub folder, on the host or placed; see `hf.load`."""
    return hf.load(
      folder,
      self.table,
      self.shapes(),
      stem=self.stem,
      dtype=dtype,
      ignore=self.ignore,
      rename=self.rename,
      shardings=shardings,
    )

  def save(self, folder: Path, params: Any, dtype: Any = None) -> None:
    """Writes a hub folder that transformers or diffusers reads."""
    hf.save(
      folder,
      self.table,
      params,
      self.hub_config,
      stem=self.stem,
      dtype=dtype,
    )


def resolve(name: str | Path) -> Path:
  """`bundled:NAME`, a path or ORG/REPOSITORY -> an existing folder.

  Raises:
    UserError: when there is no such folder, nor a download of such a name.
  """
  name = str(name)
  if name.startswith('bundled:'):
    folder = ASSETS / name.removeprefix('bundled:')
    if not folder.is_dir():
      have = sorted(
        str(p.parent.relative_to(ASSETS)) for p in ASSETS.rglob('config.json')
      )
      raise UserError(f'no bundled weights {name!r}; there are {have}')
    return folder
  folder = Path(name).expanduser()
  if folder.is_dir():
    return folder
  if re.fullmatch(r'[\w.-]+/[\w.-]+', name):
    return _cached(name)
  raise UserError(f'checkpoint folder {folder} does not exist')


def _cached(name: str) -> Path:
  """The folder that the hub's cache has for a repository; nothing is loaded."""
  import huggingface_hub  # not on the way of runs that name folders

  try:
    return Path(huggingface_hub.snapshot_download(name, local_files_only=True))
  except (OSError, ValueError):
    raise UserError(
      f'there is no folder {name} and the hub cache has no such repository; '
      f'download it with: hf download {name}'
    ) from None


def weights(
  model: Model,
  folder: str | Path,
  mesh: Mesh,
  *,
  seed: int = 0,
  dtype: Any = np.float32,
) -> Any:
  """Placed parameters: from a hub folder, or random where `folder` is ''.

  Args:
    model: whose parameters.
    folder: of the hub's layout.
    mesh: where they go.
    seed: of random ones.
    dtype: of all, or a function of the path.
  """
  shardings = rules_lib.shardings(model.shapes(), model.rules, mesh)
  if folder:
    return model.load(resolve(folder), dtype, shardings)
  init = jax.jit(
    lambda key: _cast(model.init(key), dtype), out_shardings=shardings
  )
  return init(jax.random.key(seed))


def structs(
  model: Model,
  folder: str | Path,
  mesh: Mesh,
  *,
  seed: int = 0,
  dtype: Any = np.float32,
) -> Any:
  """`weights` as shapes with their shardings: nothing is read or made."""
  del folder, seed
  shapes = jax.eval_shape(lambda: _cast(model.init(jax.random.key(0)), dtype))
  return jax.tree.map(
    lambda x, sharding: jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=sharding
    ),
    shapes,
    rules_lib.shardings(shapes, model.rules, mesh),
  )


def _cast(params: Any, dtype: Any) -> Any:
  of = dtype if inspect.isfunction(dtype) else lambda _: dtype
  return trees.map_with_path(lambda path, x: x.astype(of(path)), params)
