"""What a multiple-choice question says, and what an answer to it says.

Prompts are VLMEvalKit's, word for word, since scores depend on them. Answers
are matched as by its `exact_matching`, without a judge, but for statements
such as "Answer: B", which are read first.
"""

import dataclasses
import re
from collections.abc import Mapping

from uae_jax.eval import choice_tsv
from uae_jax.eval.choice_tsv import Row


@dataclasses.dataclass(frozen=True)
class Form:
  """Words of a prompt.

  Attributes:
    question: with the question in it.
    options: before the options.
    closing: after them.
    chinese: after them, where a question is in Chinese.
    open: after a question that has none.
  """

  question: str
  options: str
  closing: str
  chinese: str
  open: str


# By VLMEvalKit: what Qwen-VL and most others are asked; what Janus is.
_LETTER_ONLY = "\nAnswer with the option's letter from the given choices "
FORMS = {
  'select': Form(
    question='Question: {}\n',
    options='Options:\n',
    closing='Please select the correct answer from the options above.',
    chinese='请直接回答选项字母。',
    open='',
  ),
  'direct': Form(
    question='{}\n',
    options='',
    closing=f'{_LETTER_ONLY}directly.',
    chinese=f'{_LETTER_ONLY}directly.',
    open='Answer the question directly.',
  ),
}


def prompt(row: Row, form: Form) -> str:
  """What VLMEvalKit asks for a row."""
  text = f'Hint: {row.hint}\n' if row.hint else ''
  text += form.question.format(row.question)
  if not row.options:
    return (text + form.open).rstrip()
  text += form.options
  text += ''.join(f'{k}. {option}\n' for k, option in row.options.items())
  chinese = re.search('[\u4e00-\u9fff]', text)
  return text + (form.chinese if chinese else form.closing)


def said(row: Row, text: str) -> bool:
  """Whether a generated answer is right.

  Of an open question it is, if it has the answer in it, whole, and is not
  much longer. `row.answer` may list several.
  """
  if row.options:
    return extract(text, row.options) == row.answer
  text = _plain(text)
  wanted = [_plain(x) for x in choice_tsv.listed(row.answer)]
  return any(
    re.search(rf'(?<![\w.]){re.escape(x)}(?!\.?\w)', text)
    for x in wanted
    if x and len(text) <= 2 * (len(x) + len('other answers'))
  )


# "Answer: B", "the answer is (B)", "option B", but not "answer: A or B".
_STATED = re.compile(
  r'\b(?i:answer|option|choice)(?i:\s+is)?[\s:：(\["\'*]*([A-Z])\b(?![\'’])'
  r'(?!\s*(?:[,/&]|or\b|and\b)\s*\(?[A-Z]\b)'
)
_OPENED = re.compile(r'\W*([A-Z])\s*[.):,]')  # "B. a cat", "(B) a cat"


def extract(text: str, options: Mapping[str, str]) -> str | None:
  """The one option that an answer speaks of, or None.

  Tried in turn: the answer is an option's letter or text and nothing else; it
  states a letter; it has one option's letter as a word, where an A among
  other words may be an article, unless it opens with "A."; it has one
  option's text in it, and is not much longer than all of them.
  """
  bare = text.strip().strip('.()[]:*"\'').strip()
  if bare.upper() in options:
    return bare.upper()
  found = [k for k, x in options.items() if _plain(x) == _plain(text)]
  if len(found) == 1:
    return found[0]
  stated = {x for x in _STATED.findall(text) if x in options}
  if len(stated) == 1:
    return stated.pop()
  words = re.sub(r'[.()\[\],:;!*#{}]', ' ', text).split()
  found = [k for k in options if k in words]
  if len(found) == 1:
    opened = _OPENED.match(text)
    if found != ['A'] or len(words) <= 3 or (opened and opened[1] == 'A'):
      return found[0]
  if len(text) > 2 * sum(map(len, options.values())):
    return None
  found = [k for k, x in options.items() if x.lower() in text.lower()]
  return found[0] if len(found) == 1 else None


def _plain(text: str) -> str:
  """In lower case, without spaces and full stops around it."""
  return text.strip().rstrip('.').strip().lower()
