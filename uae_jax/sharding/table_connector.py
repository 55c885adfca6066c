"""Where the parameters of the connector live."""

from jax.sharding import PartitionSpec as P


def rules(pooled: str):
  """The rules of a `models.connector.Connector` with that pooled part."""
  parts = '(sequence|pooled)' if pooled == 'mean' else 'sequence'
  mlp = (
    (rf'{parts}/fc1/kernel', P('data', 'model')),  # D F
    (rf'{parts}/fc1/bias', P('model')),  # F
    (rf'{parts}/fc2/kernel', P('model', 'data')),  # F E
    (rf'{parts}/fc2/bias', P()),  # E
  )
  return (*mlp, (r'constant', P())) if pooled == 'constant' else mlp
