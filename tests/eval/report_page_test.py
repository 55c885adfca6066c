"""The report in a browser: two widths, two schemes, keys, no network."""

import json

import numpy as np
import pytest

from tests import browser
from uae_jax.data.pipeline import SceneSource
from uae_jax.data.scenes import grammar
from uae_jax.eval import compare, report

SCORES = ('reward', 'judge_clip', 'judge_views')
STEPS = (0, 20, 40)


def make_run(folder):
  """A workdir as the loop leaves it; scenes, and curves that rise."""
  folder.mkdir()
  towers = dict(
    reward='bundled:umm1/reward',
    judges='bundled:umm1/judge_clip,bundled:umm1/judge_views',
  )
  (folder / 'config.json').write_text(
    json.dumps({'stage': 'encoder', 'ckpt': towers, 'train': {'lr': 6e-4}})
  )
  rng = np.random.default_rng(0)
  rows = []
  for step in range(1, STEPS[-1] + 1):
    noise = lambda: float(rng.normal(0, 0.02))
    rows.append(
      {'step': step, 'reward/mean': 0.4 + step / 80 + noise(),
       'policy/kl': step / 400, 'policy/entropy': 1 - step / 80,
       'policy/clip_frac_low': 0.01, 'policy/clip_frac_high': 0.02,
       'reward/std': 0.2, 'caption/length': 8 + step / 8 + noise(),
       'optim/grad_norm': 1 + noise(), 'time/step': 0.9}
    )  # fmt: skip
  for step in STEPS:
    rows.append(
      {'step': step, 'eval/reward': 0.4 + step / 80,
       'eval/unified_score': 40 + step, 'eval/judge_clip': 0.4 + step / 90,
       'eval/judge_views': 0.3 + step / 90, 'eval/caption_length': 8.0}
    )  # fmt: skip
  text = ''.join(f'{json.dumps(row)}\n' for row in rows)
  (folder / 'metrics.jsonl').write_text(text)
  source = SceneSource('heldout')
  scenes = [source[i] for i in range(12)]
  images = np.stack([scene['image'] for scene in scenes])
  for step in STEPS:
    report.save_gallery(
      folder, step, source=images, reconstruction=images[::-1],
      captions=[grammar.describe(scene['truth']) for scene in scenes],
      scores=rng.uniform(0.2, 1, (12, 3)) + step / 400, columns=SCORES,
    )  # fmt: skip
  return report.write_report(folder)


@pytest.fixture(scope='module')
def page(tmp_path_factory):
  with browser.chromium(tmp_path_factory.mktemp('profile')) as page:
    yield page


@pytest.fixture(scope='module')
def file(tmp_path_factory):
  return make_run(tmp_path_factory.mktemp('runs') / 'run')


def scores(page, column):
  """Of the last evaluation, in the order of the page."""
  return page.execute_script(
    'return [...document.querySelectorAll("#gallery > tbody > tr")].map((row) '
    '=> row.querySelectorAll(".scores .number")[arguments[0]].textContent)',
    column,
  )


def last(text):
  return float(text.split(' ')[-1])


@pytest.mark.parametrize('dark', [False, True], ids=['light', 'dark'])
@pytest.mark.parametrize('size', [browser.DESKTOP, browser.PHONE], ids=str)
def test_the_page_fits_and_says_nothing_on_the_console(page, file, size, dark):
  browser.resize(page, size, dark)
  page.get(file.as_uri())
  browser.requests(page)
  assert browser.overflow(page) <= 0
  assert not browser.complaints(page)
  ink, paper = page.execute_script(
    'const s = getComputedStyle(document.body);'
    'return [s.color, s.backgroundColor].map((c) => c.match(/\\d+/g)'
    '.slice(0, 3).reduce((a, b) => a + Number(b), 0));'
  )
  assert (paper < ink) == dark and abs(paper - ink) > 400


def test_it_asks_for_nothing_but_itself(page, file):
  browser.requests(page)
  page.get(file.as_uri())
  assert browser.requests(page) == [file.as_uri()]


def test_every_picture_and_curve_has_a_text(page, file):
  page.get(file.as_uri())
  alts = page.execute_script('return [...document.images].map((i) => i.alt)')
  assert len(alts) == 12 * 3 and all(alts)
  labels = page.execute_script(
    'return [...document.querySelectorAll("#curves svg")]'
    '.map((x) => x.getAttribute("aria-label"))'
  )
  assert all(labels) and any(label.startswith('Reward') for label in labels)
  titles = ('KL to the start', 'Clipped tokens', 'Entropy', 'Caption length')
  for title in titles:
    assert any(label.startswith(title) for label in labels)


def test_failures_come_first_and_keys_sort(page, file):
  from selenium.webdriver.common.by import By
  from selenium.webdriver.common.keys import Keys

  browser.resize(page, browser.DESKTOP)
  page.get(file.as_uri())
  shown = [last(text) for text in scores(page, 0)]
  assert shown == sorted(shown) and len(set(shown)) > 1
  # By Tab alone, from the top of the page to the list.
  body = page.find_element(By.TAG_NAME, 'body')
  for _ in range(60):
    body.send_keys(Keys.TAB)
    if page.switch_to.active_element.get_attribute('id') == 'sort':
      break
  chosen = page.switch_to.active_element
  assert chosen.get_attribute('id') == 'sort'
  chosen.send_keys('judge views, best')
  shown = [last(text) for text in scores(page, 2)]
  assert shown == sorted(shown, reverse=True)
  chosen.send_keys(Keys.HOME)
  shown = [last(text) for text in scores(page, 0)]
  assert shown == sorted(shown)


def test_change_is_sorted_too(page, file):
  from selenium.webdriver.common.by import By
  from selenium.webdriver.support.ui import Select

  page.get(file.as_uri())
  order = Select(page.find_element(By.ID, 'sort'))
  order.select_by_visible_text('judge clip, fell most first')
  gains = []
  for text in scores(page, 1):
    before, _, after = text.split(' ')
    gains.append(float(after) - float(before))
  assert gains == sorted(gains) and gains[0] < 0


def test_arrow_keys_read_a_curve(page, file):
  from selenium.webdriver.common.by import By
  from selenium.webdriver.common.keys import Keys

  page.get(file.as_uri())
  curve = page.find_element(By.CSS_SELECTOR, '#curves svg')
  curve.send_keys(Keys.HOME)
  figure = page.find_element(By.CSS_SELECTOR, '#curves figure')
  assert 'step 0' in figure.text and 'held-out images 0.400' in figure.text
  curve.send_keys(Keys.END)
  assert 'step 40' in figure.text and 'held-out images 0.900' in figure.text


def test_runs_side_by_side_fit_a_phone(page, file, tmp_path):
  names = ['default', 'hidden-states-with-a-long-name', 'group-of-2', 'no-kl']
  folders = [tmp_path / name for name in names]
  for folder in folders:
    make_run(folder)
  out = compare.write(folders, tmp_path / 'compare.html')
  browser.resize(page, browser.PHONE)
  page.get(out.as_uri())
  assert not browser.complaints(page)
  assert browser.overflow(page) <= 0
