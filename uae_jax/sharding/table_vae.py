"""Where the parameters of the image autoencoders live.

They are small beside the models they serve (84M) and every block reads its
whole kernel, so only the channels that come out are split.
"""

from jax.sharding import PartitionSpec as P

RULES = (
  (r'.*/(conv\w*|shortcut)/kernel', P(None, None, None, 'data')),  # k k C D
  (r'.*/[qkv]/kernel', P('data')),  # C 1 C
  (r'.*/out/kernel', P(None, None, 'data')),  # 1 C C
  (r'.*/(scale|bias)', P()),  # C
)
QUANT = ((r'(post_)?quant_conv/(kernel|bias)', P()),)


def rules(*, quant: bool, **_):
  """The whole table for the fields of a `models.vae.VAE`."""
  return (QUANT if quant else ()) + RULES
