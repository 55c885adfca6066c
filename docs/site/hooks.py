"""What MkDocs does beside its own: pages from the tree, code in pages.

- README and config files of the repository are pages, and links between files
  of the repository, which work where it is browsed, are links between pages.
- Every package has a page of reference, of its modules' docstrings.
- A paragraph that is nothing but `path/file.py: name` becomes the source of
  that function or class, without its docstring.

What a page names and is not there stops the build.
"""

import ast
import posixpath
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[2]
PACKAGE = 'uae_jax'
# Files of the repository that are pages, too.
PAGES = {
  'README.md': 'readme.md',
  'CONTRIBUTING.md': 'contributing.md',
  'launch/README.md': 'launch.md',
  'uae_jax/assets/umm1/README.md': 'weights_umm1.md',
  'uae_jax/assets/umm2/README.md': 'weights_umm2.md',
}
LINK = re.compile(r'(?<=\]\()([^)#\s]+)(?=[#)])')
SOURCE = re.compile(r'^`([\w/]+\.py): ([\w.]+)`$', re.M)


def on_config(config):
  """Lists the pages of reference."""
  pages = [f'reference/{name}.md' for name, _ in [*packages(), *configs()]]
  for entry in config.nav:
    if 'Reference' in entry:
      entry['Reference'] = ['reference/index.md', *pages]
  return config


def on_files(files, config):
  """Adds the pages that are made from the tree."""
  made = {f'reference/{n}.md': text for n, text in [*packages(), *configs()]}
  made |= {uri: (ROOT / path).read_text() for path, uri in PAGES.items()}
  made |= {  # to be downloaded
    f'notebooks/{path.name}': path.read_text()
    for path in sorted((ROOT / 'notebooks').glob('*.ipynb'))
  }
  for uri, text in {**made, 'reference/index.md': index()}.items():
    files.append(File.generated(config, uri, content=text))
  return files


def on_page_markdown(markdown, page, config, files):
  """Puts links and code in."""
  uri = page.file.src_uri
  where = {page: path for path, page in PAGES.items()}.get(uri, f'docs/{uri}')
  markdown = LINK.sub(lambda m: link(m[1], where, uri), markdown)
  return SOURCE.sub(lambda m: fence(m[1], m[2]), markdown)


def link(target: str, where: str, uri: str) -> str:
  """A link of the file `where`, as the page `uri` says it."""
  if ':' in target or uri.startswith('reference/'):
    return target
  path = posixpath.normpath(posixpath.join(posixpath.dirname(where), target))
  if path.startswith('configs/'):
    path = f'docs/reference/{path[:-3]}.md'
  elif path.startswith(f'{PACKAGE}/') and path.endswith('.py'):
    path = f'docs/reference/{path.split("/")[1]}.md'
  path = PAGES.get(path, path)
  return posixpath.relpath(path.removeprefix('docs/'), posixpath.dirname(uri))


def fence(path: str, name: str) -> str:
  """The source of a function, class or method, as a block of code."""
  file = ROOT / path
  node = ast.parse(file.read_text()) if file.is_file() else None
  for part in name.split('.'):
    found = [x for x in getattr(node, 'body', ()) if named(x) == part]
    node = found[0] if found else None
  if node is None:
    raise PluginError(f'{path} has no {name}')
  lines = file.read_text().splitlines()
  first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
  skipped = range(0)
  if ast.get_docstring(node):
    skipped = range(node.body[0].lineno, node.body[0].end_lineno + 1)
  kept = [
    lines[i - 1] for i in range(first, node.end_lineno + 1) if i not in skipped
  ]
  code = textwrap.dedent('\n'.join(kept))
  return f'```python title="{path}"\n{code}\n```'


def named(node) -> str | None:
  """What a statement defines."""
  kinds = (ast.FunctionDef, ast.ClassDef)
  return node.name if isinstance(node, kinds) else None


def packages() -> Iterator[tuple[str, str]]:
  """(name, Markdown for mkdocstrings) of every package."""
  for part in sorted((ROOT / PACKAGE).iterdir()):
    if (part / '__init__.py').exists():
      yield part.name, listing(f'{PACKAGE}.{part.name}', part.rglob('*.py'))
  yield PACKAGE, listing(PACKAGE, (ROOT / PACKAGE).glob('*.py'))


def listing(title: str, files) -> str:
  """A page of modules."""
  out = [f'# {title}']
  for path in sorted(files):
    parts = path.relative_to(ROOT).with_suffix('').parts
    if parts[-1] != '__init__':
      out.append('::: ' + '.'.join(parts))
  return '\n\n'.join(out)


def configs() -> Iterator[tuple[str, str]]:
  """(name, Markdown) of every config file."""
  for path in sorted((ROOT / 'configs').glob('*.py')):
    code = f'```python\n{path.read_text()}```'
    yield f'configs/{path.stem}', f'# configs/{path.name}\n\n{code}'


def index() -> str:
  """What the reference has."""
  lines = ['# Reference', '', '| | |', '|---|---|']
  for name, _ in packages():
    file = ROOT / PACKAGE / ('' if name == PACKAGE else name) / '__init__.py'
    lines.append(f'| [{name}]({name}.md) | {summary(file)} |')
  for name, _ in configs():
    lines.append(f'| [{name}.py]({name}.md) | {summary(ROOT / f"{name}.py")} |')
  return '\n'.join(lines)


def summary(file: Path) -> str:
  """The first line of a module's docstring."""
  return ast.get_docstring(ast.parse(file.read_text())).splitlines()[0]
