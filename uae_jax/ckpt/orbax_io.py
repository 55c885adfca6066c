"""Checkpoints through Orbax: a run's state and data position, or weights."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from uae_jax import trees
from uae_jax.errors import UserError


class Checkpoints:
  """The `checkpoints/` folder of a workdir: atomic, asynchronous, keep-N."""

  def __init__(self, folder: Path, keep: int):
    """Opens or creates `folder`; `keep` newest steps are kept."""
    self._manager = ocp.CheckpointManager(
      folder.absolute(),
      options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=True),
      item_names=('state', 'data'),
    )

  def latest(self) -> int | None:
    """The newest whole step, or None."""
    return self._manager.latest_step()

  def save(self, step: int, state: Any, data: dict[str, Any]) -> None:
    """Saves unless that step is there; returns before the write ends."""
    if step == self.latest():
      return
    self._manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(state), data=ocp.args.JsonSave(data)
      ),
    )

  def restore(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
    """Restores into the shapes and shardings of `like`.

    Raises:
      UserError: when the step cannot be read into this model.
    """
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    try:
      out = self._manager.restore(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardRestore(abstract),
          data=ocp.args.JsonRestore(),
        ),
      )
    except (ValueError, KeyError, OSError) as e:
      raise UserError(
        f'checkpoint {self._manager.directory}/{step} cannot be read: '
        f'{_line(e)}; remove that folder to fall back to an older one'
      ) from None
    return out['state'], out['data']

  def close(self) -> None:
    """Waits for the last write."""
    self._manager.wait_until_finished()
    self._manager.close()


def is_params(folder: Path) -> bool:
  """Does `folder` hold weights, or a step of a run?"""
  return (folder / 'state' / '_METADATA').exists()


def save_params(folder: Path, params: Any) -> None:
  """Writes weights as `folder/state`, whole or not at all."""
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save((folder / 'state').absolute(), {'params': dict(params)})


def read_shapes(folder: Path) -> dict[str, tuple[tuple[int, ...], Any]]:
  """Path of each stored parameter -> (shape, dtype); reads no weights.

  Raises:
    UserError: when there is no tree of parameters.
  """
  state = (folder / 'state').absolute()
  try:
    with ocp.StandardCheckpointer() as checkpointer:
      tree = checkpointer.metadata(state).item_metadata.tree['params']
    return {
      path: (tuple(x.shape), x.dtype) for path, x in trees.flatten(tree).items()
    }
  except (ValueError, KeyError, TypeError, AttributeError, OSError) as e:
    raise UserError(f'{state} holds no parameters: {_line(e)}') from None


def load_params(folder: Path, like: Any) -> dict[str, Any]:
  """Reads parameters into the shapes, dtypes and shardings of `like`.

  Raises:
    UserError: when they cannot be read so.
  """
  state, item = (folder / 'state').absolute(), {'params': like}
  try:
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
      out = checkpointer.restore(
        state,
        args=ocp.args.PyTreeRestore(
          item=item,
          restore_args=ocp.checkpoint_utils.construct_restore_args(item),
          partial_restore=True,  # a run's state has more than weights
        ),
      )
  except (ValueError, KeyError, OSError) as e:
    raise UserError(f'{state} cannot be read: {_line(e)}') from None
  return out['params']


def _line(e: BaseException) -> str:
  """The first line of an error, or its name."""
  return str(e).splitlines()[0] if str(e) else type(e).__name__
