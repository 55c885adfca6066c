"""Where the parameters of SigLIP live. Y layers lead, never sharded."""

from collections.abc import Mapping
from typing import Any

from jax.sharding import PartitionSpec as P

_BLOCK = r'(vision|text)_tower/layers/block'
_HEAD = r'vision_tower/head'

VISION = (
  (r'vision_tower/patch_embed/kernel', P('data', 'model')),  # E D
  (r'vision_tower/patch_embed/bias', P('model')),  # D
  (rf'{_BLOCK}/[qkv]/kernel', P(None, 'data', 'model')),  # Y D N H
  (rf'{_BLOCK}/[qkv]/bias', P(None, 'model')),  # Y N H
  (rf'{_BLOCK}/o/kernel', P(None, 'model', None, 'data')),  # Y N H D
  (rf'{_BLOCK}/mlp/fc1/kernel', P(None, 'data', 'model')),  # Y D F
  (rf'{_BLOCK}/mlp/fc1/bias', P(None, 'model')),  # Y F
  (rf'{_BLOCK}/mlp/fc2/kernel', P(None, 'model', 'data')),  # Y F D
  (rf'{_BLOCK}/(o|mlp/fc2)/bias', P()),  # Y D
  (rf'{_BLOCK}/norm[12]/(scale|bias)', P()),  # Y D
  (rf'{_HEAD}/qkv/kernel', P('data', None, 'model')),  # D 3 N H
  (rf'{_HEAD}/qkv/bias', P(None, 'model')),  # 3 N H
  (rf'{_HEAD}/o/kernel', P('model', None, 'data')),  # N H D
  (rf'{_HEAD}/mlp/fc1/kernel', P('data', 'model')),  # D F
  (rf'{_HEAD}/mlp/fc1/bias', P('model')),  # F
  (rf'{_HEAD}/mlp/fc2/kernel', P('model', 'data')),  # F D
  (rf'{_HEAD}/(probe|norm/(scale|bias)|(o|mlp/fc2)/bias)', P()),  # D
  (r'(vision|text)_tower/positions', P()),  # L D
  (r'(vision|text)_tower/(post|final)_norm/(scale|bias)', P()),  # D
)

TEXT = (
  (r'text_tower/words', P('model', 'data')),  # V D
  (r'text_tower/head/kernel', P('data')),  # D E
  (r'text_tower/head/bias', P()),  # E
  (r'logit_(scale|bias)', P()),
)


def rules(*, language: Mapping[str, Any] | None, **_: Any):
  """The whole table for the fields of a `models.siglip.SigLIP`."""
  return VISION + (() if language is None else TEXT)
