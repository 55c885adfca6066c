"""The site of docs/: it builds, and what it names exists."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from uae_jax.train import workdir

pytest.importorskip('mkdocs')

from mkdocs.exceptions import PluginError  # noqa: E402

ROOT = Path(__file__).parent.parent
SITE = ROOT / 'docs' / 'site'


def load_hooks():
  spec = importlib.util.spec_from_file_location('hooks', SITE / 'hooks.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


hooks = load_hooks()


def build(config, out):
  """Exit code and complaints of a strict build."""
  done = subprocess.run(
    [sys.executable, '-m', 'mkdocs', 'build', '--strict', '--config-file',
     str(config), '--site-dir', str(out)],
    capture_output=True, text=True, cwd=ROOT,
    env={**os.environ, 'NO_MKDOCS_2_WARNING': '1'},
  )  # fmt: skip
  lines = done.stderr.splitlines()
  return done.returncode, [x for x in lines if x.startswith(('WARN', 'ERR'))]


@pytest.fixture(scope='module')
def site(tmp_path_factory):
  out = tmp_path_factory.mktemp('site')
  code, complaints = build(SITE / 'mkdocs.yml', out)
  assert (code, complaints) == (0, [])
  return out


def test_the_site_builds_without_a_warning(site):
  for page in (ROOT / 'docs').glob('*.md'):
    assert (site / f'{page.stem}.html').exists()
  page = re.sub('<[^>]+>', '', (site / 'concepts.html').read_text())
  assert 'def clipped_gain' in page
  readme = (site / 'readme.html').read_text()
  assert 'href="data.html"' in readme and 'src="umm1.png"' in readme


def test_every_module_is_in_the_reference(site):
  for file in (ROOT / 'uae_jax').rglob('*.py'):
    parts = file.relative_to(ROOT).with_suffix('').parts
    if parts[-1] != '__init__':
      page = parts[1] if len(parts) > 2 else 'uae_jax'
      text = (site / 'reference' / f'{page}.html').read_text()
      assert f'id="{".".join(parts)}"' in text


@pytest.mark.parametrize(
  'page, says',
  [
    (
      '[a](absent.md) and [b](index.md#absent)',
      ["'absent.md'", "'index.md#absent'"],
    ),
    ('::: uae_jax.rl.absent', ['uae_jax.rl.absent']),
  ],
  ids=['links', 'reference'],
)
def test_what_is_not_there_stops_the_build(page, says, tmp_path):
  (tmp_path / 'pages').mkdir()
  (tmp_path / 'pages' / 'index.md').write_text(f'# a\n\n{page}\n')
  (tmp_path / 'hooks.py').write_text(
    'import importlib.util as u\n'
    f's = u.spec_from_file_location("h", {str(SITE / "hooks.py")!r})\n'
    'm = u.module_from_spec(s)\ns.loader.exec_module(m)\n'
    'on_page_markdown = m.on_page_markdown\n'
  )
  config = tmp_path / 'mkdocs.yml'
  config.write_text(
    'site_name: a\ndocs_dir: pages\nhooks: [hooks.py]\n'
    'validation: {links: {anchors: warn}}\n'
    'plugins:\n  - mkdocstrings: {handlers: {python: {paths: '
    f'[{str(ROOT)!r}]' + '}}}\n'
  )
  code, complaints = build(config, tmp_path / 'site')
  assert code != 0
  for what in says:
    assert any(what in line for line in complaints), complaints


def test_code_is_the_source_without_its_docstring():
  code = hooks.fence('uae_jax/rl/grpo.py', 'clipped_gain')
  assert 'return jnp.minimum(ratio * adv, clipped * adv)' in code
  assert 'DAPO' not in code
  assert 'def log_probs' in hooks.fence(
    'uae_jax/rollout/sampler.py', 'Sampler.log_probs'
  )
  for path, name in (
    ('uae_jax/rl/grpo.py', 'GRPO.absent'),
    ('uae_jax/absent.py', 'f'),
  ):
    with pytest.raises(PluginError, match='has no'):
      hooks.fence(path, name)


@pytest.mark.parametrize(
  'target, where, uri, page',
  [
    ('data.md', 'docs/index.md', 'index.md', 'data.md'),
    ('docs/data.md', 'README.md', 'readme.md', 'data.md'),
    ('../README.md', 'docs/index.md', 'index.md', 'readme.md'),
    ('../launch/README.md', 'docs/index.md', 'index.md', 'launch.md'),
    ('configs/umm1.py', 'README.md', 'readme.md', 'reference/configs/umm1.md'),
    ('../uae_jax/rl/grpo.py', 'docs/a.md', 'a.md', 'reference/rl.md'),
    ('https://a.b', 'docs/a.md', 'a.md', 'https://a.b'),
  ],
)
def test_links_between_files_are_links_between_pages(target, where, uri, page):
  assert hooks.link(target, where, uri) == page


def test_keys_that_a_resumed_run_may_change_are_those_of_the_code():
  text = (ROOT / 'docs' / 'troubleshooting.md').read_text()
  for key in workdir.FREE:
    assert f'`{key}`' in text
