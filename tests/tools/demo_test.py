"""The page of tools.demo, driven in Chromium as a visitor would."""

import contextlib
import importlib.util
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from PIL import Image

from tests import browser
from tests.tools import commands
from uae_jax.data.pipeline import SceneSource
from uae_jax.data.scenes.draw import SHAPES
from uae_jax.zoo import ASSETS

has_gradio = importlib.util.find_spec('gradio') is not None
needs_gradio = pytest.mark.skipif(
  not has_gradio, reason='gradio is not installed: uae_jax[demo]'
)


@pytest.mark.skipif(has_gradio, reason='gradio is installed')
def test_without_gradio_it_says_what_to_install():
  ((code, _, err),) = commands.run('demo', ['--model=bundled:umm1'])
  assert code == 2 and "pip install 'uae_jax[demo]'" in err


@needs_gradio
def test_mistakes_are_one_line():
  umm1 = '--model=bundled:umm1'
  cases = {
    'names one twice': [umm1, umm1],
    'cannot both describe and draw': ['--model=bundled:umm1/policy'],
    'say --temperature': [umm1, '--captions=2'],
    'needs --batch=9': [umm1, '--captions=9', '--temperature=1'],
    'nowhere': ['--model=/nowhere'],
    'port': [umm1, '--port=0'],
  }
  done = commands.run('demo', *cases.values())
  for want, (code, _, err) in zip(cases, done, strict=True):
    assert code == 2 and want in err, (want, err)
    assert len(err.strip().splitlines()) == 1, err


@contextlib.contextmanager
def served(*args):
  """Address of the page that `tools.demo` serves."""
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    port = s.getsockname()[1]
  drop = ('XLA_FLAGS', 'GRADIO_ANALYTICS_ENABLED')
  env = {k: v for k, v in os.environ.items() if k not in drop}
  env['PYTHONPATH'] = str(commands.ROOT)
  env['JAX_COMPILATION_CACHE_DIR'] = os.environ['UAE_JAX_TEST_CACHE']
  process = subprocess.Popen(
    [sys.executable, '-m', 'uae_jax.tools.demo', f'--port={port}', *args],
    cwd=commands.ROOT, env=env, text=True,
    stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
  )  # fmt: skip
  url = f'http://127.0.0.1:{port}/'
  try:
    for _ in range(600):
      assert process.poll() is None, process.stdout.read()
      with contextlib.suppress(OSError):
        urllib.request.urlopen(url, timeout=5)
        break
      time.sleep(0.5)
    yield url
  finally:
    process.terminate()
    process.wait(30)


def until(page, what, seconds=180):
  """The first true value of `what`, of a page that is still changing."""
  from selenium.common.exceptions import WebDriverException
  from selenium.webdriver.support.ui import WebDriverWait

  wait = WebDriverWait(page, seconds, ignored_exceptions=[WebDriverException])
  return wait.until(lambda page: what())


@needs_gradio
def test_a_visitor_redraws_an_image_and_a_scene(tmp_path):
  browser.require()
  from selenium.webdriver.common.by import By

  image = tmp_path / 'scene.png'
  Image.fromarray(SceneSource('heldout')[0]['image']).save(image)
  other = ASSETS / 'umm1'
  find = lambda css: page.find_element(By.CSS_SELECTOR, css)
  press = lambda text: find_button(page, text).click()

  def shown():
    """What stands in the scores of both models."""
    texts = [find(f'#scores-{i} tbody').text for i in (0, 1)]
    images = page.find_elements(By.CSS_SELECTOR, '#drawn-0 img, #drawn-1 img')
    ready = len(images) >= 2 and all('0.' in text for text in texts)
    return texts if ready else None

  with (
    served('--model=bundled:umm1', f'--model={other}') as url,
    browser.chromium(tmp_path / 'profile') as page,
  ):
    browser.resize(page, browser.DESKTOP)
    page.get(url)
    until(page, lambda: find('#image input[type=file]')).send_keys(str(image))
    until(page, lambda: find('#image img'))
    press('Describe and redraw')
    first, second = until(page, shown)
    # The same weights by another name: every word and digit is the same.
    assert first == second and any(shape in first for shape in SHAPES)
    assert len(re.findall(r'-?[01]\.\d{3}', first)) == 2, first

    press('Clear')
    press('Add object')  # as the lists stand: a small red circle, top left
    until(page, lambda: shown() and shown()[0] != first)
    scene = shown()[0]
    assert 'red circle' in scene

    box = find('#text-1 textarea')
    box.send_keys('large blue square bottom right')
    page.find_elements(
      By.XPATH, '//button[normalize-space()="Redraw from it"]'
    )[1].click()
    until(page, lambda: 'blue square' in shown()[1])
    assert shown()[0] == scene  # the other column is left alone

    browser.resize(page, browser.PHONE)
    assert browser.overflow(page) <= 0
    web = [x for x in browser.requests(page) if x.startswith(('http', 'ws'))]
    assert web and all(x.startswith(url) for x in web)
    # Gradio itself says that of some of its parts.
    own = 'Method not implemented.'
    assert not [x for x in browser.complaints(page) if own not in x]


def find_button(page, text):
  from selenium.webdriver.common.by import By

  return page.find_element(By.XPATH, f'//button[normalize-space()="{text}"]')
