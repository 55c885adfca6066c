"""Where the parameters of DINOv2 and DINOv3 live. Y leads, never sharded."""

from typing import Any

from jax.sharding import PartitionSpec as P

_BLOCK = r'layers/block'

RULES = (
  (r'patch_embed/kernel', P('data', 'model')),  # E D
  (r'patch_embed/bias', P('model')),  # D
  (rf'{_BLOCK}/[qkv]/kernel', P(None, 'data', 'model')),  # Y D N H
  (rf'{_BLOCK}/o/kernel', P(None, 'model', None, 'data')),  # Y N H D
  (rf'{_BLOCK}/(o|mlp/(fc2|down))/bias', P()),  # Y D
  (rf'{_BLOCK}/(norm|scale)[12]/(scale|bias)', P()),  # Y D
  # Whatever its first axis, a token or a position is small.
  (r'cls|mask_token|registers|positions', P()),  # . D
  (r'final_norm/(scale|bias)', P()),  # D
)
QKV_BIAS = ((rf'{_BLOCK}/[qkv]/bias', P(None, 'model')),)  # Y N H
MLP = (
  (rf'{_BLOCK}/mlp/fc1/kernel', P(None, 'data', 'model')),  # Y D F
  (rf'{_BLOCK}/mlp/fc1/bias', P(None, 'model')),  # Y F
  (rf'{_BLOCK}/mlp/fc2/kernel', P(None, 'model', 'data')),  # Y F D
)
GATED = (
  (rf'{_BLOCK}/mlp/(gate|up)/kernel', P(None, 'data', 'model')),  # Y D F
  (rf'{_BLOCK}/mlp/(gate|up)/bias', P(None, 'model')),  # Y F
  (rf'{_BLOCK}/mlp/down/kernel', P(None, 'model', 'data')),  # Y F D
)
FUSED = (
  (rf'{_BLOCK}/mlp/gate_up/kernel', P(None, 'data', None, 'model')),  # Y D 2 F
  (rf'{_BLOCK}/mlp/gate_up/bias', P(None, None, 'model')),  # Y 2 F
  (rf'{_BLOCK}/mlp/down/kernel', P(None, 'model', 'data')),  # Y F D
)


def dinov2(*, gated: bool, qkv_bias: bool, **_: Any):
  """The whole table for the fields of a `models.dinov2.DINOv2`."""
  return RULES + (QKV_BIAS if qkv_bias else ()) + (FUSED if gated else MLP)


def dinov3(*, gated: bool, q_bias: bool, k_bias: bool, v_bias: bool, **_: Any):
  """The whole table for the fields of a `models.dinov3.DINOv3`."""
  bias = QKV_BIAS if q_bias or k_bias or v_bias else ()
  return RULES + bias + (GATED if gated else MLP)
