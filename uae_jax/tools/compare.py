"""Runs side by side: a table here, curves on a page.

`python -m uae_jax.tools.compare --runs=runs/umm2,runs/umm2-caption
--out=compare.html`
"""

from pathlib import Path

from absl import flags

from uae_jax.errors import UserError
from uae_jax.eval import compare
from uae_jax.tools import cli

RUNS = flags.DEFINE_list('runs', None, 'Workdirs, comma separated.',
                         required=True)  # fmt: skip
OUT = flags.DEFINE_string('out', 'compare.html', 'Page to write.')


def main() -> None:
  """Prints the table and writes the page."""
  folders = [Path(name).expanduser() for name in RUNS.value]
  out = Path(OUT.value).expanduser()
  print(compare.markdown(compare.read(folders)))
  try:
    print(compare.write(folders, out))
  except OSError as e:
    raise UserError(f'{out} cannot be written ({e}): use another --out') from e


if __name__ == '__main__':
  cli.run(main)
