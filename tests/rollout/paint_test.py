"""Painting: straight flows, the guidance formula, diffusers' own loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel

from tests.torch_fixtures import randomise
from uae_jax.ckpt import hf, maps_sd3
from uae_jax.models.mmdit import MMDiT
from uae_jax.rollout.flow import FlowSchedule
from uae_jax.rollout.paint import paint

SHAPE = (3, 4, 6, 2)


def normal(seed, shape=SHAPE):
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.normal(size=shape), jnp.float32)


@pytest.mark.parametrize('steps', [1, 4, 7])
@pytest.mark.parametrize('kind', ['uniform', 'sd3'])
def test_a_straight_flow_arrives(steps, kind):
  """v = noise - x0 everywhere: any number of steps lands on x0."""
  noise, x0 = normal(0), normal(1)
  schedule = FlowSchedule(steps, 3.0, kind)
  got = paint(lambda x, t, c: noise - c, noise, x0, schedule)
  np.testing.assert_allclose(got, x0, atol=2e-6)


def test_the_model_sees_falling_times_and_the_dtype_of_the_noise():
  seen = []

  def velocity(x, t, cond):
    assert x.dtype == jnp.bfloat16 and t.shape == (3,)
    jax.debug.callback(lambda t: seen.append(np.array(t)), t, ordered=True)
    return jnp.zeros_like(x)

  noise = normal(0).astype(jnp.bfloat16)
  got = paint(velocity, noise, (), FlowSchedule(4))
  jax.effects_barrier()
  assert got.dtype == jnp.float32
  np.testing.assert_array_equal(np.stack(seen)[:, 0], [1000, 750, 500, 250])


def test_guidance_is_one_batched_pass_of_the_formula():
  noise = normal(0)
  cond = dict(a=normal(1), b=normal(2, (3, 5)))
  empty = dict(a=normal(3), b=normal(4, (3, 5)))
  batches = []

  def velocity(x, t, c):
    batches.append(len(x))
    return jnp.sin(x + c['a']) * c['b'].sum(-1)[:, None, None, None]

  got = paint(velocity, noise, cond, FlowSchedule(4), 3.0, empty)
  assert set(batches) == {6}
  x = noise
  for _ in range(4):
    c, u = velocity(x, None, cond), velocity(x, None, empty)
    x = x - 0.25 * (u + 3.0 * (c - u))
  np.testing.assert_allclose(got, x, rtol=1e-4, atol=1e-4)
  with pytest.raises(ValueError, match='unconditional'):
    paint(velocity, noise, cond, FlowSchedule(4), 3.0)


@pytest.mark.parametrize('guidance', [1.0, 5.0])
def test_loop_of_diffusers(tmp_path, guidance):
  theirs = randomise(
    SD3Transformer2DModel(
      sample_size=16,
      patch_size=2,
      in_channels=4,
      out_channels=4,
      num_layers=2,
      attention_head_dim=16,
      num_attention_heads=2,
      joint_attention_dim=24,
      caption_projection_dim=32,
      pooled_projection_dim=20,
      pos_embed_max_size=12,
      qk_norm='rms_norm',
    )
  )
  theirs.save_pretrained(tmp_path)
  fields = maps_sd3.from_hf(hf.read_config(tmp_path))
  ours = MMDiT(**fields)
  noise = normal(0, (2, 16, 20, 4))
  cond = dict(context=normal(1, (2, 7, 24)), pooled=normal(2, (2, 20)))
  empty = dict(context=normal(3, (2, 7, 24)), pooled=normal(4, (2, 20)))
  shapes = jax.eval_shape(
    ours.init, jax.random.key(0), noise, jnp.zeros(2), *cond.values()
  )
  params = hf.load(
    tmp_path, maps_sd3.table(**fields), shapes['params'], stem=maps_sd3.STEM
  )
  velocity = lambda x, t, c: ours.apply(
    {'params': params}, x, t, c['context'], c['pooled']
  )
  schedule = FlowSchedule(6, 3.0, 'sd3')
  with jax.default_matmul_precision('highest'):
    got = jax.jit(
      lambda n: paint(velocity, n, cond, schedule, guidance, empty)
    )(noise)

  scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
  scheduler.set_timesteps(6)
  x = torch.tensor(np.array(noise)).permute(0, 3, 1, 2)
  both = {k: torch.tensor(np.concatenate([empty[k], cond[k]])) for k in cond}
  with torch.no_grad():
    for t in scheduler.timesteps:
      v = theirs(
        hidden_states=torch.cat([x, x]),
        encoder_hidden_states=both['context'],
        pooled_projections=both['pooled'],
        timestep=t.expand(4),
      ).sample
      u, c = v.chunk(2)
      x = scheduler.step(u + guidance * (c - u), t, x).prev_sample
  want = x.permute(0, 2, 3, 1).numpy()
  assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()
