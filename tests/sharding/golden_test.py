"""Where every tensor of every real model lives, written down.

`python -m tests.sharding.golden_test` writes the files anew.
"""

import math
from pathlib import Path

import pytest
from jax.sharding import AbstractMesh, AxisType

from uae_jax import trees, zoo
from uae_jax.models import (
  clip,
  connector,
  dinov2,
  dinov3,
  flux,
  janus,
  metaquery,
  mmdit,
  siglip,
  t5,
  vae,
  vlm,
  vq,
)
from uae_jax.sharding import rules

FOLDER = Path(__file__).parent / 'golden'
MESH = AbstractMesh((16, 4), ('data', 'model'), (AxisType.Auto,) * 2)
LARGE = 2**20  # bytes in float32


def qwen(name):
  return zoo.policy(dict(vlm.VARIANTS[name], image_pad=0), {})


def janus_pro(name):
  fields = {**janus.VARIANTS[name], 'vq': vq.VARIANTS[name]}
  return zoo.janus(fields, 0, {})[0]


MODELS = {
  'qwen2.5-vl-3b': lambda: qwen('qwen2.5-vl-3b'),
  'qwen2.5-vl-7b': lambda: qwen('qwen2.5-vl-7b'),
  'janus-pro-1b': lambda: janus_pro('janus-pro-1b'),
  'janus-pro-7b': lambda: janus_pro('janus-pro-7b'),
  'sd3.5-medium': lambda: zoo.decoder(mmdit.VARIANTS['sd3.5-medium']),
  'sd3.5-large': lambda: zoo.decoder(mmdit.VARIANTS['sd3.5-large']),
  'flux-dev': lambda: zoo.flux_decoder(flux.VARIANTS['flux-dev']),
  'vae-sd3': lambda: zoo.autoencoder(vae.VARIANTS['sd3']),
  'uae-connector': lambda: zoo.conditioner(connector.VARIANTS['uae'], 2048),
  'uniworld-connector': lambda: zoo.conditioner(
    connector.VARIANTS['uniworld'], 3584
  ),
  'metaquery-sd35': lambda: zoo.query_conditioner(metaquery.VARIANTS['sd35']),
  't5-xxl': lambda: zoo.long_prompt(t5.VARIANTS['t5-v1.1-xxl']),
  'clip-l-14': lambda: zoo.tower(clip.VARIANTS['vit-l-14']),
  'dinov2-l': lambda: zoo.dinov2_tower(dinov2.VARIANTS['dinov2-l']),
  'dinov3-l': lambda: zoo.dinov3_tower(dinov3.VARIANTS['dinov3-l']),
  'siglip-so400m': lambda: zoo.siglip_tower(
    siglip.VARIANTS['siglip-so400m-14-224']
  ),
}


def placed(name):
  """path -> (shape, spec) over a 16 x 4 mesh."""
  model = MODELS[name]()
  shapes = model.shapes()
  homes = trees.flatten(rules.shardings(shapes, model.rules, MESH))
  return {
    path: (tuple(x.shape), homes[path].spec)
    for path, x in trees.flatten(shapes).items()
  }


def text(found) -> str:
  """One line for each tensor."""
  row = lambda shape, spec: f'{"x".join(map(str, shape))} {_short(spec)}'
  return ''.join(f'{path} {row(*x)}\n' for path, x in found.items())


def _short(spec):
  return ','.join('-' if a is None else a for a in spec) or '-'


@pytest.mark.parametrize('name', MODELS)
def test_tensors_live_where_it_is_written(name):
  found = placed(name)
  assert text(found) == (FOLDER / f'{name}.txt').read_text()
  small = {'positions', 'pos_embed', 'codebook'}
  whole = [
    path
    for path, (shape, spec) in found.items()
    if 4 * math.prod(shape) > LARGE and not any(spec)
    if not small & set(path.split('/'))
  ]
  # Stacks of vectors (norms, biases of all layers) are read whole.
  matrices = [p for p in whole if p.endswith(('kernel', 'embedding', 'words'))]
  assert not matrices
  most = max((4 * math.prod(found[p][0]) for p in whole), default=0)
  assert most <= 8 * LARGE, whole


def test_a_sharded_tensor_is_spread_over_the_devices():
  """A 16 x 4 mesh holds about a 64th of a large model on each device."""
  for name in ('qwen2.5-vl-7b', 'flux-dev', 'janus-pro-7b'):
    here = total = 0
    for shape, spec in placed(name).values():
      size = math.prod(shape)
      ways = math.prod(MESH.shape[a] for a in spec if a)
      total, here = total + size, here + size / ways
    assert here < 1.1 * total / 64, name


if __name__ == '__main__':
  for name in MODELS:
    (FOLDER / f'{name}.txt').write_text(text(placed(name)))
