"""Prompts that a captioner rewrites, and what reads them afterwards."""

import functools
import json

from tests.tools import commands
from uae_jax.eval import drawing

rewrite = functools.partial(commands.run, 'rewrite')
MODEL = '--model=bundled:umm1'
PROMPTS = ['large red circle', 'small blue square']


def test_every_prompt_gets_a_text_to_draw(tmp_path):
  file = tmp_path / 'prompts.jsonl'
  file.write_text('\n'.join(json.dumps({'prompt': p}) for p in PROMPTS))
  out = tmp_path / 'out'
  command = [MODEL, f'--prompts={file}', f'--prompt={PROMPTS[0]}',
             f'--out={out}', '--instruction=describe {}']  # fmt: skip
  first, second = rewrite(command, command)
  assert first[0] == second[0] == 0, first
  assert '2 done' in first[1] and 'prompt 2/2' in first[1]
  assert 'prompt 2/2' not in second[1]
  found = drawing.read_rewrites(out / 'results.jsonl')
  assert [*found] == PROMPTS and all(found.values())


def test_mistakes_are_one_line(tmp_path):
  out = f'--out={tmp_path / "out"}'
  cases = {
    'needs one {}': [MODEL, out, '--prompt=x', '--instruction=describe'],
    'say which prompts': [MODEL, out],
    'cannot be read': [MODEL, out, f'--prompts={tmp_path / "none.txt"}'],
  }
  for want, (code, _, err) in zip(cases, rewrite(*cases.values()), strict=True):
    assert code == 2 and want in err, (want, err)
    assert len(err.strip().splitlines()) == 1, err
