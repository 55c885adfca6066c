"""A model's folder -> an `Autoencoder`, whatever the folder is.

- `policy/` and `decoder/` (`transformer`, `connector`, perhaps `vae` and
  `scheduler`), or an `umm.json` that says where they are: a UMM-1, such as
  `bundled:umm1` and the `export/` of a run;
- a Janus-Pro folder, of either release, or such a `policy/` beside an
  `umm.json`: describes and draws;
- a Qwen2.5-VL folder: describes only;
- a diffusers folder of SD3 or FLUX: draws only, with its own text encoders.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from uae_jax import zoo
from uae_jax.ckpt import hf
from uae_jax.data import tokenize
from uae_jax.data.preprocess import PolicyView, prefix_of
from uae_jax.errors import UserError
from uae_jax.infer import options as options_lib
from uae_jax.infer import uniworld
from uae_jax.infer.autoencoder import (
  Autoencoder,
  Describer,
  Drawer,
  caption_drawer,
)
from uae_jax.infer.janus import KINDS, load_janus
from uae_jax.infer.options import Options
from uae_jax.infer.painters import PARTS, load_painter
from uae_jax.infer.prompts import load_reader
from uae_jax.rollout.sampler import Sampler
from uae_jax.umm.umm1 import UMM1, Tokens

# Qwen's chat template adds this turn where a conversation has none.
QWEN = dict(system='You are a helpful assistant.')


def load(
  name: str,
  mesh: Mesh,
  said: Mapping[str, Any],
  *,
  describes: bool = True,
  draws: bool = True,
  references: Sequence[Any] = (),
) -> Autoencoder:
  """Loads what is asked for and is there.

  Args:
    name: folder, `bundled:NAME` or ORG/REPOSITORY.
    mesh: where weights and batches go.
    said: options that the caller sets; see `options.Options`.
    describes: load the captioner.
    draws: load the decoder.
    references: images that every text to be drawn speaks of (UniWorld).

  Raises:
    UserError: the folder is none of those above, or cannot be read.
  """
  folder = zoo.resolve(name)
  pipeline = (folder / 'model_index.json').exists()
  umm1 = (folder / 'policy').is_dir() or (folder / options_lib.FILE).exists()
  if umm1 and not pipeline:
    policy = zoo.resolve(options_lib.place(folder, 'policy'))
    if hf.kind(policy) in KINDS:  # the export of a run
      return load_janus(
        policy, mesh, said, folder, describes=describes, draws=draws
      )
    return _umm1(
      folder, mesh, said, references, describes=describes, draws=draws
    )
  if references or said.get('joint'):
    raise UserError(
      f'{folder} is no captioner beside a decoder: joint and reference images '
      'are for those'
    )
  if pipeline:
    return _pipeline(folder, mesh, said)
  if hf.kind(folder) in KINDS:
    return load_janus(
      folder, mesh, said, folder, describes=describes, draws=draws
    )
  if hf.kind(folder) == 'qwen2_5_vl':
    options = options_lib.combine(QWEN, folder, said)
    _check_batch(options, mesh)
    describer = _captioner(folder, options, mesh)
    return Autoencoder(str(folder), options, describer, None)
  raise UserError(
    f'{folder} is a {hf.kind(folder)!r}: it neither describes nor draws'
  )


def policy_view(folder: Path, module: Any, max_pixels: int) -> PolicyView:
  """How the policy sees an image: preprocessor_config.json and the tower."""
  config = hf.read_config(folder, 'preprocessor_config.json')
  vision = module.vision
  return PolicyView(
    patch=vision['patch'],
    merge=vision['merge'],
    window=vision['window'],
    min_pixels=min(config['min_pixels'], max_pixels),
    max_pixels=max_pixels,
    mean=tuple(config['image_mean']),
    std=tuple(config['image_std']),
  )


def _check_batch(options: Options, mesh: Mesh) -> None:
  size = mesh.shape['data']
  if options.batch % size:
    raise UserError(
      f'batch={options.batch} does not divide over {size} devices'
    )


def _tokens(template: tokenize.Template, negative: tuple[int, ...]) -> Tokens:
  return Tokens(
    template.draw_before, template.draw_after, template.eos, template.pad,
    negative,
  )  # fmt: skip


def _captioner(folder: Path, options: Options, mesh: Mesh) -> Describer:
  """Qwen2.5-VL alone."""
  model = zoo.policy_from_folder(folder, dtype=options.dtype)
  params = zoo.weights(model, folder, mesh, dtype=options.dtype)
  tokenizer = tokenize.load_tokenizer(folder)
  template = tokenize.Template.from_tokenizer(
    tokenizer, options.prompt, options.system
  )
  umm = UMM1(
    vlm=model.module,
    connector=None,
    painter=None,
    towers={},
    judges={},
    tokens=_tokens(template, ()),
    sampler=Sampler(options.temperature, options.top_k, options.top_p),
    length=options.length,
    bottleneck='text',
    environment='policy',
    share_noise=False,
    weights={},
  )
  view = policy_view(folder, model.module, options.max_pixels)
  return Describer(
    umm,
    params,
    lambda image: prefix_of(image, view, template),
    lambda ids: tokenize.decode(tokenizer, ids),
    mesh,
    options.batch,
  )


def _umm1(folder, mesh, said, references, *, describes, draws) -> Autoencoder:
  options = options_lib.combine({}, folder, said)
  _check_batch(options, mesh)
  describer = drawer = None
  if describes:
    policy = zoo.resolve(options_lib.place(folder, 'policy'))
    describer = _captioner(policy, options, mesh)
  if draws:
    drawer = _caption_drawer(folder, options, mesh, references)
  return Autoencoder(str(folder), options, describer, drawer)


def _caption_drawer(
  folder: Path, options: Options, mesh: Mesh, references: Sequence[Any]
) -> Drawer:
  """Captions -> language model -> connector -> decoder."""
  named = options_lib.read(folder)
  reader = zoo.resolve(
    options_lib.place(folder, 'reader' if 'reader' in named else 'policy')
  )
  decoder = zoo.resolve(options_lib.place(folder, 'decoder'))
  kw = dict(dtype=options.dtype)
  policy = zoo.policy_from_folder(reader, **kw)
  connector = zoo.conditioner_from_folder(
    decoder / 'connector', policy.module.lm['width']
  )
  models, painter = load_painter(
    decoder,
    height=options.height,
    width=options.width,
    steps=options.steps,
    shift=options.shift,
    guidance=options.guidance,
    **kw,
  )
  load_one = lambda model, at: zoo.weights(model, at, mesh, **kw)
  params = {
    name: load_one(models[name], decoder / PARTS[name]) for name in models
  }
  params['policy'] = load_one(policy, reader)
  params['connector'] = load_one(connector, decoder / 'connector')
  tokenizer = tokenize.load_tokenizer(reader)
  template = tokenize.Template.from_tokenizer(
    tokenizer, options.prompt, options.system
  )
  negative = tokenizer.encode(options.negative)
  if painter.guidance != 1 and len(negative) > options.length:
    raise UserError(
      f'the negative prompt has {len(negative)} tokens: set length to that'
    )
  umm = UMM1(
    vlm=policy.module,
    connector=connector.module,
    painter=painter,
    towers={},
    judges={},
    tokens=_tokens(template, negative),
    sampler=Sampler(),
    length=options.length,
    bottleneck='text',
    environment='policy',
    share_noise=False,
    weights={},
  )
  if options.joint or references:
    view = policy_view(reader, policy.module, options.max_pixels)
    return uniworld.load_drawer(
      umm, params, decoder, tokenizer, template, view, options, mesh,
      references,
    )  # fmt: skip

  def encode(text: str):
    return tokenize.encode_caption(tokenizer, text, options.length)

  return caption_drawer(umm, params, encode, mesh, options.batch)


def _pipeline(folder: Path, mesh: Mesh, said: Mapping[str, Any]) -> Autoencoder:
  """SD3 or FLUX with the text encoders beside it."""
  options = options_lib.combine({}, folder, said)
  _check_batch(options, mesh)
  models, painter = load_painter(
    folder,
    height=options.height,
    width=options.width,
    steps=options.steps,
    shift=options.shift,
    guidance=options.guidance,
    dtype=options.dtype,
  )
  width = painter.decoder.joint_attention_dim
  texts, folders, reader = load_reader(folder, width, options.dtype)
  folders |= {name: folder / PARTS[name] for name in models}
  params = {
    name: zoo.weights(model, folders[name], mesh, dtype=options.dtype)
    for name, model in {**texts, **models}.items()
  }

  def encode(prompts):
    ids = {'prompt': reader.encode(prompts)}
    if painter.guidance != 1:
      ids['negative'] = reader.encode([options.negative] * len(prompts))
    return ids

  def run(params, ids, rng):
    cond = {key: reader(params, ids[key]) for key in ids}
    n = len(jax.tree.leaves(ids)[0])
    unconditional = cond['negative'] if 'negative' in cond else None
    noise = painter.noise(rng, n)
    return painter(params, noise, cond['prompt'], unconditional)

  drawer = Drawer(run, params, encode, mesh, options.batch)
  return Autoencoder(str(folder), options, None, drawer)
