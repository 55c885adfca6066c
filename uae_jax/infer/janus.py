"""Janus-Pro's folder -> an `Autoencoder`: one model describes and draws."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from uae_jax import zoo
from uae_jax.ckpt import hf, maps_janus
from uae_jax.data import tokenize
from uae_jax.data.janus import IMAGE, SYSTEM, JanusTemplate, JanusView
from uae_jax.errors import UserError
from uae_jax.infer import options as options_lib
from uae_jax.infer.autoencoder import Autoencoder, Describer, caption_drawer
from uae_jax.infer.painters import PARTS, load_painter
from uae_jax.models import flux
from uae_jax.models.detokenizer import CodeConnector
from uae_jax.models.flux import Flux
from uae_jax.rollout.sampler import Sampler
from uae_jax.umm.painter import Painter
from uae_jax.umm.umm2 import UMM2, Tokens

KINDS = ('janus', 'multi_modality')  # model_type of the two releases
# Of captioners that see images of any size, or of decoders that denoise.
FOREIGN = ('max_pixels', 'height', 'width', 'negative')
DENOISING = ('steps', 'shift')


def load_janus(
  folder: Path,
  mesh: Mesh,
  said: Mapping[str, Any],
  stored: Path,
  *,
  describes: bool,
  draws: bool,
) -> Autoencoder:
  """Loads both halves, which are one file, and offers what is asked for.

  Args:
    folder: the hub folder.
    mesh: where weights and batches go.
    said: options that the caller sets.
    stored: folder whose `umm.json` is read, where there is one.
    describes: load the captioner.
    draws: load the decoder.

  Raises:
    UserError: an option that this model does not have, or a folder that
      cannot be read.
  """
  flow = 'decoder' in options_lib.read(stored)
  known = FOREIGN if flow else FOREIGN + DENOISING
  foreign = [key for key in known if said.get(key) is not None]
  if foreign:
    raise UserError(f'{folder} is a Janus model: it has no {foreign}')
  tok = tokenize.load_tokenizer(folder)
  fields = maps_janus.from_hf(hf.read_config(folder))
  size, patch = (fields['vision'][key] for key in ('size', 'patch'))
  family = dict(system=SYSTEM, guidance=5.0, height=size, width=size)
  options = options_lib.combine(family, stored, said)
  both, vq = zoo.janus_from_folder(folder, tok.id(IMAGE), dtype=options.dtype)
  params = zoo.weights(both, folder, mesh, dtype=options.dtype)
  rows = size // patch  # as many codes are drawn as tokens are read
  template = JanusTemplate.from_tokenizer(
    tok, options.prompt, rows**2, options.system
  )
  painter = connector = None
  if flow and draws:
    at = zoo.resolve(options_lib.place(stored, 'decoder'))
    models, conditioner, painter = load_detokenizer(
      at, rows**2, size, steps=options.steps, shift=options.shift,
      dtype=options.dtype,
    )  # fmt: skip
    connector = conditioner.module
    folders = {**PARTS, 'connector': 'connector'}
    for name, model in {**models, 'connector': conditioner}.items():
      params[name] = zoo.weights(
        model, at / folders[name], mesh, dtype=options.dtype
      )
  umm = UMM2(
    vlm=both.module,
    vq=vq,
    towers={},
    judges={},
    tokens=Tokens(
      template.draw_before, template.draw_after, template.eos, template.pad
    ),
    sampler=Sampler(options.temperature, options.top_k, options.top_p),
    code_sampler=Sampler(
      options.image_temperature, options.image_top_k, options.image_top_p
    ),
    guidance=options.guidance,
    length=options.length,
    rows=rows,
    codes=rows**2,
    weights={},
    painter=painter,
    connector=connector,
  )
  describer = drawer = None
  if describes:
    view = JanusView.from_config(
      hf.read_config(folder, 'preprocessor_config.json'), patch
    )
    prefix = template.prefix()
    describer = Describer(
      umm,
      params['policy'],
      lambda image: {**view(image), **prefix},
      lambda ids: tokenize.decode(tok, ids),
      mesh,
      options.batch,
    )
  if draws:
    drawer = caption_drawer(
      umm,
      params,
      # After a colon the first word carries the space before it.
      lambda text: tokenize.encode_caption(tok, f' {text}', options.length),
      mesh,
      options.batch,
    )
  return Autoencoder(str(folder), options, describer, drawer)


def load_detokenizer(
  folder: Path, codes: int, side: int, **kw: Any
) -> tuple[dict[str, zoo.Model], zoo.Model, Painter]:
  """What turns codes into pixels by flow matching.

  Args:
    folder: `transformer`, `connector`, perhaps `vae` and `scheduler`.
    codes: of an image.
    side: of the image in pixels.
    **kw: of `load_painter`.

  Returns:
    The models of the painter, the connector's, and the painter.

  Raises:
    UserError: the connector is none of image codes, or of another number.
  """
  models, painter = load_painter(
    folder, height=side, width=side, guidance=1.0, **kw
  )
  conditioner = zoo.from_folder(folder / 'connector')
  if not isinstance(conditioner.module, CodeConnector):
    raise UserError(f'{folder}/connector is no connector of image codes')
  if conditioner.module.codes != codes:
    raise UserError(
      f'{folder}/connector is for {conditioner.module.codes} codes, images '
      f'have {codes}'
    )
  module, beside = models['decoder'].module, conditioner.module.code_dim
  room = module.in_channels - (module.out_channels or module.in_channels)
  if isinstance(module, Flux):  # whose channels are of packed pixels
    beside *= flux.PACK**2
  if room != beside:
    raise UserError(
      f'{folder}/transformer has {room} input channels beside its latents, '
      f'codes need {beside}'
    )
  return models, conditioner, painter
