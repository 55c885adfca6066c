"""The bundled UMM-1 on one scene, beside what it did when it was recorded.

A few seconds: caption, drawing and similarities of a whole loop, in float32
with exact products, on one device.
"""

import dataclasses
from typing import Any

import jax
import numpy as np

from uae_jax.data.scenes import draw
from uae_jax.infer.load import load
from uae_jax.infer.scores import load_towers
from uae_jax.sharding.mesh import make_mesh

# Shape, colour, size, row and column of each object.
SCENE = ((0, 0, 2, 0, 0), (1, 2, 1, 1, 2))
TOWERS = ('bundled:umm1/reward', 'bundled:umm1/judge_clip')
TOLERANCE = 2e-3  # of numbers; the caption must be the same


@dataclasses.dataclass(frozen=True)
class Found:
  """What a loop over the scene gives.

  Attributes:
    caption: greedy.
    reward: cosine of scene and drawing in the training reward's tower.
    judge: the same in another one.
    error: mean absolute difference of their pixels in [0, 1].
  """

  caption: str
  reward: float
  judge: float
  error: float


RECORDED = Found(
  caption='red circle top left , blue square middle right',
  reward=0.8959441,
  judge=0.7404809,
  error=0.0214550,
)


def run(devices: Any = ()) -> Found:
  """Describes the scene, redraws it, compares.

  Args:
    devices: of JAX, of which the first is used; () is its own choice.
  """
  mesh = make_mesh(1, 1, [*(devices or jax.devices())][:1])
  scene = draw.render(np.array(SCENE))
  with jax.default_matmul_precision('highest'):
    model = load('bundled:umm1', mesh, {'batch': 1, 'dtype': 'float32'})
    [caption] = model.describe([scene], jax.random.key(0))
    [drawn] = model.draw([caption], jax.random.key(1))
    towers = load_towers(TOWERS, mesh)
    scores = [float(see([scene], [drawn])[0]) for see in towers.values()]
  error = np.mean(np.abs(scene.astype(float) - drawn.astype(float))) / 255
  return Found(caption, *scores, float(error))


def differences(found: Found, recorded: Found = RECORDED) -> list[str]:
  """What is not as it was, a line each."""
  out = []
  for field in dataclasses.fields(Found):
    ours, theirs = vars(found)[field.name], vars(recorded)[field.name]
    same = ours == theirs
    if field.type is float:
      same = abs(ours - theirs) <= TOLERANCE
      ours, theirs = f'{ours:.4f}', f'{theirs:.4f}'
    if not same:
      out.append(f'{field.name} {ours!r}, recorded {theirs!r}')
  return out
