"""What is installed, what is here, and does it compute the right numbers?

`python -m uae_jax.tools.doctor [--folder=runs] [--json]`

Prints versions, devices and their memory, the attention that each family of
models gets on them, folders that a run writes to, limits of the system and
optional packages; then lets the bundled model caption and redraw one scene and
compares with recorded numbers. Exit code 0, or 2 with what to change in one
line (`--json`: in `problems`, all of them).
"""

import dataclasses
import json
import os
import platform
import re
import subprocess
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

from absl import flags
from packaging.requirements import Requirement

from uae_jax.errors import UserError
from uae_jax.sharding import mesh as mesh_lib
from uae_jax.tools import cli
from uae_jax.train import bucket

FOLDER = flags.DEFINE_string(
  'folder', 'runs', 'Where runs will write: a folder or gs://BUCKET/FOLDER.'
)
ATTENTION = flags.DEFINE_string('attention', 'auto', 'As model.attention.')
TEST = flags.DEFINE_bool('test', True, 'Let the bundled model redraw a scene.')
JSON = flags.DEFINE_bool('json', False, 'Print one JSON object instead.')

SHOWN = (
  'jax', 'jaxlib', 'libtpu', 'jax-cuda13-plugin', 'jax-cuda12-plugin', 'flax',
  'optax', 'orbax-checkpoint', 'grain', 'transformers',
)  # fmt: skip
MAPS = Path('/proc/sys/vm/max_map_count')
FEWEST_MAPS = 65530  # the kernel's default
TPUS = ('/dev/accel0', '/dev/vfio/0')
GIB = 2**30


def main() -> None:
  """Looks, tests, prints; the first problem is the exit code's line."""
  found, problems = {}, []
  look = [versions, packages, devices, attention, folders, system]
  for part in [*look, self_test] if TEST.value else look:
    title = part.__name__.replace('_', ' ')
    found[title], more = part()
    problems += more
    if not JSON.value:
      show(title, found[title])
    if part is devices and not found[title]:
      break  # what follows would ask for one
  if JSON.value:
    print(json.dumps({**found, 'problems': problems}, indent=2))
  elif len(problems) > 1:
    print(*[f'also: {problem}' for problem in problems[1:]], sep='\n')
  if problems:
    raise UserError(problems[0])
  if not JSON.value:
    print('all is well')


def show(title: str, values: dict[str, Any]) -> None:
  """A block of names and values."""
  print(title)
  for name, value in values.items():
    print(f'  {name:36}{value}', flush=True)


def version(package: str) -> str | None:
  """What is installed, or None."""
  try:
    return metadata.version(package)
  except metadata.PackageNotFoundError:
    return None


def versions() -> tuple[dict[str, Any], list[str]]:
  """Python, the packages of `SHOWN` that are there, NVIDIA's driver."""
  found = {'python': platform.python_version()}
  found |= {name: version(name) for name in SHOWN if version(name)}
  found |= {f'driver of GPU {i}': gpu for i, gpu in enumerate(gpus())}
  return found, []


def gpus() -> list[str]:
  """Name, driver and memory of each GPU, as nvidia-smi has them."""
  ask = '--query-gpu=name,driver_version,memory.total'
  try:
    said = subprocess.run(
      ['nvidia-smi', ask, '--format=csv,noheader'],
      capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
  except (OSError, subprocess.SubprocessError):
    return []
  return said.stdout.strip().splitlines()


def packages() -> tuple[dict[str, Any], list[str]]:
  """What the package needs, and which of its extras are whole."""
  try:
    wanted = [Requirement(line) for line in metadata.requires('uae_jax') or ()]
  except metadata.PackageNotFoundError:
    return {}, ['uae_jax is not installed: pip install -e .']
  extras = re.findall(r'extra == "([\w-]+)"', ' '.join(map(str, wanted)))
  lacking = {
    extra: [
      str(x).split(';')[0] for x in wanted if needed(x, extra) and not there(x)
    ]
    for extra in ('', *sorted(set(extras)))
  }
  problems = []
  if bad := lacking.pop(''):
    problems = [f'pip install -e . again: {", ".join(bad)} missing or too old']
  found = {
    extra: f'lacks {", ".join(names)}' if names else 'installed'
    for extra, names in lacking.items()
  }
  return found, problems


def needed(requirement: Requirement, extra: str) -> bool:
  """Does an extra ('' is the package itself) ask for it?"""
  marker = requirement.marker
  always = marker is None or marker.evaluate({'extra': ''})
  if not extra:
    return always
  return not always and marker.evaluate({'extra': extra})


def there(requirement: Requirement) -> bool:
  """Is it installed, new enough, and with its own extras?"""
  found = version(requirement.name)
  if found is None or not requirement.specifier.contains(found, True):
    return False
  more = map(Requirement, metadata.requires(requirement.name) or ())
  return all(
    there(x)
    for x in (more if requirement.extras else ())
    if any(needed(x, extra) for extra in requirement.extras)
  )


def devices() -> tuple[dict[str, Any], list[str]]:
  """JAX's devices, and those that it does not see."""
  import jax

  try:
    mine = jax.devices()
  except RuntimeError as e:
    asked = os.environ.get('JAX_PLATFORMS', '')
    line = str(e).splitlines()[0]
    return {}, [f'JAX starts on none of JAX_PLATFORMS={asked!r}: {line}']
  found = {}
  for device in mine:
    stats = device.memory_stats() or {}
    size = stats.get('bytes_limit')
    memory = f', {size / GIB:.1f} GiB' if size else ''
    found[f'{device.platform} {device.id}'] = device.device_kind + memory
  return found, unused(mine[0].platform, gpus(), os.environ)


def unused(
  used: str, cards: list[str], environment: Any, tpus: tuple[str, ...] = TPUS
) -> list[str]:
  """Accelerators that the machine has and JAX does not use."""
  if used != 'cpu':
    return []
  said = environment.get('JAX_PLATFORMS', '')
  if said == 'cpu':
    return []
  if cards:
    return [
      f"JAX does not use {cards[0]}: pip install -e '.[cuda]', which needs "
      'driver 580 or newer'
    ]
  if any(Path(name).exists() for name in tpus):
    return ["JAX does not use the TPU: pip install -e '.[tpu]'"]
  return []


def attention() -> tuple[dict[str, Any], list[str]]:
  """What each family attends by."""
  from uae_jax.nn import kernels
  from uae_jax.plan.attention import chosen

  with kernels.use(ATTENTION.value):
    return chosen(), []


def folders() -> tuple[dict[str, Any], list[str]]:
  """Can compiled programs and runs be written?"""
  found, problems = {}, []
  for name, folder, change in (
    ('compiled programs', mesh_lib.cache_folder(),
     'set JAX_COMPILATION_CACHE_DIR to a folder that can be'),
    ('workdir', FOLDER.value, 'say --folder=FOLDER that can be'),
  ):  # fmt: skip
    why = ''
    if '://' not in folder:
      if not writable(Path(folder).expanduser()):
        why = f'{folder} cannot be written: {change}'
    elif name == 'workdir':
      why = unusable(folder)
    found[name] = why or folder
    problems += [why] * bool(why)
  return found, problems


def unusable(url: str) -> str:
  """Why a run could not write below an address; nothing is left there."""
  try:
    home = bucket.at(f'{url}/doctor', 0)
    try:
      home.enter({})
    finally:
      home.leave()
  except UserError as e:
    return str(e)
  return ''


def writable(folder: Path) -> bool:
  """Can a file be made in it, or in the nearest folder above that exists?"""
  while not folder.exists() and folder != folder.parent:
    folder = folder.parent
  try:
    with tempfile.TemporaryFile(dir=folder):
      return True
  except OSError:
    return False


def system() -> tuple[dict[str, Any], list[str]]:
  """Cores, memory, and how many memory maps a process may have."""
  size = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  found = {'cores': os.cpu_count(), 'memory': f'{size / GIB:.1f} GiB'}
  if not MAPS.exists():
    return found, []
  found['vm.max_map_count'] = maps = int(MAPS.read_text())
  problems = []
  if maps < FEWEST_MAPS:
    problems = [
      f'vm.max_map_count is {maps}, programs of XLA take several maps each: '
      'sysctl -w vm.max_map_count=262144'
    ]
  return found, problems


def self_test() -> tuple[dict[str, Any], list[str]]:
  """The bundled model's numbers beside recorded ones."""
  from uae_jax.infer import self_test as test

  mesh_lib.use_compilation_cache()
  found = test.run()
  problems = [
    f'the self-test is off ({bad}): compare versions with setup.py, and run '
    'pytest -m backend'
    for bad in test.differences(found)
  ]
  return dataclasses.asdict(found), problems


if __name__ == '__main__':
  cli.run(main)
