"""Names and hub folders -> modules, parameters and their shardings.

The only place where a model meets its checkpoint table and its sharding
table. `bundled:NAME` is a folder inside the package; anything else is a
path in the layout of the Hugging Face hub, or the name of a repository that
the hub's own cache holds; '' builds a named variant with random weights (the
cold start does).
"""

from pathlib import Path

from uae_jax.ckpt import (
  hf,
  maps_clip,
  maps_connector,
  maps_detokenizer,
  maps_metaquery,
  maps_t5,
  maps_vae,
)
from uae_jax.errors import UserError
from uae_jax.zoo.decoders import (
  DECODERS,
  autoencoder,
  code_conditioner,
  conditioner,
  conditioner_from_folder,
  decoder,
  decoder_from_folder,
  flux_decoder,
  long_prompt,
  prompt_tower,
  query_conditioner,
)
from uae_jax.zoo.janus import janus, janus_from_folder
from uae_jax.zoo.model import ASSETS, Model, resolve, structs, weights
from uae_jax.zoo.policies import policy, policy_from_folder
from uae_jax.zoo.towers import (
  TOWERS,
  dinov2_tower,
  dinov3_tower,
  image_clip,
  siglip_tower,
  tower,
  tower_from_folder,
)

__all__ = [
  'ASSETS', 'Model', 'autoencoder', 'code_conditioner', 'conditioner',
  'conditioner_from_folder',
  'decoder', 'decoder_from_folder', 'dinov2_tower', 'dinov3_tower',
  'flux_decoder', 'from_folder', 'image_clip', 'janus',
  'janus_from_folder', 'long_prompt', 'policy',
  'policy_from_folder', 'prompt_tower', 'query_conditioner',
  'resolve', 'siglip_tower', 'structs', 'tower', 'tower_from_folder', 'weights',
]  # fmt: skip

# What config.json calls a model -> (fields of a config.json, model of them).
_OTHERS = {
  maps_detokenizer.CLASS: (maps_detokenizer.from_hf, code_conditioner),
  maps_metaquery.CLASS: (maps_metaquery.from_hf, query_conditioner),
  maps_vae.CLASS: (maps_vae.from_hf, autoencoder),
  't5': (maps_t5.from_hf, long_prompt),
  'clip_text_model': (maps_clip.text_from_hf, prompt_tower),
}


def from_folder(folder: Path) -> Model:
  """Whatever a hub folder's config.json names.

  Raises:
    UserError: when no model here is of that kind.
  """
  kind = hf.kind(folder)
  if kind == 'qwen2_5_vl':
    return policy_from_folder(folder)
  if kind in ('janus', 'multi_modality'):
    return janus_from_folder(folder)[0]
  if kind == maps_connector.CLASS:
    first = hf.headers(folder).get('projector.0.weight')
    if first is None:
      raise UserError(f'{folder} lacks projector.0.weight of a connector')
    return conditioner_from_folder(folder, first.shape[-1])
  families = {**TOWERS, **DECODERS, **_OTHERS}
  if kind not in families:
    known = [*families, 'qwen2_5_vl', 'janus', maps_connector.CLASS]
    raise UserError(f'{folder} is a {kind!r}; known are {sorted(known)}')
  fields, build = families[kind]
  return build(fields(hf.read_config(folder)))
