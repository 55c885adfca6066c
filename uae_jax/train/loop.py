"""The run: build, resume, evaluate, step, log, save, report."""

import time
from pathlib import Path

import jax
import numpy as np

from uae_jax.ckpt.orbax_io import Checkpoints
from uae_jax.data.pipeline import TRUTH
from uae_jax.data.sources.bad import BadItems
from uae_jax.errors import UserError
from uae_jax.eval import report
from uae_jax.nn import kernels
from uae_jax.sharding import hosts
from uae_jax.sharding.mesh import make_mesh, put_batch
from uae_jax.train import tasks, wandb_writer, workdir, writers
from uae_jax.train.parts import TURNS, sampled
from uae_jax.train.writers import Nobody, Progress, Several
from uae_jax.types import Batch

SHOWN = 8  # images of the gallery that TensorBoard and W&B get


def run(config, folder: Path) -> int:
  """Trains to `train.steps`, or until a signal; resumes what is there.

  Returns:
    0 when finished, 128 + the signal's number when stopped by one.

  Raises:
    UserError: for anything the user can fix; the workdir keeps all it has.
  """
  with hosts.Watchdog():
    try:
      return _run(config, folder)
    except UserError as e:
      if jax.process_count() > 1:
        hosts.leave(str(e), 2)  # the others notice
      raise
    except jax.errors.JaxRuntimeError as e:
      if jax.process_count() > 1:
        line = str(e).splitlines()[0][:200]
        hosts.lost(f'talking to the other processes failed ({line})')
      raise


def _run(config, folder) -> int:
  """Builds, trains, closes."""
  first = hosts.is_first()
  if first:
    workdir.check(folder, config.to_dict())
    wandb_writer.check(config.log.wandb)
  mesh = make_mesh(config.mesh.data, config.mesh.model)
  with jax.set_mesh(mesh), kernels.use(config.model.attention):
    task = tasks.build(config, mesh)
    if first:
      workdir.claim(folder, config.to_dict())
    hosts.wait('claimed')
    task.bad.keep(
      workdir.bad_items(folder, jax.process_index()), config.data.max_bad
    )
    checkpoints = Checkpoints(folder / 'checkpoints', config.ckpt.keep)
    try:
      code = _train(config, folder, mesh, task, checkpoints)
    finally:
      checkpoints.close()
  hosts.wait('done')
  return code


def _train(config, folder, mesh, task, checkpoints) -> int:
  """The story, once everything is built."""
  state, step = task.state, 0
  task.state = None  # donated below
  if checkpoints.latest() is not None:
    step = checkpoints.latest()
    saved, data_state = checkpoints.restore(step, state.saved())
    state = saved.replace(frozen=state.frozen)
    task.data.set_state(data_state)
    if hosts.is_first():
      print(f'resuming {folder} at step {step}')
  writer = progress = Nobody()
  if hosts.is_first():
    writer = writers.open_all(folder, config.log.wandb)
    progress = Progress(
      config.train.steps, step, config.log.every, task.headline
    )
  writer.truncate_after(step)
  writer.write_hparams(workdir.flat(config.to_dict()))
  log = Log(config, writer, progress, task.bad)
  turns = [compile_step(step, state) for step in task.steps]
  seed = jax.random.key(config.train.seed)
  save = lambda: checkpoints.save(step, state.saved(), task.data.get_state())

  stop = hosts.Stop()
  if step == 0:
    evaluate(task, state, step, folder, log)
    save()
  log.start()
  stalled = lambda: has_stalled(folder, config, step)
  ended = step >= config.train.steps or stalled()
  while not ended and not stop.asked(step):
    batch = to_batch(next(task.data), mesh)
    turn = turns[step % len(turns)]
    state, metrics = turn(state, batch, jax.random.fold_in(seed, step))
    step += 1
    log.step(step, metrics)
    if log.skipped >= config.train.max_skipped:
      save()
      raise UserError(
        f'{log.skipped} updates in a row were not finite by step {step}; a '
        'checkpoint is kept: lower train.lr or look at the reward'
      )
    ended = step == config.train.steps
    if step % config.eval.every == 0 or ended:
      evaluate(task, state, step, folder, log)
      ended = ended or stalled()
    if step % config.ckpt.every == 0:
      save()
  log.settle()
  stop.restore()
  save()
  writer.close()
  if stop.number:
    progress.say(f'stopped at step {step}; run the same command to resume')
    return 128 + stop.number
  task.export(state, folder / 'export')
  page = report.write_report(folder) if hosts.is_first() else None
  if step < config.train.steps:
    progress.say(f'eval.patience is over: no better eval/{config.eval.watch}')
  progress.say(f'finished {step} steps: {page}')
  return 0


def has_stalled(folder: Path, config, step: int) -> bool:
  """Have `eval.patience` evaluations not bettered those before them?

  Read from metrics.jsonl, so that a run that is resumed knows it too.

  Raises:
    UserError: no evaluation has what `eval.watch` names.
  """
  patience, key = config.eval.patience, f'eval/{config.eval.watch}'
  if not patience:
    return False
  stalled = False
  if hosts.is_first():
    rows = report.read_rows(folder / 'metrics.jsonl')
    rows = [row for row in rows if any(k.startswith('eval/') for k in row)]
    if any(key not in row for row in rows):
      known = sorted(k[5:] for k in rows[0] if k.startswith('eval/'))
      raise UserError(f'eval.watch={key[5:]!r} is none of {known}')
    values = [row[key] for row in rows if row['step'] <= step]
    values = [-np.inf if x is None else x for x in values]
    before, since = values[:-patience], values[-patience:]
    stalled = bool(before) and max(since) <= max(before)
  return bool(hosts.agree(stalled))


class Log:
  """Writes each step's metrics while the next step runs."""

  def __init__(
    self, config, writer: Several, progress: Progress, bad: BadItems
  ):
    self.writer, self.progress, self.bad = writer, progress, bad
    self.skipped = 0  # updates in a row, one step late
    self._rows = sampled(config)  # images that a step draws or reads
    if config.stage in TURNS:
      self._rows *= config.train.group_size
    self._pending = None

  def start(self) -> None:
    """Starts the clock of the next step."""
    self._clock = time.perf_counter()

  def step(self, step: int, metrics) -> None:
    """Takes a step's metrics, still on the device; writes the ones before."""
    self.settle()
    self._pending = (step, metrics)

  def settle(self) -> None:
    """Waits for the metrics that are out, and writes them."""
    if self._pending is None:
      return
    step, metrics = self._pending
    self._pending = None
    row = {k: float(v) for k, v in jax.device_get(metrics).items()}
    seconds = time.perf_counter() - self._clock
    self.start()
    self.skipped = int(row['optim/skipped'])
    row['time/step'] = seconds
    row['throughput/images_per_s'] = self._rows / seconds
    if 'caption/length' in row:
      words = self._rows * row['caption/length']
      row['throughput/tokens_per_s'] = words / seconds
    row |= self.bad.metrics()
    self.writer.write_scalars(step, row)
    self.progress.update(step, row)


def compile_step(step, state):
  """jits `step`, state donated and kept where it lies."""
  shardings = jax.tree.map(lambda x: x.sharding, state)
  return jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))


def to_batch(host, mesh) -> Batch:
  """A host batch on the device, without what only the host reads."""
  arrays = {k: v for k, v in host.items() if k not in TRUTH}
  return Batch(**put_batch(arrays, mesh))


def evaluate(task, state, step, folder, log) -> None:
  """Held-out rows, gallery and report at `step`; nothing for towers."""
  if task.evaluate is None:
    return
  log.settle()
  rows, gallery = task.evaluate(state)
  if not hosts.is_first():
    return
  log.writer.write_scalars(step, rows)
  log.writer.write_images(
    step,
    {
      'source': gallery.source[:SHOWN],
      'redrawn': gallery.reconstruction[:SHOWN],
    },
  )
  said = '\n'.join(
    f'{i}. {text}' for i, text in enumerate(gallery.captions[:SHOWN])
  )
  log.writer.write_texts(step, {'captions': said})
  report.save_gallery(
    folder,
    step,
    source=gallery.source,
    reconstruction=gallery.reconstruction,
    captions=np.array(gallery.captions),
    scores=np.reshape(
      [*gallery.scores.values()], (len(gallery.scores), len(gallery.source))
    ).T,
    columns=[*gallery.scores],
  )
  report.write_report(folder)
  shown = ('reward', 'unified_score', 'attribute_precision')
  shown += ('small_object_recall', 'exact_scene', 'glyph_redrawn')
  line = '  '.join(
    f'{k} {rows["eval/" + k]:.3f}' for k in shown if f'eval/{k}' in rows
  )
  log.progress.say(f'step {step} held-out: {line}')
  log.start()
