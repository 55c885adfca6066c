"""Google Cloud Storage on this machine: gcp-storage-emulator, and conditions.

The emulator knows no "write if nobody else has written since", of which a lock
on a bucket is made, and sends no generation with what is read.
"""

import functools
import logging
import urllib.parse

from gcp_storage_emulator import server as emulator
from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import buckets
from gcp_storage_emulator.storage import Storage


class Handler(emulator.RequestHandler):
  """Requests, of which those are refused whose condition does not hold."""

  def _generation(self) -> str:
    """Of the object that is asked for; '0' where there is none."""
    path, _, query = self.path.partition('?')
    _, _, rest = path.partition('/b/')
    bucket, _, name = rest.partition('/o')
    name = name.removeprefix('/') or dict(
      urllib.parse.parse_qsl(query)
    ).get('name', '')  # fmt: skip
    try:
      name = urllib.parse.unquote(name)
      return self.storage.get_file_obj(bucket, name)['generation']
    except NotFound:
      return '0'

  def _holds(self) -> bool:
    query = dict(urllib.parse.parse_qsl(self.path.partition('?')[2]))
    wanted = query.get('ifGenerationMatch')
    if wanted in (None, self._generation()):
      return True
    self.rfile.read(int(self.headers.get('content-length') or 0))
    self.send_error(412)
    return False

  def do_POST(self):
    if self._holds():
      super().do_POST()

  def do_DELETE(self):
    if self._holds():
      super().do_DELETE()

  def send_response(self, code, message=None):
    super().send_response(code, message)
    if self.command == 'GET':
      self.send_header('x-goog-generation', self._generation())


class Server(emulator.APIThread):
  """Serves one bucket from memory."""

  BUCKET = 'box'

  def __init__(self):
    super().__init__('127.0.0.1', 0, Storage(use_memory_fs=True), daemon=True)
    buckets.create_bucket(self.BUCKET, self._storage)
    for name in ('gcp_storage_emulator', 'api.object', 'api.bucket'):
      logging.getLogger(name).setLevel(logging.CRITICAL)

  def run(self):
    self._httpd = emulator.server.HTTPServer(
      ('127.0.0.1', 0), functools.partial(Handler, self._storage)
    )
    self._httpd.handle_error = lambda *_: None  # a client went away
    self.is_running.set()
    self._httpd.serve_forever()

  @property
  def url(self) -> str:
    """Where it listens."""
    self.is_running.wait()
    return f'http://127.0.0.1:{self._httpd.server_port}'

  def environment(self) -> dict[str, str]:
    """What sends gcsfs and TensorStore here."""
    return {
      'STORAGE_EMULATOR_HOST': self.url,
      'TENSORSTORE_GCS_HTTP_URL': self.url,
    }
