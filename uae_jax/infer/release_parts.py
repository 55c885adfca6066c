"""Parts of a release: where their tensors and files are.

Only headers and configuration are read, but for what a text encoder says of
the empty prompt.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from uae_jax import trees, zoo
from uae_jax.ckpt import convert, hf, maps_qwen, maps_vit, peft
from uae_jax.ckpt.export import Tensor
from uae_jax.ckpt.safetensors_io import Entry
from uae_jax.data.prompts import CLIP_LENGTH, PromptTokenizer
from uae_jax.errors import UserError
from uae_jax.models.clip import TextTower
from uae_jax.models.flux import Flux
from uae_jax.models.siglip import SigLIP

_POLICY_FILES = (
  'tokenizer.json', 'tokenizer_config.json', 'preprocessor_config.json',
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Part:
  """A model inside the files of a release.

  Attributes:
    model: the model.
    name: its hub names -> those in the release.
    made: paths of parameters that the release does not store.
  """

  model: zoo.Model
  name: Callable[[str], str] = lambda name: name
  made: Sequence[str] = ()

  def rows(self) -> list[hf.Row]:
    """Rows of what the release stores."""
    return [row for row in self.model.table if row.path not in self.made]


@dataclasses.dataclass(frozen=True)
class Text:
  """A CLIP text encoder, its folder and its tokenizer."""

  model: zoo.Model
  folder: Path
  tokenizer: PromptTokenizer

  @property
  def width(self) -> int:
    """Of its pooled vector."""
    return self.model.module.projection or self.model.module.width

  def empty(self) -> Float[np.ndarray, 'F']:
    """What it says of the empty prompt, fp32."""
    ids = self.tokenizer([''], CLIP_LENGTH)
    params = self.model.load(self.folder)
    with jax.default_matmul_precision('highest'):
      out = jax.jit(self.model.module.apply)({'params': params}, ids)
    return np.asarray(out.embed[0])


def every(*makes: Callable[[], Any]) -> list[Any]:
  """What each makes.

  Raises:
    UserError: listing the complaints of all of them.
  """
  out, problems = [], []
  for make in makes:
    try:
      out.append(make())
    except UserError as e:
      problems.append(str(e))
  if problems:
    raise UserError('; '.join(dict.fromkeys(problems)))
  return out


def table(parts: Mapping[str, Part]) -> tuple[list[hf.Row], dict[str, Any]]:
  """Rows and shapes of all parts together, paths under their names."""
  rows, shapes = [], {}
  for name, part in parts.items():
    flat = trees.flatten(part.model.shapes())
    shapes |= {
      f'{name}/{path}': x for path, x in flat.items() if path not in part.made
    }
    rows += [
      dataclasses.replace(
        row, path=f'{name}/{row.path}', hub=part.name(row.hub)
      )
      for row in part.rows()
    ]
  return rows, trees.unflatten(shapes)


def locate(
  folder: Path,
  parts: Mapping[str, Part],
  *,
  ignore: Sequence[str] = (),
  over: Sequence[Path] = (),
) -> dict[str, dict[str, Entry]]:
  """Where every tensor is, by part and by its model's hub name.

  Raises:
    UserError: listing everything that does not fit.
  """
  rows, shapes = table(parts)
  found = hf.find(
    folder, rows, shapes, ignore=ignore, rename=maps_qwen.rename, over=over
  )
  return {
    name: {
      hub: found[part.name(hub)] for row in part.rows() for hub in row.names()
    }
    for name, part in parts.items()
  }


def stored(entries: Mapping[str, Entry]) -> dict[str, Tensor]:
  """Tensors as they are in their files."""
  return {n: Tensor(e.shape, e.dtype, e.read) for n, e in entries.items()}


def constant(
  folder: Path, ends: Sequence[str], connector: zoo.Model
) -> dict[str, Tensor]:
  """The pooled vector: what the text encoders say of the empty prompt.

  Args:
    folder: of a pipeline.
    ends: of the names of its text encoders.
    connector: that holds the vector.

  Raises:
    UserError: a text encoder is not whole, or is of another width.
  """
  texts = every(*(partial(_text, folder, end) for end in ends))
  width = connector.module.pooled_dim
  widths = [text.width for text in texts]
  if sum(widths) != width:
    raise UserError(
      f'{folder}: pooled prompts of widths {widths} for a decoder that reads '
      f'{width}'
    )
  read = lambda: np.concatenate([text.empty() for text in texts])
  return {'pooled.constant': Tensor((width,), np.dtype(np.float32), read)}


def find(model: zoo.Model, folder: Path) -> dict[str, Entry]:
  """Where the tensors of a whole folder are."""
  return hf.find(
    folder, model.table, model.shapes(), stem=model.stem,
    ignore=model.ignore, rename=model.rename,
  )  # fmt: skip


def adapter(
  folder: Path, model: zoo.Model
) -> tuple[dict[str, tuple[Entry, Entry]], float]:
  """(A and B by kernel, scale); none where there is no such folder."""
  if not folder.is_dir():
    return {}, 1.0
  return peft.find(folder, model.table, model.shapes(), model.rename)


def _text(folder: Path, end: str) -> Text:
  """A text encoder of a pipeline, all of whose tensors are there."""
  at = folder / f'text_encoder{end}'
  model = zoo.from_folder(at)
  if not isinstance(model.module, TextTower):
    raise UserError(f'{at} is not a text encoder of CLIP')
  find(model, at)
  return Text(model, at, PromptTokenizer(folder / f'tokenizer{end}'))


def flux_decoder(folder: Path) -> zoo.Model:
  """The transformer of FLUX."""
  model = zoo.decoder_from_folder(folder)
  if not isinstance(model.module, Flux):
    raise UserError(f'{folder} is not the transformer of FLUX')
  return model


def siglip_tower(folder: Path) -> zoo.Model:
  """The image tower of SigLIP 2."""
  model = zoo.tower_from_folder(folder)
  if not isinstance(model.module, SigLIP):
    raise UserError(f'{folder} is not SigLIP')
  maps_vit.read_view(folder)
  return model


def refuse_pickles(folder: Path) -> None:
  """Complains of pickles whose class no library has."""
  if not [*folder.glob('*.safetensors')] and [*folder.glob('*.bin')]:
    raise UserError(
      f'{folder}: pickle files are refused; convert them once with: '
      f'{hf.plain_conversion(folder)}'
    )


def policy_files(folder: Path) -> list[Path]:
  """Tokenizer and preprocessor, with the settings beside them."""
  gone = [name for name in _POLICY_FILES if not (folder / name).exists()]
  if gone:
    raise UserError(
      f'{folder} lacks {gone}: say --processor=FOLDER, such as a folder of '
      'Qwen2.5-VL'
    )
  return convert.beside(folder)


def pipeline_files(folder: Path, texts: Sequence[str]) -> dict[str, list[Path]]:
  """Files of a pipeline that stay as they are, by our subfolder.

  Args:
    folder: of the pipeline.
    texts: ends of the names of the text encoders that are kept.

  Raises:
    UserError: listing everything that is missing or does not fit.
  """
  models = ('vae', *(f'text_encoder{end}' for end in texts))
  words = [f'tokenizer{end}' for end in texts]
  found = every(
    lambda: _schedule_files(folder / 'scheduler'),
    *(partial(_model_files, folder / name) for name in models),
    *(partial(_tokenizer_files, folder / name) for name in words),
  )
  names = ('scheduler', *models, *words)
  return {f'decoder/{name}': files for name, files in zip(names, found)}


def _schedule_files(folder: Path) -> list[Path]:
  hf.read_config(folder, 'scheduler_config.json')
  return [folder / 'scheduler_config.json']


def _model_files(folder: Path) -> list[Path]:
  """Weights that are whole, with config.json and index."""
  model = zoo.from_folder(folder)
  find(model, folder)
  index = folder / f'{model.stem}.safetensors.index.json'
  weights = [*hf.find_files(folder, model.stem)]
  return [folder / 'config.json', *weights, *([index] * index.exists())]


def _tokenizer_files(folder: Path) -> list[Path]:
  PromptTokenizer(folder)
  return sorted(p for p in folder.iterdir() if p.is_file())
