"""Where the parameters of CLIP live. Y layers lead, never sharded."""

from jax.sharding import PartitionSpec as P

_BLOCK = r'(vision|text)_tower/layers/block'

RULES = (
  (r'vision_tower/patch_embed/kernel', P('data', 'model')),  # E D
  (r'text_tower/words', P('model', 'data')),  # V D
  (rf'{_BLOCK}/[qkv]/kernel', P(None, 'data', 'model')),  # Y D N H
  (rf'{_BLOCK}/[qkv]/bias', P(None, 'model')),  # Y N H
  (rf'{_BLOCK}/o/kernel', P(None, 'model', None, 'data')),  # Y N H D
  (rf'{_BLOCK}/mlp/fc1/kernel', P(None, 'data', 'model')),  # Y D F
  (rf'{_BLOCK}/mlp/fc1/bias', P(None, 'model')),  # Y F
  (rf'{_BLOCK}/mlp/fc2/kernel', P(None, 'model', 'data')),  # Y F D
  (rf'{_BLOCK}/(o|mlp/fc2)/bias', P()),  # Y D
  (rf'{_BLOCK}/norm[12]/(scale|bias)', P()),  # Y D
  (r'(vision|text)_tower/projection/kernel', P('data')),  # D E
  (r'(vision|text)_tower/positions', P()),  # L D
  (r'vision_tower/cls', P()),  # D
  (r'(vision|text)_tower/(pre|post|final)_norm/(scale|bias)', P()),  # D
  (r'logit_scale', P()),
)
