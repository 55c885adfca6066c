"""Where the parameters of the image autoencoders (VAE, VQ) live.

They are small beside the models they serve (84M, 72M) and every block reads
its whole kernel, so only the channels that come out are split.
"""

from jax.sharding import PartitionSpec as P

_BLOCKS = (
  (r'.*/(conv\w*|shortcut)/kernel', P(None, None, None, 'data')),  # k k C D
  (r'.*/[qkv]/kernel', P('data')),  # C 1 C
  (r'.*/out/kernel', P(None, None, 'data')),  # 1 C C
)
_REST = ((r'.*/(scale|bias)', P()),)  # C
_QUANT = ((r'(\w+/)?(post_)?quant_conv/(kernel|bias)', P()),)
_CODES = ((r'(\w+/)?codebook', P()),)  # K C

VQ = (*_QUANT, *_CODES, *_BLOCKS, *_REST)


def rules(*, quant: bool, **_):
  """The whole table for the fields of a `models.vae.VAE`."""
  return (_QUANT if quant else ()) + _BLOCKS + _REST
