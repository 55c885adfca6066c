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
from uae_jax.train import bucket, tasks, wandb_writer, workdir, writers
from uae_jax.train.keeper import Keeper, has_stalled
from uae_jax.train.parts import TURNS, sampled
from uae_jax.train.workdir import Workdir
from uae_jax.train.writers import Nobody, Progress, Several, Watcher
from uae_jax.types import Batch

SHOWN = 8  # images of the gallery that TensorBoard and W&B get
SENT = 30.0  # seconds between looks at what a bucket has not got yet


def run(config, folder: str | Path, watcher: Watcher | None = None) -> int:
  """Trains to `train.steps`, or until a signal; resumes what is there.

  Args:
    config: of the run, as configs/ has them.
    folder: its workdir, or gs://BUCKET/FOLDER.
    watcher: is shown every row and gallery as they come.

  Returns:
    0 when finished, 128 + the signal's number when stopped by one.

  Raises:
    UserError: for anything the user can fix; the workdir keeps all it has.
  """
  with hosts.Watchdog():
    try:
      return _run(config, folder, watcher or Nobody())
    except UserError as e:
      if jax.process_count() > 1:
        hosts.leave(str(e), 2)  # the others notice
      raise
    except jax.errors.JaxRuntimeError as e:
      if jax.process_count() > 1:
        line = str(e).splitlines()[0][:200]
        hosts.lost(f'talking to the other processes failed ({line})')
      raise


def _run(config, folder, watcher) -> int:
  """Locks, builds, trains, closes."""
  home = bucket.at(folder, jax.process_index())
  try:
    if hosts.is_first():
      wandb_writer.check(config.log.wandb)
    home.enter(config.to_dict())
    mesh = make_mesh(config.mesh.data, config.mesh.model)
    with jax.set_mesh(mesh), kernels.use(config.model.attention):
      task = tasks.build(config, mesh)
      home.claim(config.to_dict())
      hosts.wait('claimed')
      task.bad.keep(
        workdir.bad_items(home.files, jax.process_index()), config.data.max_bad
      )
      checkpoints = Checkpoints(home.place / 'checkpoints', config.ckpt.keep)
      try:
        code = _train(config, home, mesh, task, checkpoints, watcher)
      finally:
        checkpoints.close()
    home.send()
    hosts.wait('done')
    return code
  except OSError as e:
    where = e.filename or home.name
    raise UserError(
      f'{where}: {e.strerror or e}; checkpoints are kept, and the same command '
      'resumes'
    ) from None
  finally:
    home.leave()


def _train(config, home, mesh, task, checkpoints, watcher) -> int:
  """The story, once everything is built."""
  keeper = Keeper(config, home, checkpoints, task.data)
  state, step = keeper.resume(task.state)
  task.state = None  # donated below
  new, step = step is None, step or 0
  if hosts.is_first() and not new:
    print(f'resuming {home.name} at step {step}')
  writer = progress = Nobody()
  if hosts.is_first():
    writer = writers.open_all(home.files, config.log.wandb)
    progress = Progress(
      config.train.steps, step, config.log.every, task.headline
    )
  writer.truncate_after(-1 if new else step)
  writer.write_hparams(workdir.flat(config.to_dict()))
  log = Log(config, home, writer, progress, task.bad, keeper, watcher)
  turns = [compile_step(step, state) for step in task.steps]

  stop = hosts.Stop()
  if new:
    evaluate(task, state, step, home.files, log)
    keeper.evaluated(step)
    keeper.save(step, state, log)
  log.start(step)
  stalled = lambda: has_stalled(home.files, config, step)
  ended = step >= config.train.steps or stalled()
  while not ended and not stop.asked(step):
    batch = to_batch(next(task.data), mesh)
    turn = turns[step % len(turns)]
    state, metrics = turn(state, batch, jax.random.fold_in(keeper.rng, step))
    step += 1
    log.step(step, metrics)
    if log.skipped >= config.train.max_skipped:
      state, step = keeper.roll_back(state, step, log)
      continue
    ended = step == config.train.steps
    if step % config.eval.every == 0 or ended:
      evaluate(task, state, step, home.files, log)
      ended = ended or stalled()
      keeper.evaluated(step)
    keeper.stepped(step)
    keeper.save_if_due(step, state, log)
  log.settle()
  stop.restore()
  keeper.save(step, state, log)
  writer.close()
  if stop.number:
    progress.say(f'stopped at step {step}; run the same command to resume')
    return 128 + stop.number
  shown, at = keeper.exported(state, step)
  del state
  task.export(shown, home.files / 'export')
  if hosts.is_first():
    report.write_report(home.files)
  if step < config.train.steps:
    progress.say(f'eval.patience is over: no better eval/{config.eval.watch}')
  if at != step:
    progress.say(f'exported step {at}, the best by eval/{config.eval.watch}')
  progress.say(f'finished {step} steps: {home.name}/report.html')
  return 0


class Log:
  """Writes each step's metrics while the next step runs."""

  def __init__(
    self,
    config,
    home: Workdir | bucket.Bucket,
    writer: Several,
    progress: Progress,
    bad: BadItems,
    keeper: Keeper,
    watcher: Watcher,
  ):
    self.writer, self.progress, self.bad = writer, progress, bad
    self.watcher = watcher if hosts.is_first() else Nobody()
    self.skipped = 0  # updates in a row, one step late
    self._home, self._keeper = home, keeper
    self._counts = config.guard.rollbacks > 0
    self._rows = sampled(config)  # images that a step draws or reads
    if config.stage in TURNS:
      self._rows *= config.train.group_size
    self._pending = None

  def start(self, step: int) -> None:
    """Starts at a step, after which nothing was skipped yet."""
    self.skipped, self.sound, self._pending = 0, step, None
    self.tick()

  def went_back(self, step: int, why: str) -> None:
    """Starts again at an earlier step, and says so."""
    self.writer.truncate_after(step)
    self.progress.say(why)
    self.start(step)

  def tick(self) -> None:
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
    self.tick()
    self.skipped = int(row['optim/skipped'])
    if not self.skipped:
      self.sound = step
    row['time/step'] = seconds
    row['throughput/images_per_s'] = self._rows / seconds
    # A step of the decoder alone may have drawn one caption several times.
    alone = 'decoder/ratio_max' in row and 'policy/ratio_max' not in row
    if 'caption/length' in row and not alone:
      words = self._rows * row['caption/length']
      row['throughput/tokens_per_s'] = words / seconds
    row |= self.bad.metrics()
    if self._counts:
      row['guard/rollbacks'] = float(self._keeper.rollbacks)
    self.writer.write_scalars(step, row)
    self.progress.update(step, row)
    self.watcher.write_scalars(step, row)
    self._home.send(SENT)


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
  log.watcher.write_scalars(step, rows)
  log.watcher.write_gallery(step, gallery)
  log.tick()
