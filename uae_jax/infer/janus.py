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
from uae_jax.rollout.sampler import Sampler
from uae_jax.umm.umm2 import UMM2, Tokens

KINDS = ('janus', 'multi_modality')  # model_type of the two releases
# Of decoders that denoise, or of captioners that see images of any size.
FOREIGN = ('max_pixels', 'height', 'width', 'steps', 'shift', 'negative')


def load_janus(
  folder: Path,
  mesh: Mesh,
  said: Mapping[str, Any],
  *,
  describes: bool,
  draws: bool,
) -> Autoencoder:
  """Loads both halves, which are one file, and offers what is asked for.

  Raises:
    UserError: an option that this model does not have, or a folder that
      cannot be read.
  """
  foreign = [key for key in FOREIGN if said.get(key) is not None]
  if foreign:
    raise UserError(f'{folder} is a Janus model: it has no {foreign}')
  tok = tokenize.load_tokenizer(folder)
  fields = maps_janus.from_hf(hf.read_config(folder))
  size, patch = (fields['vision'][key] for key in ('size', 'patch'))
  family = dict(system=SYSTEM, guidance=5.0)
  options = options_lib.combine(family, folder, said)
  both, vq = zoo.janus_from_folder(folder, tok.id(IMAGE), dtype=options.dtype)
  params = zoo.weights(both, folder, mesh, dtype=options.dtype)
  rows = size // patch  # as many codes are drawn as tokens are read
  template = JanusTemplate.from_tokenizer(
    tok, options.prompt, rows**2, options.system
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
    code_sampler=Sampler(options.image_temperature),
    guidance=options.guidance,
    length=options.length,
    rows=rows,
    codes=rows**2,
    weights={},
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
