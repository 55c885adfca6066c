"""Where the parameters of CLIP live. Y layers lead, never sharded."""

from jax.sharding import PartitionSpec as P


def _tower(name: str):
  """Rows that an image tower and a text tower share, under a prefix."""
  block = rf'{name}layers/block'
  return (
    (rf'{block}/[qkv]/kernel', P(None, 'data', 'model')),  # Y D N H
    (rf'{block}/[qkv]/bias', P(None, 'model')),  # Y N H
    (rf'{block}/o/kernel', P(None, 'model', None, 'data')),  # Y N H D
    (rf'{block}/mlp/fc1/kernel', P(None, 'data', 'model')),  # Y D F
    (rf'{block}/mlp/fc1/bias', P(None, 'model')),  # Y F
    (rf'{block}/mlp/fc2/kernel', P(None, 'model', 'data')),  # Y F D
    (rf'{block}/(o|mlp/fc2)/bias', P()),  # Y D
    (rf'{block}/norm[12]/(scale|bias)', P()),  # Y D
    (rf'{name}positions', P()),  # L D
    (rf'{name}(pre|post|final)_norm/(scale|bias)', P()),  # D
  )


RULES = (
  *_tower('(vision|text)_tower/'),
  (r'vision_tower/patch_embed/kernel', P('data', 'model')),  # E D
  (r'text_tower/words', P('model', 'data')),  # V D
  (r'(vision|text)_tower/projection/kernel', P('data')),  # D E
  (r'vision_tower/cls', P()),  # D
  (r'logit_scale', P()),
)


def text_rules(*, projection: int, **_):
  """The rules of a text tower on its own."""
  rules = (*_tower(''), (r'words', P('model', 'data')))
  if projection:
    rules += ((r'projection/kernel', P('data')),)
  return rules
