"""Yes-or-no questions about images, answered by a judge.

What question-based benchmarks of generation (DPG-Bench, GenEval++) ask.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from uae_jax.errors import UserError
from uae_jax.eval.judge_client import Answer, Judge, Question, parse

SYSTEM = (
  'You check images against text. Judge by what can be seen in the image, '
  'never by what is likely.'
)
YES_NO = dict(
  type='object',
  properties={'answer': dict(type='string', enum=['yes', 'no'])},
  required=['answer'],
  additionalProperties=False,
)


@dataclasses.dataclass(frozen=True)
class YesNo:
  """A judge as benchmarks call it: (images, questions) -> answers."""

  judge: Judge

  def __call__(
    self, images: Sequence[Any], questions: Sequence[str]
  ) -> list[bool | None]:
    """See `yes_no`; as many images as questions."""
    return yes_no(self.judge, list(zip(images, questions, strict=True)))


def yes_no(judge: Judge, pairs: Sequence[tuple[Any, str]]) -> list[bool | None]:
  """Is the answer yes? None where the judge gives neither yes nor no.

  Args:
    judge: whom to ask.
    pairs: an image (PIL, or uint8 [H W 3]) and a question about it, each.

  Raises:
    UserError: some were not answered, which another run may bring.
  """
  answers = judge.ask_many(
    [Question([image, text], YES_NO, SYSTEM) for image, text in pairs]
  )
  _check(judge, answers)
  return [a.value['answer'] == 'yes' if a.value else None for a in answers]


def checklist(
  judge: Judge, items: Sequence[tuple[Any, str, Sequence[str]]]
) -> list[list[bool | None]]:
  """Which criteria an image meets; None where the judge does not say.

  The criteria of an image are one question.

  Args:
    judge: whom to ask.
    items: an image, the prompt that it was made from, and the criteria, each.

  Raises:
    UserError: see `yes_no`.
  """
  asked = [i for i, item in enumerate(items) if item[2]]
  answers = judge.ask_many([_criteria(*items[i]) for i in asked])
  _check(judge, answers)
  out = [[None] * len(criteria) for _, _, criteria in items]
  for i, answer in zip(asked, answers):
    # One criterion left out does not spoil the others.
    found = parse(answer.text, {'type': 'object'}) or {}
    for j in range(len(out[i])):
      met = found.get(f'criterion_{j + 1}')
      out[i][j] = met if isinstance(met, bool) else None
  return out


def _criteria(image: Any, prompt: str, criteria: Sequence[str]) -> Question:
  names = [f'criterion_{j + 1}' for j in range(len(criteria))]
  listed = '\n'.join(f'{n}: {text}' for n, text in zip(names, criteria))
  schema = dict(
    type='object',
    properties={name: {'type': 'boolean'} for name in names},
    required=names,
    additionalProperties=False,
  )
  text = (
    f'The image was made from this prompt:\n{prompt}\n\nSay of each criterion '
    f'whether the image meets it in full.\n{listed}'
  )
  return Question([image, text], schema, SYSTEM)


def _check(judge: Judge, answers: Sequence[Answer]) -> None:
  failed = [a for a in answers if a.error and not a.refused]
  if failed:
    raise UserError(
      f'{judge.model} did not answer {len(failed)} of {len(answers)} questions '
      f'({failed[0].error}): run again to ask these alone'
    )
