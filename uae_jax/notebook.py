"""For notebooks: configs, commands, pictures in rows, curves that grow.

Pictures are made without a backend of matplotlib's, so they look the same in
Jupyter, in Colab and in a notebook that is executed by a test. Needs the extra
`notebooks`.
"""

import importlib.util
import io
import os
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from IPython import display
from jaxtyping import UInt8
from matplotlib.figure import Figure

from uae_jax.errors import UserError
from uae_jax.eval import compare, report
from uae_jax.eval.scenes_bench import Gallery

# What `Live` draws, of the panels in `report.CURVES`.
PANELS = (
  'Reward', 'What captions get right', 'Caption length, tokens',
  'KL to the start', 'Entropy, nats per token', 'Reward inside a group',
)  # fmt: skip
SHORT = 'UAE_JAX_NOTEBOOK_STEPS'  # makes runs shorter, for a test of all
COLOURS = ('#2459b8', '#b8500f', '#1f7a45', '#8a3fa8', '#8c1c3a', '#5c6068')
DASHES = ('-', '--', '-.', ':', (0, (5, 1)), (0, (1, 1)))


def root() -> Path:
  """The checkout that the package is imported from.

  Raises:
    UserError: it was installed without its configs.
  """
  folder = Path(importlib.util.find_spec('uae_jax').origin).parent.parent
  if not (folder / 'configs' / 'umm1.py').is_file():
    raise UserError(
      f'{folder} has no configs: clone the repository and pip install -e it'
    )
  return folder


def config(name: str, part: str = '', **sections: Mapping[str, Any]) -> Any:
  """configs/NAME.py:PART with changes, `train=dict(steps=20)`.

  Raises:
    UserError: no such file, part or key, or a value of another type.
  """
  path = root() / 'configs' / f'{name}.py'
  if not path.is_file():
    raise UserError(f'{path} does not exist')
  spec = importlib.util.spec_from_file_location(name, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  try:
    c = module.get_config(part).lock()
    c.update(sections)
  except (AttributeError, KeyError, TypeError, ValueError) as e:
    line = str(e.args[0] if e.args else e).splitlines()[0]
    raise UserError(f'{name}: {line}') from None
  return c


def steps(wanted: int) -> int:
  """`wanted`, or what UAE_JAX_NOTEBOOK_STEPS says if that is fewer.

  Raises:
    UserError: the variable is no whole number above 0.
  """
  said = os.environ.get(SHORT, str(wanted))
  if not said.isdecimal() or not int(said):
    raise UserError(f'{SHORT}={said!r}: say a number of steps')
  return min(wanted, int(said))


def some(runs: Sequence[str]) -> list[str]:
  """All `runs`, or the first two where UAE_JAX_NOTEBOOK_STEPS is set."""
  return [*runs][: 2 if SHORT in os.environ else None]


def new_folder() -> Path:
  """An empty folder for what a notebook leaves behind."""
  return Path(tempfile.mkdtemp(prefix='uae_jax-'))


def command(module: str, *args: str) -> None:
  """`python -m uae_jax.MODULE ARGS` in the checkout; shows what it prints.

  Raises:
    UserError: it ended with another exit code than 0.
  """
  print(f'$ python -m uae_jax.{module}', *args, flush=True)
  with subprocess.Popen(
    [sys.executable, '-m', f'uae_jax.{module}', *args],
    cwd=root(), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
  ) as process:  # fmt: skip
    for line in process.stdout:
      print(line, end='', flush=True)
  if process.returncode:
    raise UserError(f'{module} ended with exit code {process.returncode}')


def table(rows: Sequence[Mapping[str, Any]]) -> display.Markdown:
  """Rows of the same keys, which head the columns; floats with 3 digits."""
  show = lambda x: f'{x:.3f}' if isinstance(x, float) else str(x)
  lines = [[*rows[0]], ['---'] * len(rows[0])]
  lines += [map(show, row.values()) for row in rows]
  return display.Markdown('\n'.join(f'| {" | ".join(x)} |' for x in lines))


def pictures(
  rows: Mapping[str, Sequence[UInt8[np.ndarray, 'H W 3']]],
  notes: Sequence[str] = (),
) -> display.Image:
  """Images in rows.

  Args:
    rows: as many images each, by what is written beside them.
    notes: what is written below each column.
  """
  columns = max(map(len, rows.values()))
  figure = _new(1.3 * columns + 1, 1.3 * len(rows) + (0.9 if notes else 0))
  _grid(figure, rows, columns)
  for axes, note in zip(figure.axes[-columns:], notes):
    text = textwrap.fill(note.replace(' , ', ', ') or '(nothing)', 20)
    axes.set_xlabel(text, fontsize=7, labelpad=3)
  return _image(figure, f'{", ".join(rows)}: {columns} images each')


def compared(
  folders: Sequence[Path], metrics: Mapping[str, str] = compare.METRICS
) -> display.Image:
  """Curves of several runs, a panel a metric that any of them has.

  Args:
    folders: workdirs; their names tell the runs apart.
    metrics: titles of the panels.

  Raises:
    UserError: see `compare.read`.
  """
  runs = compare.read(folders)
  panels = compare.curves(runs, metrics)
  figure = _new(*_size(len(panels)))
  _curves(figure, panels, {name: i for i, name in enumerate(runs)})
  handles = {
    line.get_label(): line for axes in figure.axes for line in axes.lines
  }
  figure.legend(
    [handles[name] for name in runs], [*runs], ncols=3, fontsize=8,
    loc='outside lower center', frameon=False,
  )  # fmt: skip
  return _image(figure, f'Curves of {", ".join(runs)}')


class Live:
  """A `Watcher`: curves and redrawn images below a cell while it trains."""

  def __init__(
    self,
    panels: Sequence[str] = PANELS,
    columns: int = 10,
    every: float = 2.0,
  ):
    """Shows nothing until there is something.

    Args:
      panels: titles in `report.CURVES`.
      columns: images in a row.
      every: seconds between two pictures.
    """
    self._panels, self._columns, self._every = panels, columns, every
    self._rows, self._galleries = [], []
    self._shown, self._handles = -np.inf, {}

  def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
    """Adds a row to the curves, and draws them if it is time."""
    finite = {k: v for k, v in scalars.items() if np.isfinite(v)}
    self._rows.append({'step': step, **finite})
    is_evaluation = any(k.startswith('eval/') for k in scalars)
    if is_evaluation or time.monotonic() - self._shown > self._every:
      self._shown = time.monotonic()
      self._show('curves', self.curves())

  def write_gallery(self, step: int, gallery: Gallery) -> None:
    """Keeps the first gallery and this one, and draws both."""
    self._galleries = [*self._galleries[:1], (step, gallery)]
    self._show('images', self.images())

  def curves(self) -> display.Image:
    """All rows so far."""
    panels = [
      panel
      for panel in report.curves(self._rows)
      if panel['title'] in self._panels
    ]
    figure = _new(*_size(len(panels)))
    _curves(figure, panels)
    for axes in figure.axes:
      if len(axes.lines) > 1:
        axes.legend(fontsize=7, frameon=False)
    return _image(figure, f'Curves to step {self._rows[-1]["step"]}')

  def images(self) -> display.Image:
    """Sources, and what was drawn from the first and the last captions."""
    n = self._columns
    _, last = self._galleries[-1]
    rows = {'source': last.source[:n]}
    for step, gallery in self._galleries:
      rows[f'step {step}'] = gallery.reconstruction[:n]
    return pictures(rows, last.captions[:n])

  def _show(self, key: str, image: display.Image) -> None:
    if key in self._handles:
      self._handles[key].update(image)
    else:
      self._handles[key] = display.display(image, display_id=True)


def _new(width: float, height: float) -> Figure:
  return Figure((width, height), dpi=90, layout='constrained')


def _size(panels: int) -> tuple[float, float]:
  """Of a figure with so many panels, three in a row."""
  return 10.0, 2.4 * -(-panels // 3) + 0.4


def _grid(figure, rows, columns):
  """An axes without ticks for every image."""
  grid = figure.subplots(len(rows), columns, squeeze=False)
  for line, (label, images) in zip(grid, rows.items(), strict=True):
    line[0].set_ylabel(label, fontsize=9)
    for axes, image in zip(line, images):
      axes.imshow(image, interpolation='nearest')
    for axes in line:
      axes.set(xticks=[], yticks=[])
      axes.spines[:].set_visible(False)


def _curves(figure, panels, order=None):
  """A panel each, as `report.curves` gives them."""
  grid = figure.subplots(-(-len(panels) // 3), 3, squeeze=False).flat
  for axes, panel in zip(grid, panels):
    axes.set_title(panel['title'], fontsize=9)
    axes.tick_params(labelsize=7)
    axes.grid(color='#dcdee2', linewidth=0.6)
    for i, series in enumerate(panel['series']):
      i = i if order is None else order[series['name']]
      x, y = np.array(series['points'], float).T
      axes.plot(
        x, y, color=COLOURS[i % len(COLOURS)], linestyle=DASHES[i % 6],
        label=series['name'], marker='o' if len(x) < 12 else None,
        markersize=3, linewidth=1.4,
      )  # fmt: skip
  for axes in grid[len(panels) :]:
    axes.set_visible(False)


def _image(figure: Figure, alt: str) -> display.Image:
  """The figure as a PNG."""
  out = io.BytesIO()
  figure.savefig(out, format='png')
  return display.Image(out.getvalue(), format='png', alt=alt)
