"""Supervised stages: what they train, on what, and how errors weigh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from tests.train.loop_test import config, rows
from uae_jax import trees, zoo
from uae_jax.ckpt import peft
from uae_jax.data.scenes import draw
from uae_jax.errors import UserError
from uae_jax.infer.painters import load_painter
from uae_jax.nn import lora
from uae_jax.plan import programs
from uae_jax.rollout import flow
from uae_jax.sharding.mesh import make_mesh
from uae_jax.train import loop, pretrain

START = 'bundled:umm1/decoder'


def tensors(folder):
  (file,) = zoo.resolve(str(folder)).glob('*.safetensors')
  return load_file(file)


def moved(folder, start):
  before, after = tensors(start), tensors(folder)
  assert set(before) == set(after)
  return {
    k
    for k in after
    if (before[k].astype(np.float32) != after[k].astype(np.float32)).any()
  }


class Still:
  """A decoder that says v = 0, of images that are their own latents."""

  def encode(self, params, images):
    return images

  def velocity(self, params, x, t, cond):
    assert t.shape == (len(x),)
    return jnp.zeros_like(x)


def test_an_error_is_the_squared_distance_to_the_target():
  images = jax.random.normal(jax.random.key(0), (3, 4, 4, 2))
  key, t = jax.random.key(1), jnp.array([0.2, 0.5, 1.0])
  got = pretrain.flow_errors(Still(), {}, images, {}, key, t)
  noise = jax.random.normal(key, images.shape)
  want = np.mean((noise - images) ** 2, (1, 2, 3))
  np.testing.assert_allclose(got, want, rtol=1e-6)
  assert got.shape == (3,)


@pytest.mark.parametrize('gamma', [1.0, 5.0])
def test_min_snr_weighs_errors_of_x0(gamma):
  t = np.linspace(0.05, 0.95, 19).astype(np.float32)
  x0, noise = np.random.default_rng(0).normal(size=(2, 19, 6))
  x = flow.noised(x0, noise, t)
  v = noise - x0 + 0.1
  of_x0 = (x - t[:, None] * v - x0) ** 2
  of_v = (v - (noise - x0)) ** 2
  snr = ((1 - t) / t) ** 2
  times = pretrain.Times(0.0, 1.0, 0.0, gamma)
  want = np.minimum(snr, gamma)[:, None] * of_x0
  np.testing.assert_allclose(times.weights(t)[:, None] * of_v, want, rtol=1e-3)


def test_times_are_logit_normal_or_one():
  t = pretrain.Times(0.5, 2.0, 0.25).sample(jax.random.key(0), 8000)
  assert (t[:2000] == 1).all() and (t[2000:] < 1).all()
  logit = np.log(t[2000:] / (1 - t[2000:]))
  np.testing.assert_allclose([logit.mean(), logit.std()], [0.5, 2.0], atol=0.1)


@pytest.mark.parametrize(
  'change', [dict(min_snr=-1.0), dict(min_snr=5.0, noise_rows=0.1)]
)
def test_weights_that_cannot_be_are_refused(change):
  kw = dict(mean=0.0, std=1.0, noise_rows=0.0) | change
  with pytest.raises(ValueError, match='min_snr'):
    pretrain.Times(**kw)


@pytest.fixture(scope='module')
def aligned(tmp_path_factory):
  """A new connector, a few steps."""
  folder = tmp_path_factory.mktemp('align') / 'run'
  c = config('pretrain', 'align', **{
    'train.steps': 12, 'eval.every': 12, 'optim.warmup': 0,
    'rollout.length': 24, 'pretrain.min_snr': 5.0, 'train.lr': 3e-3,
  })  # fmt: skip
  assert loop.run(c, folder) == 0
  return folder


def test_align_changes_the_connector_alone(aligned):
  parts = {p.name for p in (aligned / 'export').iterdir()}
  assert parts == {'decoder'}
  name = 'decoder/connector'
  assert moved(aligned / 'export' / name, f'bundled:umm1/{name}')
  name = 'decoder/transformer'
  assert not moved(aligned / 'export' / name, f'bundled:umm1/{name}')


def test_align_is_told_by_its_heldout_loss(aligned):
  first, last = rows(aligned, 'eval/')
  assert last['eval/flow_loss'] < first['eval/flow_loss']
  assert 'eval/full_unified_score' in first
  assert 'eval/full_exact_scene' in first


@pytest.fixture(scope='module')
def long(tmp_path_factory):
  """Adapters of the decoder, exported merged and alone."""
  folder = tmp_path_factory.mktemp('longcap')
  for export in ('merged', 'adapter'):
    c = config('pretrain', 'longcap', **{
      'train.steps': 2, 'eval.every': 2, 'optim.warmup': 0,
      'rollout.length': 24, 'pretrain.lora_export': export,
    })  # fmt: skip
    assert loop.run(c, folder / export) == 0
  return folder


def test_longcap_adapts_attention_of_the_decoder(long):
  at = 'export/decoder/transformer'
  changed = moved(long / 'merged' / at, f'{START}/transformer')
  assert changed and all('.attn.' in name for name in changed)
  assert not (long / 'adapter' / at).exists()


def test_an_adapter_of_the_decoder_is_what_was_merged(long):
  model = load_painter(
    zoo.resolve(START), height=32, width=32, steps=1, shift=None, guidance=1.0
  )[0]['decoder']
  found = peft.load(
    long / 'adapter/export/decoder/adapter', model.table, model.shapes(),
    model.rename,
  )  # fmt: skip
  base = model.load(zoo.resolve(START) / 'transformer')
  want = lora.merge(base, found.tree, found.alpha / found.rank)
  got = model.load(long / 'merged/export/decoder/transformer')
  start, want, got = map(trees.flatten, (base, want, got))
  learnt = {}
  for path in lora.pairs(found.tree):
    learnt[path] = np.abs(want[path] - start[path]).max()
    rounded = np.asarray(want[path], jnp.bfloat16).astype(np.float32)
    assert np.abs(got[path] - rounded).max() <= learnt[path] / 2, path
  # What the last block makes of its text is read by nobody.
  still = {path for path, change in learnt.items() if not change}
  assert still < set(learnt) and all('last_block' in path for path in still)


@pytest.mark.slow
def test_photographs_with_captions(tmp_path):
  data = tmp_path / 'data'
  data.mkdir()
  for i in range(8):
    scene = np.array([[i % 3, i % 2, 1, i % 3, 1]])
    Image.fromarray(draw.render(scene)).save(data / f'{i}.png')
    (data / f'{i}.txt').write_text('large red circle top left')
  c = config('pretrain', 'align', **{
    'data.source': f'images:{data}', 'data.heldout': f'images:{data}',
    'train.steps': 1, 'eval.every': 1, 'rollout.length': 12,
  })  # fmt: skip
  assert loop.run(c, tmp_path / 'run') == 0
  first = rows(tmp_path / 'run', 'eval/')[0]
  assert {'eval/flow_loss', 'eval/full_unified_score'} <= set(first)
  assert 'eval/full_exact_scene' not in first


@pytest.mark.parametrize(
  'change, says',
  [
    ({'pretrain.trainable': ('decoder/.*',)}, 'choose one'),
    ({'pretrain.lora_rank': 0}, 'must match parameters'),
    ({'pretrain.lora_targets': ('nothing',)}, 'match no kernel'),
    ({'pretrain.lora_export': 'both'}, 'pretrain.lora_export'),
    ({'pretrain.fresh': ('nothing',)}, 'pretrain.fresh'),
    ({'pretrain.min_snr': -1.0}, 'min_snr'),
    ({'pretrain.captions': 'short'}, 'pretrain.captions'),
  ],
)
def test_mistakes_are_one_line(change, says, tmp_path):
  with pytest.raises(UserError, match=says) as e:
    loop.run(config('pretrain', 'longcap', **change), tmp_path / 'run')
  assert '\n' not in str(e.value)
  assert not (tmp_path / 'run').exists()


def test_the_step_has_a_plan():
  mesh = make_mesh(1, 1, jax.devices()[:1])
  c = config('pretrain', 'longcap', **{'rollout.length': 24})
  step = programs.build(c, mesh, 'train_step')
  with jax.set_mesh(mesh):
    state, metrics = jax.eval_shape(step.fn, *step.args)
  assert jax.tree.structure(state) == jax.tree.structure(step.args[0])
  assert metrics['flow/loss'].shape == ()
  with pytest.raises(UserError, match='rollout'):
    programs.build(c, mesh, 'rollout')
