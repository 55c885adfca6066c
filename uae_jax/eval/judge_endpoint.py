"""Chat completions of an OpenAI-compatible endpoint, sent once.

What a reply or an error means is settled here; patience and memory are
`judge_client`'s.
"""

import email.utils
import math
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from uae_jax.errors import UserError

# Words of a complaint about a field that can be left out.
OPTIONAL = {
  'response_format': ('response_format', 'response format', 'schema'),
  'temperature': ('temperature',),
}
TRANSIENT = (408, 409, 425, 429)  # and all from 500 on


class NoAnswer(Exception):
  """A request brought none."""

  def __init__(
    self,
    text: str,
    *,
    refused: bool = False,
    unreachable: bool = False,
    wait: float = 0.0,
  ):
    """Says why.

    Args:
      text: for a user, on one line.
      refused: the same request will bring none either.
      unreachable: nothing listens there.
      wait: seconds that the endpoint asks to wait.
    """
    super().__init__(text)
    self.refused, self.unreachable, self.wait = refused, unreachable, wait


class Endpoint:
  """One model behind one URL.

  Attributes:
    dropped: fields that it does not take and goes without.
  """

  def __init__(self, model: str, base_url: str, key_env: str, timeout: float):
    """See `judge_client.Judge`.

    Raises:
      UserError: the package or the key is missing, or the URL is none.
    """
    try:
      import jsonschema  # noqa: F401, so that it does not fail midway
      import openai
    except ImportError:
      raise UserError(
        "judges need more packages: pip install 'uae_jax[judges]'"
      ) from None
    _check_url(base_url)
    self._key = os.environ.get(key_env, '').strip()
    if not self._key:
      raise UserError(
        f'no key for {model}: set {key_env} in the environment (to any text '
        'where the endpoint asks for none)'
      )
    if not self._key.isascii() or not self._key.isprintable():
      raise UserError(f'what {key_env} holds is no key: it is not plain ASCII')
    self.model, self.base_url, self.key_env = model, base_url, key_env
    self.dropped: set[str] = set()
    self._client = openai.OpenAI(
      api_key=self._key, base_url=base_url, timeout=timeout, max_retries=0
    )

  def send(
    self,
    messages: Sequence[Mapping[str, Any]],
    schema: Mapping[str, Any],
    temperature: float | None,
  ) -> dict[str, Any]:
    """The reply: `text`, `input_tokens`, `output_tokens`, `dropped`.

    Sent again at once without a field that the endpoint complains about, if
    it can be left out.

    Args:
      messages: of chat completions.
      schema: that the text is to follow.
      temperature: None leaves it to the endpoint.

    Raises:
      NoAnswer: there is no reply, or none that is whole.
      UserError: the endpoint refuses the key or the model.
    """
    import openai

    form = dict(name='answer', strict=True, schema=schema)
    optional = dict(
      response_format=dict(type='json_schema', json_schema=form),
      temperature=temperature,
    )
    while True:
      fields = {
        name: value
        for name, value in optional.items()
        if value is not None and name not in self.dropped
      }
      try:
        raw = self._client.chat.completions.with_raw_response.create(
          model=self.model, messages=messages, **fields
        )
        break
      except openai.APITimeoutError:
        raise NoAnswer('timed out') from None
      except openai.APIConnectionError as e:
        nobody = type(e.__cause__).__name__ == 'ConnectError'
        raise NoAnswer('connection lost', unreachable=nobody) from None
      except openai.APIStatusError as e:
        said = self._clean(_said(e.body))
        field = _complaint(said, fields) if e.status_code in (400, 422) else ''
        if not field:
          raise self._meaning(e, said) from None
        self.dropped.add(field)
    try:
      reply = _read_reply(raw.http_response.json())
    except (ValueError, LookupError, TypeError, AttributeError):
      raise NoAnswer('the reply is not whole') from None
    asked = {name for name, value in optional.items() if value is not None}
    dropped = sorted(asked - fields.keys())
    return reply | {'text': self._clean(reply['text']), 'dropped': dropped}

  def _meaning(self, error: Any, said: str) -> Exception:
    """Of an HTTP error: for this question, or for all of them."""
    code = error.status_code
    if code in (401, 403):
      return UserError(
        f'{self.model}: the endpoint refuses the key in {self.key_env} '
        f'(HTTP {code}): set one that may use this model'
      )
    if code == 404:
      return UserError(
        f'no model {self.model} at {self.base_url} (HTTP 404): correct its '
        'name or the URL'
      )
    if code == 402 or error.code == 'insufficient_quota':
      return UserError(
        f'{self.model}: no credit is left behind {self.key_env} (HTTP {code})'
      )
    return NoAnswer(
      f'HTTP {code}: {said[:200]}',
      refused=code < 500 and code not in TRANSIENT,
      wait=_retry_after(error.response.headers),
    )

  def _clean(self, text: str) -> str:
    """Without the key, should an endpoint repeat it."""
    # Whoever needs no key gives a short word, which may be any word.
    return text.replace(self._key, '***') if len(self._key) > 11 else text


def _check_url(url: str) -> None:
  try:
    parts = urlsplit(url)
    good = parts.scheme in ('http', 'https') and parts.hostname
    good = good and parts.port != 0 and '@' not in parts.netloc
  except ValueError:  # of the port
    good = False
  # It is not repeated: it may hold a key.
  if not good or parts.query or parts.fragment:
    raise UserError(
      'the base URL of a judge is http(s)://HOST[:PORT][/PATH], without '
      'anything secret: a key comes from an environment variable'
    )


def _read_reply(reply: Any) -> dict[str, Any]:
  """Text and tokens; what it raises is `send`'s to catch."""
  message = reply['choices'][0]['message']
  usage = reply.get('usage') or {}
  text = message.get('content') or message.get('refusal') or ''
  if not isinstance(text, str):
    raise TypeError('content is no text')
  return dict(
    text=text,
    input_tokens=usage.get('prompt_tokens'),
    output_tokens=usage.get('completion_tokens'),
  )


def _said(body: Any) -> str:
  """What an endpoint says about an error, on one line."""
  said = body
  if isinstance(body, dict) and 'message' in body:
    said = body['message']
  return ' '.join(str(said or 'no reason given').split())


def _complaint(said: str, fields: Mapping[str, Any]) -> str:
  """The field that an error is about, or ''."""
  for name in fields:
    if any(word in said.lower() for word in OPTIONAL[name]):
      return name
  return ''


def _retry_after(headers: Mapping[str, str]) -> float:
  """Seconds that a reply asks to wait, 0 if it does not say."""
  value = headers.get('retry-after', '')
  try:
    seconds = float(value)
  except ValueError:
    try:
      date = email.utils.parsedate_to_datetime(value)
      seconds = date.timestamp() - time.time()
    except (ValueError, TypeError):
      return 0.0
  return max(seconds, 0.0) if math.isfinite(seconds) else 0.0
