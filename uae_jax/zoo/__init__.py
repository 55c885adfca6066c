"""Names and hub folders -> modules, parameters and their shardings.

The only place where a model meets its checkpoint table and its sharding
table. `bundled:NAME` is a folder inside the package; anything else is a
path in the layout of the Hugging Face hub; '' builds a named variant with
random weights (the cold start does).
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from uae_jax.ckpt import hf, maps_clip, maps_connector, maps_qwen, maps_sd3
from uae_jax.errors import UserError
from uae_jax.models import clip, connector, mmdit, vlm
from uae_jax.sharding import (
  rules,
  table_clip,
  table_connector,
  table_qwen,
  table_sd3,
)
from uae_jax.types import Batch

ASSETS = Path(__file__).parent / 'assets'


@dataclasses.dataclass(frozen=True)
class Model:
  """A module with everything needed to place, load and save it.

  Attributes:
    module: the Flax module.
    init: key -> parameters.
    table: checkpoint rows.
    rules: sharding rules.
    hub_config: contents of config.json.
    stem: file stem of its safetensors.
    ignore: hub tensors that are known and unused.
    rename: folds a file's names into the table's.
  """

  module: Any
  init: Callable[[Any], Any]
  table: Sequence[hf.Row]
  rules: Sequence[rules.Rule]
  hub_config: Mapping[str, Any]
  stem: str = 'model'
  ignore: Sequence[str] = ()
  rename: Callable[[str], str] = lambda name: name

  def shapes(self):
    """Parameter shapes, without computing them."""
    return jax.eval_shape(self.init, jax.random.key(0))

  def load(self, folder: Path, dtype: Any = np.float32):
    """Host parameters from a hub folder; see `ckpt.hf.load`."""
    return hf.load(
      folder,
      self.table,
      self.shapes(),
      stem=self.stem,
      dtype=dtype,
      ignore=self.ignore,
      rename=self.rename,
    )

  def save(self, folder: Path, params: Any, dtype: Any = None) -> None:
    """Writes a hub folder that transformers or diffusers reads."""
    hf.save(
      folder,
      self.table,
      params,
      self.hub_config,
      stem=self.stem,
      dtype=dtype,
    )


def resolve(name: str) -> Path:
  """`bundled:NAME` or a path -> an existing folder.

  Raises:
    UserError: when there is no such folder.
  """
  if name.startswith('bundled:'):
    folder = ASSETS / name.removeprefix('bundled:')
    if not folder.is_dir():
      have = sorted(
        str(p.parent.relative_to(ASSETS)) for p in ASSETS.rglob('config.json')
      )
      raise UserError(f'no bundled weights {name!r}; there are {have}')
    return folder
  folder = Path(name).expanduser()
  if not folder.is_dir():
    raise UserError(f'checkpoint folder {folder} does not exist')
  return folder


def policy(fields: Mapping[str, Any], tokens: Mapping[str, int], **kw) -> Model:
  """Qwen2.5-VL from its fields; `tokens` are ids for config.json."""
  module = vlm.VLM(
    vision=dict(fields['vision']),
    lm=dict(fields['lm']),
    image_pad=fields['image_pad'],
    **kw,
  )
  patch = fields['vision']['patch']
  group = fields['vision']['merge'] ** 2
  zeros = lambda *shape: jnp.zeros((1, *shape), jnp.int32)
  batch = Batch(
    patches=jnp.zeros((1, group, 3 * 2 * patch * patch)),
    patch_hw=zeros(group, 2),
    patch_window=zeros(group),
    patch_image=zeros(group),
    prefix_ids=zeros(2),
    prefix_positions=zeros(3, 2),
    prefix_mask=jnp.ones((1, 2), bool),
    image=jnp.zeros((1, 1, 1, 3)),
  )
  return Model(
    module=module,
    init=lambda key: module.init(key, batch)['params'],
    table=maps_qwen.table(fields['vision'], fields['lm']),
    rules=table_qwen.rules(tied=fields['lm']['tied']),
    hub_config=maps_qwen.to_hf(fields['vision'], fields['lm'], tokens),
    ignore=maps_qwen.IGNORE,
    rename=maps_qwen.rename,
  )


def policy_from_folder(folder: Path, **kw) -> Model:
  """Qwen2.5-VL from a hub folder's config.json."""
  config = hf.read_config(folder)
  keep = [
    'image_token_id',
    'video_token_id',
    'vision_start_token_id',
    'vision_end_token_id',
  ]
  tokens = {k: config[k] for k in keep if k in config}
  return policy(maps_qwen.from_hf(config), tokens, **kw)


def tower(fields: Mapping[str, Any]) -> Model:
  """CLIP (or LongCLIP) from the fields of `models.clip.CLIP`."""
  module = clip.CLIP(**fields)
  side = fields['vision']['size']
  pixels, ids = jnp.zeros((1, side, side, 3)), jnp.zeros((1, 1), jnp.int32)
  return Model(
    module=module,
    init=lambda key: module.init(key, pixels, ids)['params'],
    table=maps_clip.table(**fields),
    rules=table_clip.RULES,
    hub_config=maps_clip.to_hf(**fields),
    ignore=maps_clip.IGNORE,
  )


def tower_from_folder(folder: Path) -> Model:
  """CLIP from a hub folder's config.json."""
  return tower(maps_clip.from_hf(hf.read_config(folder)))


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


def decoder_from_folder(folder: Path, **kw) -> Model:
  """MM-DiT from a diffusers folder's config.json."""
  return decoder(maps_sd3.from_hf(hf.read_config(folder)), **kw)


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


def conditioner_from_folder(folder: Path, width: int) -> Model:
  """Connector from a folder's config.json."""
  return conditioner(maps_connector.from_hf(hf.read_config(folder)), width)
