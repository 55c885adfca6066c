"""A captioner asked about one or several images: text, and odds of options.

Questions are written as `infer.chat` has it. Letters and options are scored
as what would follow the assistant's opening. Prefill, sampling and scoring are
those of `umm.base`.

Lengths: the patches and the tokens of a batch are filled up to one of 64, 96,
128, 192, 256, … (the powers of two, and halfway between them), the tokens of
options and their number to one of 4, 6, 8, 12, …, a Janus model's images to
one of 1, 2, 3, 4, 6, …. Each meeting of such sizes is compiled once.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Key

from uae_jax import zoo
from uae_jax.ckpt import hf
from uae_jax.data import tokenize
from uae_jax.data.janus import JanusView
from uae_jax.data.preprocess import Example, pad_to
from uae_jax.data.tokenize import Tokenizer
from uae_jax.errors import UserError
from uae_jax.eval.choice import Answer, Question
from uae_jax.infer import options as options_lib
from uae_jax.infer.autoencoder import Describer
from uae_jax.infer.chat import Chat, JanusEyes, QwenEyes, roomy
from uae_jax.infer.janus import KINDS
from uae_jax.infer.load import load, policy_view
from uae_jax.infer.options import Options
from uae_jax.rollout.sampler import Sampler
from uae_jax.sharding.mesh import put_batch
from uae_jax.types import Batch, Captions
from uae_jax.umm.base import Params

LETTERS = 26  # that one program scores
BLANK = np.zeros((28, 28, 3), np.uint8)
CHUNK = 4  # option tokens whose logits exist at once


@dataclasses.dataclass(frozen=True)
class Asker:
  """Questions -> answers.

  Attributes:
    kind: `model_type` of the captioner.
    options: how it is asked; `options.prompt` is the usual caption prompt,
      `options.length` the budget of an answer.
    describer: the captioner; its batch is that of questions.
    chat: how a question is written.
    eyes: how its images are seen.
    tok: the tokenizer.
  """

  kind: str
  options: Options
  describer: Describer
  chat: Chat
  eyes: QwenEyes | JanusEyes
  tok: Tokenizer

  def __post_init__(self):
    umm = self.describer.umm
    scorer = dataclasses.replace(umm, sampler=Sampler(), chunk=CHUNK)

    def answer(policy, batch, letters, rng):
      prefix = umm.prefill(policy, self._seen(policy, batch))
      logits = umm.vlm.apply({'params': policy}, prefix.hidden, method='logits')
      logp = jnp.take_along_axis(jax.nn.log_softmax(logits), letters, -1)
      out = umm.describe(policy, prefix, rng, 1)
      return out.tokens[:, 0], out.mask[:, 0], logp

    def score(policy, batch, tokens, mask):
      captions = Captions(tokens, mask, jnp.zeros(tokens.shape))
      batch = self._seen(policy, batch)
      return scorer.score(policy, batch, captions)[0].sum(-1)

    object.__setattr__(self, '_answer', jax.jit(answer))
    object.__setattr__(self, '_score', jax.jit(score))

  def ask(self, items: Sequence[Question], rng: Key[Array, '']) -> list[Answer]:
    """Texts, and log-probabilities of the letters in `options`.

    Raises:
      UserError: a question that cannot be written, or letters that the
        tokenizer does not tell apart.
    """
    out = []
    for n, part in enumerate(self._batches(items)):
      ids = [self._letters(item.options) for item in part]
      letters = _grid(ids, LETTERS, 0)[0]
      tokens, mask, logp = self._run(
        self._answer, part, letters, jax.random.fold_in(rng, n)
      )
      for i, item in enumerate(part):
        odds = dict(zip(item.options, logp[i].tolist()))
        out.append(Answer(self.describer.decode(tokens[i][mask[i]]), odds))
    return out

  def likelihood(self, items: Sequence[Question]) -> list[np.ndarray]:
    """Log-probability of each whole text in `options` as the answer.

    The end of the answer is no part of it.

    Raises:
      UserError: a question that cannot be written, or an empty option.
    """
    out = []
    for part in self._batches(items):
      texts = [
        [self.chat.continuation(self.tok, x) for x in item.options]
        for item in part
      ]
      if not all(ids for row in texts for ids in row):
        raise UserError('an option is empty: give it words')
      length = roomy(max((len(x) for row in texts for x in row), default=1), 4)
      width = roomy(max(map(len, texts)), 4)
      grids = [
        _grid([*row, *[()] * (width - len(row))], length, self.tok.pad)
        for row in texts
      ]
      tokens, mask = map(np.stack, zip(*grids))
      logp = self._run(self._score, part, tokens, mask)
      out += [logp[i, : len(row)] for i, row in enumerate(texts)]
    return out

  def example(self, item: Question) -> Example:
    """A question as arrays of `types.Batch`, unpadded."""
    prompt, places = self.chat.write(item.text, len(item.images))
    # Where there is none, the tower sees something that nothing reads.
    row, counts = self.eyes([item.images[i] for i in places] or [BLANK])
    pad, left, ids = self.tok.id(self.chat.pad), iter(counts), []
    for i in self.tok.encode(prompt):
      ids += [pad] * next(left) if i == pad else [i]
    ids = np.array(ids, np.int32)
    return dict(
      **row,
      prefix_ids=ids,
      prefix_positions=self.eyes.positions(ids, row, pad),
      prefix_mask=np.ones(len(ids), bool),
    )

  def _letters(self, options):
    if len(options) > LETTERS:
      raise UserError(f'{len(options)} options: at most {LETTERS} have letters')
    return self.chat.letters(self.tok, options)

  def _batches(self, items):
    size = self.describer.batch
    return [items[i : i + size] for i in range(0, len(items), size)]

  def _run(self, program, items, *args):
    """What a program makes of at most a batch; arrays in `args` are rows."""
    rows = [self.example(item) for item in items]
    longest = lambda key: max(len(row[key]) for row in rows)
    patches = self.eyes.room(longest('patches'))
    tokens = roomy(longest('prefix_ids'), 64)
    rows = [pad_to(row, patches, tokens, self.tok.pad) for row in rows]
    stacked = {key: self._stack([r[key] for r in rows]) for key in rows[0]}
    mesh = self.describer.mesh
    with jax.set_mesh(mesh):
      batch = Batch(image=None, **put_batch(stacked, mesh))
      args = [
        put_batch(self._stack(x), mesh) if isinstance(x, np.ndarray) else x
        for x in args
      ]
      return jax.device_get(program(self.describer.policy, batch, *args))

  def _stack(self, rows):
    """The last row stands for those that a batch lacks."""
    missing = self.describer.batch - len(rows)
    return np.stack([*rows, *[rows[-1]] * missing])

  def _seen(self, policy: Params, batch: Batch) -> Batch:
    """With the image tokens of towers that take one image at a time."""
    if not self.eyes.piece:
      return batch
    b, p, e = batch.patches.shape
    each = batch.patches.reshape(-1, self.eyes.piece, e)
    seen = self.describer.umm.see(policy, batch.replace(patches=each))
    tokens = seen.image_tokens.reshape(b, p, -1)
    return batch.replace(image_tokens=tokens)


def load_asker(name: str, mesh: Mesh, said: Mapping[str, Any]) -> Asker:
  """Loads the captioner of a folder.

  Args:
    name: folder, `bundled:NAME` or ORG/REPOSITORY.
    mesh: where weights and batches go.
    said: options that the caller sets; see `options.Options`.

  Raises:
    UserError: it holds no captioner, or cannot be read.
  """
  model = load(name, mesh, said, draws=False)
  if model.describer is None:
    raise UserError(f'{name} holds no captioner: nothing answers a question')
  folder = _policy_folder(zoo.resolve(name))
  kind, system = hf.kind(folder), model.options.system
  if kind in KINDS:
    config = hf.read_config(folder, 'preprocessor_config.json')
    patch = model.describer.umm.vlm.vision['patch']
    view = JanusView.from_config(config, patch)
    chat, eyes = Chat.janus(system), JanusEyes(view)
  else:
    vlm, bound = model.describer.umm.vlm, model.options.max_pixels
    chat, eyes = Chat.qwen(system), QwenEyes(policy_view(folder, vlm, bound))
  tok = tokenize.load_tokenizer(folder)
  return Asker(kind, model.options, model.describer, chat, eyes, tok)


def _policy_folder(folder: Path) -> Path:
  """Where the captioner's own files are, as `load.load` finds them."""
  if (folder / 'policy').is_dir() or (folder / options_lib.FILE).exists():
    return zoo.resolve(options_lib.place(folder, 'policy'))
  return folder


def _grid(
  rows: Sequence[Sequence[int]], length: int, fill: int
) -> tuple[np.ndarray, np.ndarray]:
  """Right padded ids [N L] and their mask."""
  ids = np.full((len(rows), length), fill, np.int32)
  mask = np.zeros((len(rows), length), bool)
  for i, row in enumerate(rows):
    ids[i, : len(row)], mask[i, : len(row)] = row, True
  return ids, mask
