"""A local endpoint of chat completions that misbehaves as it is told to."""

import base64
import contextlib
import dataclasses
import io
import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image

KEY = 'sk-a-key-that-must-not-be-seen-anywhere'


@dataclasses.dataclass
class Request:
  """What came in: its JSON, `Authorization`, and when."""

  body: dict[str, Any]
  key: str
  time: float

  def texts(self) -> list[str]:
    """Of the user's message."""
    parts = self.body['messages'][-1]['content']
    return [part['text'] for part in parts if part['type'] == 'text']

  def images(self) -> list[Image.Image]:
    """Of the user's message."""
    parts = self.body['messages'][-1]['content']
    urls = [p['image_url']['url'] for p in parts if p['type'] == 'image_url']
    start = 'data:image/png;base64,'
    assert all(url.startswith(start) for url in urls)
    data = [base64.b64decode(url[len(start) :]) for url in urls]
    return [Image.open(io.BytesIO(x)) for x in data]


@dataclasses.dataclass
class Reply:
  """What goes out.

  Attributes:
    text: of the model; None sends `body` as it is.
    status: of HTTP.
    headers: further ones.
    body: JSON, or bytes.
    cut: bytes that are announced and never sent.
    seconds: before anything is sent.
    usage: of tokens; None leaves it out.
  """

  text: str | None = None
  status: int = 200
  headers: dict[str, str] = dataclasses.field(default_factory=dict)
  body: Any = b''
  cut: int = 0
  seconds: float = 0.0
  usage: tuple[int, int] | None = (100, 10)

  def data(self) -> bytes:
    """The body as it is sent."""
    body = self.body
    if self.text is not None:
      message = dict(role='assistant', content=self.text)
      choice = dict(index=0, message=message, finish_reason='stop')
      body = dict(id='x', object='chat.completion', created=0, model='m',
                  choices=[choice])  # fmt: skip
      if self.usage is not None:
        names = 'prompt_tokens', 'completion_tokens'
        body['usage'] = dict(zip(names, self.usage))
    return body if isinstance(body, bytes) else json.dumps(body).encode()


def fault(status: int, message: str = '', **headers: str) -> Reply:
  """An error in OpenAI's form."""
  headers = {k.replace('_', '-'): v for k, v in headers.items()}
  return Reply(None, status, headers, {'error': {'message': message}})


class Server:
  """Attributes: `url`, `requests` so far, `most` in flight at once."""

  def __init__(self, behave: Callable[[Request, int], Reply]):
    """`behave` gets a request and how many came before it."""
    self.behave = behave
    self.requests: list[Request] = []
    self.most = self._now = 0
    self._lock = threading.Lock()

  def serve(self, handler: BaseHTTPRequestHandler) -> None:
    """One request."""
    size = int(handler.headers['Content-Length'])
    body = json.loads(handler.rfile.read(size))
    assert handler.path == '/v1/chat/completions'
    key = handler.headers['Authorization']
    request = Request(body, key, time.monotonic())
    with self._lock:
      n = len(self.requests)
      self.requests.append(request)
      self._now += 1
      self.most = max(self.most, self._now)
    try:
      reply = self.behave(request, n)
      time.sleep(reply.seconds)
    finally:
      with self._lock:
        self._now -= 1
    data = reply.data()
    handler.send_response(reply.status)
    headers = {'Content-Type': 'application/json', **reply.headers}
    for name, value in headers.items():
      handler.send_header(name, value)
    handler.send_header('Content-Length', str(len(data)))
    handler.end_headers()
    handler.wfile.write(data[: len(data) - reply.cut])
    handler.close_connection = reply.cut > 0


@contextlib.contextmanager
def serving(behave: Callable[[Request, int], Reply]):
  """A `Server` at work."""
  server = Server(behave)

  class Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def do_POST(self):
      # The other side may have gone: that is what it is tested for.
      with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        server.serve(self)

    def log_message(self, *args):
      pass

  http = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
  http.daemon_threads = True
  http.block_on_close = False
  server.url = f'http://127.0.0.1:{http.server_port}/v1'
  threading.Thread(target=http.serve_forever, daemon=True).start()
  try:
    yield server
  finally:
    http.shutdown()
    http.server_close()
