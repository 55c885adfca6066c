"""This package's side: the run of a shape, whole and in stages.

`step` is the run's own program, compiled as the loop compiles it. The stages
are its parts, each compiled alone, so their sum is more than the step.
"""

import functools
import json
import sys
from pathlib import Path

import jax
import numpy as np

from benchmarks import shapes, worker
from uae_jax import zoo
from uae_jax.nn import kernels
from uae_jax.sharding.mesh import make_mesh, use_compilation_cache
from uae_jax.train import reinforce, tasks
from uae_jax.train.loop import compile_step, to_batch
from uae_jax.train.parts import Loader
from uae_jax.train.step import learn, train_step
from uae_jax.types import Rollout


class Ours:
  """Everything compiled, one batch on the device."""

  def __init__(self, shape: shapes.Shape, folder: Path, mesh):
    config = self.config = shape.config(folder)
    self.parts = tasks.load(config, Loader(config, mesh))
    self.umm = self.parts.umm
    turns, optimizer, self.state = reinforce.build(config, self.parts, mesh)
    _, self.options = turns[0]
    self.host = next(self.parts.train_data(config, mesh))
    self.batch = to_batch(self.host, mesh)
    self.key = jax.random.key(0)
    kw = dict(umm=self.umm, options=self.options)
    self.step_fn = functools.partial(train_step, optimizer=optimizer, **kw)
    self._step = compile_step(self.step_fn, self.state)
    self._learn = compile_step(
      functools.partial(learn, optimizer=optimizer, **kw), self.state
    )
    self._caption = jax.jit(self.caption_fn)
    self._draw = jax.jit(self.draw_fn)
    self._reward = jax.jit(self.umm.reward)
    self.captions = None

  def caption_fn(self, state, batch, key):
    """Images -> captions."""
    policy = self.options.gathered(self.options.policy(state))
    prefix = self.umm.prefill(policy, batch)
    return self.umm.describe(policy, prefix, key, self.options.group)

  def draw_fn(self, state, captions, key):
    """Captions -> drawings."""
    policy = self.options.gathered(self.options.policy(state))
    frozen = self.options.frozen(self.options.read(state))
    return self.umm.draw(policy, frozen, captions, None, key)

  def stages(self) -> dict:
    """By name."""
    return dict(
      rollout=self.caption, draw=self.draw, reward=self.reward,
      update=self.update, step=self.step,
    )  # fmt: skip

  def caption(self):
    """`rollout`: tokens are those of captions, EOS included."""
    self.captions = done(self._caption(self.state, self.batch, self.key))
    return dict(tokens=int(np.sum(self.captions.mask)))

  def draw(self):
    """`draw`."""
    self.images = done(self._draw(self.state, self.captions, self.key))
    return dict(images=int(np.prod(self.images.shape[:2])))

  def reward(self):
    """`reward`."""
    frozen = self.state.frozen
    self.scores, _ = done(
      self._reward(frozen, self.batch.image, self.images, self.captions)
    )

  def update(self):
    """`update`: the reference, the loss, its gradient, AdamW."""
    rollout = Rollout(self.captions, None, self.scores)
    self.state, metrics = done(
      self._learn(self.state, self.batch, rollout, self.key)
    )
    return dict(loss=float(metrics['optim/loss']))

  def step(self):
    """`step`: all of them, fused."""
    self.key = jax.random.fold_in(self.key, 1)
    self.state, metrics = done(self._step(self.state, self.batch, self.key))
    return dict(programs=self._step._cache_size())

  def has_pads(self) -> bool:
    """Have captions of random weights image tokens? `generate` fails then."""
    return bool(np.any(self.captions.tokens == self.umm.vlm.image_pad))

  def given(self, folder: Path) -> Path:
    """Writes what the other side needs: folders, options, arrays."""
    c, umm, noise = self.config, self.umm, self.umm.painter.noise
    (tower,) = umm.towers.values()
    place = lambda name: str(zoo.resolve(name).absolute())
    b = len(self.batch.image)
    arrays = dict(
      self.host, noise=noise(self.key, b, 1)[:, 0], images=self.images,
      scores=self.scores, tokens=self.captions.tokens,
      mask=self.captions.mask, logp=self.captions.logp,
    )  # fmt: skip
    arrays.pop('truth', None)
    np.savez(folder / 'arrays.npz', **jax.device_get(arrays))
    options = dict(
      group=self.options.group, length=umm.length, image_pad=umm.vlm.image_pad,
      eos=umm.tokens.eos, pad=umm.tokens.pad, before=umm.tokens.draw_before,
      after=umm.tokens.draw_after, side=tower.size, mean=tower.mean,
      std=tower.std, sigmas=umm.painter.schedule.sigmas().tolist(),
      lr=c.train.lr, b1=c.optim.b1, b2=c.optim.b2, eps=c.optim.eps,
      clip_norm=c.optim.clip_norm, clip_low=c.grpo.clip_low,
      clip_high=c.grpo.clip_high, beta=c.grpo.beta,
    )  # fmt: skip
    folders = dict(
      policy=place(c.ckpt.policy), reward=place(c.ckpt.reward),
      transformer=place(c.ckpt.decoder) + '/transformer',
      connector=place(c.ckpt.decoder) + '/connector',
    )  # fmt: skip
    file = folder / 'given.json'
    file.write_text(
      json.dumps(
        dict(
          folders=folders, options=options, arrays=str(folder / 'arrays.npz')
        )
      )
    )
    return file


def peak() -> int:
  """Bytes in use at most: the accelerator's, or this process'."""
  stats = jax.devices()[0].memory_stats() or {}
  return stats.get('peak_bytes_in_use') or worker.peak()


def done(x):
  """Waits for it."""
  return jax.block_until_ready(x)


def main() -> None:
  """`python -m benchmarks.ours SHAPE WEIGHTS FOLDER`: serves."""
  name, folder = sys.argv[1], Path(sys.argv[2])
  use_compilation_cache()
  mesh = make_mesh(1, 1, jax.devices()[:1])
  shape = shapes.SHAPES[name]
  with jax.set_mesh(mesh), kernels.use(shape.config(folder).model.attention):
    ours = Ours(shape, folder, mesh)
    stages = ours.stages()
    while ours.captions is None or ours.has_pads():
      ours.key = jax.random.fold_in(ours.key, 1)
      stages['rollout']()
    for name in ('draw', 'reward'):
      stages[name]()
    given = ours.given(Path(sys.argv[3]))
    for name in ('update', 'step'):
      stages[name]()
    worker.serve(
      stages,
      peak,
      given=str(given),
      device=jax.devices()[0].device_kind,
      version=jax.__version__,
    )


if __name__ == '__main__':
  main()
