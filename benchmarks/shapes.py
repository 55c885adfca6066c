"""What is measured: runs of `configs/umm1.py` at several sizes.

A shape is the config of a run whose folders of weights are in the hub's
layout, so that this package, transformers and diffusers read the same files.
`embedded` is the default run; `middle` has the proportions of a real one, at
a size that two CPU cores can work on, with weights drawn here; `gpu` and
`gpu-cudnn` are the same models with images enough for a GPU, in bfloat16, by
written-out products and by cuDNN's attention; `pod` is for a large GPU:
Qwen2.5-VL-3B and SD3.5-medium, random weights too.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from configs import umm1
from uae_jax import trees, zoo
from uae_jax.data import tokenize
from uae_jax.models import mmdit, vlm
from uae_jax.plan import stand_ins

MIDDLE = dict(
  policy=dict(
    vision=dict(
      width=384, layers=6, heads=6, mlp=1024, out=768, patch=14, merge=2,
      window=112, full=(2, 5),
    ),
    lm=dict(
      vocab=16384, width=768, layers=12, heads=12, kv_heads=4, head_dim=64,
      mlp=2816, sections=(8, 12, 12), tied=True,
    ),
  ),
  decoder=dict(
    sample_size=256, patch_size=16, in_channels=3, out_channels=3,
    num_layers=10, num_attention_heads=10, attention_head_dim=64,
    joint_attention_dim=1024, pooled_projection_dim=768,
    pos_embed_max_size=16, dual_layers=0, qk_norm=True,
  ),
  connector=dict(
    hidden=1536, context_dim=1024, pooled_dim=768, act='gelu', pooled='mean',
  ),
  tower=dict(
    projection=256,
    vision=dict(
      size=224, patch=16, width=384, layers=6, heads=6, mlp=1536,
      act='quick_gelu', eps=1e-5,
    ),
    language=dict(
      width=64, layers=1, heads=2, mlp=64, ctx=32, vocab=64, eos=5,
      act='quick_gelu', eps=1e-5,
    ),
  ),
)  # fmt: skip
POD = dict(
  policy=vlm.VARIANTS['qwen2.5-vl-3b'],
  decoder=dict(  # its flow is over pixels: no VAE is measured
    mmdit.VARIANTS['sd3.5-medium'], sample_size=512, patch_size=16,
    in_channels=3, out_channels=3,
  ),
  connector=dict(
    hidden=8192, context_dim=4096, pooled_dim=2048, act='gelu', pooled='mean',
  ),
  tower=MIDDLE['tower'],
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Shape:
  """One row of the tables.

  Attributes:
    changes: keys of the config.
    fields: of the models; None where weights are bundled.
    dtype: of random weights on disk.
  """

  changes: Mapping[str, Any]
  fields: Mapping[str, Any] | None = None
  dtype: str = 'float32'

  def config(self, folder: Path) -> Any:
    """The run; `folder` is where `write` has been."""
    config = umm1.get_config()
    changes = dict(self.changes)
    if self.fields is not None:
      changes |= {
        'ckpt.policy': str(folder / 'policy'),
        'ckpt.decoder': str(folder / 'decoder'),
        'ckpt.reward': str(folder / 'reward'),
        'ckpt.judges': '',
      }
    with config.unlocked():
      for key, value in changes.items():
        section, name = key.split('.')
        config[section][name] = value
    return config

  def write(self, folder: Path) -> None:
    """Draws weights and writes them as hub folders, unless they are there."""
    if self.fields is None or (folder / 'reward').exists():
      return
    policy = zoo.policy(
      dict(self.fields['policy'], image_pad=tokens()['image_token_id']),
      tokens(),
    )
    width = self.fields['policy']['lm']['width']
    models = {
      'policy': policy,
      'decoder/transformer': zoo.decoder(self.fields['decoder']),
      'decoder/connector': zoo.conditioner(self.fields['connector'], width),
      'reward': zoo.tower(self.fields['tower']),
    }
    for seed, (name, model) in enumerate(models.items()):
      params = jax.jit(lambda key, model=model: drawn(model, key, self.dtype))(
        jax.random.key(seed)
      )
      model.save(folder / name, params)
    patch = self.fields['policy']['vision']['patch']
    stand_ins.processors(
      'bundled:umm1/processors', folder / 'policy', patch_size=patch,
      min_pixels=self.changes['data.max_pixels'],
    )  # fmt: skip  # every image fills its bounds
    side = self.fields['tower']['vision']['size']
    stand_ins.tower_view(folder / 'reward', side, side)


def drawn(model: zoo.Model, key: Any, dtype: str) -> Any:
  """Random parameters, none of them zero."""
  first, second = jax.random.split(key)
  params = model.init(first)
  flat = trees.flatten(params)
  keys = dict(zip(flat, jax.random.split(second, len(flat))))
  noisy = lambda path, x: x + 0.02 * jax.random.normal(keys[path], x.shape)
  return trees.cast(trees.map_with_path(noisy, params), jnp.dtype(dtype))


def tokens() -> dict[str, int]:
  """Ids of the bundled tokenizer that a policy's config.json names."""
  tokenizer = tokenize.load_tokenizer(zoo.resolve('bundled:umm1/processors'))
  return {
    'image_token_id': tokenizer.id('<|image_pad|>'),
    'vision_start_token_id': tokenizer.id('<|vision_start|>'),
    'vision_end_token_id': tokenizer.id('<|vision_end|>'),
  }


SIDES = {'data.side': 256, 'data.max_pixels': 420 * 420}
ROLLOUT = {'rollout.length': 64, 'rollout.draw_steps': 4}
BFLOAT16 = {'model.dtype': 'bfloat16', 'model.frozen_dtype': 'bfloat16'}
GPU = {
  **SIDES, **ROLLOUT, **BFLOAT16,
  'train.images': 16, 'memory.drawings': 0, 'model.attention': 'xla',
}  # fmt: skip
SHAPES = {
  'embedded': Shape({}),
  'middle': Shape({**SIDES, **ROLLOUT, 'train.images': 1}, MIDDLE),
  'gpu': Shape(GPU, MIDDLE),
  'gpu-cudnn': Shape({**GPU, 'model.attention': 'cudnn'}, MIDDLE),
  'pod': Shape(
    {
      'train.images': 8,
      'rollout.length': 128,
      'rollout.draw_steps': 10,
      'data.side': 512,
      'data.max_pixels': 448 * 448,
      **BFLOAT16,
      'model.attention': 'cudnn',
      'model.remat': 'full',
      'model.chunk': 64,
      'memory.update_images': 1,
      'memory.drawings': 8,
    },
    POD,
    'bfloat16',
  ),
}
