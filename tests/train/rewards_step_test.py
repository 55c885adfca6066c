"""Rewards that people change, in the fused step of the real classes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny_umm
from tests.tiny_umm import GROUP, IMAGES, OPTIONS, SIDE, change, setup
from tests.train.loop_test import config
from uae_jax import zoo
from uae_jax.data import tokenize
from uae_jax.errors import UserError
from uae_jax.plan import model_flops, programs
from uae_jax.rewards.mine import Mine
from uae_jax.rewards.reconstruction import ensemble
from uae_jax.rewards.terms import Terms
from uae_jax.rewards.text import HostTokens, TextTerm
from uae_jax.sharding.mesh import make_mesh, put_batch
from uae_jax.train import tasks
from uae_jax.train.parts import Loader
from uae_jax.train.rewards import retokeniser, written

RNG = jax.random.key(11)
TOKENIZER = tokenize.load_tokenizer(tiny_umm.PROCESSORS)
DECODE = lambda ids: tokenize.decode(TOKENIZER, ids)
WRITTEN = written(TOKENIZER)


def close(given):
  """Minus the mean absolute error, with whichever numpy the arrays are of."""
  return -abs(given.images - given.source[:, None]).mean((2, 3, 4))


def encode(texts):
  length = tiny_umm.TOWER['language']['ctx']
  rows = [tokenize.encode_caption(TOKENIZER, t, length)[0] for t in texts]
  return np.stack(rows)


def own(fn, on_host=True, **kw):
  return Mine('tests:fn', fn, on_host, DECODE, **kw)


def read(image, head='cosine', weight=1.0):
  """The tiny tower as a reader of captions."""
  tower = tiny_umm.parts()[0].towers['clip']
  ids = retokeniser(TOKENIZER, tiny_umm.PROCESSORS, tower.module.language)
  return TextTerm(tower, 'clip', image, head, ids, weight)


def stepped(terms, batch_of=lambda batch: batch, **kw):
  """(parameters before, after, metrics) of one step."""
  _, step, state, batch = setup(terms=terms, **kw)
  after, metrics = step(state(), batch_of(batch), RNG)
  return state().params, after.params, metrics


def rewarded(terms):
  """(reward, scores) of made-up captions and drawings, and these."""
  umm, frozen, batch = tiny_umm.parts()
  umm = dataclasses.replace(umm, terms=terms)
  captions = tiny_umm.random_rollout().captions
  images = jax.random.uniform(RNG, (IMAGES, GROUP, SIDE, SIDE, 3))
  run = jax.jit(umm.reward)
  return *run(frozen, batch.image, images, captions), images, captions


def test_the_default_is_the_weighted_cosine_bit_for_bit():
  umm, frozen, batch = tiny_umm.parts()
  reward, scores, images, _ = rewarded(Terms())

  @jax.jit
  def cosine(params, source, images):
    scores = umm.similarities(umm.towers, params, source, images)
    return ensemble(scores, umm.weights)

  want = cosine(frozen['reward'], batch.image, images)
  np.testing.assert_array_equal(reward, want)
  np.testing.assert_array_equal(reward, scores['clip'])


def test_host_and_device_functions_give_the_same_step():
  host = Terms(0.5, mine=own(close, weight=3.0))
  device = Terms(0.5, mine=own(close, on_host=False, weight=3.0))
  _, one, metrics = stepped(host)
  before, other, expected = stepped(device)
  assert change(one, other) < 1e-6 < 1e-5 < change(before, other)
  assert metrics.keys() == expected.keys() >= {'reward/mine', 'reward/clip'}
  for key in metrics:
    np.testing.assert_allclose(
      metrics[key], expected[key], rtol=1e-4, atol=1e-5, err_msg=key
    )


def test_failures_are_masked_with_their_groups_and_counted(caplog):
  """As if these images had never been there; no number stands for them."""
  sources = np.asarray(tiny_umm.parts()[2].image)
  is_image = lambda given, i: (given.source == sources[i]).all((1, 2, 3))

  def failing(given):
    if is_image(given, 5).any():
      raise RuntimeError('no such luck')
    out = np.array(close(given))
    out[is_image(given, 2), 1] = np.nan
    out[is_image(given, 3), 0] = np.inf
    return out

  options = dataclasses.replace(
    OPTIONS, loss=dataclasses.replace(OPTIONS.loss, beta=0.0)
  )
  _, some, metrics = stepped(Terms(0.0, mine=own(failing)), options=options)
  assert float(metrics['reward/failed']) == GROUP + 2
  assert float(metrics['reward/invalid']) == 3
  assert np.isfinite(float(metrics['optim/loss']))
  assert 'no such luck' in caplog.text

  def lost(batch):  # the same images made unusable
    gone = jnp.array([2, 3, 5])
    return batch.replace(image=batch.image.at[gone].set(jnp.nan))

  device = Terms(0.0, mine=own(close, on_host=False))
  before, want, expected = stepped(device, lost, options=options)
  assert change(some, want) < 1e-6 < 1e-5 < change(before, want)
  # The mean is of those that did not fail.
  np.testing.assert_allclose(
    metrics['reward/mine'], expected['reward/mine'], rtol=1e-4
  )


def test_a_device_function_that_gives_nan_fails_alike():
  device = lambda given: close(given).at[1, 2].set(jnp.nan)
  _, _, metrics = stepped(Terms(mine=own(device, on_host=False)))
  assert float(metrics['reward/failed']) == 1
  assert float(metrics['reward/invalid']) == 1


def test_a_step_of_eight_devices_is_that_of_one_and_asks_once():
  if jax.device_count() < 8:
    pytest.skip('needs 8 devices')
  asked = []

  def fn(given):
    asked.extend(given.source.sum((1, 2, 3)).tolist())
    return close(given)

  table = read('drawn')
  ids = HostTokens(WRITTEN, encode, tiny_umm.TOWER['language']['ctx'])
  spelt = dataclasses.replace(table, retokenise=ids)
  terms = Terms(length=0.1, length_target=3, mine=own(fn), text=spelt)
  _, alone, metrics = stepped(dataclasses.replace(terms, text=table))
  asked.clear()
  _, step, state, batch = setup(terms=terms)
  mesh = make_mesh(8, 1)
  with jax.set_mesh(mesh):
    after, other = step(state(), put_batch(batch, mesh), RNG)
  jax.block_until_ready(after)
  want = np.asarray(batch.image).sum((1, 2, 3))
  np.testing.assert_allclose(sorted(asked), sorted(want), rtol=1e-6)
  for name in ('mean', 'mine', 'text', 'length', 'clip'):
    np.testing.assert_allclose(
      other[f'reward/{name}'], metrics[f'reward/{name}'], rtol=1e-4
    )
  assert change(alone, jax.device_get(after.params)) < 1e-5


def test_a_rollout_in_pieces_asks_about_every_image_once():
  asked = []

  def fn(given):
    asked.append(len(given.source))
    return close(given)

  options = dataclasses.replace(OPTIONS, rollout_size=2)
  _, _, metrics = stepped(Terms(mine=own(fn)), options=options)
  jax.effects_barrier()
  assert asked == [2] * (IMAGES // 2)
  assert float(metrics['reward/failed']) == 0


@pytest.mark.parametrize('image', ['drawn', 'source'])
def test_a_text_term_compares_captions_with_its_image(image):
  umm, frozen, batch = tiny_umm.parts()
  term = read(image)
  reward, scores, images, captions = rewarded(Terms(0.0, text=term))
  assert scores.keys() == {'text'}
  np.testing.assert_array_equal(reward, scores['text'])
  params, tower = frozen['reward']['clip'], umm.towers['clip']
  unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
  for b in range(2):
    texts = [
      WRITTEN(ids[there])
      for ids, there in zip(captions.tokens[b], captions.mask[b])
    ]
    words = unit(np.asarray(tower.embed_text(params, encode(texts))))
    looked = images[b] if image == 'drawn' else batch.image[b][None]
    seen = unit(np.asarray(tower.embed(params, looked)))
    np.testing.assert_allclose(reward[b], (seen * words).sum(-1), atol=2e-5)


def test_nothing_is_drawn_where_nothing_looks():
  """The control: a caption against its source, and no reconstruction."""
  _, step, state, batch = setup(terms=Terms(0.0, text=read('source')))
  scopes = model_flops.by_scope(step.__wrapped__, state(), batch, RNG, loop=1)
  assert not any('draw' in scope for scope in scopes)
  assert any('reward' in scope for scope in scopes)
  after, metrics = step(state(), batch, RNG)
  assert change(state().params, after.params) > 0
  np.testing.assert_allclose(
    metrics['reward/text'], metrics['reward/mean'], rtol=1e-5
  )


def test_a_price_on_length_shortens_captions():
  options = dataclasses.replace(
    OPTIONS, loss=dataclasses.replace(OPTIONS.loss, beta=0.0)
  )
  terms = Terms(0.0, length=1.0, length_target=2)
  _, step, state, batch = setup(terms=terms, options=options, lr=0.3)
  state, lengths = state(), []
  for i in range(8):
    state, metrics = step(state, batch, jax.random.fold_in(RNG, i))
    lengths.append(float(metrics['caption/length']))
  assert np.mean(lengths[-2:]) < np.mean(lengths[:2]) - 0.5


@pytest.fixture
def functions(tmp_path, monkeypatch):
  """Modules that configs name."""
  text = 'def scored(x): return [[len(t) for t in g] for g in x.texts]'
  (tmp_path / 'users_rewards.py').write_text(text)
  monkeypatch.syspath_prepend(tmp_path)


def planned(name='umm1', part='', **changes):
  """The parts of a run, their weights as shapes."""
  c = config(name, part, **changes)
  return tasks.load(c, Loader(c, make_mesh(-1, 1), zoo.structs))


BOTH = 'bundled:umm1/reward,bundled:umm1/judge_clip'


@pytest.mark.parametrize(
  'changes, says',
  [
    ({'weights': 'reward'}, 'reward=1'),
    ({'weights': 'reward=much'}, 'one number'),
    ({'weights': 'other=1'}, 'reward=1'),
    ({'weights': 'reward=inf'}, 'one number'),
    ({'standardise': 'batch'}, 'batch'),
    ({'reconstruction_weight': -1.0}, 'negative'),
    ({'length_weight': -0.1}, 'length_weight'),
    ({'repetition_weight': float('nan')}, 'repetition_weight'),
    ({'ngram': 0}, 'ngram'),
    ({'reconstruction_weight': 0.0}, 'every weight is 0'),
    ({'text': 'redrawn'}, 'redrawn'),
    ({'text': 'drawn', 'text_head': 'tail'}, 'tail'),
    ({'text': 'drawn', 'text_tower': 'bundled:none'}, 'bundled:none'),
    ({'text': 'drawn', 'text_tower': 'bundled:umm1/policy'}, 'qwen2_5_vl'),
    ({'text': 'drawn', 'text_tokenizer': ''}, 'no tokenizer'),
    ({'mine': 'users_absent:fn'}, 'users_absent'),
    ({'mine': 'users_rewards:scores'}, 'no function scores'),
  ],
)
def test_a_mistake_in_the_section_is_one_line(changes, says, functions):
  changes = {f'rewards.{k}': v for k, v in changes.items()}
  with pytest.raises(UserError, match=says) as e:
    planned(**changes)
  assert len(str(e.value).splitlines()) == 1


@pytest.mark.parametrize(
  'name, changes, says',
  [
    ('umm1', {'ckpt.reward': ''}, 'reconstruction_weight=0'),
    ('umm1', {'ckpt.reward': f'{BOTH},bundled:umm1/reward'}, 'two towers'),
    (
      'umm2',
      {'rewards.text': 'source', 'rewards.reconstruction_weight': 0.0},
      'image_weight=0',
    ),
    (
      'umm1',
      {
        'stage': 'decoder',
        'rewards.length_weight': 1.0,
        'rewards.reconstruction_weight': 0.0,
      },
      'no reward looks at drawings',
    ),
  ],
)
def test_what_does_not_fit_the_run_is_one_line(name, changes, says):
  with pytest.raises(UserError, match=says):
    planned(name, **changes)


def test_a_metrics_name_is_no_towers(tmp_path):
  (tmp_path / 'mean').symlink_to(zoo.resolve('bundled:umm1/reward'))
  with pytest.raises(UserError, match='reward/mean'):
    planned(**{'ckpt.reward': str(tmp_path / 'mean')})


def test_the_section_arrives_at_its_terms(functions):
  parts = planned(
    **{
      'ckpt.reward': BOTH, 'rewards.weights': 'reward=1, judge_clip=0.5',
      'rewards.standardise': 'group', 'rewards.reconstruction_weight': 2.0,
      'rewards.length_weight': 0.1, 'rewards.length_target': 9,
      'rewards.repetition_weight': 0.3, 'rewards.ngram': 2,
      'rewards.text': 'source', 'rewards.text_head': 'logit',
      'rewards.text_weight': -0.5, 'rewards.mine': 'users_rewards:scored',
      'rewards.mine_weight': 0.7,
      'rewards.text_tower': 'bundled:umm1/judge_views',
    }
  )  # fmt: skip
  umm, terms = parts.umm, parts.umm.terms
  assert umm.weights == {'reward': 1.0, 'judge_clip': 0.5}
  assert terms.weights == dict(length=0.1, repetition=0.3, text=-0.5, mine=0.7)
  assert (terms.standardise, terms.reconstruction) == ('group', 2.0)
  assert (terms.length_target, terms.ngram) == (9, 2)
  assert (terms.text.image, terms.text.head) == ('source', 'logit')
  assert terms.mine.on_host
  assert parts.params['reward'].keys() == {'reward', 'judge_clip', 'text'}


def test_a_text_tower_that_is_a_reward_is_loaded_once():
  parts = planned(**{'rewards.text': 'drawn'})
  assert parts.umm.terms.text.params == 'reward'
  assert parts.params['reward'].keys() == {'reward'}
  assert planned().umm.terms == Terms(length_target=16, ngram=3)


@pytest.mark.parametrize('name', ['umm1', 'umm2'])
def test_a_step_with_every_term_is_planned_from_shapes(name, functions):
  if jax.device_count() < 8:
    pytest.skip('needs 8 devices')
  every = {
    'rewards.length_weight': 0.1, 'rewards.repetition_weight': 0.1,
    'rewards.text': 'drawn', 'rewards.mine': 'users_rewards:scored',
    'rewards.standardise': 'group',
  }  # fmt: skip
  program = programs.build(config(name, **every), make_mesh(4, 2), 'train_step')
  text = program.lower().as_text()
  assert 'callback' in text
  assert programs.build(
    config(name, **every), make_mesh(4, 2), 'update'
  ).lower()
