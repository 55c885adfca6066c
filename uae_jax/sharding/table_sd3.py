"""Where the parameters of the MM-DiT live. Y layers lead, never sharded."""

from typing import Any

from jax.sharding import PartitionSpec as P

_BLOCK = r'(dual_blocks|joint_blocks|last_block)/block'
_STREAM = r'(image2?|text)'

RULES = (
  # Sharded over D, so that cropping the centre of S stays local.
  (r'pos_embed/table', P(None, None, 'data')),  # 1 S D
  (r'pos_embed/proj/kernel', P('data', 'model')),  # E D
  (r'(time|pooled)/fc1/kernel', P('data', 'model')),  # E D
  (r'(time|pooled)/fc1/bias', P('model')),  # D
  (r'(time|pooled)/fc2/kernel', P('model', 'data')),  # D D
  (r'context/kernel', P('data', 'model')),  # E D
  (r'final_mod/kernel', P('data', None, 'model')),  # D 2 D
  (r'proj_out/kernel', P('data')),  # D E
  (rf'{_BLOCK}/{_STREAM}_mod/kernel', P(None, 'data', None, 'model')),  # YD6D
  (rf'{_BLOCK}/{_STREAM}/[qkv]/kernel', P(None, 'data', 'model')),  # Y D N H
  (rf'{_BLOCK}/{_STREAM}/[qkv]/bias', P(None, 'model')),  # Y N H
  (rf'{_BLOCK}/{_STREAM}_out/kernel', P(None, 'model', None, 'data')),  # YNHD
  (rf'{_BLOCK}/{_STREAM}_mlp/fc1/kernel', P(None, 'data', 'model')),  # Y D F
  (rf'{_BLOCK}/{_STREAM}_mlp/fc1/bias', P(None, 'model')),  # Y F
  (rf'{_BLOCK}/{_STREAM}_mlp/fc2/kernel', P(None, 'model', 'data')),  # Y F D
  (rf'{_BLOCK}/{_STREAM}_(mod|out|mlp/fc2)/bias', P()),  # Y D
  (r'(pos_embed/proj|(time|pooled)/fc2|context|final_mod|proj_out)/bias', P()),
)

QK_NORM = ((rf'{_BLOCK}/{_STREAM}/[qk]_norm/scale', P()),)  # Y H


def rules(*, qk_norm: bool, **_: Any):
  """The whole table for the fields of a `models.mmdit.MMDiT`."""
  return RULES + (QK_NORM if qk_norm else ())
