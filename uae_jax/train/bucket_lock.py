"""One run at a time on a folder of a bucket."""

import json
import os
import secrets
import socket
import threading
import time
from typing import Any

import tensorstore as ts

from uae_jax.errors import UserError

FILE = 'lock'
BEAT = 10.0  # seconds between signs of life
STALE = 60.0  # without one after which the holder is gone
TRIES = 5  # of a request that fails
HELP = (
  'is the bucket there, and may this machine use it (gcloud auth '
  'application-default login)?'
)


class BucketLock:
  """An object that its holder writes again and again.

  Every write is of the form "if nobody else has written since", which the
  bucket decides. No clocks are compared: whoever wants the lock watches for
  `STALE` seconds whether the object changes.
  """

  def __init__(self, bucket: str, folder: str):
    """Asks the bucket nothing."""
    self.name = f'gs://{bucket}/{folder}'
    self._spec = {
      'driver': 'gcs',
      'bucket': bucket,
      'path': f'{folder}/',
      'context': {'gcs_request_retries': {'max_retries': TRIES}},
    }
    self._store = None
    self._generation: bytes | None = None  # of the object, if this wrote it
    self._lost = False
    self._over = threading.Event()
    self._beats: threading.Thread | None = None
    self._me = json.dumps(
      dict(
        host=socket.gethostname(), pid=os.getpid(), mark=secrets.token_hex(8)
      )
    ).encode()

  def take(self) -> None:
    """Takes the lock, perhaps after it has watched a holder that is gone.

    Raises:
      UserError: another process has it, or the bucket does not answer.
    """
    try:
      self._store = ts.KvStore.open(self._spec).result()
      while not self._create():
        pass
    except ValueError as e:
      raise UserError(
        f'{self.name} cannot be written: {str(e).splitlines()[0]}; {HELP}'
      ) from None
    self._beats = threading.Thread(target=self._beat, daemon=True)
    self._beats.start()

  def check(self) -> None:
    """Raises UserError if another process has taken the lock since."""
    if self._lost:
      raise UserError(
        f'{self.name} was taken by another process while this one was silent; '
        'its checkpoints are kept'
      )

  def release(self) -> None:
    """Lets go, if this has it."""
    self._over.set()
    if self._beats is None:
      return
    self._beats.join()
    self._beats = None
    if not self._lost:
      try:
        self._put(None)
      except ValueError:
        pass  # it is stale in a minute

  def _create(self) -> bool:
    """Writes the object in the place of none, or of one that is stale.

    Raises:
      UserError: another process has it.
    """
    found = self._store.read(FILE).result()
    if found.state == 'value':
      self._watch(found)
    self._generation = found.stamp.generation
    return self._put(self._me)

  def _watch(self, found: Any) -> None:
    """Until the holder must be gone.

    Raises:
      UserError: it is not.
    """
    holder, end = _holder(found.value), time.monotonic() + STALE
    print(
      f'{self.name} was held by {holder}; waiting up to {STALE:.0f} s for a '
      'sign of life',
      flush=True,
    )
    while time.monotonic() < end:
      time.sleep(min(1.0, STALE / 10))
      now = self._store.read(FILE).result()
      if now.state != 'value':
        return  # it let go: the write below fails, and the next one does not
      if now.stamp.generation != found.stamp.generation:
        raise UserError(
          f'{self.name} is in use by {_holder(now.value)}: wait until it has '
          'ended, or use another --workdir'
        )

  def _put(self, value: bytes | None) -> bool:
    """Writes, or removes, if nobody else has written since."""
    stamp = self._store.write(FILE, value, if_equal=self._generation).result()
    if not stamp.generation:  # refused; or done, and the answer got lost
      found = self._store.read(FILE).result()
      if value is None or found.value != value:
        return False
      stamp = found.stamp
    self._generation = stamp.generation
    return True

  def _beat(self) -> None:
    """Gives signs of life."""
    while not self._over.wait(BEAT):
      try:
        self._lost = not self._put(self._me)
      except ValueError:
        continue  # the network: another one may take the lock meanwhile
      if self._lost:
        return


def _holder(value: bytes) -> str:
  """Who wrote the object."""
  try:
    row = json.loads(value)
    return f'process {row["pid"]} on {row["host"]}'
  except (ValueError, KeyError, TypeError):
    return 'another process'
