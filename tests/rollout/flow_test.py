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
  'bad', [dict(steps=0), dict(steps=1, shift=0.0), dict(steps=1, kind='flux')]
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
