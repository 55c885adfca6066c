"""Sources of images and the grain loaders that batch them.

Training reads forever, shuffled, and its iterator is checkpointable;
evaluation reads the first n in order, once.
"""

import dataclasses
import zlib
from collections.abc import Callable, Iterator, Sequence

import grain
import numpy as np

from uae_jax.data import buckets, preprocess, tokenize
from uae_jax.data.preprocess import Example
from uae_jax.data.scenes import draw, glyphs, grammar
from uae_jax.data.scenes.prompts import prompts
from uae_jax.data.sources import files, mixture, uris
from uae_jax.data.sources.bad import BadItems
from uae_jax.data.sources.images import ImageSource as ImageSource
from uae_jax.data.sources.mixture import Mixture
from uae_jax.data.sources.stored import StoredSource
from uae_jax.errors import UserError

SPLITS = ('train', 'validation', 'edits', 'heldout', 'crowded')
KEPT = ('validation', 'heldout')  # from training
# Of scenes with a string: one more object would not fit into a caption.
MAX_BESIDE_TEXT = 3
TRUTH = ('truth', 'glyphs')  # of a batch: read by the host alone
# Records of a run. A batch of one of grain's own endless repeats has no len().
ENDLESS = 2**48


def split_of(scene: np.ndarray) -> str:
  """The split that owns a scene, or the letters of a string, by its hash.

  A sixteenth of all each is kept for `validation` (settings are chosen
  there) and `heldout` (results are reported there); training sees the rest.
  """
  kept = {0: 'validation', 8: 'heldout'}
  return kept.get(zlib.crc32(scene.astype(np.uint8).tobytes()) % 16, 'train')


@dataclasses.dataclass(frozen=True)
class SceneSource:
  """Drawn scenes by index; `train`, `validation`, `heldout` share none.

  `edits` are training scenes, each followed by itself with one attribute or
  object changed: what a contrastive tower has to tell apart. `crowded` is the
  fuller of two training scenes at every index.

  With `text` every scene has a string, see `scenes.glyphs`. Letters are split
  as scenes are: what `validation` and `heldout` spell is never trained on.
  """

  split: str
  seed: int = 0
  side: int = 32
  max_objects: int = 4
  jitter: int = 0
  length: int = 2**20
  text: bool = False

  def __len__(self) -> int:
    return self.length

  def __getitem__(self, index: int) -> Example:
    """`image` uint8 [side, side, 3], `truth` [n, 5]; of a string, `glyphs`."""
    edits = self.split == 'edits'
    which = int(index) // 2 if edits else int(index)
    key = (self.seed, SPLITS.index(self.split), which)
    rng = np.random.default_rng(np.random.SeedSequence(key))
    scene = self._sample(rng)
    if self.split == 'crowded':
      scene = max(scene, self._sample(rng), key=len)
    if edits and index % 2:
      original = scene
      scene = draw.edit(original, rng, self.max_objects)
      while split_of(scene) != 'train':
        scene = draw.edit(original, rng, self.max_objects)
    image = draw.render(scene, self.side, self.jitter, rng)
    if not self.text:
      return dict(image=image, truth=scene)
    string = self._string(rng, scene)
    image = glyphs.render(image, string)
    return dict(image=image, truth=scene, glyphs=string)

  @property
  def _owner(self) -> str:
    return self.split if self.split in KEPT else 'train'

  def _sample(self, rng: np.random.Generator) -> np.ndarray:
    """A scene that this split owns."""
    scene = draw.sample_scene(rng, self.max_objects)
    while split_of(scene) != self._owner:
      scene = draw.sample_scene(rng, self.max_objects)
    return scene

  def _string(self, rng: np.random.Generator, scene: np.ndarray) -> np.ndarray:
    """A string beside the scene, of letters that this split owns."""
    string = glyphs.sample(rng, scene)
    while split_of(string[2:]) != self._owner:
      string = glyphs.sample(rng, scene)
    return string

  def size(self, index: int) -> tuple[int, int]:
    """(height, width) of every image."""
    del index
    return self.side, self.side

  def read(self, index: int) -> Example | None:
    """The record; never None, as drawn scenes are never corrupt."""
    return self[index]


Source = SceneSource | StoredSource | Mixture


def make_source(
  uri: str,
  *,
  seed: int = 0,
  side: int = 32,
  max_objects: int = 4,
  jitter: int = 0,
  cache: str = files.CACHE,
  bad: BadItems | None = None,
  captions: bool = False,
) -> Source:
  """The source that a URI names: drawn, stored, or a mixture of sources.

  Args:
    uri: `scenes:SPLIT`, `glyphs:SPLIT` (scenes with a string in each), one
      of `sources.uris`, or `mix:WEIGHT*URI,WEIGHT*URI`.
    seed: of the drawn scenes, as all that follows.
    side: in pixels.
    max_objects: per scene, at most 9; beside a string at most
      `MAX_BESIDE_TEXT`.
    jitter: see `draw.render`.
    cache: of stored sources, as all that follows; see `uris.stored`.
    bad: where items go that cannot be used.
    captions: an item without a caption cannot be used.

  Raises:
    UserError: no such source.
  """
  kind, _, name = uri.partition(':')
  bad = BadItems() if bad is None else bad
  if kind == 'mix':
    weights, parts = zip(*mixture.parse(name), strict=True)
    options = dict(
      seed=seed, side=side, max_objects=max_objects, jitter=jitter,
      cache=cache, bad=bad, captions=captions,
    )  # fmt: skip
    return Mixture([make_source(part, **options) for part in parts], weights)
  if kind in uris.STORED:
    return uris.stored(kind, name, cache=cache, bad=bad, captions=captions)
  if kind == 'scenes' and name in SPLITS:
    return SceneSource(name, seed, side, max_objects, jitter)
  if kind == 'glyphs' and name in SPLITS and name != 'edits':
    few = min(max_objects, MAX_BESIDE_TEXT)
    return SceneSource(name, seed, side, few, jitter, text=True)
  raise UserError(
    f'no data source {uri!r}; use scenes:train, scenes:heldout, scenes:edits, '
    f'glyphs:train, glyphs:heldout, {", ".join(uris.STORED)}: or mix:'
  )


@dataclasses.dataclass(frozen=True)
class MakeExample:
  """Turns a record into one row of a batch."""

  read: Callable[[np.ndarray], Example]  # an image as the policy reads it
  image_side: int
  max_objects: int = 4  # rows of `truth`
  caption_length: int | None = None  # None: no reference captions
  tokenizer: tokenize.Tokenizer | None = None  # for captions
  detail: grammar.Detail | None = None  # of a second, partial caption
  prompts: bool = False  # text-to-image prompts of the scene, too
  keep_truth: bool = True  # off where only some records have any

  def __call__(self, record: Example, rng: np.random.Generator) -> Example:
    """The arrays of `types.Batch` for one image, and `TRUTH` that is known.

    Raises:
      UserError: captions are asked of images that have none.
    """
    image = record['image']
    example = self.read(image)
    shape = record.get('bucket', (self.image_side, self.image_side))
    fitted = preprocess.fitted_view(image, *shape)
    example['image'] = fitted.astype(np.float32) / 255
    if self.keep_truth and 'truth' in record:
      truth = np.full((self.max_objects, 5), -1, np.int32)
      truth[: len(record['truth'])] = record['truth']
      example['truth'] = truth
    string = record['glyphs'] if 'glyphs' in record else None
    if self.keep_truth and string is not None:
      example['glyphs'] = string.astype(np.int32)
    if self.caption_length is not None:
      if 'truth' not in record and 'caption' not in record:
        raise UserError('an image has no reference caption; use scenes:train')
      captions = {'full': grammar.FULL}
      if self.detail is not None:
        captions['caption'] = self.detail
      for key, detail in captions.items():
        if 'truth' in record:
          text = grammar.describe(record['truth'], rng, detail, string)
        else:  # the one there is, for full and partial alike
          text = record['caption']
        ids, mask = self._encode(text)
        example |= {f'{key}_ids': ids, f'{key}_mask': mask}
      if self.prompts:
        rows = [self._encode(text) for text in prompts(record['truth'])]
        ids, mask = map(np.stack, zip(*rows, strict=True))
        example |= dict(prompt_ids=ids, prompt_mask=mask)
    return example

  def _encode(self, text: str) -> tuple[np.ndarray, np.ndarray]:
    return tokenize.encode_caption(self.tokenizer, text, self.caption_length)


@dataclasses.dataclass(frozen=True)
class PairExample:
  """A scene's image and full caption, for towers that compare the two."""

  tokenizer: tokenize.Tokenizer
  caption_length: int

  def __call__(self, record: Example, rng: np.random.Generator) -> Example:
    """`image` float [side, side, 3] in [0, 1], `full_ids`, `full_mask`.

    Raises:
      UserError: the image is not drawn.
    """
    del rng
    if 'truth' not in record:
      raise UserError('towers learn from drawn scenes; use scenes:edits')
    string = record['glyphs'] if 'glyphs' in record else None
    text = grammar.describe(record['truth'], string=string)
    ids, mask = tokenize.encode_caption(
      self.tokenizer, text, self.caption_length
    )
    image = record['image'].astype(np.float32) / 255
    return dict(image=image, full_ids=ids, full_mask=mask)


@dataclasses.dataclass(frozen=True)
class Share:
  """One process's rows of each batch.

  Attributes:
    rows: of all processes, in order.
    batch: rows of a batch of all processes.
    mine: places in the batch that are this process's.
  """

  rows: grain.MapDataset
  batch: int
  mine: tuple[int, ...]

  def __len__(self) -> int:
    return len(self.rows) // self.batch * len(self.mine)

  def __getitem__(self, i: int) -> Example:
    batch, row = divmod(int(i), len(self.mine))
    return self.rows[batch * self.batch + self.mine[row]]


def make_loader(
  source: Source,
  example: MakeExample | PairExample,
  *,
  batch: int,
  seed: int,
  mine: Sequence[int] | None = None,
  threads: int = 2,
  shuffle: bool = True,
  shapes: Sequence[tuple[int, int]] = (),
) -> grain.DatasetIterator:
  """Endless shuffled batches; every process reads its share of each.

  The shares of all processes are the batch that one process alone would
  read, so a place in the order means the same to any number.

  Epochs follow each other without a gap, each in its own order, so a source
  may be smaller than a batch. A record's randomness (noisy captions) depends
  on its place in the order alone.

  Args:
    source: the records.
    example: turns a record into a row.
    batch: rows of all processes together.
    seed: of order and captions.
    mine: which rows of a batch are read here; all if not told.
    threads: that prepare batches ahead, each one of its own.
    shuffle: off keeps the source's order.
    shapes: (height, width) that images are fitted to, batch by batch, see
      `buckets`; none: all are squares.

  Returns:
    An iterator whose place is read and set by `get_state`, `set_state`.
  """
  order = lambda source: mixture.ordered(source, seed, shuffle, ENDLESS)
  rows = order(source)
  if shapes:
    like = buckets.Bucketed(
      rows, order(buckets.sizes(source)), shapes, batch=batch, seed=seed
    )
    rows = grain.MapDataset.source(like).seed(seed)
  rows = rows.random_map(example)
  if mine is not None and len(mine) < batch:
    rows = grain.MapDataset.source(Share(rows, batch, tuple(mine)))
    batch = len(mine)
  batches = rows.batch(batch)
  options = grain.ReadOptions(
    num_threads=threads, prefetch_buffer_size=max(4, threads)
  )
  return iter(batches.to_iter_dataset(options))


def take(
  source: Source,
  example: MakeExample | PairExample,
  *,
  n: int,
  batch: int,
  seed: int = 0,
) -> Iterator[tuple[Example, np.ndarray]]:
  """The first n records in order, once, in batches of one size.

  Rows that fill the last batch, or stand for a corrupt file, are marked and
  must not be counted.

  Yields:
    A batch, and bool [batch]: which rows are real.
  """
  n = min(n, len(source))
  for start in range(0, n, batch):
    rows, real = [], []
    for i in range(start, start + batch):
      record = source.read(i) if i < n else None
      real.append(record is not None)
      rng = np.random.default_rng((seed, i))
      rows.append(example(source[i % n] if record is None else record, rng))
    stacked = {key: np.stack([row[key] for row in rows]) for key in rows[0]}
    yield stacked, np.array(real)
