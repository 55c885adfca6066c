"""Where the parameters of Qwen2.5-VL live. Y layers lead, never sharded."""

from jax.sharding import PartitionSpec as P

VISION = (
  (r'vision/patch_embed/kernel', P('data', 'model')),  # E D
  (r'vision/blocks/block/qkv/kernel', P(None, 'data', None, 'model')),  # YD3NH
  (r'vision/blocks/block/qkv/bias', P(None, None, 'model')),  # Y 3 N H
  (r'vision/blocks/block/proj/kernel', P(None, 'model', None, 'data')),  # YNHD
  (r'vision/blocks/block/mlp/(gate|up)/kernel', P(None, 'data', 'model')),
  (r'vision/blocks/block/mlp/(gate|up)/bias', P(None, 'model')),  # Y F
  (r'vision/blocks/block/mlp/down/kernel', P(None, 'model', 'data')),  # Y F D
  (r'vision/blocks/block/(proj|mlp/down)/bias', P()),
  (r'vision/(blocks/block/norm[12]|merger_norm)/scale', P()),
  (r'vision/merger/fc1/kernel', P('data', 'model')),  # 4D 4D
  (r'vision/merger/fc1/bias', P('model')),
  (r'vision/merger/fc2/kernel', P('model', 'data')),  # 4D D
  (r'vision/merger/fc2/bias', P()),
)

LM = (
  (r'lm/embed/embedding', P('model', 'data')),  # V D
  (r'lm/layers/block/[qkv]/kernel', P(None, 'data', 'model')),  # Y D N H
  (r'lm/layers/block/o/kernel', P(None, 'model', None, 'data')),  # Y N H D
  (r'lm/layers/block/mlp/(gate|up)/kernel', P(None, 'data', 'model')),  # Y D F
  (r'lm/layers/block/mlp/down/kernel', P(None, 'model', 'data')),  # Y F D
  (r'lm/(layers/block/(attn|mlp)_norm|norm)/scale', P()),
)

BIAS = ((r'lm/layers/block/[qkv]/bias', P(None, 'model')),)  # Y N H
HEAD = ((r'lm/head/kernel', P('data', 'model')),)  # D V


def rules(*, tied: bool):
  """The whole table; the head has a row where it is not the embedding."""
  return VISION + language(tied=tied, bias=True)


def language(*, tied: bool, bias: bool):
  """The decoder's part; LLaMA has no biases."""
  return LM + (BIAS if bias else ()) + (() if tied else HEAD)
