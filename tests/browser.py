"""Chromium without a window, for tests of pages; they skip where it is absent.

`tests/browser.py` needs selenium, `chromium` and `chromedriver` (Debian:
`apt-get install chromium chromium-driver`). No page may ask another machine.
"""

import contextlib
import importlib.util
import json
import shutil

import pytest

FLAGS = (
  '--headless=new', '--no-sandbox', '--disable-gpu', '--no-first-run',
  '--disable-background-networking', '--disable-component-update',
  '--disable-sync', '--disable-dev-shm-usage', '--hide-scrollbars',
)  # fmt: skip
DESKTOP, PHONE = (1280, 900), (390, 844)


def require():
  """Skips the test where there is no browser.

  Returns:
    Paths of chromium and chromedriver.
  """
  if importlib.util.find_spec('selenium') is None:
    pytest.skip('selenium is not installed')
  found = [shutil.which(name) for name in ('chromium', 'chromedriver')]
  if None in found:
    pytest.skip('chromium and chromedriver are not installed')
  return found


@contextlib.contextmanager
def chromium(profile):
  """A selenium driver whose user data are in the folder `profile`."""
  browser, driver = require()
  from selenium import webdriver

  options = webdriver.ChromeOptions()
  options.binary_location = browser
  for flag in (*FLAGS, f'--user-data-dir={profile}'):
    options.add_argument(flag)
  logs = {'browser': 'ALL', 'performance': 'ALL'}
  options.set_capability('goog:loggingPrefs', logs)
  service = webdriver.ChromeService(driver)
  page = webdriver.Chrome(options=options, service=service)
  try:
    page.set_page_load_timeout(60)
    yield page
  finally:
    page.quit()


def resize(page, size, dark=False):
  """Gives the page a screen; a phone's is a touch screen."""
  width, height = size
  page.execute_cdp_cmd(
    'Emulation.setDeviceMetricsOverride',
    {'width': width, 'height': height, 'deviceScaleFactor': 1,
     'mobile': size == PHONE},
  )  # fmt: skip
  scheme = 'dark' if dark else 'light'
  page.execute_cdp_cmd(
    'Emulation.setEmulatedMedia',
    {'features': [{'name': 'prefers-color-scheme', 'value': scheme}]},
  )


def complaints(page):
  """Messages on the console that are errors or warnings, since last asked."""
  return [
    entry['message']
    for entry in page.get_log('browser')
    if entry['level'] in ('SEVERE', 'WARNING')
  ]


def requests(page):
  """URLs that the page has asked for since last asked, data: left out."""
  urls = []
  for entry in page.get_log('performance'):
    message = json.loads(entry['message'])['message']
    if message['method'] == 'Network.requestWillBeSent':
      urls.append(message['params']['request']['url'])
  return [url for url in urls if not url.startswith(('data:', 'blob:'))]


def overflow(page):
  """Pixels by which the page is wider than its screen."""
  return page.execute_script(
    'return document.documentElement.scrollWidth - window.innerWidth'
  )


def shot(page, path):
  """Writes what is on the screen."""
  path.parent.mkdir(parents=True, exist_ok=True)
  page.save_screenshot(str(path))
