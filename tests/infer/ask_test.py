"""Questions about images: transformers' odds, texts and likelihoods."""

import jax
import numpy as np
import pytest
import tokenizers
import torch
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
  Qwen2VLImageProcessorPil,
)

from tests.data.janus_test import folder, processor  # noqa: F401
from tests.infer import tiny_releases as tiny
from tests.infer.janus_test import hub  # noqa: F401
from tests.photographs import photographs
from uae_jax.data import janus
from uae_jax.data.scenes import draw, grammar
from uae_jax.data.tokenize import Tokenizer
from uae_jax.errors import UserError
from uae_jax.eval.choice import Question
from uae_jax.infer.ask import load_asker
from uae_jax.infer.chat import Chat, roomy
from uae_jax.sharding.mesh import make_mesh

LENGTH = 6
NAMES = ('coffee', 'tall', 'small')
WORDS = ('red', 'blue', 'circle')  # letters of a vocabulary that has none
PHRASES = ('large red circle', 'small', 'blue square top left')
TURN = (
  '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n'
  '<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n'
)
SEEN = '<|vision_start|>{}<|vision_end|>'
# text -> how transformers is given it; {0} is the first image
ASKED = {
  'describe the image': ('{0}describe the image', 1),
  'describe every object': ('{0}{1}{2}describe every object', 3),
  'object <image 2> in the <image 1> image': ('object {1} in the {0} image', 2),
}


def photos(n):
  return [photographs()[name] for name in NAMES[:n]]


def question(text, n, options=WORDS):
  return Question(photos(n), text, options)


@pytest.fixture(scope='module')
def qwen(tmp_path_factory):
  """(torch model, asker) of one folder."""
  out = tmp_path_factory.mktemp('qwen')
  theirs = tiny.qwen(False)
  for p in theirs.model.language_model.layers.parameters():
    p.data *= 3  # far from ties between the most likely tokens
  theirs.save_pretrained(out)
  tiny.processors(out)
  said = dict(max_pixels=2048, length=LENGTH, batch=8)
  return theirs, load_asker(str(out), make_mesh(-1, 1), said)


def qwen_inputs(form, images):
  """transformers' own view of a prompt and its images."""
  process = Qwen2VLImageProcessorPil(
    patch_size=4, merge_size=2, min_pixels=1024, max_pixels=2048
  )
  seen = [process(images=x, return_tensors='pt') for x in images]
  tokens = [SEEN.format('<|image_pad|>' * (len(s.pixel_values) // 4))
            for s in seen]  # fmt: skip
  order = [int(x) for x in '012' if '{' + x + '}' in form]
  order.sort(key=lambda i: form.index('{' + str(i) + '}'))
  ids = tiny.words()(TURN.format(form.format(*tokens)), return_tensors='pt')
  return dict(
    input_ids=ids.input_ids,
    attention_mask=torch.ones_like(ids.input_ids),
    mm_token_type_ids=(ids.input_ids == tiny.IMAGE_PAD).int(),
    pixel_values=torch.cat([seen[i].pixel_values for i in order]),
    image_grid_thw=torch.cat([seen[i].image_grid_thw for i in order]),
  )


def likelihoods(model, inputs, options):
  """Sums of log-softmax at each option's tokens, one forward for each."""
  out, start = [], inputs['input_ids'].shape[1]
  for option in options:
    ids = torch.cat([inputs['input_ids'], torch.tensor([option])], 1)
    more = {k: x for k, x in inputs.items() if k not in ('input_ids',)}
    more['attention_mask'] = torch.ones_like(ids)
    if 'mm_token_type_ids' in more:
      more['mm_token_type_ids'] = (ids == tiny.IMAGE_PAD).int()
    logp = model(input_ids=ids, **more).logits[0].log_softmax(-1)
    at = torch.arange(start - 1, ids.shape[1] - 1)
    out.append(float(logp[at, torch.tensor(option)].sum()))
  return out


@torch.no_grad()
def test_qwen_answers_as_transformers_does(qwen):
  theirs, asker = qwen
  tok = tiny.words()
  items = [question(text, n) for text, (_, n) in ASKED.items()]
  got = asker.ask(items, jax.random.key(0))
  words = tok.convert_tokens_to_ids(list(WORDS))
  for (form, n), answer in zip(ASKED.values(), got, strict=True):
    inputs = qwen_inputs(form, photos(n))
    want = theirs(**inputs).logits[0, -1].log_softmax(-1)[words]
    assert tuple(answer.odds) == WORDS
    np.testing.assert_allclose([*answer.odds.values()], want, atol=1e-4)
    ids = theirs.generate(
      **inputs, max_new_tokens=LENGTH, do_sample=False,
      eos_token_id=tok.eos_token_id, pad_token_id=tok.pad_token_id,
    )[0, inputs['input_ids'].shape[1] :]  # fmt: skip
    text = tok.decode(ids, skip_special_tokens=True)
    assert answer.text == text.strip()
  assert len({answer.text for answer in got}) == 3


@torch.no_grad()
def test_qwen_answers_without_an_image(qwen):
  theirs, asker = qwen
  tok = tiny.words()
  [answer] = asker.ask(
    [Question([], 'describe the red circle', WORDS)], jax.random.key(0)
  )
  text = TURN.format('describe the red circle')
  ids = tok(text, return_tensors='pt').input_ids
  want = theirs(input_ids=ids).logits[0, -1].log_softmax(-1)
  want = want[tok.convert_tokens_to_ids(list(WORDS))]
  np.testing.assert_allclose([*answer.odds.values()], want, atol=1e-4)


@torch.no_grad()
def test_qwen_likelihoods_are_summed_log_softmax(qwen):
  theirs, asker = qwen
  tok = tiny.words()
  options = [tok(x, add_special_tokens=False).input_ids for x in PHRASES]
  assert [len(x) for x in options] == [3, 1, 4]
  items = [question(text, n, PHRASES) for text, (_, n) in ASKED.items()]
  items[1] = question(items[1].text, 3, PHRASES[:2])  # fewer than the others
  got = asker.likelihood(items)
  for i, (form, n) in enumerate(ASKED.values()):
    want = likelihoods(theirs, qwen_inputs(form, photos(n)), options)
    want = want[: len(items[i].options)]
    np.testing.assert_allclose(got[i], want, atol=1e-4)


def test_what_else_is_in_the_batch_does_not_matter(qwen):
  _, asker = qwen
  texts = list(ASKED)
  items = [question(texts[i % 2], 1 + 2 * (i % 2)) for i in range(10)]
  rng = jax.random.key(0)
  many, one = asker.ask(items, rng), asker.ask(items[:1], rng)
  assert len(many) == 10  # of a batch of 8
  for i in (0, 8):
    assert many[i].text == one[0].text
    np.testing.assert_allclose(
      [*many[i].odds.values()], [*one[0].odds.values()], atol=1e-4
    )


@torch.no_grad()
def test_janus_answers_as_transformers_does(hub):  # noqa: F811
  theirs, out, process = hub
  tok, asked = process.tokenizer, 'describe a red cube.'
  options = ('red', 'cube')
  said = dict(length=8, batch=8)
  asker = load_asker(str(out), make_mesh(-1, 1), said)
  items = [question(asked, n, options) for n in (1, 3)]
  got = asker.ask(items, jax.random.key(0))
  phrases = ('a red cube', 'cube', 'a describe')
  odds = asker.likelihood([question(asked, n, phrases) for n in (1, 3)])
  words = tok.convert_tokens_to_ids(list(options))
  for n, answer, score in zip((1, 3), got, odds):
    text = f'{janus.USER}: {janus.IMAGE * n}\n{asked}\n\n{janus.ASSISTANT}:'
    inputs = process(text=text, images=photos(n), return_tensors='pt')
    want = theirs(**inputs).logits[0, -1].log_softmax(-1)[words]
    np.testing.assert_allclose([*answer.odds.values()], want, atol=1e-4)
    ids = theirs.generate(
      **inputs, do_sample=False, max_new_tokens=8, generation_mode='text'
    )[0, inputs.input_ids.shape[1] :]
    assert answer.text == process.decode(ids, skip_special_tokens=True).strip()
    encoded = [tok(x, add_special_tokens=False).input_ids for x in phrases]
    encoded = [[i for i in x if i != tok.bos_token_id] for x in encoded]
    np.testing.assert_allclose(
      score, likelihoods(theirs, dict(inputs), encoded), atol=1e-4
    )


@pytest.fixture(scope='module')
def bundled():
  """Name -> its asker."""
  said = dict(length=24, batch=8, prompt='describe every object in the image')
  mesh = make_mesh(-1, 1)
  names = ('bundled:umm1', 'bundled:umm2')
  return {name: load_asker(name, mesh, said) for name in names}


def scenes():
  """Drawn scenes of one object, and what is in them."""
  rng = np.random.default_rng(3)
  truths = [draw.sample_scene(rng, 1) for _ in range(8)]
  return [draw.render(s, 32) for s in truths], [
    grammar.describe(s) for s in truths
  ]


@pytest.mark.parametrize('name', ['bundled:umm1', 'bundled:umm2'])
def test_the_usual_prompt_gives_the_usual_caption(bundled, name):
  asker = bundled[name]
  images, _ = scenes()
  items = [Question([x], asker.options.prompt) for x in images]
  rng = jax.random.key(0)
  got = [answer.text for answer in asker.ask(items, rng)]
  assert got == asker.describer(images, rng) and len(set(got)) > 1
  row = asker.describer.example(images[0])
  ours = asker.example(items[0])
  for key in ('prefix_ids', 'prefix_positions'):
    want = row[key][..., row['prefix_mask']]
    np.testing.assert_array_equal(ours[key], want)


def test_the_likeliest_phrase_is_what_is_drawn(bundled):
  asker = bundled['bundled:umm1']
  images, phrases = scenes()
  items = [Question([x], asker.options.prompt, phrases) for x in images]
  best = [int(x.argmax()) for x in asker.likelihood(items)]
  assert best == list(range(8))


def test_unknown_letters_point_to_likelihood(bundled):
  asker, image = bundled['bundled:umm1'], scenes()[0][0]
  with pytest.raises(UserError, match='likelihood'):
    asker.ask([Question([image], 'image', 'AB')], jax.random.key(0))


@pytest.mark.parametrize('lead, want', [('', 'A'), (' ', '\u0120A')])
def test_a_letter_is_the_token_that_follows_the_opening(lead, want):
  """A byte-level tokenizer has 'A' with and without the space before it."""
  alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
  vocab = {x: i for i, x in enumerate([*sorted(alphabet), '\u0120A', ':\n'])}
  core = tokenizers.Tokenizer(
    tokenizers.models.BPE(vocab, [('\u0120', 'A')], fuse_unk=False)
  )
  core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
    add_prefix_space=False
  )
  chat = Chat('', '', '', 'x:', lead, '', ())
  tok = Tokenizer(core, 0, 0)
  assert chat.letters(tok, 'A') == [vocab[want]]
  with pytest.raises(UserError, match='likelihood'):
    chat.letters(tok, ['A', 'BC'])


def test_an_opening_that_grows_into_the_answer_is_left_whole():
  vocab = {x: i for i, x in enumerate(['x', ':', 'A', ':A'])}
  core = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, [(':', 'A')]))
  chat = Chat('', '', '', 'x:', '', '', ())
  assert chat.continuation(Tokenizer(core, 0, 0), 'A') == (vocab['A'],)


def test_mistakes_are_user_errors(qwen):
  _, asker = qwen
  ask = lambda *item: asker.ask([Question(*item)], jax.random.key(0))
  with pytest.raises(UserError, match='names image 2 of 1'):
    ask(photos(1), 'the <image 2>')
  with pytest.raises(UserError, match='contains <|image_pad|>'):
    ask(photos(1), 'the <|image_pad|>')
  with pytest.raises(UserError, match='an option is empty'):
    asker.likelihood([question('image', 1, ['red', ' '])])
  with pytest.raises(UserError, match='neither describes'):
    load_asker('bundled:umm1/decoder/transformer', make_mesh(-1, 1), {})


def test_lengths_take_few_sizes():
  assert [roomy(n, 64) for n in (1, 64, 65, 129, 193, 257, 385)] == [
    64, 64, 96, 192, 256, 384, 512,
  ]  # fmt: skip
  assert [roomy(n, 1) for n in range(1, 8)] == [1, 2, 3, 4, 6, 6, 8]
