"""Checkpoints through Orbax: a run's state and data position, or weights."""

import contextlib
import dataclasses
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from uae_jax import trees
from uae_jax.errors import UserError


@dataclasses.dataclass
class _Kept:
  """Which steps stay: the newest, and the best one.

  Attributes:
    newest: how many.
    best: the step.
  """

  newest: int
  best: int | None = None

  def should_preserve(self, checkpoints, *, context) -> list[bool]:
    """Orbax's question, of steps in their order."""
    del context
    newest = len(checkpoints) - self.newest
    return [
      i >= newest or x.step == self.best for i, x in enumerate(checkpoints)
    ]


class Checkpoints:
  """The `checkpoints/` folder of a workdir: atomic, asynchronous.

  A step is written beside its place and renamed once it is whole, and an old
  one goes only after that; in a bucket, where nothing can be renamed, a last
  file says that it is whole. What a killed write has left is removed at the
  next start.
  """

  def __init__(self, folder: Path | epath.Path, keep: int):
    """Opens or creates `folder`; `keep` newest steps are kept.

    Raises:
      UserError: a bucket does not do as asked.
    """
    self._folder = epath.Path(folder)
    self._kept = _Kept(keep)
    with self._writing() if _is_remote(folder) else contextlib.nullcontext():
      self._open()

  def _open(self) -> None:
    if jax.process_index() == 0 and self._folder.exists():
      for step in self._folder.iterdir():
        if step.is_dir() and not ocp.utils.is_checkpoint_finalized(step):
          _remove(step)
    options = dict(preservation_policy=self._kept, create=True)
    try:
      self._manager = _manager(self._folder, **options)
    except (ValueError, KeyError, TypeError):  # a step's own description
      options |= dict(lightweight_initialize=True)
      self._manager = _manager(self._folder, **options)

  def steps(self) -> list[int]:
    """Steps that are there, the newest first."""
    return sorted(self._manager.all_steps(), reverse=True)

  def keep_best(self, step: int | None) -> None:
    """Keeps this step, too, from the next `save` on."""
    self._kept.best = step

  def save(self, step: int, state: Any, run: Mapping[str, Any]) -> None:
    """Saves, and returns before the write ends.

    Args:
      step: after all that are there.
      state: arrays.
      run: what else a run needs to go on; JSON.

    Raises:
      UserError: this step or the one before cannot be written.
    """
    with self._writing():
      self._manager.save(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(state),
          run=ocp.args.JsonSave(dict(run)),
        ),
      )

  def restore(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
    """The state and the run of a step, as `save` has got them.

    Waits for no other host, so that one that cannot read is no deadlock; each
    host reads its own shards.

    Args:
      step: that is there.
      like: arrays or shapes with the shardings of the state.

    Raises:
      UserError: the step cannot be read into this model.
    """
    self.wait()
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    try:
      with _hushed(), _reader() as reader:
        out = reader.restore(
          self._manager.directory / str(step),
          args=ocp.args.Composite(
            state=ocp.args.StandardRestore(abstract),
            run=ocp.args.JsonRestore(),
          ),
        )
    except Exception as e:  # a broken file may be any error of its readers
      raise UserError(
        f'checkpoint {self._folder}/{step} cannot be read: {_line(e)}'
      ) from None
    return out['state'], out['run']

  def set_aside(self, steps: Sequence[int], folder: Path | epath.Path) -> None:
    """Moves steps to a folder, under names that are free there.

    Raises:
      UserError: they cannot be moved.
    """
    with self._writing():
      folder.mkdir(exist_ok=True)
      for step in steps:
        names = [str(step), *(f'{step}.{i}' for i in range(1, 1000))]
        to = next(folder / x for x in names if not (folder / x).exists())
        _move(self._folder / str(step), to)

  def reload(self) -> None:
    """Looks again at which steps are there."""
    self._manager.reload()

  def forget_after(self, step: int) -> None:
    """Removes the steps after one."""
    self.wait()
    for later in self.steps():
      if later > step:
        self._manager.delete(later)

  def wait(self) -> None:
    """Until the last write has ended.

    Raises:
      UserError: it has failed.
    """
    with self._writing():
      self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits for the last write.

    Raises:
      UserError: it has failed.
    """
    with self._writing():
      self._manager.close()

  @contextlib.contextmanager
  def _writing(self):
    """Says in one line why a checkpoint cannot be written."""
    # A bucket fails in the ways of sockets, HTTP and Google's credentials.
    errors = Exception if _is_remote(self._folder) else (OSError, ValueError)
    try:
      yield
    except errors as e:
      raise UserError(
        f'a checkpoint in {self._folder} cannot be written: '
        f'{_line(e)}; those before it are kept, and the same command resumes'
      ) from None


def _reader() -> ocp.Checkpointer:
  """Reads steps, on this host alone."""
  me = jax.process_index()
  alone = ocp.options.MultiprocessingOptions(
    primary_host=me, active_processes={me}
  )
  return ocp.Checkpointer(
    ocp.CompositeCheckpointHandler(
      state=ocp.StandardCheckpointHandler(multiprocessing_options=alone),
      run=ocp.JsonCheckpointHandler(multiprocessing_options=alone),
      composite_options=ocp.CompositeOptions(multiprocessing_options=alone),
    ),
    multiprocessing_options=alone,
  )


@contextlib.contextmanager
def _hushed():
  """Where reading fails, its other reads end with nobody to tell, and say so.

  They do that on threads of TensorStore, with a traceback for each, perhaps
  after this has ended; so what hushes them stays.
  """
  tell = sys.unraisablehook

  def hook(unraisable):
    if str(unraisable.exc_value) != 'Event loop is closed':
      tell(unraisable)

  sys.unraisablehook = hook
  yield
  sys.unraisablehook = tell


def _is_remote(folder: Path | epath.Path) -> bool:
  """Is it in a bucket?"""
  return '://' in str(folder)


def _remove(torn: epath.Path) -> None:
  """Removes what was not finished; on a disk its name keeps it apart anyway."""
  if _is_remote(torn):
    torn.rmtree()
  else:
    shutil.rmtree(torn, ignore_errors=True)


def _move(source: epath.Path, target: epath.Path) -> None:
  """Moves a folder; in a bucket, file by file."""
  if not _is_remote(source):
    os.replace(source, target)
    return
  _copy(source, target)
  source.rmtree()


def _copy(source: epath.Path, target: epath.Path) -> None:
  """Copies a folder of a bucket."""
  for path in source.iterdir():
    if path.is_dir():
      _copy(path, target / path.name)
    else:
      path.copy(target / path.name)


def _manager(folder: epath.Path, **options) -> ocp.CheckpointManager:
  return ocp.CheckpointManager(
    folder if _is_remote(folder) else folder.absolute(),
    options=ocp.CheckpointManagerOptions(**options),
    item_names=('state', 'run'),
  )


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
