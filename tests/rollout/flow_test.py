"""Noise levels against diffusers, the ODE step, training targets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from uae_jax.errors import UserError
from uae_jax.rollout import flow
from uae_jax.rollout.flow import FlowSchedule
from uae_jax.rollout.paint import paint


@pytest.mark.parametrize('shift', [1.0, 3.0])
@pytest.mark.parametrize('steps', [1, 4, 28, 40])
def test_sd3_levels_and_times(steps, shift):
  theirs = FlowMatchEulerDiscreteScheduler(shift=shift)
  theirs.set_timesteps(steps)
  ours = FlowSchedule(steps, shift, kind='sd3').sigmas()
  assert ours.dtype == np.float32
  np.testing.assert_allclose(ours, theirs.sigmas.numpy(), atol=1e-7)
  np.testing.assert_allclose(
    ours[:-1] * flow.TIMES, theirs.timesteps.numpy(), atol=1e-4
  )


@pytest.mark.parametrize('tokens', [256, 1024, 4096])
def test_flux_levels_depend_on_the_size_of_the_image(tokens):
  theirs = FlowMatchEulerDiscreteScheduler(
    shift=3.0, use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15,
    base_image_seq_len=256, max_image_seq_len=4096,
  )  # fmt: skip
  mu = {256: 0.5, 1024: 0.63, 4096: 1.15}[tokens]
  theirs.set_timesteps(sigmas=np.linspace(1, 1 / 28, 28), mu=mu)
  ours = FlowSchedule(28, kind='flux', tokens=tokens).sigmas()
  np.testing.assert_allclose(ours, theirs.sigmas.numpy(), atol=2e-7)


@pytest.mark.parametrize('kind', ['sd3', 'flux'])
def test_twenty_steps_end_where_those_of_diffusers_end(kind):
  """The whole sampler, on a velocity that depends on x and t."""
  dynamic = kind == 'flux'
  theirs = FlowMatchEulerDiscreteScheduler(
    shift=3.0, use_dynamic_shifting=dynamic
  )
  if dynamic:
    theirs.set_timesteps(sigmas=np.linspace(1, 1 / 20, 20), mu=0.63)
  else:
    theirs.set_timesteps(20)
  noise = np.random.default_rng(0).normal(size=(2, 4, 6, 3)).astype(np.float32)
  x = torch.tensor(noise)
  for t in theirs.timesteps:
    x = theirs.step(torch.tanh(2 * x) * (0.5 + t / 1000), t, x).prev_sample
  ours = paint(
    lambda x, t, _: jnp.tanh(2 * x) * (0.5 + t[:, None, None, None] / 1000),
    jnp.asarray(noise),
    None,
    FlowSchedule(20, 3.0, kind=kind, tokens=1024),
  )
  np.testing.assert_allclose(ours, x.numpy(), atol=1e-5)


def test_known_sd3_levels():
  sigmas = flow.sigmas_sd3(28)
  np.testing.assert_allclose(
    sigmas[:3] * 1000, [1000, 987.381, 974.108], atol=1e-3
  )
  assert sigmas[-2] == pytest.approx(0.0089286, abs=1e-7) and sigmas[-1] == 0


def test_uniform_levels():
  np.testing.assert_allclose(FlowSchedule(4).sigmas(), [1, 0.75, 0.5, 0.25, 0])
  once = FlowSchedule(4, shift=3.0).sigmas()
  np.testing.assert_allclose(once, [1, 0.9, 0.75, 0.5, 0], atol=1e-7)


@pytest.mark.parametrize(
  'bad', [dict(steps=0), dict(steps=1, shift=0.0), dict(steps=1, kind='ddim')]
)
def test_bad_schedules(bad):
  with pytest.raises(UserError, match='FlowSchedule'):
    FlowSchedule(**bad)


def test_step_is_that_of_diffusers():
  rng = np.random.default_rng(0)
  x, v = rng.normal(size=(2, 2, 4, 4, 3)).astype(np.float32)
  theirs = FlowMatchEulerDiscreteScheduler(shift=3.0)
  theirs.set_timesteps(5)
  want = theirs.step(torch.tensor(v), theirs.timesteps[0], torch.tensor(x))
  sigmas = flow.sigmas_sd3(5)
  got = flow.ode_step(jnp.asarray(x), jnp.asarray(v), sigmas[0], sigmas[1])
  np.testing.assert_allclose(got, want.prev_sample.numpy(), atol=1e-7)
  low = flow.ode_step(
    jnp.asarray(x, jnp.bfloat16), jnp.asarray(v, jnp.bfloat16), 1.0, 0.5
  )
  assert low.dtype == jnp.float32


def test_target_is_the_slope_of_the_path():
  rng = np.random.default_rng(0)
  x0, noise = jnp.asarray(rng.normal(size=(2, 3, 4, 4, 3)), jnp.float32)
  t = jnp.array([0.0, 0.4, 1.0])
  x = flow.noised(x0, noise, t)
  np.testing.assert_array_equal(x[0], x0[0])
  np.testing.assert_array_equal(x[2], noise[2])
  back = x - t[:, None, None, None] * flow.velocity_target(x0, noise)
  np.testing.assert_allclose(back, x0, atol=1e-6)


def test_times_are_logit_normal_and_shifted():
  rng = jax.random.key(0)
  t = flow.sample_t(rng, 20000, mean=-0.5, std=0.8)
  logit = np.log(t / (1 - t))
  assert abs(logit.mean() + 0.5) < 0.02 and abs(logit.std() - 0.8) < 0.02
  moved = flow.sample_t(rng, 20000, mean=-0.5, std=0.8, shift=3.0)
  np.testing.assert_allclose(
    np.log(moved / (1 - moved)), logit + np.log(3), atol=1e-3
  )
