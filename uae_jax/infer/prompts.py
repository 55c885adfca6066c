"""Pipelines of diffusers that read prompts with text encoders of their own.

SD3 (`StableDiffusion3Pipeline`: CLIP-L, CLIP-G, T5) and FLUX
(`FluxPipeline`: CLIP-L, T5), as the hub has them.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from uae_jax import zoo
from uae_jax.ckpt import hf
from uae_jax.data.prompts import CLIP_LENGTH, PromptTokenizer
from uae_jax.errors import UserError
from uae_jax.models.text_encoder import flux_prompt, sd3_prompt
from uae_jax.umm.painter import Conditioning

# Class in model_index.json -> (encoders beside CLIP-L and T5, T5's tokens).
PIPELINES = {
  'StableDiffusion3Pipeline': (('clip_l', 'clip_g', 't5'), 256),
  'FluxPipeline': (('clip_l', 't5'), 512),
}


@dataclasses.dataclass(frozen=True)
class PromptReader:
  """Prompts -> conditioning; parameters travel separately.

  Attributes:
    modules: encoders by name.
    tokenizers: one for each.
    t5_length: tokens that T5 reads.
    width: of its states; SD3 without T5 reads zeros.
    dtype: the encoders compute in it.
  """

  modules: dict[str, Any]
  tokenizers: dict[str, PromptTokenizer]
  t5_length: int
  width: int
  dtype: str

  def encode(self, prompts: Sequence[str]) -> dict[str, np.ndarray]:
    """Prompts -> ids by encoder, on the host."""
    length = lambda name: self.t5_length if name == 't5' else CLIP_LENGTH
    return {
      name: tokenizer(prompts, length(name))
      for name, tokenizer in self.tokenizers.items()
    }

  def __call__(self, params: Any, ids: dict[str, Array]) -> Conditioning:
    """Ids -> what the decoder reads; padding is read too."""
    out = {
      name: module.apply({'params': params[name]}, ids[name], self.dtype)
      for name, module in self.modules.items()
    }
    if 'clip_g' in out:
      if 't5' not in out:
        shape = (len(ids['clip_g']), self.t5_length, self.width)
        out['t5'] = jnp.zeros(shape, self.dtype)
      context, pooled = sd3_prompt(out['clip_l'], out['clip_g'], out['t5'])
    else:
      context, pooled = flux_prompt(out['clip_l'], out['t5'])
    return dict(context=context, pooled=pooled)


def load_reader(
  folder: Path, width: int, dtype: str
) -> tuple[dict[str, zoo.Model], dict[str, Path], PromptReader]:
  """The text encoders of a pipeline's folder; weights are not read.

  Args:
    folder: of the pipeline.
    width: of the context that its decoder reads.
    dtype: the encoders compute in it.

  Returns:
    Models and their folders by name, and the reader.

  Raises:
    UserError: another pipeline, or a part is missing.
  """
  kind = hf.read_config(folder, 'model_index.json').get('_class_name')
  if kind not in PIPELINES:
    raise UserError(f'{folder} is a {kind}; pipelines are {sorted(PIPELINES)}')
  names, t5_length = PIPELINES[kind]
  if len(names) == 3 and not (folder / 'text_encoder_3').is_dir():
    names = names[:-1]  # SD3 does without
  return load_encoders(folder, names, t5_length, width, dtype)


def load_encoders(
  folder: Path, names: Sequence[str], t5_length: int, width: int, dtype: str
) -> tuple[dict[str, zoo.Model], dict[str, Path], PromptReader]:
  """`text_encoder`, `text_encoder_2` ... of a folder, called by `names`.

  Args:
    folder: has them and their tokenizers.
    names: of 'clip_l', 'clip_g' and 't5'.
    t5_length: tokens that T5 reads.
    width: of the context that the decoder reads.
    dtype: the encoders compute in it.

  Returns:
    Models and their folders by name, and the reader.

  Raises:
    UserError: a part is missing.
  """
  models, folders, tokenizers = {}, {}, {}
  for i, name in enumerate(names):
    end = f'_{i + 1}' if i else ''
    folders[name] = folder / f'text_encoder{end}'
    models[name] = zoo.from_folder(folders[name])
    tokenizers[name] = PromptTokenizer(folder / f'tokenizer{end}')
  modules = {name: model.module for name, model in models.items()}
  return (
    models,
    folders,
    PromptReader(modules, tokenizers, t5_length, width, dtype),
  )
