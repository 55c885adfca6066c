"""Folders named in the config -> modules, placed weights, data, processors."""

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from uae_jax import zoo
from uae_jax.ckpt import maps_vit
from uae_jax.data import pipeline, tokenize
from uae_jax.data.scenes import grammar
from uae_jax.errors import UserError
from uae_jax.infer.load import policy_view
from uae_jax.infer.options import FILE
from uae_jax.infer.painters import PARTS, load_painter
from uae_jax.models import clip, connector, metaquery, mmdit, vlm
from uae_jax.rewards.features import Tower
from uae_jax.rollout.flow import FlowSchedule
from uae_jax.rollout.sampler import Sampler
from uae_jax.umm.painter import Painter
from uae_jax.umm.umm1 import UMM1, Tokens
from uae_jax.zoo import weights

# The files that a policy folder needs besides weights and config.json.
PROCESSORS = (
  'tokenizer.json',
  'tokenizer_config.json',
  'preprocessor_config.json',
)
CHOICES = dict(
  rollout=dict(
    bottleneck=('text', 'hidden'), environment=('policy', 'reference')
  ),
  model=dict(connector=('mlp', 'queries')),
)


@dataclasses.dataclass
class Parts:
  """Everything of a UMM-1 run but the optimizer.

  Attributes:
    umm: the five functions.
    policy: the captioner as a zoo model.
    connector: the connector.
    decoder: the MM-DiT.
    params: placed weights by part; `reward` and `judges` by tower name.
    processors: folder with the policy's tokenizer and preprocessor.
    tokenizer: its tokenizer.
    example: scene or photograph -> numpy example.
  """

  umm: UMM1
  policy: zoo.Model
  connector: zoo.Model
  decoder: zoo.Model
  params: dict[str, Any]
  processors: Path
  tokenizer: Any
  example: Callable[..., pipeline.MakeExample]

  def decode(self, ids: np.ndarray) -> str:
    """Caption ids -> text."""
    return tokenize.decode(self.tokenizer, ids)

  def copy_processors(self, folder: Path) -> None:
    """Makes an exported policy folder complete."""
    for name in PROCESSORS:
      if (self.processors / name).exists():
        shutil.copy(self.processors / name, folder / name)

  def train_data(self, config) -> Any:
    """Endless shuffled batches of this host's share."""
    source = pipeline.make_source(
      config.data.source, seed=config.train.seed, side=config.data.side
    )
    return pipeline.make_loader(
      source,
      self.example(source, training=True),
      batch=config.train.images // jax.process_count(),
      seed=config.train.seed,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
    )

  def heldout_data(self, config) -> Callable[[], Iterable[dict]]:
    """The same held-out batches at every call, in order."""
    source = pipeline.make_source(config.data.heldout, side=config.data.side)
    return lambda: pipeline.take(
      source,
      self.example(source, training=False),
      n=config.eval.images,
      batch=config.eval.batch,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
    )


def load(config, mesh) -> Parts:
  """Builds a UMM-1 and loads or draws its weights."""
  check_choices(config)
  seed, dtype = config.train.seed, config.model.dtype
  kw = dict(remat=config.model.remat)
  policy, processors = policy_model(config, dtype=dtype, **kw)
  drawing, conditioner, painter = painter_models(config, policy, **kw)
  towers, judges = {}, {}
  params = {'reward': {}, 'judges': {}}
  for names, group, kind in (
    (config.ckpt.reward, towers, 'reward'),
    (config.ckpt.judges, judges, 'judges'),
  ):
    for folder in filter(None, names.split(',')):
      name = Path(folder.split(':')[-1]).name
      model, group[name] = tower_from_folder(zoo.resolve(folder))
      params[kind][name] = weights(model, folder, mesh)

  params['policy'] = weights(policy, config.ckpt.policy, mesh, seed=seed)
  parts = {**PARTS, 'connector': 'connector'}
  for i, (name, model) in enumerate(
    {**drawing, 'connector': conditioner}.items(), 1
  ):
    at = config.ckpt.decoder and f'{config.ckpt.decoder}/{parts[name]}'
    params[name] = weights(model, at, mesh, seed=seed + i)
  tokenizer = tokenize.load_tokenizer(processors)
  template = tokenize.Template.from_tokenizer(
    tokenizer, config.data.prompt, config.data.system
  )
  view = policy_view(processors, policy.module, config.data.max_pixels)

  def example(source, training: bool):
    drawn = isinstance(source, pipeline.SceneSource)
    wanted = drawn and (config.stage == 'pretrain' or not training)
    partial = config.stage == 'pretrain' and training
    return pipeline.MakeExample(
      view,
      template,
      image_side=config.data.side,
      caption_length=config.rollout.length if wanted else None,
      tokenizer=tokenizer,
      detail=partial_detail(config) if partial else None,
    )

  r = config.rollout
  umm = UMM1(
    vlm=policy.module,
    connector=conditioner.module,
    painter=painter,
    towers=towers,
    judges=judges,
    tokens=Tokens(
      draw_before=template.draw_before,
      draw_after=template.draw_after,
      eos=template.eos,
      pad=template.pad,
    ),
    sampler=Sampler(r.temperature, r.top_k, r.top_p),
    length=r.length,
    bottleneck=r.bottleneck,
    environment=r.environment,
    share_noise=r.share_noise,
    weights={name: 1.0 / len(towers) for name in towers},
  )
  return Parts(
    umm,
    policy,
    conditioner,
    drawing['decoder'],
    params,
    processors,
    tokenizer,
    example,
  )


def partial_detail(config) -> grammar.Detail:
  """How much the captions say that a captioner starts from."""
  p = config.pretrain
  return dataclasses.replace(grammar.PARTIAL, wrong_shape=p.wrong_shape)


def check_choices(config) -> None:
  """Raises UserError for an unknown choice."""
  for section, choices in CHOICES.items():
    for key, known in choices.items():
      value = config[section][key]
      if value not in known:
        raise UserError(f'{section}.{key}={value!r} is none of {known}')


def policy_model(config, **kw) -> tuple[zoo.Model, Path]:
  """The captioner, and the folder of its tokenizer and preprocessor."""
  if config.ckpt.policy:
    folder = zoo.resolve(config.ckpt.policy)
    return zoo.policy_from_folder(folder, **kw), folder
  folder = zoo.resolve('bundled:umm1/processors')
  tokenizer = tokenize.load_tokenizer(folder)
  tokens = {
    'image_token_id': tokenizer.id('<|image_pad|>'),
    'vision_start_token_id': tokenizer.id('<|vision_start|>'),
    'vision_end_token_id': tokenizer.id('<|vision_end|>'),
  }
  fields = dict(
    vlm.VARIANTS[config.model.variant], image_pad=tokens['image_token_id']
  )
  return zoo.policy(fields, tokens, **kw), folder


def painter_models(
  config, policy, **kw
) -> tuple[dict[str, zoo.Model], zoo.Model, Painter]:
  """What draws, the connector, and the painter of both.

  They are of the folder ckpt.decoder, or of the named variant.
  """
  width, variant = policy.module.lm['width'], config.model.variant
  r, side, dtype = config.rollout, config.data.side, config.model.dtype
  size = dict(height=side, width=side, guidance=r.guidance, dtype=dtype)
  if config.ckpt.decoder:
    folder = zoo.resolve(config.ckpt.decoder)
    models, painter = load_painter(
      folder, steps=r.draw_steps, shift=r.shift or None, **size, **kw
    )
    conditioner = zoo.conditioner_from_folder(folder / 'connector', width)
    return models, conditioner, painter
  decoder = zoo.decoder(mmdit.VARIANTS[variant], **kw)
  schedule = FlowSchedule(r.draw_steps, r.shift)
  painter = Painter(decoder.module, schedule, **size)
  if config.model.connector == 'queries':
    conditioner = zoo.query_conditioner(metaquery.VARIANTS[variant])
  else:
    conditioner = zoo.conditioner(connector.VARIANTS[variant], width)
  return {'decoder': decoder}, conditioner, painter


def tower_from_folder(folder: Path) -> tuple[zoo.Model, Tower]:
  """A tower's folder -> its model, and the tower with its preprocessing."""
  model = zoo.tower_from_folder(folder)
  return model, Tower(model.module, **maps_vit.read_view(folder))


def write_options(config, folder: Path) -> None:
  """umm.json of an exported policy: tools describe and draw as the run did."""
  r = config.rollout
  start, decoder = (
    name if name.startswith('bundled:') else str(zoo.resolve(name).absolute())
    for name in (config.ckpt.policy, config.ckpt.decoder)
  )
  options = {
    'policy': 'policy',
    'reader': start if r.environment == 'reference' else 'policy',
    'decoder': decoder,
    'prompt': config.data.prompt,
    'system': config.data.system,
    'max_pixels': config.data.max_pixels,
    'length': r.length,
    'height': config.data.side,
    'width': config.data.side,
    'steps': r.draw_steps,
    'shift': r.shift or None,
    'guidance': r.guidance,
  }
  (folder / FILE).write_text(json.dumps(options, indent=2) + '\n')


def new_tower(config) -> tuple[zoo.Model, Tower, Any]:
  """A tower to train from scratch, with the word tokenizer."""
  tokenizer = tokenize.load_tokenizer(zoo.resolve('bundled:umm1/processors'))
  fields = clip.VARIANTS[config.model.variant]
  eos = tokenizer.id('<|im_end|>')
  fields = {**fields, 'language': {**fields['language'], 'eos': eos}}
  model = zoo.tower(fields)
  half = (0.5, 0.5, 0.5)
  side = fields['vision']['size']
  return model, Tower(model.module, side, half, half), tokenizer


def write_tower_processor(tower: Tower, folder: Path) -> None:
  """preprocessor_config.json of a trained tower."""
  side = tower.size
  config = {
    'image_processor_type': 'CLIPImageProcessor',
    'size': {'shortest_edge': side},
    'crop_size': {'height': side, 'width': side},
    'image_mean': list(tower.mean),
    'image_std': list(tower.std),
    'resample': 3,
  }
  text = json.dumps(config, indent=2) + '\n'
  (folder / 'preprocessor_config.json').write_text(text)


def tower_data(config, tower: Tower, tokenizer) -> Any:
  """Endless batches of scenes beside their edits, with full captions."""
  return pipeline.make_loader(
    pipeline.make_source(
      config.data.source, seed=config.train.seed, side=tower.size
    ),
    pipeline.PairExample(tokenizer, config.rollout.length),
    batch=config.train.images // jax.process_count(),
    seed=config.train.seed,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
    shuffle=False,
  )
