"""Command lines of the tools, many in one process: imports take longest."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
SCRIPT = """
import contextlib, importlib, io, json, sys
from absl import flags
from uae_jax.tools import cli
name, commands = json.load(sys.stdin)
tool = importlib.import_module('uae_jax.tools.' + name)
done = []
for args in commands:
  flags.FLAGS.unparse_flags()
  sys.argv = [name, *args]
  out, err, code = io.StringIO(), io.StringIO(), 0
  with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
    try:
      cli.run(tool.main)
    except SystemExit as e:
      code = e.code
  done.append((code, out.getvalue(), err.getvalue()))
json.dump(done, sys.stdout)
"""


def run(tool, *commands):
  """(exit code, stdout, stderr) of each command line of a tool."""
  done = subprocess.run(
    [sys.executable, '-c', SCRIPT],
    input=json.dumps([tool, [list(map(str, args)) for args in commands]]),
    capture_output=True,
    text=True,
    cwd=ROOT,
    env={**os.environ, 'PYTHONPATH': str(ROOT)},
  )
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout)
