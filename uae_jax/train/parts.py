"""What a run is made of, whichever the architecture."""

import dataclasses
import json
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from uae_jax import zoo
from uae_jax.ckpt import convert, maps_vit
from uae_jax.data import pipeline, tokenize
from uae_jax.data.scenes import grammar
from uae_jax.data.sources.bad import BadItems
from uae_jax.errors import UserError
from uae_jax.infer.options import FILE
from uae_jax.nn.lora import LoRA
from uae_jax.rewards.features import Tower
from uae_jax.sharding import hosts
from uae_jax.sharding.mesh import rows_here

# Where trained weights go, below the export of a run.
POLICY = 'policy'
DECODER, CONNECTOR = 'decoder/transformer', 'decoder/connector'
DRAWS = (DECODER, CONNECTOR)
BESIDE = (*DRAWS, 'decoder/vae', 'decoder/scheduler')  # what a painter reads

# What each stage of reinforcement changes, turn by turn.
TURNS = {
  'encoder': (('policy',),),
  'decoder': (('decoder',),),
  'alternate': (('policy',), ('decoder',)),
  'joint': (('policy', 'decoder'),),
}

EXPORTS = ('merged', 'adapter')  # of what adapters have learnt

MATRICES = r'.*(kernel|embedding|words)'  # the parameters that are large


@dataclasses.dataclass(frozen=True)
class Piece:
  """A hub folder of an export.

  Attributes:
    model: what the folder holds.
    parts: whose parameters these are; several are saved side by side.
  """

  model: zoo.Model
  parts: tuple[str, ...]

  def save(self, folder: Path, params: Mapping[str, Any], dtype: Any) -> None:
    """Writes the folder from parameters by part."""
    if len(self.parts) == 1:
      tree = params[self.parts[0]]
    else:
      tree = {part: params[part] for part in self.parts}
    self.model.save(folder, tree, dtype)


@dataclasses.dataclass
class Parts:
  """Everything of a run but the optimizer.

  Attributes:
    umm: the architecture.
    params: placed weights by part; `reward` and `judges` by tower name.
    pieces: what can be exported, by folder.
    policy_rows: checkpoint rows of the policy alone.
    options: contents of umm.json where nothing has changed.
    processors: folder with the policy's tokenizer and preprocessor.
    tokenizer: its tokenizer.
    read: image -> arrays of `types.Batch`.
    decoder: the folder that the decoder is from, if it is.
    shapes: (height, width) of batches to train on; none: all are squares.
    bad: what the data has that cannot be used.
  """

  umm: Any
  params: dict[str, Any]
  pieces: Mapping[str, Piece]
  policy_rows: Sequence[Any]
  options: Mapping[str, Any]
  processors: Path
  tokenizer: Any
  read: Callable[[Any], Mapping[str, np.ndarray]]
  decoder: Path | None = None
  shapes: Sequence[tuple[int, int]] = ()
  bad: BadItems = dataclasses.field(default_factory=BadItems)

  def model(self, part: str) -> zoo.Model:
    """The model of the folder that a part is in."""
    [piece] = [p for p in self.pieces.values() if part in p.parts]
    return piece.model

  def rows(self, part: str) -> Sequence[Any]:
    """Checkpoint rows of one part, whose kernels adapters may change."""
    return self.policy_rows if part == 'policy' else self.model(part).table

  def decode(self, ids: np.ndarray) -> str:
    """Caption ids -> text."""
    return tokenize.decode(self.tokenizer, ids)

  def export(
    self,
    folder: Path,
    params: Mapping[str, Any],
    changed: Collection[str],
    dtype: Any = None,
  ) -> None:
    """Writes every piece that has a changed part.

    A decoder is whole: what is unchanged in its folder is written or copied.
    """
    new = {n for n, p in self.pieces.items() if set(p.parts) & set(changed)}
    draws = any(name in DRAWS for name in new)
    for name, piece in self.pieces.items():
      if name in new or draws and name in DRAWS and self.decoder is None:
        piece.save(folder / name, params, dtype)
      if name == POLICY and name in new and hosts.is_first():
        for file in convert.beside(self.processors):
          shutil.copy(file, folder / name / file.name)
    if draws and self.decoder is not None and hosts.is_first():
      for name in BESIDE:
        at = self.decoder / Path(name).name
        if name not in new and at.is_dir():
          shutil.copytree(at, folder / name, dirs_exist_ok=True)

  def write_options(self, folder: Path) -> None:
    """umm.json: tools describe and draw as the run did."""
    options = dict(self.options)
    for name, weights in (('policy', POLICY), ('decoder', DECODER)):
      if (folder / weights).is_dir():
        options[name] = name
    text = json.dumps(options, indent=2) + '\n'
    if hosts.is_first():
      (folder / FILE).write_text(text)

  def example(self, config, source, training: bool) -> pipeline.MakeExample:
    """Scene or photograph -> numpy example; captions where they are read."""
    drawn = isinstance(source, pipeline.SceneSource)
    supervised = config.stage == 'pretrain'
    partial = supervised and training
    wanted = supervised or drawn and not training
    return pipeline.MakeExample(
      self.read,
      image_side=config.data.side,
      caption_length=config.rollout.length if wanted else None,
      tokenizer=self.tokenizer,
      detail=partial_detail(config) if partial else None,
      prompts=wanted and not training and config.eval.prompts,
      keep_truth=drawn,
    )

  def train_data(self, config, mesh) -> Any:
    """Endless shuffled batches of this host's share."""
    source = pipeline.make_source(
      config.data.source, seed=config.train.seed, side=config.data.side,
      cache=config.data.cache, bad=self.bad,
      captions=config.stage == 'pretrain',
    )  # fmt: skip
    return pipeline.make_loader(
      source,
      self.example(config, source, training=True),
      batch=sampled(config),
      seed=config.train.seed,
      mine=rows_here(sampled(config), mesh),
      threads=config.data.threads,
      shapes=self.shapes,
    )

  def heldout_data(self, config) -> Callable[[], Iterable[dict]]:
    """The same held-out batches at every call, in order, on every host."""
    source = pipeline.make_source(
      config.data.heldout, side=config.data.side, cache=config.data.cache,
      bad=self.bad, captions=config.stage == 'pretrain',
    )  # fmt: skip
    return lambda: pipeline.take(
      source,
      self.example(config, source, training=False),
      n=config.eval.images,
      batch=config.eval.batch,
    )


class Adapted(NamedTuple):
  """What the config asks of the adapters of one part."""

  rank: int
  alpha: float
  targets: tuple[str, ...]
  export: str


def adapted_parts(config) -> dict[str, Adapted]:
  """The parts of which a stage trains adapters.

  Raises:
    UserError: they cannot be exported like that.
  """
  trained = {part for turn in TURNS.get(config.stage, ()) for part in turn}
  found = {}
  if 'policy' in trained:
    lora = config.lora
    found['policy'] = Adapted(lora.rank, lora.alpha, lora.targets, lora.export)
  if 'decoder' in trained:
    flow = config.flow
    found['decoder'] = Adapted(
      flow.lora_rank, flow.lora_alpha, flow.lora_targets, flow.lora_export
    )
  if config.stage == 'pretrain':
    p = config.pretrain
    found['decoder'] = Adapted(
      p.lora_rank, p.lora_alpha, p.lora_targets, p.lora_export
    )
  found = {part: one for part, one in found.items() if one.rank}
  for part, one in found.items():
    if one.export not in EXPORTS:
      of = 'pretrain' if config.stage == 'pretrain' else 'flow'
      key = dict(policy='lora.export', decoder=f'{of}.lora_export')[part]
      raise UserError(f'{key}={one.export!r} is none of {EXPORTS}')
  return found


def adapters(config) -> dict[str, LoRA]:
  """What a stage trains in the stead of parts; see `adapted_parts`."""
  return {
    part: LoRA(one.rank, one.alpha, one.targets)
    for part, one in adapted_parts(config).items()
  }


def sampled(config) -> int:
  """Images that a step reads."""
  if config.stage not in TURNS:
    return config.train.images
  return config.train.images * config.train.oversample


def partial_detail(config) -> grammar.Detail:
  """How much the captions say that a captioner starts from."""
  p = config.pretrain
  return dataclasses.replace(grammar.PARTIAL, wrong_shape=p.wrong_shape)


def check_choices(config, choices: Mapping[str, Mapping[str, Any]]) -> None:
  """Raises UserError for a value of `section.key` that is not offered."""
  for section, keys in choices.items():
    for key, known in keys.items():
      value = config[section][key]
      if value not in known:
        raise UserError(f'{section}.{key}={value!r} is none of {known}')


def place(name: str) -> str:
  """A folder named in a config, as umm.json names it from anywhere."""
  if not name or name.startswith('bundled:'):
    return name
  return str(zoo.resolve(name).absolute())


@dataclasses.dataclass(frozen=True)
class Loader:
  """Loads the weights of a run, each in the dtype that it needs.

  What is trained is kept in float32, and so is everything that is no matrix;
  frozen matrices are as `model.frozen_dtype` says.

  Attributes:
    config: of the run.
    mesh: where weights go.
    read: `zoo.weights`, or `zoo.structs` for their shapes alone.
  """

  config: Any
  mesh: Any
  read: Callable[..., Any] = zoo.weights

  def __call__(
    self, part: str, model: zoo.Model, folder: str | Path, seed: int = 0
  ) -> Any:
    """Parameters of `part` ('' where their paths start with parts)."""
    frozen = np.dtype(self.config.model.frozen_dtype)

    def dtype(path: str):
      matrix = re.fullmatch(MATRICES, path)
      kept = not matrix or self.trains(f'{part}/{path}' if part else path)
      return np.dtype(np.float32) if kept else frozen

    return self.read(model, folder, self.mesh, seed=seed, dtype=dtype)

  def trains(self, path: str) -> bool:
    """Is the parameter one that the optimizer changes?"""
    patterns, config = [], self.config
    if config.stage == 'pretrain':
      patterns = config.pretrain.trainable
    trained = {part for turn in TURNS.get(config.stage, ()) for part in turn}
    trained -= set(adapters(config))
    if 'policy' in trained:
      patterns += [f'policy/({p})' for p in config.train.trainable]
    if 'decoder' in trained:
      patterns += [f'decoder/({p})' for p in config.flow.trainable]
    return any(re.fullmatch(p, path) for p in patterns)


def towers(config, load: Loader) -> tuple[dict, dict, dict[str, Any]]:
  """Reward towers and judges by name, and the weights of both."""
  found, params = {}, {}
  for kind in ('reward', 'judges'):
    found[kind], params[kind] = {}, {}
    for name, folder in tower_folders(kind, config).items():
      model, found[kind][name] = tower_from_folder(folder)
      params[kind][name] = load(f'{kind}/{name}', model, folder)
  return found['reward'], found['judges'], params


def tower_folders(kind: str, config) -> dict[str, Path]:
  """The folders that ckpt.reward or ckpt.judges names, by their last part.

  Raises:
    UserError: one does not exist, or two go by one name.
  """
  out = {}
  names = dict(reward=config.ckpt.reward, judges=config.ckpt.judges)[kind]
  for folder in filter(None, names.split(',')):
    name = Path(folder.split(':')[-1]).name
    if name in out:
      raise UserError(
        f'ckpt.{kind}: two towers are called {name!r}: rename one folder'
      )
    out[name] = zoo.resolve(folder)
  return out


def tower_from_folder(folder: Path) -> tuple[zoo.Model, Tower]:
  """A tower's folder -> its model, and the tower with its preprocessing."""
  model = zoo.tower_from_folder(folder)
  return model, Tower(model.module, **maps_vit.read_view(folder))
