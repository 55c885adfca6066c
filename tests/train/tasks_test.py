"""Config keys arrive at the options they name."""

import jax
import pytest

from tests.train.loop_test import config
from uae_jax import zoo
from uae_jax.errors import UserError
from uae_jax.sharding.mesh import make_mesh
from uae_jax.train import reinforce, tasks
from uae_jax.train.parts import Loader


def step_options(config):
  return reinforce.step_options(config, ('policy',))


@pytest.mark.parametrize(
  'key, value',
  [
    ('clip_low', 0.1),
    ('clip_high', 0.3),
    ('beta', 0.5),
    ('kl', 'k2'),
    ('ratio', 'sequence'),
    ('aggregation', 'constant'),
  ],
)
def test_a_loss_key_sets_its_option_and_no_other(key, value):
  plain = step_options(config())
  changed = step_options(config(**{f'grpo.{key}': value}))
  want = {**vars(plain.loss), key: value}
  assert vars(changed.loss) == want and want != vars(plain.loss)
  assert {**vars(changed), 'loss': 0} == {**vars(plain), 'loss': 0}


@pytest.mark.parametrize(
  'key, name, value',
  [
    ('grpo.scale', 'scale', 'none'),
    ('grpo.filter_zero_std', 'filter_zero_std', False),
    ('grpo.mask_truncated', 'mask_truncated', True),
    ('optim.inner_epochs', 'inner_epochs', 2),
    ('optim.minibatches', 'minibatches', 4),
    ('train.group_size', 'group', 3),
  ],
)
def test_a_step_key_sets_its_option_and_no_other(key, name, value):
  plain = vars(step_options(config()))
  changed = vars(step_options(config(**{key: value})))
  want = {**plain, name: value}
  assert changed == want and want != plain


@pytest.mark.parametrize(
  'change',
  [
    {'optim.minibatches': 3},
    {'train.group_size': 1},
  ],
)
def test_what_cannot_be_a_step_is_refused(change):
  with pytest.raises(UserError, match=next(iter(change))):
    step_options(config(**change))


def test_an_unknown_choice_is_refused():
  with pytest.raises(ValueError, match='k9'):
    step_options(config(**{'grpo.kl': 'k9'}))


@pytest.mark.parametrize(
  'change, once',
  [
    ({}, True),
    ({'train.trainable': ('.*',)}, False),
    ({'train.trainable': ('vision/merger/.*', 'lm/.*')}, False),
    ({'lora.rank': 2}, True),
    ({'lora.rank': 2, 'lora.targets': ('vision/blocks/.*',)}, False),
  ],
)
def test_images_are_seen_once_unless_the_tower_is_trained(change, once):
  mesh = make_mesh(1, 1, jax.devices()[:1])
  small = config(**change)
  parts = tasks.load(small, Loader(small, mesh, zoo.structs))
  assert once == reinforce.build(small, parts, mesh)[0][0][1].sees_once


def test_the_decoders_keys_arrive_at_its_steps():
  changes = {
    'flow.clip': 0.02, 'flow.beta': 0.5, 'flow.weight': 3.0,
    'grpo.kl_target': 0.1,
  }  # fmt: skip
  alone, joint, words = (
    reinforce.step_options(config('umm1', 'joint', **changes), trained)
    for trained in (('decoder',), ('policy', 'decoder'), ('policy',))
  )
  for options, weight in ((alone, 1.0), (joint, 3.0), (words, 0.0)):
    assert options.path_weight == weight
    assert options.caption_weight == float(options is not alone)
    # There is no KL of captions to steer where they are not trained.
    assert options.kl_target == (0.0 if options is alone else 0.1)
  for options in (alone, joint):
    loss = options.path_loss
    assert loss.clip_low == loss.clip_high == 0.02 and loss.beta == 0.5
  assert alone.trains == ('decoder',) and words.trains == ('policy',)
  assert joint.trains == ('policy', 'decoder')


@pytest.mark.parametrize(
  'change',
  [
    {'train.oversample': 0},
    {'grpo.kl_target': 0.1, 'grpo.beta': 0.0},
  ],
)
def test_what_cannot_be_sampled_or_steered_is_refused(change):
  with pytest.raises(UserError, match=next(iter(change))):
    step_options(config(**change))
