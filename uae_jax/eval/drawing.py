"""What the text-to-image benchmarks share: prompts, rewrites, files."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Key, UInt8
from PIL import Image

from uae_jax.data.preprocess import read_image
from uae_jax.errors import UserError

# (texts, rng) -> one image each; an `infer.autoencoder.Autoencoder.draw`
Draw = Callable[[Sequence[str], Key[Array, '']], UInt8[np.ndarray, 'n H W 3']]
# prompt -> the text that is drawn in its place
Rewrite = Mapping[str, str] | Callable[[str], str]
SUFFIXES = ('.png', '.jpg', '.jpeg', '.webp')
UNREAD = {'error': 'cannot be read'}  # in the row of an image that cannot


def check_source(draw: Draw | None, images: Path | None) -> None:
  """Images are drawn, or are there.

  Raises:
    UserError: both are given, or neither.
  """
  if (draw is None) == (images is None):
    raise UserError('give either a model that draws or a folder of drawings')
  if images is not None and not images.is_dir():
    raise UserError(f'there is no folder of drawings {images}')


def draw_all(
  draw: Draw, texts: Sequence[str], batch: int, rng: Key[Array, '']
) -> list[UInt8[np.ndarray, 'H W 3']]:
  """One image of every text, at most `batch` at once."""
  out = []
  for i, start in enumerate(range(0, len(texts), batch)):
    out += [*draw(texts[start : start + batch], jax.random.fold_in(rng, i))]
  return out


def save_image(
  file: Path, image: UInt8[np.ndarray, 'H W 3'], **options: Any
) -> None:
  """Writes an image whole or not at all, in the format of the file's name."""
  file.parent.mkdir(parents=True, exist_ok=True)
  part = file.with_name(f'{file.name}.part')
  kind = Image.registered_extensions()[file.suffix]
  Image.fromarray(image).save(part, format=kind, **options)
  os.replace(part, file)


def find(folder: Path, stems: Sequence[str]) -> dict[str, Path]:
  """The image file of each item in a folder that somebody else made.

  Raises:
    UserError: some have none.
  """
  out = {}
  for stem in stems:
    files = (folder / f'{stem}{suffix}' for suffix in SUFFIXES)
    out[stem] = next((file for file in files if file.exists()), None)
  if lacking := [stem for stem, file in out.items() if file is None]:
    raise UserError(
      f'{folder} lacks {len(lacking)} of {len(stems)} images, the first is '
      f'{lacking[0]}.png (or .jpg, .jpeg, .webp)'
    )
  return out


def try_read(file: Path) -> UInt8[np.ndarray, 'H W 3'] | None:
  """The image of a file; None where it cannot be read."""
  try:
    return read_image(str(file))
  except UserError:
    return None


def rewritten(rewrite: Rewrite | None, prompt: str) -> str:
  """What is drawn for a prompt."""
  if rewrite is None:
    return prompt
  return rewrite[prompt] if isinstance(rewrite, Mapping) else rewrite(prompt)


def check_rewrite(rewrite: Rewrite | None, prompts: Sequence[str]) -> None:
  """A table of rewrites has every prompt.

  Raises:
    UserError: it has not.
  """
  if isinstance(rewrite, Mapping):
    lacking = [p for p in prompts if p not in rewrite]
    if lacking:
      raise UserError(
        f'{len(lacking)} prompts have no rewrite, the first is {lacking[0]!r}'
      )


def rewrite_setting(rewrite: Rewrite | None) -> str | None:
  """What settings say of rewrites: a table's digest, or that one is called."""
  if isinstance(rewrite, Mapping):
    return digest(dict(rewrite))
  return None if rewrite is None else 'called'


def read_rewrites(file: str | Path) -> dict[str, str]:
  """Prompt -> rewritten prompt.

  Args:
    file: a JSON object from prompt to rewrite; or a JSON list, or lines of
      JSON (`.jsonl`), of objects with `prompt` and `rewritten`.

  Raises:
    UserError: it is none of these.
  """
  file = Path(file)
  expected = 'objects with "prompt" and "rewritten", or one from one to other'
  try:
    text = file.read_text('utf-8')
    if file.suffix == '.jsonl':
      rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    else:
      rows = json.loads(text)
    if not isinstance(rows, Mapping):
      rows = {row['prompt']: row['rewritten'] for row in rows}
    bad = [k for k, v in rows.items() if not isinstance(v, str) or not v]
  except OSError as e:
    raise UserError(f'rewrites {file} cannot be read: {e}') from None
  except (ValueError, KeyError, TypeError):
    raise UserError(f'{file} holds no rewrites: {expected}') from None
  if bad:
    raise UserError(f'{file} has no text to draw for {bad[0]!r}')
  return dict(rows)


def read_lines(file: Path, count: int, source: str) -> list[dict[str, Any]]:
  """The JSON objects of a benchmark's file, one a line.

  Args:
    file: where it should be.
    count: lines that it has.
    source: where it comes from, for messages.

  Raises:
    UserError: it is missing, malformed, or has another length.
  """
  try:
    text = file.read_text('utf-8')
  except (OSError, UnicodeDecodeError):
    raise UserError(f'{file} cannot be read: put {source} there') from None
  rows = []
  for n, line in enumerate(text.splitlines(), 1):
    try:
      rows += [json.loads(line)] if line.strip() else []
    except ValueError:
      raise UserError(f'{file} line {n} is not JSON: take {source}') from None
  if len(rows) != count:
    raise UserError(f'{file} has {len(rows)} of {count} lines: take {source}')
  return rows


def digest(data: Any) -> str:
  """Twelve hex digits that tell JSON data apart."""
  text = json.dumps(data, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:12]
