"""Where the parameters of the connector live."""

from jax.sharding import PartitionSpec as P

RULES = (
  (r'(sequence|pooled)/fc1/kernel', P('data', 'model')),  # D F
  (r'(sequence|pooled)/fc1/bias', P('model')),  # F
  (r'(sequence|pooled)/fc2/kernel', P('model', 'data')),  # F E
  (r'(sequence|pooled)/fc2/bias', P()),  # E
)
