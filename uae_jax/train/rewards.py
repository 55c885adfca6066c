"""The `rewards` section of a config: what a rollout is worth."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from uae_jax import zoo
from uae_jax.ckpt import hf
from uae_jax.data import tokenize
from uae_jax.data.prompts import PromptTokenizer
from uae_jax.errors import UserError
from uae_jax.models.clip import LEGACY_EOS
from uae_jax.rewards import mine, terms, text
from uae_jax.rewards.features import Tower
from uae_jax.rewards.terms import Terms
from uae_jax.train import parts
from uae_jax.train.parts import Loader

CHOICES = dict(
  rewards=dict(
    standardise=terms.STANDARDISE, text=text.IMAGES, text_head=text.HEADS
  )
)


def load(
  config,
  weights: Loader,
  towers: Mapping[str, Tower],
  tokenizer: tokenize.Tokenizer,
) -> tuple[Terms, dict[str, Any]]:
  """The terms of a run, and the parameters of those that have some.

  Args:
    config: of the run.
    weights: loads them.
    towers: of reconstruction, by name.
    tokenizer: the policy's.

  Raises:
    UserError: for anything in the section that cannot be built.
  """
  parts.check_choices(config, CHOICES)
  r = config.rewards
  for key in ('reconstruction_weight', 'length_weight', 'repetition_weight'):
    if not r[key] >= 0:
      raise UserError(f'rewards.{key}={r[key]} must not be negative')
  if r.ngram < 1:
    raise UserError(f'rewards.ngram={r.ngram} must be at least 1')
  if taken := sorted(set(towers) & set(terms.TAKEN)):
    raise UserError(f'ckpt.reward: rename the folder of {taken[0]!r}: a metric '
                    f'is called reward/{taken[0]}')  # fmt: skip
  params, text_term, own = {}, None, None
  if r.text and r.text_weight:
    text_term, params = load_text(config, weights, towers, tokenizer)
  decode = lambda ids: tokenize.decode(tokenizer, ids)
  if r.mine and r.mine_weight:
    own = mine.load(r.mine, decode, config.data.side, weight=r.mine_weight)
  found = Terms(
    # A cold start has no tower to compare with, and no reward.
    reconstruction=r.reconstruction_weight if towers else 0.0,
    standardise=r.standardise,
    length=r.length_weight,
    length_target=r.length_target,
    repetition=r.repetition_weight,
    ngram=r.ngram,
    text=text_term,
    mine=own,
  )
  if config.stage in parts.TURNS:
    check(config, found)
  return found, params


def check(config, found: Terms) -> None:
  """Raises UserError where there is nothing to train on."""
  if config.rewards.reconstruction_weight and not found.reconstruction:
    raise UserError(
      'ckpt.reward names no tower: name one, or set '
      'rewards.reconstruction_weight=0'
    )
  if not found.some:
    raise UserError('rewards: every weight is 0, so there is nothing to train')
  if found.looks:
    return
  if any('decoder' in turn for turn in parts.TURNS[config.stage]):
    raise UserError(
      f'stage={config.stage!r} trains what draws, and no reward looks at '
      'drawings: let one do so'
    )
  if config.model.umm == 'umm2' and config.grpo.image_weight:
    raise UserError(
      'no reward looks at what is drawn: set grpo.image_weight=0, or let one '
      'do so'
    )


def tower_weights(config, towers: Collection[str]) -> dict[str, float]:
  """Weight of each tower of ckpt.reward, by name.

  Raises:
    UserError: unless it says one number for every tower.
  """
  said = config.rewards.weights
  if not said:
    return {name: 1.0 / len(towers) for name in towers}
  try:
    pairs = [item.split('=') for item in said.split(',')]
    found = {name.strip(): float(value) for name, value in pairs}
  except ValueError:
    found = {}
  if set(found) != set(towers) or not all(map(math.isfinite, found.values())):
    example = ','.join(f'{name}=1' for name in towers)
    raise UserError(
      f'rewards.weights={said!r} must give each tower of ckpt.reward one '
      f'number: {example}'
    )
  return found


def load_text(
  config,
  weights: Loader,
  towers: Mapping[str, Tower],
  tokenizer: tokenize.Tokenizer,
) -> tuple[text.TextTerm, dict[str, Any]]:
  """A CLIP that reads captions, and its parameters unless a tower has them.

  Raises:
    UserError: the folder holds no CLIP with both towers, or its tokenizer
      is missing or another's.
  """
  r = config.rewards
  folder = zoo.resolve(r.text_tower)
  if (kind := hf.kind(folder)) != 'clip':
    raise UserError(
      f'rewards.text_tower: {folder} is a {kind!r}: take a CLIP with both '
      'towers, such as openai/clip-vit-large-patch14'
    )
  model, tower = parts.tower_from_folder(folder)
  shared = [
    name
    for name, at in parts.tower_folders('reward', config).items()
    if at == folder
  ]
  params, name = {}, 'text'
  if shared:
    name, tower = shared[0], towers[shared[0]]
  else:
    params[name] = weights(f'reward/{name}', model, folder)
  at = zoo.resolve(r.text_tokenizer) if r.text_tokenizer else folder
  term = text.TextTerm(
    tower=tower,
    params=name,
    image=r.text,
    head=r.text_head,
    retokenise=retokeniser(tokenizer, at, model.module.language),
    weight=r.text_weight,
  )
  return term, params


def retokeniser(
  policy: tokenize.Tokenizer, folder: Path, language: Mapping[str, Any]
) -> text.WordTable | text.HostTokens:
  """What turns the policy's ids into those of a text tower.

  Where both have one id a word, as the embedded sizes, it is a table.

  Args:
    policy: its tokenizer.
    folder: of the tower's tokenizer.
    language: fields of the tower.

  Raises:
    UserError: there is no tokenizer, or it is not the tower's.
  """
  length = language['ctx']
  own = word_tokenizer(folder)
  if own is not None:
    encode = lambda texts: np.stack(
      [tokenize.encode_caption(own, text, length)[0] for text in texts]
    )
  else:
    prompts = PromptTokenizer(folder)
    encode = lambda texts: prompts(texts, length)
  check_tokenizer(folder, encode, language)
  if own is None or not is_of_words(policy):
    return text.HostTokens(written(policy), encode, length)
  said = [own.encode(written(policy)([i])) for i in range(policy.size)]
  table = tuple(ids[0] if ids else -1 for ids in said)
  return text.WordTable(table, own.eos, own.pad, length)


def written(
  tokenizer: tokenize.Tokenizer,
) -> Callable[[Sequence[int]], str]:
  """Caption ids -> text with the blanks and line breaks at its ends."""
  return lambda ids: tokenizer.core.decode(
    [int(i) for i in ids], skip_special_tokens=True
  )


def check_tokenizer(
  folder: Path,
  encode: Callable[[Sequence[str]], np.ndarray],
  language: Mapping[str, Any],
) -> None:
  """Raises UserError unless captions end as the tower expects."""
  ids, eos = encode(['a'])[0], language['eos']
  ends = eos == LEGACY_EOS or eos in ids
  if not ends or ids.max() >= language['vocab']:
    raise UserError(
      f'rewards.text_tokenizer: {folder} is not the tokenizer of the text '
      f'tower, which has {language["vocab"]} tokens and ends captions with '
      f'{eos}'
    )


def word_tokenizer(folder: Path) -> tokenize.Tokenizer | None:
  """The tokenizer of a folder, if it has one id for every word."""
  if not (folder / 'tokenizer.json').exists():
    return None
  if hf.read_config(folder, 'tokenizer.json')['model']['type'] != 'WordLevel':
    return None
  return tokenize.load_tokenizer(folder)


def is_of_words(tokenizer: tokenize.Tokenizer) -> bool:
  """Has the tokenizer one id for every word?"""
  return type(tokenizer.core.model).__name__ == 'WordLevel'
