"""What draws: velocity models, VAEs, connectors, text encoders."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from uae_jax.ckpt import (
  hf,
  maps_clip,
  maps_connector,
  maps_detokenizer,
  maps_flux,
  maps_metaquery,
  maps_sd3,
  maps_t5,
  maps_vae,
)
from uae_jax.errors import UserError
from uae_jax.models import (
  clip,
  connector,
  detokenizer,
  flux,
  metaquery,
  mmdit,
  t5,
  vae,
)
from uae_jax.sharding import (
  table_clip,
  table_connector,
  table_detokenizer,
  table_flux,
  table_metaquery,
  table_sd3,
  table_t5,
  table_vae,
)
from uae_jax.zoo.model import Model


def decoder(fields: Mapping[str, Any], **kw) -> Model:
  """SD3 / SD3.5 MM-DiT from the fields of `models.mmdit.MMDiT`."""
  module = mmdit.MMDiT(**fields, **kw)
  p, c = fields['patch_size'], fields['in_channels']
  zeros = (
    jnp.zeros((1, p, p, c)),
    jnp.zeros((1,)),
    jnp.zeros((1, 1, fields['joint_attention_dim'])),
    jnp.zeros((1, fields['pooled_projection_dim'])),
  )
  return Model(
    module=module,
    init=lambda key: module.init(key, *zeros)['params'],
    table=maps_sd3.table(**fields),
    rules=table_sd3.rules(**fields),
    hub_config=maps_sd3.to_hf(fields),
    stem='diffusion_pytorch_model',
  )


def flux_decoder(fields: Mapping[str, Any], **kw) -> Model:
  """FLUX.1 from the fields of `models.flux.Flux`."""
  module = flux.Flux(**fields, **kw)
  channels = fields['in_channels'] // flux.PACK**2
  zeros = (
    jnp.zeros((1, flux.PACK, flux.PACK, channels)),
    jnp.zeros((1,)),
    jnp.zeros((1, 1, fields['joint_attention_dim'])),
    jnp.zeros((1, fields['pooled_projection_dim'])),
  )
  return Model(
    module=module,
    init=lambda key: module.init(key, *zeros)['params'],
    table=maps_flux.table(**fields),
    rules=table_flux.RULES,
    hub_config=maps_flux.to_hf(fields),
    stem=maps_flux.STEM,
  )


# diffusers class -> (fields of a config.json, model of the fields)
DECODERS = {
  maps_sd3.CLASS: (maps_sd3.from_hf, decoder),
  maps_flux.CLASS: (maps_flux.from_hf, flux_decoder),
}


def decoder_from_folder(folder: Path, **kw) -> Model:
  """A velocity model from a diffusers folder's config.json.

  Raises:
    UserError: when the folder holds another class.
  """
  kind = hf.kind(folder)
  if kind not in DECODERS:
    raise UserError(f'{folder} is a {kind!r}; decoders are {sorted(DECODERS)}')
  fields, build = DECODERS[kind]
  return build(fields(hf.read_config(folder)), **kw)


def autoencoder(fields: Mapping[str, Any]) -> Model:
  """The VAE of SD3 or FLUX from the fields of `models.vae.VAE`."""
  module = vae.VAE(**fields)
  pixels = jnp.zeros((1, module.factor, module.factor, 3))
  return Model(
    module=module,
    init=lambda key: module.init(key, pixels)['params'],
    table=maps_vae.table(**fields),
    rules=table_vae.rules(**fields),
    hub_config=maps_vae.to_hf(fields),
    stem=maps_vae.STEM,
  )


def prompt_tower(fields: Mapping[str, Any]) -> Model:
  """A CLIP text encoder from the fields of `models.clip.TextTower`."""
  module = clip.TextTower(**fields)
  ids = jnp.zeros((1, 1), jnp.int32)
  return Model(
    module=module,
    init=lambda key: module.init(key, ids)['params'],
    table=maps_clip.text_table(**fields),
    rules=table_clip.text_rules(**fields),
    hub_config=maps_clip.text_to_hf(fields),
    ignore=maps_clip.IGNORE,
    rename=maps_clip.text_rename,
  )


def long_prompt(fields: Mapping[str, Any]) -> Model:
  """A T5 encoder from the fields of `models.t5.T5`."""
  module = t5.T5(**fields)
  ids = jnp.zeros((1, 1), jnp.int32)
  return Model(
    module=module,
    init=lambda key: module.init(key, ids)['params'],
    table=maps_t5.table(**fields),
    rules=table_t5.RULES,
    hub_config=maps_t5.to_hf(fields),
    ignore=maps_t5.IGNORE,
  )


def conditioner(fields: Mapping[str, Any], width: int) -> Model:
  """Connector from the fields of `models.connector.Connector`.

  Args:
    fields: of the module.
    width: of the language model's hidden states.
  """
  module = connector.Connector(**fields)
  states, mask = jnp.zeros((1, 1, width)), jnp.ones((1, 1), bool)
  return Model(
    module=module,
    init=lambda key: module.init(key, states, mask)['params'],
    table=maps_connector.table(fields['pooled']),
    rules=table_connector.rules(fields['pooled']),
    hub_config=maps_connector.to_hf(fields),
  )


def query_conditioner(fields: Mapping[str, Any]) -> Model:
  """Learned queries, of the fields of `models.metaquery.QueryConnector`."""
  module = metaquery.QueryConnector(**fields)
  states = jnp.zeros((1, fields['queries'], fields['width']))
  return Model(
    module=module,
    init=lambda key: module.init(key, states)['params'],
    table=maps_metaquery.table(**fields),
    rules=table_metaquery.rules(**fields),
    hub_config=maps_metaquery.to_hf(fields),
  )


def code_conditioner(fields: Mapping[str, Any]) -> Model:
  """Of image codes, of the fields of `models.detokenizer.CodeConnector`."""
  module = detokenizer.CodeConnector(**fields)
  vectors = jnp.zeros((1, fields['codes'], fields['code_dim']))
  return Model(
    module=module,
    init=lambda key: module.init(key, vectors)['params'],
    table=maps_detokenizer.table(),
    rules=table_detokenizer.RULES,
    hub_config=maps_detokenizer.to_hf(fields),
  )


def conditioner_from_folder(folder: Path, width: int) -> Model:
  """A connector from a folder's config.json.

  Args:
    folder: of either kind of connector.
    width: of the language model's hidden states.

  Raises:
    UserError: learned queries of another width.
  """
  config = hf.read_config(folder)
  if hf.kind(folder) != maps_metaquery.CLASS:
    return conditioner(maps_connector.from_hf(config), width)
  fields = maps_metaquery.from_hf(config)
  if fields['width'] != width:
    raise UserError(
      f'{folder} has queries of width {fields["width"]}, the language model '
      f'is {width} wide'
    )
  return query_conditioner(fields)
