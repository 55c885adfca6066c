"""A user's own function as a term of the reward: `rewards.mine='module:fn'`.

It gets a `Given` and says one number for every caption. What JAX can trace
runs on the device, inside the step; all else is called on the host from
there, with numpy arrays and texts. See docs/rewards.md.
"""

import dataclasses
import functools
import importlib
import logging
from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from uae_jax.errors import UserError

IMAGES, GROUP, LENGTH = 2, 3, 4  # of what a function is tried on

# (fn, shape of one row, dtype, *arrays [B ...]) -> [B ...]: `fn` on the host
CallRows = Callable[..., Array]


@flax.struct.dataclass
class Given:
  """Some of a step's images, each with its whole group of captions.

  How many there are is not promised: devices ask about their own.

  Attributes:
    source: in [0, 1].
    images: drawn from the captions, in [0, 1].
    tokens: of the captions, padded after EOS.
    mask: True up to and including EOS.
    texts: captions as text, B lists of G; None on the device.
  """

  source: Float[Array, 'B R Q 3']
  images: Float[Array, 'B G R Q 3']
  tokens: Int[Array, 'B G L']
  mask: Bool[Array, 'B G L']
  texts: Sequence[Sequence[str]] | None = None


@dataclasses.dataclass(frozen=True)
class Mine:
  """The function, and how it is called.

  Attributes:
    path: 'module:fn', for messages.
    fn: the function.
    on_host: it cannot be traced.
    decode: caption ids -> text.
    weight: in the reward.
  """

  path: str
  fn: Callable[[Given], Any]
  on_host: bool
  decode: Callable[[np.ndarray], str]
  weight: float = 1.0

  def __call__(self, given: Given, call_rows: CallRows) -> Float[Array, 'B G']:
    """What the function says; not finite where it failed.

    Args:
      given: without texts.
      call_rows: see `sharding.on_host`.

    Raises:
      UserError: the function cannot be traced with these shapes.
    """
    if self.on_host:
      group = given.tokens.shape[1:2]
      rows = given.source, given.images, given.tokens, given.mask
      return call_rows(self.ask, group, jnp.float32, *rows)
    try:
      said = self.fn(given)
    except Exception as e:  # whatever a user's function raises
      raise UserError(f'rewards.mine={self.path}: {line(e)}') from e
    self.check(said, given)
    return said.astype(jnp.float32)

  def ask(self, *rows: np.ndarray) -> Float[np.ndarray, 'B G']:
    """Source, images, tokens and mask -> what the function says, on the host.

    Where it raises, every image is asked about alone, and those that raise
    again are NaN.
    """
    try:
      return self.say(*rows)
    except Exception as e:  # whatever a user's function raises
      if len(rows[0]) > 1:
        alone = range(len(rows[0]))
        return np.concatenate(
          [self.ask(*(x[i : i + 1] for x in rows)) for i in alone]
        )
      warn_once(f'rewards.mine={self.path} failed: {line(e)}')
      return np.full(rows[2].shape[:2], np.nan, np.float32)

  def say(
    self,
    source: np.ndarray,
    images: np.ndarray,
    tokens: np.ndarray,
    mask: np.ndarray,
  ) -> Float[np.ndarray, 'B G']:
    """As `ask`, but raises what the function raises."""
    texts = [
      [self.decode(ids[there]) for ids, there in zip(*group)]
      for group in zip(tokens, mask)
    ]
    given = Given(source, images, tokens, mask, texts)
    said = np.asarray(self.fn(given), np.float32)
    self.check(said, given)
    return said

  def check(self, said: Any, given: Given) -> None:
    """Raises UserError unless there is a number for every caption."""
    b, g = given.tokens.shape[:2]
    shape = said.shape if hasattr(said, 'shape') else None
    if shape != (b, g):
      what = type(said).__name__ if shape is None else f'an array {shape}'
      raise UserError(
        f'rewards.mine={self.path} gives {what}: it must give an array '
        f'({b}, {g}), one number for each of {g} captions of {b} images'
      )


def load(
  path: str, decode: Callable[[np.ndarray], str], side: int, **kw
) -> Mine:
  """The function that a config names, tried on blank images.

  A function with an attribute `on_host` runs where that says; any other one on
  the device if JAX can trace it.

  Args:
    path: 'module:fn'.
    decode: caption ids -> text.
    side: of images, in pixels.
    **kw: of `Mine`.

  Raises:
    UserError: it cannot be imported, raises, or gives another shape.
  """
  fn, given = imported(path), blank(side)
  marked = hasattr(fn, 'on_host')
  mine = Mine(path, fn, on_host=True, decode=decode, **kw)
  if not (marked and fn.on_host):
    try:
      said = jax.eval_shape(fn, given)
    except Exception as e:  # whatever a user's function raises
      if marked:
        raise UserError(f'rewards.mine={path}: {line(e)}') from e
    else:
      mine.check(said, given)
      return dataclasses.replace(mine, on_host=False)
  rows = given.source, given.images, given.tokens, given.mask
  try:
    mine.say(*map(np.asarray, rows))
  except UserError:
    raise
  except Exception as e:  # whatever a user's function raises
    raise UserError(f'rewards.mine={path} on blank images: {line(e)}') from e
  return mine


def blank(side: int) -> Given:
  """Black images with captions that say nothing."""
  shape = IMAGES, GROUP
  return Given(
    jnp.zeros((IMAGES, side, side, 3)),
    jnp.zeros((*shape, side, side, 3)),
    jnp.zeros((*shape, LENGTH), jnp.int32),
    jnp.zeros((*shape, LENGTH), bool),
  )


def imported(path: str) -> Callable[[Given], Any]:
  """'module:fn' -> the function.

  Raises:
    UserError: there is none, or its module does not import.
  """
  module, _, name = path.partition(':')
  if not module or not name:
    raise UserError(f"rewards.mine={path!r} must be 'module:function'")
  try:
    found = importlib.import_module(module)
  except Exception as e:  # whatever a user's module raises
    raise UserError(
      f'rewards.mine={path}: importing {module} failed: {line(e)}'
    ) from e
  if not hasattr(found, name) or not callable(fn := getattr(found, name)):
    raise UserError(f'rewards.mine={path}: {module} has no function {name}')
  return fn


@functools.cache
def warn_once(text: str) -> None:
  """Says it, unless it has been said."""
  logging.warning(text)


def line(e: BaseException) -> str:
  """An exception as one line."""
  lines = str(e).strip().splitlines()
  return f'{type(e).__name__}: {lines[0]}' if lines else type(e).__name__
