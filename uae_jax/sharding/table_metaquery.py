"""Where the parameters of the learned-query connector live."""

from jax.sharding import PartitionSpec as P

_BLOCK = 'layers/block'
_MLP = r'(sequence|pooled)'

HEAD = (
  (r'queries', P()),  # N D
  (rf'{_MLP}/fc1/kernel', P('data', 'model')),  # D E
  (rf'{_MLP}/fc1/bias', P('model')),  # E
  (rf'{_MLP}/fc2/kernel', P('model', 'data')),  # E E
  (rf'{_MLP}/fc2/bias', P()),  # E
)
ENCODER = (
  (rf'{_BLOCK}/[qkv]/kernel', P(None, 'data', 'model')),  # Y D N H
  (rf'{_BLOCK}/[qkv]/bias', P(None, 'model')),  # Y N H
  (rf'{_BLOCK}/o/kernel', P(None, 'model', None, 'data')),  # Y N H D
  (rf'{_BLOCK}/mlp/fc1/kernel', P(None, 'data', 'model')),  # Y D F
  (rf'{_BLOCK}/mlp/fc1/bias', P(None, 'model')),  # Y F
  (rf'{_BLOCK}/mlp/fc2/kernel', P(None, 'model', 'data')),  # Y F D
  (rf'{_BLOCK}/(o|mlp/fc2)/bias', P()),  # Y D
  (rf'({_BLOCK}/norm[12]|final_norm)/(scale|bias)', P()),  # D
)


def rules(*, layers: int, **_):
  """The whole table for the fields of a `metaquery.QueryConnector`."""
  return HEAD + (ENCODER if layers else ())
