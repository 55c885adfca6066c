"""Signals become a flag once, and what they always were after that."""

import os
import signal

import pytest

from uae_jax.sharding.hosts import Stop


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_a_flag_and_the_second_is_not_caught(number):
  before = signal.getsignal(number)
  stop = Stop()
  try:
    assert not stop.asked(0)
    os.kill(os.getpid(), number)
    assert stop.asked(1) and stop.number == number
    assert signal.getsignal(number) == before
  finally:
    stop.restore()


def test_ctrl_c_twice_interrupts():
  # A shell that starts tests in the background has them ignore Ctrl-C.
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  try:
    stop = Stop()
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
      os.kill(os.getpid(), signal.SIGINT)
      signal.sigtimedwait([], 1)  # a bytecode boundary for the handler
    assert stop.number == signal.SIGINT
  finally:
    signal.signal(signal.SIGINT, before)
