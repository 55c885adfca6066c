"""What SD3 and FLUX read of a prompt with text encoders of their own.

Follows `encode_prompt` of diffusers' `pipeline_stable_diffusion_3.py` and
`pipeline_flux.py`. The encoders are `models.clip.TextTower` and
`models.t5.T5`; here their outputs become a context and a pooled vector.
Letters: B prompts, L tokens, E context width, F pooled width.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from uae_jax.models.clip import TextOut


def sd3_prompt(
  clip_l: TextOut, clip_g: TextOut, t5: Float[Array, 'B L E']
) -> tuple[Float[Array, 'B S E'], Float[Array, 'B F']]:
  """CLIP-L and CLIP-G side by side, then T5.

  Args:
    clip_l: of the prompt padded to the tower's length (77).
    clip_g: of the same, with the other tokenizer's padding.
    t5: its states, padding included; zeros where T5 is left out.

  Returns:
    The context, 77 + L tokens, and the pooled vector.
  """
  words = jnp.concatenate([clip_l.penultimate, clip_g.penultimate], -1)
  rest = t5.shape[-1] - words.shape[-1]
  words = jnp.pad(words, ((0, 0), (0, 0), (0, rest)))
  context = jnp.concatenate([words, t5.astype(words.dtype)], 1)
  return context, jnp.concatenate([clip_l.embed, clip_g.embed], -1)


def flux_prompt(
  clip_l: TextOut, t5: Float[Array, 'B L E']
) -> tuple[Float[Array, 'B L E'], Float[Array, 'B F']]:
  """T5's states are the context, CLIP-L's state at the end is pooled."""
  return t5, clip_l.pooled
