"""One run at a time on a workdir."""

import errno
import fcntl
import json
import logging
import os
import socket
from pathlib import Path

from uae_jax.errors import UserError

FILE = 'lock'
# File systems that know no locks.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL)


class Lock:
  """The operating system's lock on `workdir/lock`.

  It ends with the process that holds it, however that ends, so a run that was
  killed blocks nobody. The file says who holds it and stays behind.
  """

  def __init__(self, folder: Path):
    """Takes nothing yet."""
    self._path = folder / FILE
    self._file = None

  def take(self) -> None:
    """Takes the lock unless this has it; the folder exists.

    Raises:
      UserError: another process has it.
      OSError: the file cannot be written.
    """
    if self._file is not None:
      return
    file = open(self._path, 'a+')
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
      if e.errno in NO_LOCKS:
        logging.warning('%s has no locks: start one run on it', self._path)
      else:
        holder = _holder(file)
        file.close()
        raise UserError(
          f'{self._path.parent} is in use by {holder}: wait until it has '
          'ended, or use another --workdir'
        ) from None
    file.truncate(0)
    json.dump(dict(host=socket.gethostname(), pid=os.getpid()), file)
    file.flush()
    self._file = file

  def release(self) -> None:
    """Lets go, if this has it."""
    if self._file is not None:
      self._file.close()
      self._file = None


def _holder(file) -> str:
  """Who wrote the file."""
  file.seek(0)
  try:
    row = json.loads(file.read())
    return f'process {row["pid"]} on {row["host"]}'
  except (ValueError, KeyError, TypeError):
    return 'another process'  # which has not written its name yet
