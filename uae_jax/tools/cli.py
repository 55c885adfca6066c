"""What every command does around its work: flags in, exit code out."""

import sys
from collections.abc import Callable

from absl import flags

from uae_jax.errors import UserError


def run(main: Callable[[], None]) -> None:
  """Parses the flags, runs `main`, exits.

  The exit code is 0, or 2 with one line on stderr for what a user can fix: a
  flag, a folder, a file.
  """
  try:
    rest = flags.FLAGS(sys.argv)[1:]
    if rest:
      raise UserError(f'unexpected argument {rest[0]!r}: flags start with --')
    main()
  except (UserError, flags.Error, OSError) as e:
    lines = str(e).strip().splitlines() or [type(e).__name__]
    print(f'uae_jax: {lines[0]}', file=sys.stderr)
    sys.exit(2)
