"""The TSV files of multiple-choice benchmarks, as VLMEvalKit writes them.

Columns: `index`, `question`, `answer`, options `A`, `B`, … and `image`, base64
of one file, a list of such, or the index of the row that has it; or
`image_path`, below the file's own folder. `hint`, `category`, `l2-category`
and `split` may be there. Images stay encoded until they are asked for.
"""

import ast
import base64
import csv
import dataclasses
import hashlib
import io
import json
import re
import string
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from uae_jax.data.preprocess import read_image
from uae_jax.errors import UserError

LETTERS = tuple(string.ascii_uppercase)
STEP = 10**6  # between the indices of a question's rotations
POINTER = 64  # characters; what is longer is an image
FIELD = 2**31 - 1  # bytes of the largest field


@dataclasses.dataclass(frozen=True)
class Row:
  """One question.

  Attributes:
    name: its index.
    question: its text.
    options: by letter; none where the answer is open.
    answer: letter of the right option, or what an open question asks for.
    hint: before the question; '' is none.
    category: the finest one; '' is none.
    group: the one above it.
    split: '' is none.
    image: field of this row, or of the one it points to.
    paths: field `image_path`.
  """

  name: str
  question: str
  options: Mapping[str, str]
  answer: str
  hint: str = ''
  category: str = ''
  group: str = ''
  split: str = ''
  image: str = ''
  paths: str = ''


def read_rows(file: Path) -> list[Row]:
  """All rows of a file, in its order.

  Raises:
    UserError: it is no such table: columns are missing, a line has fewer or
      more fields than the head, an index stands twice, or no answer is there.
  """
  csv.field_size_limit(FIELD)
  try:
    with file.open(encoding='utf-8-sig', newline='') as f:
      lines = csv.reader(f, delimiter='\t', strict=True)
      head = [_column(name) for name in next(lines, [])]
      _check_head(file, head)
      table = []
      for fields in lines:
        if len(fields) != len(head):
          raise UserError(
            f'{file}: line {lines.line_num} has {len(fields)} fields, the '
            f'first {len(head)}: is the file whole?'
          )
        table.append(dict(zip(head, fields)))
  except OSError as e:
    raise UserError(f'{file} cannot be read: {e.strerror}') from None
  except (UnicodeDecodeError, csv.Error) as e:
    raise UserError(f'{file} is no TSV file in UTF-8: {e}') from None
  images = {}
  for row in table:
    if row['index'] in images:
      raise UserError(f'{file}: index {row["index"]} stands there twice')
    images[row['index']] = row.get('image', '')
  if not any(row['answer'] for row in table):
    raise UserError(f'{file} has no answers: use a split that has them')
  return [_row(row, images) for row in table]


def digest(file: Path) -> str:
  """MD5 of a file, by which VLMEvalKit knows its own."""
  with file.open('rb') as f:
    return hashlib.file_digest(f, 'md5').hexdigest()


def read_images(row: Row, folder: Path) -> list[np.ndarray]:
  """The images of a row, uint8 [H W 3] each.

  Args:
    row: of a file.
    folder: the file's.

  Raises:
    UserError: it has none, or one that is no image.
  """
  try:
    if row.image:
      sources = [io.BytesIO(_decoded(x)) for x in listed(row.image)]
    else:
      sources = [folder / path for path in listed(row.paths)]
  except ValueError:
    raise UserError(f'{row.name}: the image is not base64') from None
  if not sources:
    raise UserError(f'{row.name}: no image')
  try:
    return [read_image(source) for source in sources]
  except UserError as e:
    what = 'its image is none' if row.image else str(e)
    raise UserError(f'{row.name}: {what}') from None


def listed(field: str) -> list[str]:
  """A list in JSON's or Python's writing, or the one thing that it is."""
  field = field.strip()
  if not (field.startswith('[') and field.endswith(']')):
    return [field] if field else []
  for read in (json.loads, ast.literal_eval):
    try:
      return [str(x) for x in read(field)]
    except (
      ValueError, SyntaxError, TypeError, RecursionError, MemoryError
    ):  # fmt: skip
      continue
  return [field]


def rotated(rows: Sequence[Row], file: Path) -> list[Row]:
  """The rows and their rotations, which the file may have or not.

  The k-th rotation of question i is i + k * 10^6, and has every option k
  letters further. A last option that speaks of the others stays last.

  Raises:
    UserError: an index is no number, or a rotation has no question.
  """
  if not all(row.name.isdecimal() for row in rows):
    raise UserError(f'{file}: an index is no number, which rotations need')
  names = {int(row.name) for row in rows}
  lonely = sorted(n for n in names if n % STEP not in names)
  if lonely:
    raise UserError(f'{file}: {lonely[0]} is a rotation of no question')
  if max(names) >= STEP:
    return list(rows)
  return [
    _rotation(row, k) for row in rows for k in range(len(_moving(row)) or 1)
  ]


def _column(name: str) -> str:
  """Options are letters; all other columns are in lower case."""
  return name if name in LETTERS else name.strip().lower()


def _check_head(file: Path, head: Sequence[str]) -> None:
  lacking = [x for x in ('index', 'question', 'answer') if x not in head]
  if 'image' not in head and 'image_path' not in head:
    lacking.append('image')
  if lacking:
    raise UserError(f'{file} has no column {lacking[0]!r}')
  twice = [x for x in head if head.count(x) > 1]
  if twice:
    raise UserError(f'{file} has two columns {twice[0]!r}')


def _row(fields: Mapping[str, str], images: Mapping[str, str]) -> Row:
  image = fields.get('image', '')
  if 0 < len(image) <= POINTER:  # a row that is not there has no image
    image = images.get(image, '')
  return Row(
    name=fields['index'],
    question=fields['question'],
    options={x: fields[x] for x in LETTERS if fields.get(x)},
    answer=fields['answer'].strip(),
    hint=fields.get('hint', ''),
    category=fields.get('category', ''),
    group=fields.get('l2-category', ''),
    split=fields.get('split', ''),
    image=image,
    paths=fields.get('image_path', ''),
  )


def _decoded(text: str) -> bytes:
  """Bytes of base64, which may be a data URI and broken into lines."""
  text = re.sub(r'\s', '', text.rpartition(',')[2])
  return base64.b64decode(text, validate=True)


def _moving(row: Row) -> list[str]:
  """Letters of the options that change places."""
  letters = list(row.options)
  while len(letters) > 2:
    words = row.options[letters[-1]].replace(',', ' ').split()
    others = set(letters[:-1]) <= set(words)
    if not others and not {'all', 'none'} & {w.lower() for w in words}:
      break
    letters.pop()
  return letters


def _rotation(row: Row, k: int) -> Row:
  letters = _moving(row)
  to = {x: letters[(i + k) % len(letters)] for i, x in enumerate(letters)}
  moved = {to.get(x, x): option for x, option in row.options.items()}
  return dataclasses.replace(
    row,
    name=str(int(row.name) + k * STEP),
    options=dict(sorted(moved.items())),
    answer=to.get(row.answer, row.answer),
  )
