"""Several processes, one program: joining them, and leaving together.

On a pod every host runs the same command. `join` finds the others, only the
first writes, and `Watchdog` ends the rest when one is lost, so that a
scheduler can start all of them again.
"""

import os
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from uae_jax.errors import UserError

LOST = 3  # exit code of a process whose peer is gone
SILENCE = 30.0  # seconds without a word after which a peer is gone
MODES = ('auto', 'on', 'off')


def join(
  mode: str = 'auto',
  coordinator: str | None = None,
  processes: int | None = None,
  process: int | None = None,
) -> None:
  """Joins the other processes of this run, where there are any.

  Args:
    mode: 'auto' joins in what Slurm, MPI, GKE or a TPU VM has started, 'on'
      insists, 'off' runs alone.
    coordinator: HOST:PORT of process 0; with it nothing is looked up.
    processes: how many there are.
    process: which one this is.

  Raises:
    UserError: the values do not fit together, or the others did not come.
  """
  if mode not in MODES:
    raise UserError(f'--distributed={mode} is none of {MODES}')
  said = (coordinator, processes, process)
  if any(x is not None for x in said):
    if None in said:
      raise UserError('--coordinator, --processes and --process go together')
    if not 0 <= process < processes:
      raise UserError(f'--process={process} is not in 0..{processes - 1}')
  elif mode == 'off' or mode == 'auto' and not started_as_one_of_many():
    return
  try:
    jax.distributed.initialize(
      coordinator, processes, process, heartbeat_timeout_seconds=30,
      shutdown_timeout_seconds=30,
    )  # fmt: skip
  except (RuntimeError, ValueError) as e:
    reason = str(e).strip().splitlines()[0]
    raise UserError(
      f'the processes of this run did not find each other: {reason}; check '
      '--coordinator, or run alone with --distributed=off'
    ) from None


def started_as_one_of_many() -> bool:
  """Does the environment speak of several processes, or of a TPU VM?"""
  for name in ('SLURM_STEP_NUM_TASKS', 'OMPI_COMM_WORLD_SIZE'):
    if int(os.environ.get(name) or 1) > 1:
      return True
  hosts = os.environ.get('TPU_WORKER_HOSTNAMES', '')
  if ',' in hosts or 'MEGASCALE_COORDINATOR_ADDRESS' in os.environ:
    return True  # GKE, multi-slice
  if 'cpu' in os.environ.get('JAX_PLATFORMS', ''):
    return False
  return any(Path(p).exists() for p in ('/dev/accel0', '/dev/vfio/0'))


def is_first() -> bool:
  """Is this the process that writes?"""
  return jax.process_index() == 0


def wait(name: str) -> None:
  """Until every process is here."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def gather(tree: Any) -> Any:
  """Global arrays -> whole numpy arrays on every host."""
  if jax.process_count() == 1:
    return jax.device_get(tree)
  return multihost_utils.process_allgather(tree, tiled=True)


def agree(value: Any) -> Any:
  """What the first process says."""
  if jax.process_count() == 1:
    return value
  return multihost_utils.broadcast_one_to_all(value)


def everyone(yes: bool) -> bool:
  """Do all processes say yes?"""
  if jax.process_count() == 1:
    return yes
  return bool(np.all(multihost_utils.process_allgather(np.array(yes))))


class Stop:
  """Has somebody asked the run to stop? The same answer on every host.

  Alone: the first SIGINT or SIGTERM raises a flag, the second one kills.
  Among several, JAX's preemption service tells all of them of a SIGTERM to
  one, and which step they will all have reached; SIGINT is passed on as that.
  """

  def __init__(self):
    self.number = 0
    self._several = jax.process_count() > 1
    caught = (signal.SIGINT,) if self._several else (
      signal.SIGINT, signal.SIGTERM,
    )  # fmt: skip
    self._old = {s: signal.signal(s, self._note) for s in caught}

  def _note(self, number, frame):
    del frame
    self.restore()
    if self._several:
      os.kill(os.getpid(), signal.SIGTERM)
    else:
      self.number = number

  def asked(self, step: int) -> bool:
    """To be asked once at every step."""
    if self._several and multihost_utils.reached_preemption_sync_point(step):
      self.number = signal.SIGTERM
    return bool(self.number)

  def restore(self):
    """Puts the previous handlers back."""
    for number, handler in self._old.items():
      signal.signal(number, handler)


class Watchdog:
  """Ends this process, with one line, when another one of the run is gone.

  Every process keeps a connection to the first and says something once a
  second. A closed connection without a goodbye, or `silence` seconds of
  nothing, means that the peer is lost; then this process cannot finish its
  next collective, so it exits with code `LOST`.
  """

  def __init__(self, silence: float = SILENCE):
    """Connects; does nothing in a run of one process."""
    self._silence = silence
    self._over = threading.Event()
    self._sockets: list[socket.socket] = []
    if jax.process_count() == 1:
      return
    if is_first():
      server = socket.create_server(('', 0), backlog=1024)
      where = (*_address(), server.getsockname()[1])
    else:
      where = (0,) * 5
    where = [int(x) for x in agree(np.array(where, np.int32))]
    if is_first():
      self._start(self._accept, server)
    else:
      host = '.'.join(map(str, where[:4]))
      peer = socket.create_connection((host, where[4]), timeout=60)
      peer.sendall(jax.process_index().to_bytes(4, 'big'))
      self._watch(peer, 0)
    wait('watchdog')

  def _start(self, fn, *args) -> None:
    threading.Thread(target=fn, args=args, daemon=True).start()

  def _accept(self, server: socket.socket) -> None:
    for _ in range(jax.process_count() - 1):
      peer, _ = server.accept()
      number = int.from_bytes(peer.recv(4, socket.MSG_WAITALL), 'big')
      self._watch(peer, number)

  def _watch(self, peer: socket.socket, number: int) -> None:
    peer.settimeout(self._silence)
    self._sockets.append(peer)
    self._start(self._speak, peer)
    self._start(self._listen, peer, number)

  def _speak(self, peer: socket.socket) -> None:
    while not self._over.wait(1.0):
      try:
        peer.sendall(b'.')
      except OSError:
        return  # the listener says so

  def _listen(self, peer: socket.socket, number: int) -> None:
    while True:
      try:
        word = peer.recv(1)
      except TimeoutError:
        return self._lost(number, f'silent for {self._silence:.0f} s')
      except OSError as e:
        return self._lost(number, str(e))
      if word == b'!' or self._over.is_set():
        return None  # goodbye
      if not word:
        return self._lost(number, 'its connection closed')

  def _lost(self, number: int, why: str) -> None:
    if not self._over.is_set():
      lost(f'process {number} of {jax.process_count()} is gone ({why})')

  def __enter__(self) -> 'Watchdog':
    return self

  def __exit__(self, kind, error, trace) -> None:
    """Says goodbye, or lets go: then the others end too."""
    self._over.set()
    for peer in self._sockets:
      try:
        if kind is None:
          peer.sendall(b'!')
        else:
          peer.shutdown(socket.SHUT_RDWR)
      except OSError:
        pass  # it has gone already


def lost(what: str) -> None:
  """One line, and an exit that waits for nobody."""
  leave(f'{what}: stopping; run the same command on every host to resume', LOST)


def leave(text: str, code: int) -> None:
  """Says one line and exits at once, with no farewell to the other hosts."""
  print(f'\nuae_jax: {text}', file=sys.stderr, flush=True)
  os._exit(code)


def _address() -> tuple[int, ...]:
  """This host's address, as others reach it."""
  with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    try:
      s.connect(('192.0.2.1', 9))  # sends nothing; picks the way out
      host = s.getsockname()[0]
    except OSError:
      host = '127.0.0.1'
  return tuple(map(int, host.split('.')))
