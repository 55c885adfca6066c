"""Checkpoints of a run: training state and data position, through Orbax."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

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
      reason = str(e).splitlines()[0] if str(e) else type(e).__name__
      raise UserError(
        f'checkpoint {self._manager.directory}/{step} cannot be read: '
        f'{reason}; remove that folder to fall back to an older one'
      ) from None
    return out['state'], out['data']

  def close(self) -> None:
    """Waits for the last write."""
    self._manager.wait_until_finished()
    self._manager.close()
