"""Where the parameters of the T5 encoder live. Y layers lead."""

from jax.sharding import PartitionSpec as P

RULES = (
  (r'words', P('model', 'data')),  # V D
  (r'relative', P()),  # R N
  (r'layers/block/[qkv]/kernel', P(None, 'data', 'model')),  # Y D N H
  (r'layers/block/o/kernel', P(None, 'model', None, 'data')),  # Y N H D
  (r'layers/block/mlp/(gate|up)/kernel', P(None, 'data', 'model')),  # Y D F
  (r'layers/block/mlp/down/kernel', P(None, 'model', 'data')),  # Y F D
  (r'(layers/block/(attn|mlp)|final)_norm/scale', P()),  # D
)
