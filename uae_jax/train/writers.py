"""Where metrics go: metrics.jsonl, TensorBoard events, W&B, the terminal.

`MetricWriter` has the method names of `clu.metric_writers.MetricWriter`;
clu's own writers import TensorFlow, which takes longer than the first step.
"""

import collections
import io
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.summary.writer.record_writer import RecordWriter

from uae_jax.eval.scenes_bench import Gallery
from uae_jax.train.wandb_writer import WandbWriter

RECENT = 50  # steps that a rate is the mean of


class MetricWriter:
  """Appends rows to metrics.jsonl and to TensorBoard event files."""

  def __init__(self, folder: Path):
    """Opens `folder`, which exists."""
    self._path = folder / 'metrics.jsonl'
    events = folder / 'tensorboard'
    events.mkdir(exist_ok=True)
    name = f'events.out.tfevents.{time.time_ns()}.{os.getpid()}'
    # tensorboard's own file writer opens files through TensorFlow.
    self._events = RecordWriter(open(events / name, 'wb'))
    self._event(file_version='brain.Event:2')

  def _event(self, **fields) -> None:
    event = Event(wall_time=time.time(), **fields)
    self._events.write(event.SerializeToString())

  def truncate_after(self, step: int) -> None:
    """Drops rows after `step`, and what is none, before resuming."""
    if not self._path.exists():
      return
    kept = []
    for line in self._path.read_text(errors='replace').splitlines():
      try:
        row = json.loads(line)
        known = row['step'] <= step
      except (ValueError, TypeError, KeyError):
        continue
      if known:
        kept.append(line + '\n')
    part = self._path.with_suffix('.part')
    part.write_text(''.join(kept))
    os.replace(part, self._path)

  def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
    """One row; a number that is not finite is written as null."""
    row = {k: v if math.isfinite(v) else None for k, v in scalars.items()}
    with open(self._path, 'a') as f:
      f.write(json.dumps({'step': step, **row}) + '\n')
    values = [Summary.Value(tag=k, simple_value=v) for k, v in scalars.items()]
    self._event(step=step, summary=Summary(value=values))
    self._events.flush()

  def flush(self) -> None:
    """Until all rows are on the disk."""
    if self._path.exists():
      with open(self._path, 'rb') as f:
        os.fsync(f.fileno())

  def write_images(
    self, step: int, images: Mapping[str, UInt8[np.ndarray, 'N R Q C']]
  ) -> None:
    """Pictures of a tag are tag/0, tag/1, …; to TensorBoard alone."""
    values = []
    for tag, pictures in images.items():
      for i, picture in enumerate(pictures):
        file = io.BytesIO()
        Image.fromarray(picture).save(file, 'png')
        height, width, channels = picture.shape
        shown = Summary.Image(
          height=height, width=width, colorspace=channels,
          encoded_image_string=file.getvalue(),
        )  # fmt: skip
        values.append(Summary.Value(tag=f'{tag}/{i}', image=shown))
    self._event(step=step, summary=Summary(value=values))
    self._events.flush()

  def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
    """Markdown, to TensorBoard alone."""
    for tag, text in texts.items():
      self._event(step=step, summary=text_pb(tag, text))
    self._events.flush()

  def write_hparams(self, hparams: Mapping[str, Any]) -> None:
    """A table of keys and values, as the text `config`."""
    rows = [f'| `{key}` | `{value}` |' for key, value in hparams.items()]
    table = '\n'.join(['| key | value |', '|---|---|', *rows])
    self.write_texts(0, {'config': table})

  def close(self) -> None:
    """Flushes and closes."""
    self._events.close()


class Several:
  """Writers that all get the same."""

  def __init__(self, writers: Sequence[Any]):
    self._writers = writers

  def __getattr__(self, name: str):
    def every(*args, **kw):
      for writer in self._writers:
        getattr(writer, name)(*args, **kw)

    return every


def open_all(folder: Path, wandb: str) -> Several:
  """The writers of a run.

  Args:
    folder: the workdir, which exists.
    wandb: a project of Weights & Biases; '' is none.
  """
  writers = [MetricWriter(folder)]
  if wandb:
    writers.append(WandbWriter(folder, wandb))
  return Several(writers)


class Progress:
  """A line on the terminal every few seconds: numbers, rate, ETA."""

  def __init__(
    self,
    steps: int,
    start: int,
    every: float,
    headline: tuple[str, ...],
    unit: str = 'step',
  ):
    """Starts the clock.

    Args:
      steps: last step.
      start: step that is done already.
      every: seconds between lines.
      headline: metrics to show.
      unit: what is counted.
    """
    self._unit = unit
    self._steps, self._every, self._headline = steps, every, headline
    self._shown = -math.inf
    self._times: collections.deque[float] = collections.deque(maxlen=RECENT)
    self._first = True

  def update(self, step: int, row: Mapping[str, float]) -> None:
    """Shows a step's row if it is time."""
    self._times.append(row['time/step'])
    now = time.monotonic()
    if now - self._shown < self._every and step < self._steps:
      return
    self._shown = now
    label = lambda k: 'reward' if k == 'reward/mean' else k.replace('/', ' ')
    numbers = '  '.join(
      f'{label(k)} {row[k]:.4g}' for k in self._headline if k in row
    )
    percent = f'{100 * step // self._steps:3d}%'
    line = f'{self._unit} {step}/{self._steps} {percent}'
    line = '  '.join(filter(None, (line, numbers, self._pace(step))))
    self._first = False
    end = '' if sys.stdout.isatty() else '\n'
    start = '\r\x1b[2K' if sys.stdout.isatty() else ''
    print(f'{start}{line}', end=end, flush=True)

  def _pace(self, step: int) -> str:
    """Rate and ETA by the last steps, but for those that compiled."""
    if self._first and self._unit == 'step' and step < self._steps:
      return f'{self._times.pop():.0f} s with compiling'
    usual = 10 * statistics.median(self._times)
    times = [x for x in self._times if x <= usual]
    mean = max(statistics.fmean(times), 1e-9)
    left = int(mean * (self._steps - step))
    return (
      f'{1 / mean:.2f} {self._unit}s/s  ETA {left // 60:02d}:{left % 60:02d}'
    )

  def say(self, text: str) -> None:
    """A line of its own."""
    start = '\r\x1b[2K' if sys.stdout.isatty() else ''
    print(f'{start}{text}', flush=True)


class Watcher(Protocol):
  """What follows a run while it trains; the first host alone calls it.

  A step's row comes while the next one runs. What it raises ends the run.
  """

  def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
    """A row of metrics.jsonl, of a step or of an evaluation."""

  def write_gallery(self, step: int, gallery: Gallery) -> None:
    """The pictures of an evaluation, after its row."""


class Nobody:
  """In the place of a writer, on hosts that write nothing."""

  def __getattr__(self, name: str):
    return lambda *args, **kw: None
