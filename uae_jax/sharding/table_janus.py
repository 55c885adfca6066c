"""Where the parameters of Janus-Pro live. Y layers lead, never sharded."""

from jax.sharding import PartitionSpec as P

from uae_jax.sharding.table_qwen import language

_BLOCK = r'vision/layers/block'
_MLP = r'(aligner|code_aligner|code_head)'

SEPARATE = (
  (rf'{_BLOCK}/[qkv]/kernel', P(None, 'data', 'model')),  # Y D N H
  (rf'{_BLOCK}/[qkv]/bias', P(None, 'model')),  # Y N H
)
FUSED = (
  (rf'{_BLOCK}/qkv/kernel', P(None, 'data', None, 'model')),  # Y D 3 N H
  (rf'{_BLOCK}/qkv/bias', P(None, None, 'model')),  # Y 3 N H
)
REST = (
  (r'vision/patch_embed/kernel', P('data', 'model')),  # E D
  (rf'{_BLOCK}/o/kernel', P(None, 'model', None, 'data')),  # Y N H D
  (rf'{_BLOCK}/mlp/fc1/kernel', P(None, 'data', 'model')),  # Y D F
  (rf'{_BLOCK}/mlp/fc1/bias', P(None, 'model')),  # Y F
  (rf'{_BLOCK}/mlp/fc2/kernel', P(None, 'model', 'data')),  # Y F D
  (rf'{_BLOCK}/(o|mlp/fc2)/bias', P()),  # Y D
  (rf'({_BLOCK}/norm[12]|vision/post_norm)/(scale|bias)', P()),
  (r'vision/(positions|patch_embed/bias)', P()),
  (rf'{_MLP}/fc1/kernel', P('data', 'model')),  # E F
  (rf'{_MLP}/fc1/bias', P('model')),  # F
  (rf'{_MLP}/fc2/kernel', P('model', 'data')),  # F D
  (rf'{_MLP}/fc2/bias', P()),
  (r'code_embed/embedding', P()),  # K C
)


def rules(*, fused: bool, tied: bool):
  """The whole table; `fused` as in the fields of the tower."""
  attention = FUSED if fused else SEPARATE
  return attention + REST + language(tied=tied, bias=False)
