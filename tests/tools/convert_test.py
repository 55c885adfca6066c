"""The command that converts: what it writes, what it says to a mistake."""

import functools
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.tools import commands
from uae_jax import zoo
from uae_jax.ckpt import convert, peft
from uae_jax.nn.lora import LoRA

ROOT = Path(__file__).parent.parent.parent
POLICY = 'bundled:umm1/policy'

run = functools.partial(commands.run, 'convert')


def test_the_module_runs():
  done = subprocess.run(
    [
      sys.executable, '-m', 'uae_jax.tools.convert', '--dry_run',
      '--from=bundled:umm1/decoder/connector',
    ],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  first = 'projector.0.weight [192, 128] bfloat16 -> sequence/fc1/kernel'
  assert done.stdout.startswith(first)
  assert done.stdout.strip().endswith('86,592 parameters, 173,184 bytes')


def test_there_and_back_in_shards(tmp_path):
  there, back, again = (tmp_path / name for name in 'abc')
  codes = run(
    [f'--from={POLICY}', f'--to={there}', '--format=orbax'],
    [f'--from={there}', f'--to={back}', '--max_shard_gb=0.001'],
    [f'--from={back}', f'--to={again}', '--dtype=float32'],
  )
  assert [code for code, _, _ in codes] == [0, 0, 0], codes
  assert (back / 'model.safetensors.index.json').exists()
  got = {}
  for file in back.glob('*.safetensors'):
    got |= load_file(file)
  want = load_file(zoo.resolve(POLICY) / 'model.safetensors')
  assert got.keys() == want.keys()
  assert all(got[k].tobytes() == want[k].tobytes() for k in want)
  assert (back / 'tokenizer.json').exists()
  wide = load_file(again / 'model.safetensors')
  for name in want:
    np.testing.assert_array_equal(wide[name], want[name].astype(np.float32))


def test_an_adapter_is_merged(tmp_path):
  folder = zoo.resolve(POLICY)
  model = zoo.from_folder(folder)
  params = convert.read(model, folder, dtype=np.float32)
  lora = LoRA(rank=2, alpha=4.0, targets=(r'lm/layers/block/[qo]/kernel',))
  tree = jax.tree.map(
    lambda x: np.full(x.shape, 0.1, np.float32),
    lora.init(jax.random.key(0), params, model.table),
  )
  peft.save(
    tmp_path / 'adapter', tree, model.table, alpha=4.0, model_type='qwen2_5_vl'
  )
  flags = [f'--from={POLICY}', f'--merge={tmp_path / "adapter"}']
  (code, _, err), (code2, _, err2) = run(
    [*flags, f'--to={tmp_path / "wide"}', '--dtype=float32'],
    [*flags, f'--to={tmp_path / "orbax"}', '--format=orbax'],
  )
  assert (code, code2) == (0, 0), err + err2
  model.save(tmp_path / 'want', lora.apply(params, tree))
  got = load_file(tmp_path / 'wide' / 'model.safetensors')
  want = load_file(tmp_path / 'want' / 'model.safetensors')
  name = 'model.layers.0.self_attn.q_proj.weight'
  base = load_file(folder / 'model.safetensors')[name]
  assert np.abs(got[name] - base.astype(np.float32)).max() > 0.03
  for name in want:
    np.testing.assert_allclose(got[name], want[name], atol=1e-6)
  narrow = convert.read(model, tmp_path / 'orbax')
  kinds = {x.dtype.name for x in jax.tree.leaves(narrow)}
  assert kinds == {'bfloat16'}


@pytest.fixture(scope='module')
def mistakes(tmp_path_factory):
  """What each bad command line gets."""
  tmp = tmp_path_factory.mktemp('bad')
  (tmp / 'full').mkdir()
  (tmp / 'full' / 'x').write_text('x')
  (tmp / 'bin').mkdir()
  (tmp / 'bin' / 'config.json').write_text('{"model_type": "clip"}')
  (tmp / 'bin' / 'pytorch_model.bin').write_text('x')
  ok, to = f'--from={POLICY}', f'--to={tmp / "new"}'
  cases = {
    'no source': ([to], '--from'),
    'no target': ([ok], '--to=FOLDER'),
    'no such folder': (['--from=/nowhere', to], '/nowhere'),
    'no config': ([f'--from={tmp}', to], 'config.json is missing'),
    'unknown flag': ([ok, to, '--nonsense=1'], 'nonsense'),
    'unknown format': ([ok, to, '--format=onnx'], 'onnx'),
    'bad size': ([ok, to, '--max_shard_gb=-1'], 'max_shard_gb'),
    'extra word': ([ok, to, 'extra'], 'extra'),
    'full target': ([ok, f'--to={tmp / "full"}'], 'not an empty folder'),
    'pickle': ([f'--from={tmp / "bin"}', to], 'save_pretrained'),
    'no adapter': ([ok, to, f'--merge={tmp}'], 'adapter_config.json'),
    'unwritable': ([ok, '--to=/dev/null/x'], '/dev/null'),
  }
  done = run(*[args for args, _ in cases.values()])
  says = [text for _, text in cases.values()]
  return dict(zip(cases, zip(done, says))), tmp


def test_mistakes_are_one_line_and_exit_2(mistakes):
  done, tmp = mistakes
  for name, ((code, out, err), says) in done.items():
    assert code == 2, (name, out, err)
    assert says in err and len(err.strip().splitlines()) == 1, (name, err)
    assert err.startswith('uae_jax: ')
  assert sorted(p.name for p in tmp.iterdir()) == ['bin', 'full']
