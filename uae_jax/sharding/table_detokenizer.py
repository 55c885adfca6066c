"""Where the parameters of the connector of image codes live."""

from jax.sharding import PartitionSpec as P

_MLP = r'(sequence|pooled)'

RULES = (
  (r'places', P()),  # I E
  (r'code/kernel', P(None, 'data')),  # C E
  (r'code/bias', P()),  # E
  (rf'{_MLP}/fc1/kernel', P('data', 'model')),  # E E
  (rf'{_MLP}/fc1/bias', P('model')),  # E
  (rf'{_MLP}/fc2/kernel', P('model', 'data')),  # E E
  (rf'{_MLP}/fc2/bias', P()),  # E
)
