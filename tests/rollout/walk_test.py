"""Drawing by chance: marginals, ratios and gradients with known answers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uae_jax.errors import UserError
from uae_jax.rollout import walk
from uae_jax.rollout.flow import FlowSchedule, ode_step, sde_step
from uae_jax.rollout.paint import paint
from uae_jax.rollout.walk import Walk

MEAN, STD = 0.7, 0.3  # of the images of a toy world: N(MEAN, STD^2) a pixel


def ideal(x, t, _):
  """The velocity whose flow leads from unit noise to that world."""
  t = (t / 1000).reshape(-1, *[1] * (x.ndim - 1))
  variance = (1 - t) ** 2 * STD**2 + t**2
  off = (x - (1 - t) * MEAN) / variance
  return t * off - (MEAN + (1 - t) * STD**2 * off)


def drawn(
  n, schedule, options, seed=0, velocity=ideal, start=0, shape=(1, 1, 1)
):
  keys = jax.random.split(jax.random.key(seed))
  noise = jax.random.normal(keys[0], (n, *shape))
  chance = jax.random.normal(keys[1], (n, options.window, *shape))
  at = jnp.full(n, start)
  return walk.draw(velocity, noise, chance, at, (), schedule, options)


@pytest.mark.parametrize('level', [0.3, 0.7, 1.0])
def test_chance_keeps_the_marginals_of_the_flow(level):
  """At the end and on the way there, by 20,000 drawings.

  Not in the first steps: s^2 (t - t') is level^2 at t = 1 for any number of
  steps, so Euler's rule is off there, and the flow forgets it later.
  """
  schedule = FlowSchedule(120)
  options = Walk(level, 119)
  end, path = jax.jit(lambda: drawn(20_000, schedule, options))()
  sigmas = schedule.sigmas()
  for i in (70, 90, 110):
    t = float(sigmas[i])
    x = path.x[:, i]
    want = np.sqrt((1 - t) ** 2 * STD**2 + t**2)
    assert abs(float(x.mean()) - (1 - t) * MEAN) < 0.015
    assert abs(float(x.std()) / want - 1) < 0.02
  assert abs(float(end.mean()) - MEAN) < 0.012
  assert abs(float(end.std()) / STD - 1) < 0.04


def test_without_chance_it_would_be_the_flow():
  noise = jax.random.normal(jax.random.key(0), (5, 2, 3, 1))
  schedule = FlowSchedule(6)
  want = paint(ideal, noise, (), schedule)
  options = Walk(1e-7, 5)
  got, _ = drawn(5, schedule, options, shape=(2, 3, 1))
  noise = jax.random.normal(
    jax.random.split(jax.random.key(0))[0], (5, 2, 3, 1)
  )
  want = paint(ideal, noise, (), schedule)
  np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize('start', [0, 1, 3])
def test_the_window_is_by_chance_and_the_rest_is_the_flow(start):
  schedule, options = FlowSchedule(6, 3.0), Walk(0.7, 2)
  n, shape = 4, (2, 2, 1)
  end, path = drawn(n, schedule, options, start=start, shape=shape)
  keys = jax.random.split(jax.random.key(0))
  x = jax.random.normal(keys[0], (n, *shape))
  chance = jax.random.normal(keys[1], (n, 2, *shape))
  sigmas = schedule.sigmas()
  for i in range(6):
    if start <= i < start + 2:
      np.testing.assert_allclose(x, path.x[:, i - start], atol=1e-6)
      x = _by_hand(x, sigmas[i : i + 2], sigmas[1], chance[:, i - start])
    else:
      v = ideal(x, jnp.full(n, 1000 * sigmas[i]), ())
      x = ode_step(x, v, sigmas[i], sigmas[i + 1])
    if i == start + 1:
      np.testing.assert_allclose(x, path.x[:, 2], atol=1e-5)
  np.testing.assert_allclose(x, end, atol=1e-5)


def _by_hand(x, levels, top, eps):
  """The step of the issue's formula, in numpy."""
  x, eps, (t, after) = np.asarray(x, float), np.asarray(eps), map(float, levels)
  below = float(top) if t == 1 else t
  s = 0.7 * np.sqrt(below / (1 - below))
  v = np.asarray(ideal(jnp.asarray(x), jnp.full(len(x), 1000 * t), ()))
  mean = x - (t - after) * (v + s**2 / (2 * t) * (x + (1 - t) * v))
  return jnp.asarray(mean + s * np.sqrt(t - after) * eps, jnp.float32)


@pytest.mark.parametrize('start', [0, 2])
def test_what_is_scored_is_what_was_drawn(start):
  schedule, options = FlowSchedule(8, 2.0), Walk(0.7, 3)
  _, path = drawn(6, schedule, options, start=start, shape=(3, 2, 2))
  logp, mean = walk.score(ideal, path, schedule, options, jnp.float32)
  np.testing.assert_allclose(np.exp(logp - path.logp), 1, atol=1e-5)
  assert mean.shape == (6, 3, 3, 2, 2)
  assert np.ptp(np.asarray(logp)) > 0.1
  other = lambda x, t, c: ideal(x, t, c) + 0.1
  far, shifted = walk.score(other, path, schedule, options, jnp.float32)
  assert np.abs(far - path.logp).max() > 1e-3
  # The KL of two Gaussians of one variance, from their means and deviation.
  got = walk.kl(mean, shifted)
  want = []
  for k in range(3):
    i = start + k
    t, after = (float(s) for s in schedule.sigmas()[i : i + 2])
    below = float(schedule.sigmas()[1]) if t == 1 else t
    s = 0.7 * np.sqrt(below / (1 - below))
    apart = (t - after) * 0.1 * (1 + s**2 / (2 * t) * (1 - t))
    want.append(apart**2 / (2 * s**2 * (t - after)))
  np.testing.assert_allclose(got, np.tile(want, (6, 1)), rtol=2e-3)


def test_log_probability_is_the_gaussians():
  x = jax.random.normal(jax.random.key(0), (2, 3))
  args = dict(level=0.5, top=0.9)
  one = sde_step(x, x, jnp.float32(0.8), jnp.float32(0.6), **args,
                 noise=jnp.ones((2, 3)))  # fmt: skip
  s = 0.5 * np.sqrt(0.8 / 0.2) * np.sqrt(0.2)
  np.testing.assert_allclose(one.std, s, rtol=1e-6)
  np.testing.assert_allclose(one.x - one.mean, s, rtol=1e-5)
  want = -0.5 - np.log(s) - np.log(2 * np.pi) / 2
  np.testing.assert_allclose(one.logp, want, rtol=1e-5)


def test_the_ends_of_the_flow_are_finite():
  schedule, options = FlowSchedule(4), Walk(0.7, 3)
  slope = jax.grad(
    lambda shift: walk.score(
      lambda x, t, c: ideal(x, t, c) + shift,
      drawn(8, schedule, options)[1], schedule, options, jnp.float32,
    )[0].sum()
  )(0.0)  # fmt: skip
  end, path = drawn(8, schedule, options)
  assert np.isfinite([*np.ravel(end), *np.ravel(path.logp), slope]).all()


def test_the_gradient_is_that_of_the_expected_reward():
  """Score function against the slope of a mean, on common noise.

  The reward is the image itself; the parameter is added to the velocity.
  """
  schedule, options = FlowSchedule(6), Walk(0.7, 5)
  moved = lambda shift: lambda x, t, c: ideal(x, t, c) + shift

  @jax.jit
  def rewards(shift, seed):
    end, path = drawn(100_000, schedule, options, 3, moved(shift))
    return end.mean((1, 2, 3)), path

  reward, path = rewards(0.0, 0)
  slope = (rewards(0.05, 0)[0].mean() - rewards(-0.05, 0)[0].mean()) / 0.1
  weight = jax.lax.stop_gradient(reward - reward.mean())
  # The last step is not by chance: its own slope is added by hand.
  last = -float(schedule.sigmas()[5])
  estimate = jax.jit(
    jax.grad(
      lambda shift: jnp.mean(
        weight
        * walk.score(moved(shift), path, schedule, options, jnp.float32)[0].sum(
          1
        )
      )
    )
  )(0.0)
  assert abs(float(slope)) > 0.3
  np.testing.assert_allclose(estimate + last, slope, rtol=0.05)


@pytest.mark.parametrize('window, level', [(0, 0.7), (4, 0.7), (2, 0.0)])
def test_a_window_must_fit(window, level):
  with pytest.raises(UserError, match=r'flow\.(window|noise)='):
    Walk(level, window).check(FlowSchedule(4))
  Walk(0.7, 3).check(FlowSchedule(4))


def test_every_row_has_a_window_of_its_own():
  schedule, options = FlowSchedule(6), Walk(0.7, 2)
  shape = (2, 1, 1)
  starts = jnp.array([0, 2, 3])
  _, together = drawn(3, schedule, options, start=starts, shape=shape)
  logp, _ = walk.score(ideal, together, schedule, options, jnp.float32)
  np.testing.assert_allclose(logp, together.logp, atol=1e-5)
  for i, start in enumerate([0, 2, 3]):
    _, alone = drawn(3, schedule, options, start=start, shape=shape)
    np.testing.assert_allclose(together.x[i], alone.x[i], atol=1e-6)


def test_guidance_is_drawn_and_scored_alike():
  schedule, options = FlowSchedule(4), Walk(0.7, 2)
  key = jax.random.key(1)
  noise = jax.random.normal(key, (3, 2, 2, 1))
  chance = jax.random.normal(jax.random.key(2), (3, 2, 2, 2, 1))
  cond, empty = jnp.arange(3.0), jnp.zeros(3)
  velocity = lambda x, t, c: ideal(x, t, c) + 0.1 * c[:, None, None, None]
  draw = lambda guidance, unconditional: walk.draw(
    velocity, noise, chance, jnp.full(3, 1), cond, schedule, options,
    guidance, unconditional,
  )  # fmt: skip
  (plain, _), (guided, path) = draw(1.0, None), draw(4.0, empty)
  assert np.abs(plain - guided)[0].max() < 1e-6  # nothing to be guided to
  assert np.abs(plain - guided)[2].max() > 0.1
  logp, _ = walk.score(velocity, path, schedule, options, jnp.float32, 4.0)
  np.testing.assert_allclose(logp, path.logp, atol=1e-5)
