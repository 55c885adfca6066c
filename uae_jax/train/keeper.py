"""What a run keeps: checkpoints to go on from, and the best one."""

import json
import zlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Key

from uae_jax.ckpt.orbax_io import Checkpoints
from uae_jax.errors import UserError
from uae_jax.eval import report
from uae_jax.sharding import hosts
from uae_jax.train.bucket import Bucket
from uae_jax.train.state import digest
from uae_jax.train.workdir import Workdir
from uae_jax.types import TrainState

UNREADABLE = 'unreadable'  # folder of checkpoints that are set aside
EXPORTS = ('last', 'best')


class Keeper:
  """Saves a run, finds its way back, and knows which step was best.

  A checkpoint is the trained parameters, the optimizer's state, averages and
  counters, and with them the place in the data, how often the run went back,
  and a digest of the arrays. The key of a step follows from `train.seed`, the
  step and how often the run went back.

  Attributes:
    rollbacks: how often it went back.
    best: the step of the best evaluation, None where there is none.
  """

  def __init__(
    self,
    config,
    home: Workdir | Bucket,
    checkpoints: Checkpoints,
    data: Any,
  ):
    """Reads nothing yet.

    Args:
      config: of the run.
      home: its workdir.
      checkpoints: in there.
      data: the iterator whose place is kept.
    """
    self._config, self._home = config, home
    self._checkpoints, self._data = checkpoints, data
    self._every, self._due = config.ckpt.every, False
    self._last: int | None = None  # step of the newest checkpoint
    self.rollbacks, self.best = 0, None

  @property
  def rng(self) -> Key[Array, '']:
    """The key of which those of steps are made."""
    key = jax.random.key(self._config.train.seed)
    if not self.rollbacks:
      return key
    return jax.random.fold_in(key, 2**31 + self.rollbacks)  # beyond any step

  def resume(self, state: TrainState) -> tuple[TrainState, int | None]:
    """The newest checkpoint that can be read and its step, or step 0, None.

    Those after it that cannot are set aside, and one line says so.

    Raises:
      UserError: there are some and none can be read; they stay as they are.
    """
    steps = self._steps()
    if not steps:
      return state, None
    like, frozen = _emptied(state), state.frozen
    unread = {}
    for step in steps:
      saved, run, why = self._read(step, like)
      if saved is not None:
        break
      unread[step] = why
    else:
      raise UserError(
        f'none of the checkpoints {steps} in {self._home.name} can be read '
        f'({unread[steps[0]]}); nothing was changed: use another --workdir'
      )
    if unread:
      if hosts.is_first():
        self._checkpoints.set_aside([*unread], self._home.place / UNREADABLE)
        numbers = ', '.join(map(str, unread))
        print(
          f'warning: step {numbers} cannot be read '
          f'({next(iter(unread.values()))}) and is moved to '
          f'{self._home.name}/{UNREADABLE}; going on from step {step}',
          flush=True,
        )
      hosts.wait('set aside')
      self._checkpoints.reload()
    self._data.set_state(run['data'])
    self.rollbacks, self._last = run['rollbacks'], step
    self._find_best(step)
    return saved.replace(frozen=frozen), step

  def _steps(self) -> list[int]:
    """The steps that the first host sees, the newest first, on every host."""
    steps = self._checkpoints.steps()
    count = int(hosts.agree(np.int32(len(steps))))
    # Of the other hosts only the shape counts.
    said = np.resize(np.array([*steps, 0], np.int32), count)
    return [int(step) for step in hosts.agree(said)]

  def _read(self, step: int, like: Any) -> tuple[Any, Any, str]:
    """(state, run, '') of a step, or (None, None, why not) on every host."""
    why = ''
    try:
      saved, run = self._checkpoints.restore(step, like)
      run = dict(run)
      whole = run.pop('sum') == _sum(run)
    except (KeyError, TypeError, ValueError):
      why = f'checkpoint {step} is of another form'
    except UserError as e:
      why = str(e)
    # All hosts compute the digest together, so all must have come so far.
    if not hosts.everyone(not why):
      return None, None, why or 'another host cannot read it'
    if not hosts.everyone(whole and run['digest'] == int(digest(saved))):
      return None, None, f'checkpoint {step} is not what was saved'
    return saved, run, ''

  def evaluated(self, step: int) -> None:
    """After an evaluation, whose rows are written; a best one is due."""
    before = self.best
    self._find_best(step)
    self._due |= self.best == step != before

  def _find_best(self, step: int) -> None:
    """Sets `best` from what was evaluated up to a step."""
    if not self._config.ckpt.keep_best:
      return
    best = -1
    if hosts.is_first():
      rows = watched(self._home.files, self._config, step)
      rows = [row for row in rows if np.isfinite(row[1])]
      best = max(rows, key=lambda row: row[1])[0] if rows else -1
    best = int(hosts.agree(np.int32(best)))
    self.best = best if best >= 0 else None
    self._checkpoints.keep_best(self.best)

  def stepped(self, step: int) -> None:
    """After a step, and its evaluation; every so many a save is due."""
    self._due |= step % self._every == 0

  def save_if_due(self, step: int, state: TrainState, log: Any) -> None:
    """Saves what is due, but not while updates are being skipped.

    What is kept then is from before, which is where `roll_back` goes.
    """
    if not self._due:
      return
    log.settle()
    if not log.skipped:
      self.save(step, state, log)

  def save(self, step: int, state: TrainState, log: Any) -> None:
    """Saves unless that step is there; its metrics are on the disk before.

    Raises:
      UserError: it cannot be written.
    """
    self._due = False
    if step == self._last:
      return
    log.settle()
    log.writer.flush()
    self._home.send()
    saved = state.saved()
    run = dict(
      data=self._data.get_state(),
      rollbacks=self.rollbacks,
      digest=int(digest(saved)),
    )
    self._checkpoints.save(step, saved, run | dict(sum=_sum(run)))
    self._last = step

  def roll_back(
    self, state: TrainState, step: int, log: Any
  ) -> tuple[TrainState, int]:
    """The checkpoint from before updates were skipped; data goes on.

    Raises:
      UserError: there is none, or the run went back often enough.
    """
    most = self._config.guard.rollbacks
    many = f'{log.skipped} updates in a row were not finite or spikes by step '
    many += str(step)
    steps = self._steps()
    back = [x for x in steps if x <= log.sound]
    if self.rollbacks >= most or not back:
      raise UserError(
        f'{many}; the newest checkpoint is of step {steps[0]}: lower train.lr, '
        'look at the reward, or set guard.rollbacks'
      )
    like, frozen = _emptied(state), state.frozen
    saved, _, why = self._read(back[0], like)
    if why:
      raise UserError(f'{many}, and there is no way back: {why}')
    self._checkpoints.forget_after(back[0])
    self.rollbacks += 1
    log.went_back(
      back[0],
      f'{many}: back to step {back[0]}, on other data '
      f'(rollback {self.rollbacks} of {most})',
    )
    self._find_best(back[0])
    self._last, self._due = back[0], False
    return saved.replace(frozen=frozen), back[0]

  def exported(self, state: TrainState, step: int) -> tuple[TrainState, int]:
    """What `ckpt.export` names, and its step.

    Raises:
      UserError: the best checkpoint cannot be read.
    """
    best = self.best
    if self._config.ckpt.export == 'last' or best is None or best == step:
      return state, step
    like, frozen = _emptied(state), state.frozen
    saved, _, why = self._read(best, like)
    if why:
      raise UserError(f'ckpt.export=best: {why}')
    return saved.replace(frozen=frozen), best


def check(config) -> None:
  """Raises UserError for checkpoints that make no sense."""
  c = config.ckpt
  if c.export not in EXPORTS:
    raise UserError(f'ckpt.export={c.export!r} is none of {EXPORTS}')
  if c.export == 'best' and not c.keep_best:
    raise UserError('ckpt.export=best needs ckpt.keep_best')


def watched(folder: Path, config, step: int) -> list[tuple[int, float]]:
  """(step, `eval.watch`) of the evaluations up to a step, in their order.

  Read from metrics.jsonl, so that a run that is resumed knows it too.

  Raises:
    UserError: no evaluation has it, and the run depends on it.
  """
  key, file = f'eval/{config.eval.watch}', folder / 'metrics.jsonl'
  rows = report.read_rows(file) if file.exists() else []
  rows = [row for row in rows if row['step'] <= step]
  known = sorted({k[5:] for row in rows for k in row if k.startswith('eval/')})
  needed = config.eval.patience or config.ckpt.export == 'best'
  if needed and known and config.eval.watch not in known:
    raise UserError(f'eval.watch={config.eval.watch!r} is none of {known}')
  return [
    (row['step'], -np.inf if row[key] is None else row[key])
    for row in rows
    if key in row
  ]


def has_stalled(folder: Path, config, step: int) -> bool:
  """Have `eval.patience` evaluations not bettered those before them?

  Raises:
    UserError: no evaluation has what `eval.watch` names.
  """
  patience = config.eval.patience
  if not patience:
    return False
  stalled = False
  if hosts.is_first():
    values = [value for _, value in watched(folder, config, step)]
    before, since = values[:-patience], values[-patience:]
    stalled = bool(before) and max(since) <= max(before)
  return bool(hosts.agree(stalled))


def _sum(run: dict[str, Any]) -> int:
  """Of what a run keeps beside its arrays."""
  return zlib.crc32(json.dumps(run, sort_keys=True).encode())


def _emptied(state: TrainState) -> Any:
  """What a checkpoint is read into; the arrays make room for those read."""
  saved = state.saved()
  like = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), saved
  )
  for x in jax.tree.leaves(saved):
    x.delete()
  return like
