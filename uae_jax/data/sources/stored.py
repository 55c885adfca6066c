"""What all stored sources share: decoding, captions, what is left out."""

import io
import math

from uae_jax.data import preprocess
from uae_jax.data.preprocess import BadItem, Example
from uae_jax.data.sources.bad import BadItems
from uae_jax.errors import UserError

# Names of files, columns and features, the first that is there counts.
EXTENSIONS = ('.jpg', '.jpeg', '.png', '.webp', '.gif', '.bmp')
IMAGES = ('image', 'img', 'jpg', 'jpeg', 'png', 'webp')
CAPTIONS = ('caption', 'text')


class StoredSource:
  """Images by index, each with its caption where it has one.

  A kind of storage says how many there are (`__len__`), what an item is
  called (`name`) and what its bytes are (`fetch`).

  Attributes:
    where: the files or the folder, as the user has named them.
    bad: what cannot be used; known to other sources too.
    captions: an item without a caption cannot be used.
  """

  def __init__(
    self, where: str, bad: BadItems | None = None, captions: bool = False
  ):
    self.where, self.captions = where, captions
    self.bad = BadItems() if bad is None else bad

  def __repr__(self) -> str:
    return f'{type(self).__name__}({self.where!r})'

  def __len__(self) -> int:
    raise NotImplementedError

  def name(self, index: int) -> str:
    """The item's name, with the file or folder that it is in."""
    raise NotImplementedError

  def fetch(self, index: int) -> tuple[bytes, str | None]:
    """The image's file, and the caption.

    Raises:
      BadItem: it cannot be used.
      OSError: it cannot be read.
    """
    raise NotImplementedError

  def read(self, index: int) -> Example | None:
    """`image` uint8 [H, W, 3] and `caption`; None if it cannot be used.

    Raises:
      UserError: too many cannot.
    """
    name = self.name(index)
    if name in self.bad:
      return None
    try:
      record = self._decode(name, *self.fetch(index))
    except BadItem as e:
      return self.bad.add(name, e.reason, str(e))
    except OSError as e:
      return self.bad.add(name, 'unreadable', f'{name} cannot be read: {e}')
    self.bad.good()
    return record

  def size(self, index: int) -> tuple[int, int]:
    """(height, width) as its file says, (1, 1) if it does not."""
    try:
      return preprocess.image_size(io.BytesIO(self.fetch(index)[0]))
    except (BadItem, OSError):
      return 1, 1

  def _decode(self, name: str, data: bytes, caption: str | None) -> Example:
    caption = caption.strip() if caption else ''
    if self.captions and not caption:
      raise BadItem('no_caption', f'{name} has no caption')
    if not data:
      raise BadItem('empty', f'{name} is empty')
    record = dict(image=preprocess.read_image(io.BytesIO(data), name))
    return record | dict(caption=caption) if caption else record

  def __getitem__(self, index: int) -> Example:
    """The item, or the one that always stands in for it if it is bad.

    Stand-ins lie far apart, so that no single one takes the places of a
    whole shard that is broken.

    Raises:
      UserError: no item can be used, or too many cannot.
    """
    n = len(self)
    stride = max(1, round(n * 0.618))
    while math.gcd(stride, n) > 1:
      stride += 1
    for i in range(n):
      record = self.read((index + i * stride) % n)
      if record is not None:
        return record
    counts = ', '.join(f'{k} {x}' for k, x in self.bad.counts.items())
    raise UserError(f'none of {n} items in {self.where} can be used ({counts})')
