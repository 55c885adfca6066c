"""Where the parameters of CLIP's image half live: CLIP's rows for it."""

from uae_jax.sharding import table_clip

_TEXT = (r'text_tower/words', r'logit_scale')

RULES = tuple(row for row in table_clip.RULES if row[0] not in _TEXT)
