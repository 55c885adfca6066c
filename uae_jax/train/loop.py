"""The run: build, resume, evaluate, step, log, save, report."""

import time
from pathlib import Path

import jax
import numpy as np

from uae_jax.ckpt.orbax_io import Checkpoints
from uae_jax.errors import UserError
from uae_jax.eval import report
from uae_jax.sharding.mesh import make_mesh, put_batch
from uae_jax.train import tasks, workdir
from uae_jax.train.writers import MetricWriter, Progress
from uae_jax.types import Batch


def run(config, folder: Path) -> int:
  """Trains to `train.steps`, or until a signal; resumes what is there.

  Returns:
    0 when finished, 128 + the signal's number when stopped by one.

  Raises:
    UserError: for anything the user can fix; the workdir keeps all it has.
  """
  workdir.check(folder, config)
  mesh = make_mesh(config.mesh.data, config.mesh.model)
  with jax.set_mesh(mesh):
    task = tasks.build(config, mesh)
    workdir.claim(folder, config)
    checkpoints = Checkpoints(folder / 'checkpoints', config.ckpt.keep)
    try:
      return _train(config, folder, mesh, task, checkpoints)
    finally:
      checkpoints.close()


def _train(config, folder, mesh, task, checkpoints) -> int:
  """The story, once everything is built."""
  state, step = task.state, 0
  task.state = None  # donated below
  if checkpoints.latest() is not None:
    step = checkpoints.latest()
    saved, data_state = checkpoints.restore(step, state.saved())
    state = saved.replace(frozen=state.frozen)
    task.data.set_state(data_state)
    print(f'resuming {folder} at step {step}')
  writer = MetricWriter(folder)
  writer.truncate_after(step)
  progress = Progress(config.train.steps, step, config.log.every, task.headline)
  step_fn = compile_step(task.step, state)
  seed = jax.random.key(config.train.seed)
  save = lambda: checkpoints.save(step, state.saved(), task.data.get_state())

  if step == 0:
    evaluate(task, state, 0, folder, writer, progress)
    save()
  stop = workdir.StopSignal()
  pending = None
  clock = time.perf_counter()
  while step < config.train.steps and not stop.number:
    batch = to_batch(next(task.data), mesh)
    rng = jax.random.fold_in(seed, step)
    state, metrics = step_fn(state, batch, rng)
    step += 1
    # Reading the metrics of the step before keeps the device busy.
    clock = flush(pending, writer, progress, config, clock)
    pending = (step, metrics)
    due = step % config.eval.every == 0 or step == config.train.steps
    if due or step % config.ckpt.every == 0 or stop.number:
      clock, pending = flush(pending, writer, progress, config, clock), None
    if due and not stop.number:
      evaluate(task, state, step, folder, writer, progress)
      clock = time.perf_counter()
    if step % config.ckpt.every == 0:
      save()
    if int(state.skipped) >= config.train.max_skipped:
      save()
      raise UserError(
        f'{int(state.skipped)} updates in a row were not finite at step '
        f'{step}; a checkpoint is kept: lower train.lr or look at the reward'
      )
  flush(pending, writer, progress, config, clock)
  stop.restore()
  save()
  writer.close()
  if stop.number:
    progress.say(f'stopped at step {step}; run the same command to resume')
    return 128 + stop.number
  task.export(state, folder / 'export')
  page = report.write_report(folder)
  progress.say(f'finished {step} steps: {page}')
  return 0


def compile_step(step, state):
  """jits `step`, state donated and kept where it lies."""
  shardings = jax.tree.map(lambda x: x.sharding, state)
  return jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))


def to_batch(host, mesh) -> Batch:
  """A host batch on the device, without what only the host reads."""
  return Batch(**put_batch({k: v for k, v in host.items() if k != 'truth'}, mesh))


def flush(pending, writer, progress, config, clock) -> float:
  """Waits for a step's metrics and writes them; returns the new clock."""
  if pending is None:
    return time.perf_counter() if clock is None else clock
  step, metrics = pending
  row = {k: float(v) for k, v in jax.device_get(metrics).items()}
  now = time.perf_counter()
  row['time/step'] = now - clock
  images = config.train.images
  row['throughput/images_per_s'] = images / (now - clock)
  if 'caption/length' in row:
    tokens = images * config.train.group_size * row['caption/length']
    row['throughput/tokens_per_s'] = tokens / (now - clock)
  writer.write_scalars(step, row)
  progress.update(step, row)
  return now


def evaluate(task, state, step, folder, writer, progress) -> None:
  """Held-out rows, gallery and report at `step`; nothing for towers."""
  if task.evaluate is None:
    return
  rows, gallery = task.evaluate(state)
  writer.write_scalars(step, rows)
  report.save_gallery(
    folder,
    step,
    source=gallery.source,
    reconstruction=gallery.reconstruction,
    captions=np.array(gallery.captions),
    scores=np.stack([*gallery.scores.values()], -1),
    columns=[*gallery.scores],
  )
  report.write_report(folder)
  shown = ('reward', 'unified_score', 'attribute_precision')
  shown += ('small_object_recall', 'exact_scene')
  line = '  '.join(
    f'{k} {rows["eval/" + k]:.3f}' for k in shown if f'eval/{k}' in rows
  )
  progress.say(f'step {step} held-out: {line}')
