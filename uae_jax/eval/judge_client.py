"""Multimodal LLM judges behind OpenAI-compatible endpoints.

Questions with images go out, JSON that follows a schema comes back. Every
answer is kept on disk under a hash of all that was asked, so that nothing is
asked, or paid for, twice.
"""

import base64
import collections
import dataclasses
import hashlib
import io
import json
import os
import random
import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from PIL import Image

from uae_jax.data.preprocess import to_rgb
from uae_jax.errors import UserError
from uae_jax.eval.judge_endpoint import Endpoint, NoAnswer

OPENAI = 'https://api.openai.com/v1'
KEY_ENV = 'OPENAI_API_KEY'
LONGEST_BACKOFF = 60.0  # seconds
LONGEST_WAIT = 300.0  # seconds; an endpoint that asks for more is given up
FIRST_TRIES = 3  # of an endpoint where nobody has answered yet
REPLY = ('text', 'input_tokens', 'output_tokens', 'dropped')  # what is kept
FORM = 'Answer with one JSON object and nothing else. Its JSON schema: '


@dataclasses.dataclass(frozen=True)
class Question:
  """What a judge is asked.

  Attributes:
    content: texts and images (PIL, or uint8 [H W 3]) in the order shown.
    schema: JSON schema of the answer, which is an object.
    system: system message; '' is none.
  """

  content: Sequence[Any]
  schema: Mapping[str, Any]
  system: str = ''


@dataclasses.dataclass(frozen=True)
class Answer:
  """What came of a question.

  Attributes:
    value: the answer; None if there is none that follows the schema.
    text: what the judge wrote.
    error: why there is no answer; '' if there is one, of whatever form.
    refused: the endpoint will not take this question; otherwise an error may
      be gone when it is asked again.
    input_tokens: of the question; None if the endpoint does not say.
    output_tokens: of the answer; the same.
    dropped: fields that the endpoint did not take and went without.
    cached: it was on disk.
  """

  value: dict[str, Any] | None = None
  text: str = ''
  error: str = ''
  refused: bool = False
  input_tokens: int | None = None
  output_tokens: int | None = None
  dropped: Sequence[str] = ()
  cached: bool = False


class Judge:
  """A model that answers questions.

  Attributes:
    model: its name.
    settings: what decides its answers.
    usage: counts of this object's life: `answered`, `cached`, `unparsable`,
      `refused`, `failed`; and of what was `answered`, `input_tokens`,
      `output_tokens`, and answers of unknown tokens as `unmetered`.
  """

  def __init__(
    self,
    model: str,
    base_url: str = OPENAI,
    key_env: str = KEY_ENV,
    *,
    concurrency: int = 8,
    retries: int = 6,
    timeout: float = 120.0,
    backoff: float = 1.0,
    temperature: float | None = 0.0,
    max_side: int = 1024,
    cache: Path | None = None,
    prices: tuple[float, float] | None = None,
  ):
    """Checks what can be checked without asking.

    Args:
      model: as the endpoint calls it.
      base_url: of the endpoint, ending before `/chat/completions`.
      key_env: environment variable that holds the key.
      concurrency: questions under way at once.
      retries: of a request that met a limit, a fault or silence.
      timeout: seconds of silence.
      backoff: seconds before the first retry, doubled with each.
      temperature: None leaves it to the endpoint, as does one that is not
        taken.
      max_side: larger images are made smaller, in pixels.
      cache: folder of answers; None keeps none.
      prices: USD for a million input and a million output tokens.

    Raises:
      UserError: packages or the key are missing, or a value is out of range.
    """
    if concurrency < 1 or retries < 0 or timeout <= 0 or max_side < 1:
      raise UserError(
        'a judge needs concurrency and max_side of 1 or more, retries of 0 or '
        'more, and a positive timeout'
      )
    self._endpoint = Endpoint(model, base_url, key_env, timeout)
    self.model, self._prices = model, prices
    self.settings = dict(
      model=model, base_url=base_url, temperature=temperature, max_side=max_side
    )
    self.usage: collections.Counter[str] = collections.Counter()
    self._concurrency, self._retries = concurrency, retries
    self._backoff = backoff
    self._cache = cache and cache / _folder_name(self.settings)
    # Has it ever answered? If not, the first complaint is about the settings.
    self._reached = bool(cache and any(self._cache.glob('*.json')))

  def __repr__(self) -> str:
    return f'Judge({self.model!r})'

  def cost(self, inputs: int | None, outputs: int | None) -> float | None:
    """USD of so many tokens; None if tokens or prices are unknown."""
    if None in (self._prices, inputs, outputs):
      return None
    return (inputs * self._prices[0] + outputs * self._prices[1]) / 1e6

  def spent(self) -> float | None:
    """USD of what this object asked; None if that is unknown."""
    if self.usage['unmetered']:
      return None
    return self.cost(self.usage['input_tokens'], self.usage['output_tokens'])

  def ask_many(
    self, questions: Sequence[Question], stop: threading.Event | None = None
  ) -> list[Answer]:
    """Answers in the order of the questions; equal ones are asked once.

    After an interrupt, questions under way are waited for, so that what is
    paid for is kept.

    Args:
      questions: any number.
      stop: once it is set, no more questions are sent.

    Raises:
      UserError: the endpoint refuses the key or the model, cannot be reached
        at all, or takes none of the questions and never took one.
    """
    stop = stop or threading.Event()
    keys = [self._hash(question) for question in questions]
    unique = dict(zip(keys, questions))
    with ThreadPoolExecutor(self._concurrency) as pool:
      jobs = {
        key: pool.submit(self._answer, key, question, stop)
        for key, question in unique.items()
      }
      try:
        answers = {key: job.result() for key, job in jobs.items()}
      except BaseException:
        stop.set()
        raise
    self._count(answers.values())
    refused = [a.error for a in answers.values() if a.refused]
    if refused and len(refused) == len(answers) and not self._reached:
      raise UserError(f'{self.model} takes no question: {refused[0]}')
    return [answers[key] for key in keys]

  def _count(self, answers: Iterable[Answer]) -> None:
    for a in answers:
      if a.error:
        self.usage['refused' if a.refused else 'failed'] += 1
        continue
      self.usage['unparsable'] += a.value is None
      self.usage['cached' if a.cached else 'answered'] += 1
      if not a.cached:
        self.usage['input_tokens'] += a.input_tokens or 0
        self.usage['output_tokens'] += a.output_tokens or 0
        self.usage['unmetered'] += None in (a.input_tokens, a.output_tokens)

  def _hash(self, question: Question) -> str:
    """Of all that decides the answer; of images, the pixels."""
    parts = []
    for part in question.content:
      if not isinstance(part, str):
        image = to_rgb(part)
        pixels = hashlib.sha256(image.tobytes()).hexdigest()
        part = ['image', *image.size, pixels]
      parts.append(part)
    asked = [self.settings, question.system, parts, FORM, question.schema]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()

  def _answer(
    self, key: str, question: Question, stop: threading.Event
  ) -> Answer:
    """From disk, or from the endpoint and then on disk."""
    reply = self._load(key)
    cached = reply is not None
    if not cached:
      try:
        reply = self._ask(question, stop)
      except NoAnswer as e:
        return Answer(error=str(e), refused=e.refused)
      except BaseException:
        stop.set()
        raise
      self._save(key, reply)
    return Answer(parse(reply['text'], question.schema), cached=cached, **reply)

  def _load(self, key: str) -> dict[str, Any] | None:
    """What is on disk; a file that is not whole is as good as none."""
    if self._cache is None:
      return None
    try:
      saved = json.loads((self._cache / f'{key}.json').read_text('utf-8'))
      reply = {key: saved[key] for key in REPLY}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
      return None
    return reply if isinstance(reply['text'], str) else None

  def _save(self, key: str, reply: Mapping[str, Any]) -> None:
    if self._cache is None:
      return
    self._cache.mkdir(parents=True, exist_ok=True)
    file = self._cache / f'{key}.json'
    part = file.with_suffix(f'.{os.getpid()}.part')
    part.write_text(json.dumps({'model': self.model, **reply}) + '\n', 'utf-8')
    os.replace(part, file)

  def _ask(self, question: Question, stop: threading.Event) -> dict[str, Any]:
    """Asks until there is a reply, or patience ends."""
    messages = None
    for attempt in range(self._retries + 1):
      if stop.is_set():
        break
      messages = messages or self._messages(question)
      try:
        reply = self._endpoint.send(
          messages, question.schema, self.settings['temperature']
        )
        self._reached = True
        return reply
      except NoAnswer as e:
        last = attempt == self._retries or e.wait > LONGEST_WAIT
        nobody = e.unreachable and not self._reached
        if nobody and (last or attempt + 1 == FIRST_TRIES):
          url = self.settings['base_url']
          raise UserError(f'{url} cannot be reached: correct it') from None
        if last or e.refused:
          raise
        wait = min(self._backoff * 2**attempt, LONGEST_BACKOFF)
        # Together, those that were sent away would come back together.
        stop.wait(max(e.wait, wait * random.uniform(0.5, 1)))
    raise NoAnswer('stopped')

  def _messages(self, question: Question) -> list[dict[str, Any]]:
    """Of chat completions."""
    content = [
      dict(type='text', text=part)
      if isinstance(part, str)
      else dict(type='image_url', image_url={'url': self._data_url(part)})
      for part in (*question.content, FORM + json.dumps(question.schema))
    ]
    system = [dict(role='system', content=question.system)]
    user = [dict(role='user', content=content)]
    return (system if question.system else []) + user

  def _data_url(self, image: Any) -> str:
    side = self.settings['max_side']
    picture = to_rgb(image).copy()
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    picture.save(out, 'PNG')
    return 'data:image/png;base64,' + base64.b64encode(out.getvalue()).decode()


def ask_all(
  judges: Sequence[Judge], questions: Sequence[Question]
) -> list[list[Answer]]:
  """Each judge's answers to the same questions, all judges at once.

  Raises:
    UserError: see `Judge.ask_many`; the first of a judge ends all.
  """
  stop = threading.Event()
  with ThreadPoolExecutor(len(judges)) as pool:
    jobs = [pool.submit(judge.ask_many, questions, stop) for judge in judges]
    try:
      return [job.result() for job in jobs]
    except BaseException:
      stop.set()
      raise


def make_judge(spec: str, **options: Any) -> Judge:
  """The judge that `MODEL[@BASE_URL[@KEY_ENV]]` names.

  Args:
    spec: what a user writes.
    **options: of `Judge`.

  Raises:
    UserError: it is not of this form, or see `Judge`.
  """
  pattern = r'(.+?)(?:@(https?://[^@]+)(?:@([A-Z_][A-Z0-9_]*))?)?'
  found = re.fullmatch(pattern, spec)
  # What does not fit may hold a key: it is not repeated.
  if not found or '://' in found[1]:
    raise UserError(
      'a judge is MODEL[@BASE_URL[@KEY_ENV]], with the name of an environment '
      'variable in capitals, never a key'
    )
  model, url, env = found.groups()
  return Judge(model, url or OPENAI, env or KEY_ENV, **options)


def parse(text: str, schema: Mapping[str, Any]) -> dict[str, Any] | None:
  """The last JSON object in a text that follows the schema, if one does.

  Judges without structured output put words or fences around it.
  """
  from jsonschema import Draft202012Validator

  valid = Draft202012Validator(schema).is_valid
  decoder, found, at = json.JSONDecoder(), None, 0
  while (at := text.find('{', at)) >= 0:
    try:
      value, at = decoder.raw_decode(text, at)
    except (ValueError, RecursionError):
      at += 1
      continue
    found = value if valid(value) else found
  return found


def _folder_name(settings: Mapping[str, Any]) -> str:
  """Of a judge's answers: one that a reader and a file system can take."""
  digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()
  return f'{re.sub("[^A-Za-z0-9.-]+", "_", settings["model"])}-{digest[:8]}'
