"""Screenshots of docs/: the report of a run, and the page of tools.demo.

`python -m tests.shots RUN docs` with Chromium (see tests/browser.py), gradio
and the workdir of a finished run, which becomes the second model of the demo.
"""

import os
import sys
import tempfile
from pathlib import Path

from PIL import Image
from selenium.webdriver.common.by import By

from tests import browser
from tests.tools.demo_test import served, until

os.environ.setdefault('UAE_JAX_TEST_CACHE', tempfile.gettempdir())


def keep(page, path: Path) -> None:
  """Saves the screen, and says how large the file is."""
  browser.shot(page, path)
  Image.open(path).convert('RGB').save(path, optimize=True)
  print(path, path.stat().st_size)


def report(page, run: Path, out: Path) -> None:
  """Curves in light, the gallery in dark and on a phone."""
  page.get((run.absolute() / 'report.html').as_uri())
  for scheme in ('light', 'dark'):
    browser.resize(page, (1280, 1200), scheme == 'dark')
    top = 'lines' if scheme == 'light' else 'pictures'
    page.find_element(By.ID, top).location_once_scrolled_into_view  # noqa: B018
    keep(page, out / f'report-{scheme}.png')
  browser.resize(page, browser.PHONE)
  page.execute_script('document.getElementById("pictures").scrollIntoView()')
  keep(page, out / 'report-phone.png')


def demo(page, run: Path, out: Path) -> None:
  """A random scene, described and redrawn by both."""
  with served('--model=bundled:umm1', f'--model={run / "export"}') as url:
    browser.resize(page, (1280, 1000))
    page.get(url)
    button = '//button[normalize-space()="Random scene"]'
    until(page, lambda: page.find_element(By.XPATH, button)).click()
    scores = lambda: page.find_element(By.CSS_SELECTOR, '#scores-1 tbody').text
    until(page, lambda: '0.' in scores())
    until(page, lambda: page.find_element(By.CSS_SELECTOR, '#drawn-1 img'))
    keep(page, out / 'demo.png')


def main() -> None:
  """All of them."""
  run, out = map(Path, sys.argv[1:])
  with (
    tempfile.TemporaryDirectory() as profile,
    browser.chromium(profile) as page,
  ):
    report(page, run, out)
    demo(page, run, out)


if __name__ == '__main__':
  main()
