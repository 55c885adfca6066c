"""Does a run fit a TPU slice, and how long is a step? No TPU needed.

`python -m uae_jax.tools.plan --config=configs/umm1.py:uniworld
--topology=v5p:4x4x4` compiles the programs of that run for that slice, with
libtpu on any machine, and prints what each device would hold and do. Models
that are not downloaded are planned from their sizes alone. `--search` tries
mesh splits and batch sizes; `--json` ends with one JSON object.
"""

import dataclasses
import json
import tempfile
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from uae_jax.errors import UserError
from uae_jax.plan import topology
from uae_jax.sharding.mesh import make_mesh
from uae_jax.tools import cli

CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'Config file of the run.', lock_config=True
)
TOPOLOGY = flags.DEFINE_string('topology', None, 'Such as v5e:4x4.')
SLICES = flags.DEFINE_integer('slices', 1, 'How many of them.')
PROGRAMS = flags.DEFINE_list(
  'programs', 'train_step,rollout,update,sampler', 'What is compiled.'
)
SEARCH = flags.DEFINE_bool('search', False, 'Try batch sizes and meshes.')
JSON = flags.DEFINE_bool('json', False, 'End with one JSON object.')

GIB = 2**30
ASSUMED = (
  'Times are bounds from below: peak rates, the slowest of compute, memory '
  'and network hides the others, all captions have full length.'
)


def main() -> None:
  """Plans, prints; exit code 2 where the run does not fit."""
  if CONFIG.value is None or TOPOLOGY.value is None:
    raise UserError('say --config=configs/umm1.py and --topology=v5e:4x4')
  topology.prepare()
  from uae_jax.plan import stand_ins

  chip, _ = topology.parse(TOPOLOGY.value)
  devices = topology.devices(TOPOLOGY.value, SLICES.value)
  config = CONFIG.value.copy_and_resolve_references()
  with tempfile.TemporaryDirectory() as folder, config.unlocked():
    missing = stand_ins.fill_in(config, Path(folder))
    if missing:
      print(f'not here, planned by their sizes: {", ".join(missing)}')
    if SEARCH.value:
      return search(config, devices, chip)
    mesh = make_mesh(config.mesh.data, config.mesh.model, devices)
    reports = {name: shown(config, mesh, chip, name) for name in PROGRAMS.value}
    finish(config, mesh, chip, reports)


def shown(config, mesh, chip, name):
  """Compiles a program and prints its row."""
  from uae_jax.plan import fit

  report = fit.compiled(config, mesh, chip, name)
  print(line(name, report, chip), flush=True)
  return report


def line(name, report, chip) -> str:
  """One program in one line, per device."""
  need = f'{report.needed / GIB:.2f} of {report.hbm / GIB:.2f} GiB'
  if report.counts is None:
    return f'{name:10}  does not fit: {need}'
  c, times = report.counts, report.times(chip)
  sent = ', '.join(f'{k} {v / 1e9:.3g}' for k, v in sorted(c.sent.items()) if v)
  busy = ', '.join(f'{k} {v:.3g}' for k, v in times.items())
  flops = f'{c.flops / 1e12:.4g} of which model {report.model_flops / 1e12:.4g}'
  return (
    f'{name:10}  {need} ({100 * report.spare:.0f}% spare): arguments '
    f'{report.arguments / GIB:.2f}, temporaries '
    f'{report.temporaries / GIB:.2f}, peak {report.peak / GIB:.2f}\n'
    f'            Tflop {flops}; HBM {c.bytes / 1e9:.4g} GB; sent {sent} GB\n'
    f'            at least {report.least_seconds(chip):.3g} s ({busy}); '
    f'compiled in {report.seconds:.0f} s'
    + ''.join(
      f'\n            all-reduce of whole matrices, {v / 1e9:.3g} GB: {k}'
      for k, v in c.whole.items()
    )
  )


def finish(config, mesh, chip, reports) -> None:
  """The verdict, and what would help.

  Raises:
    UserError: the run does not fit.
  """
  bad = [name for name, report in reports.items() if not report.fits]
  fits = not bad
  if fits:
    print(ASSUMED)
  if JSON.value:
    print(json.dumps(summary(reports, chip, mesh)))
  if bad:
    name = bad[0]
    over = (reports[name].needed - chip.hbm) / GIB
    raise UserError(
      f'{name} is {over:.2f} GiB over the {chip.hbm / GIB:.2f} GiB of a device'
      f': {help_for(config, mesh, chip, name)}'
    )


def help_for(config, mesh, chip, name: str) -> str:
  """The first change that makes a program fit, tried."""
  from uae_jax.plan import fit

  for key, value in fit.levers(config, name):
    config = fit.set_key(config, key, value)
    print(f'            trying {key}={value}', flush=True)
    report = fit.compiled(config, mesh, chip, name)
    if report.fits:
      left = f'{report.needed / GIB:.2f} GiB'
      return f'--config.{key}={value} makes it fit ({left})'
  model = 2 * mesh.shape['model']
  return (
    f'try --config.mesh.model={model}, fewer --config.train.images, or more '
    'chips'
  )


def summary(reports, chip, mesh) -> dict:
  """The JSON object, of a step per device."""
  main = reports.get('train_step') or next(iter(reports.values()))
  counted = [r for r in reports.values() if r.counts is not None]
  halves = [reports.get('rollout'), reports.get('update')]
  if all(r is not None and r.counts is not None for r in halves):
    seconds = sum(r.least_seconds(chip) for r in halves)
  else:
    seconds = main.least_seconds(chip) if main.counts else None
  programs = {
    name: {
      **{
        k: v
        for k, v in dataclasses.asdict(report).items()
        if k not in ('counts', 'hbm')
      },
      **(dataclasses.asdict(report.counts) if report.counts else {}),
    }
    for name, report in reports.items()
  }
  return {
    'fits': len(counted) == len(reports) and all(r.fits for r in counted),
    'peak_bytes': max(r.needed for r in reports.values()),
    'hbm_bytes': chip.hbm,
    'model_flops': main.model_flops,
    'hardware_flops': main.counts.flops if main.counts else None,
    'step_seconds': seconds,
    'mesh': dict(mesh.shape),
    'programs': programs,
  }


def search(config, devices, chip) -> None:
  """The largest batch of every mesh split, and the best of them.

  Raises:
    UserError: nothing fits.
  """
  from uae_jax.plan import fit

  best = None
  model = 1
  while len(devices) % model == 0 and model <= 16:
    mesh = make_mesh(-1, model, devices)
    images = mesh.shape['data']
    while True:
      trial = fit.set_key(config, 'train.images', images)
      report = fit.compiled(trial, mesh, chip, 'train_step')
      label = f'mesh {mesh.shape["data"]} x {model}, {images} images a step'
      if not report.fits:
        print(f'{label}: no ({report.needed / GIB:.2f} GiB)', flush=True)
        break
      rate = images / report.least_seconds(chip)
      print(
        f'{label}: {report.needed / GIB:.2f} GiB, at most {rate:.1f} images/s',
        flush=True,
      )
      if best is None or rate > best['images_per_second']:
        best = {
          'images_per_second': rate,
          'train.images': images,
          'mesh.data': mesh.shape['data'],
          'mesh.model': model,
          'peak_bytes': report.needed,
          'hbm_bytes': chip.hbm,
        }
      images *= 2
    model *= 2
  if best is None:
    raise UserError(
      'one image a data shard fits no split of this slice: use more or larger '
      'chips, or smaller --config.rollout.length, --config.data.side'
    )
  print(
    f'best: --config.mesh.model={best["mesh.model"]} '
    f'--config.train.images={best["train.images"]}. {ASSUMED}'
  )
  if JSON.value:
    print(json.dumps(best))


if __name__ == '__main__':
  cli.run(main)
