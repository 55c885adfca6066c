"""Captions of a Qwen2.5-VL folder: those of transformers' `generate`."""

import jax
import numpy as np
import pytest
import torch

from tests.infer import tiny_releases as tiny
from tests.photographs import photographs
from uae_jax.data import tokenize
from uae_jax.infer.load import QWEN, load
from uae_jax.sharding.mesh import make_mesh

LENGTH = 12
PROMPT = 'describe every object in the image'


@pytest.mark.parametrize('tied', [False, True])
@pytest.mark.parametrize('system', [None, ''])
@torch.no_grad()
def test_greedy_captions_equal_generate(tmp_path, tied, system):
  theirs = tiny.qwen(tied)
  for p in theirs.model.language_model.layers.parameters():
    p.data *= 3  # far from ties between the most likely tokens
  theirs.save_pretrained(tmp_path)
  tiny.processors(tmp_path)
  said = dict(prompt=PROMPT, length=LENGTH, max_pixels=1024, system=system)
  photos = [photographs()[name] for name in ('coffee', 'thin')]
  with jax.default_matmul_precision('highest'):
    model = load(str(tmp_path), make_mesh(-1, 1), said, draws=False)
    got = model.describe(photos, jax.random.key(0))
  assert model.options.system == (QWEN['system'] if system is None else '')
  tok = tokenize.load_tokenizer(tmp_path)
  want = []
  for photo in photos:
    row = model.describer.example(photo)
    ids = torch.tensor(row['prefix_ids'][row['prefix_mask']]).long()[None]
    is_image = (ids == tiny.IMAGE_PAD).int()
    real = row['patch_image'] >= 0
    rows, cols = row['patch_hw'][real].max(0) + 1
    out = theirs.generate(
      input_ids=ids,
      attention_mask=torch.ones_like(ids),
      mm_token_type_ids=is_image,
      pixel_values=torch.tensor(row['patches'][real]),
      image_grid_thw=torch.tensor([[1, int(rows), int(cols)]]),
      max_new_tokens=LENGTH,
      do_sample=False,
      eos_token_id=tok.eos,
      pad_token_id=tok.pad,
    )
    want.append(tokenize.decode(tok, np.array(out[0, ids.shape[1] :])))
  assert got == want and any(got)
