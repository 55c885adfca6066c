"""Between the hub's layout and Orbax, on the bundled weights."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file

from uae_jax import trees, zoo
from uae_jax.ckpt import convert, safetensors_io
from uae_jax.ckpt.orbax_io import Checkpoints
from uae_jax.errors import UserError
from uae_jax.types import TrainState

FOLDERS = ['policy', 'reward', 'decoder/transformer', 'decoder/connector']


def bundled(name):
  folder = zoo.resolve(f'bundled:umm1/{name}')
  return folder, zoo.from_folder(folder)


@pytest.mark.parametrize('name', FOLDERS)
def test_hub_to_orbax_to_hub_is_byte_equal(tmp_path, name):
  folder, model = bundled(name)
  convert.write_orbax(tmp_path / 'o', convert.read(model, folder), folder)
  params = convert.read(model, tmp_path / 'o')
  convert.write_hub(model, tmp_path / 'h', params, tmp_path / 'o')
  file = f'{model.stem}.safetensors'
  got, want = load_file(tmp_path / 'h' / file), load_file(folder / file)
  assert got.keys() == want.keys()
  assert all(got[k].tobytes() == want[k].tobytes() for k in got)
  assert all(got[k].dtype == want[k].dtype for k in got)
  for path in folder.iterdir():
    if path.suffix == '.json':
      ours = json.loads((tmp_path / 'h' / path.name).read_text())
      assert ours == json.loads(path.read_text())


def test_a_dtype_is_that_of_the_weights_and_of_the_config(tmp_path):
  folder, model = bundled('reward')
  source = tmp_path / 'source'
  shutil.copytree(folder, source)
  config = json.loads((source / 'config.json').read_text())
  (source / 'config.json').write_text(
    json.dumps(config | {'dtype': 'bfloat16'})
  )
  params = convert.read(model, source, dtype=jnp.float32)
  convert.write_hub(model, tmp_path / 'h', params, source, dtype=np.float16)
  tensors = load_file(tmp_path / 'h' / 'model.safetensors')
  assert {x.dtype for x in tensors.values()} == {np.dtype(np.float16)}
  written = json.loads((tmp_path / 'h' / 'config.json').read_text())
  assert written == config | {'dtype': 'float16'}
  convert.write_orbax(tmp_path / 'o', params, source)
  half = convert.read(model, tmp_path / 'o', dtype=jnp.bfloat16)
  assert {x.dtype for x in jax.tree.leaves(half)} == {np.dtype(jnp.bfloat16)}


@pytest.fixture
def step(tmp_path):
  """(a run's step with its trained leaves doubled, base, model, whole)."""
  folder, model = bundled('policy')
  params = convert.read(model, folder, dtype=jnp.float32)
  trained, rest = trees.split(params, (r'lm/layers/.*/[qv]/kernel',))
  trained = jax.tree.map(lambda x: 2 * jnp.asarray(x), trained)
  state = TrainState(
    jnp.int32(7), trained, optax.adam(1e-3).init(trained), jnp.int32(0), None
  )
  checkpoints = Checkpoints(tmp_path / 'checkpoints', 2)
  checkpoints.save(7, state, {})
  checkpoints.close()
  whole = trees.merge(rest, trained)
  return tmp_path / 'checkpoints' / '7', folder, model, whole


def test_a_step_of_a_run_lies_over_its_base(step):
  folder, base, model, whole = step
  got = convert.read(model, folder, base=base, dtype=jnp.float32)
  jax.tree.map(np.testing.assert_array_equal, got, whole)
  lines = list(convert.describe(model, folder, base))
  assert sum('float32 -> lm/layers/block/q/kernel' in x for x in lines) == 3
  assert sum('bfloat16 -> lm/layers/block/k/kernel' in x for x in lines) == 3


def test_a_step_without_its_base_says_what_is_missing(step):
  folder, _, model, _ = step
  with pytest.raises(UserError, match='missing lm/embed/embedding'):
    convert.read(model, folder)


def test_weights_of_another_model_are_listed(tmp_path):
  folder, model = bundled('policy')
  params = trees.flatten(convert.read(model, folder))
  params['lm/norm/scale'] = np.zeros(3, np.float32)
  params['ghost'] = np.zeros(2, np.float32)
  convert.write_orbax(tmp_path, trees.unflatten(params), folder)
  with pytest.raises(UserError) as e:
    convert.read(model, tmp_path)
  assert 'lm/norm/scale is [3], expected [128]' in str(e.value)
  assert 'unknown ghost' in str(e.value)


def test_a_broken_orbax_folder_is_one_line(tmp_path):
  folder, model = bundled('decoder/connector')
  convert.write_orbax(tmp_path, convert.read(model, folder), folder)
  for file in (tmp_path / 'state').rglob('*'):
    if file.is_file():
      file.write_bytes(b'')
  with pytest.raises(UserError, match='state') as e:
    convert.read(model, tmp_path)
  assert '\n' not in str(e.value)


def test_the_table_is_printed_from_headers(monkeypatch):
  monkeypatch.setattr(safetensors_io.Entry, 'rows', None)
  folder, model = bundled('policy')
  *lines, total = convert.describe(model, folder)
  with (folder / 'model.safetensors').open('rb') as f:
    size = (folder / 'model.safetensors').stat().st_size
    data = size - 8 - int.from_bytes(f.read(8), 'little')
  tensors = load_file(folder / 'model.safetensors')
  assert [line.split()[0] for line in lines] == [
    name for row in model.table for name in row.names()
  ]
  assert len(lines) == len(tensors)
  assert f'{data:,} bytes' in total
  one = 'model.layers.1.self_attn.q_proj.weight [128, 128] bfloat16 -> '
  assert any(
    line.startswith(one + 'lm/layers/block/q/kernel') for line in lines
  )


def test_a_folder_of_no_known_kind(tmp_path):
  (tmp_path / 'config.json').write_text('{"model_type": "bert"}')
  with pytest.raises(UserError, match="'bert'"):
    zoo.from_folder(tmp_path)
