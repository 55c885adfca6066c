"""The strict loader: whatever is wrong with a folder is said, all at once."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from uae_jax.ckpt import hf
from uae_jax.errors import UserError

TABLE = (
  hf.Row('embed/embedding', 'embed.weight'),
  *hf.linear('layers/q', 'layers.{i}.q', layers=(0, 1)),
  *hf.linear('layers/o', 'layers.{i}.o', bias=False, n_in=2, layers=(0, 1)),
  hf.Row('scale', 'scale'),
)
SHAPES = {
  'embed': {'embedding': (7, 6)},
  'layers': {
    'q': {'kernel': (2, 6, 3, 4), 'bias': (2, 3, 4)},
    'o': {'kernel': (2, 3, 4, 6)},
  },
  'scale': (),
}


def structs():
  return jax.tree.map(
    lambda s: jax.ShapeDtypeStruct(s, np.float32),
    SHAPES,
    is_leaf=lambda x: isinstance(x, tuple),
  )


def params():
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda s: rng.normal(size=s.shape).astype(np.float32), structs()
  )


@pytest.fixture
def folder(tmp_path):
  hf.save(tmp_path, TABLE, params(), {'a': 1})
  return tmp_path


def edit(folder, **changes):
  file = folder / 'model.safetensors'
  tensors = load_file(file)
  for name, value in changes.items():
    name = name.replace('__', '.')
    if value is None:
      del tensors[name]
    else:
      tensors[name] = value
  save_file(tensors, file)


def test_round_trip(folder):
  loaded = hf.load(folder, TABLE, structs())
  jax.tree.map(np.testing.assert_array_equal, loaded, params())


def test_linear_layout_is_torch(folder):
  tensors = load_file(folder / 'model.safetensors')
  ours = params()['layers']['q']['kernel']
  assert tensors['layers.1.q.weight'].shape == (12, 6)
  np.testing.assert_array_equal(
    tensors['layers.1.q.weight'], ours[1].reshape(6, 12).T
  )
  assert tensors['layers.0.q.bias'].shape == (12,)


def test_every_problem_is_listed_in_one_error(folder):
  edit(
    folder,
    layers__1__q__bias=None,
    layers__0__o__weight=np.zeros((5, 5), np.float32),
    stray=np.zeros(3, np.float32),
  )
  with pytest.raises(UserError) as e:
    hf.load(folder, TABLE, structs())
  text = str(e.value)
  assert 'missing layers.1.q.bias [12]' in text
  assert 'layers.0.o.weight is [5, 5], expected [6, 12]' in text
  assert 'unknown stray [3]' in text


def test_known_unused_tensors_are_ignored(folder):
  edit(folder, rope__inv_freq=np.zeros(3, np.float32))
  hf.load(folder, TABLE, structs(), ignore=(r'.*inv_freq',))


def test_a_name_in_two_shards_is_a_duplicate(folder):
  tensors = load_file(folder / 'model.safetensors')
  (folder / 'model.safetensors').unlink()
  save_file(tensors, folder / 'a.safetensors')
  save_file({'scale': tensors['scale']}, folder / 'b.safetensors')
  weight_map = {'x': 'a.safetensors', 'y': 'b.safetensors'}
  index = folder / 'model.safetensors.index.json'
  index.write_text(json.dumps({'weight_map': weight_map}))
  with pytest.raises(UserError, match='duplicate scale'):
    hf.load(folder, TABLE, structs())


def test_shards_are_read_through_the_index(folder):
  tensors = load_file(folder / 'model.safetensors')
  (folder / 'model.safetensors').unlink()
  names = sorted(tensors)
  first = {k: tensors[k] for k in names[:3]}
  rest = {k: tensors[k] for k in names[3:]}
  save_file(first, folder / 'a.safetensors')
  save_file(rest, folder / 'b.safetensors')
  where = {k: 'a.safetensors' for k in first} | {
    k: 'b.safetensors' for k in rest
  }
  index = folder / 'model.safetensors.index.json'
  index.write_text(json.dumps({'weight_map': where}))
  loaded = hf.load(folder, TABLE, structs())
  jax.tree.map(np.testing.assert_array_equal, loaded, params())
  (folder / 'b.safetensors').unlink()
  with pytest.raises(UserError, match='b.safetensors'):
    hf.load(folder, TABLE, structs())


def test_a_truncated_file_is_refused(folder):
  file = folder / 'model.safetensors'
  file.write_bytes(file.read_bytes()[:-40])
  with pytest.raises(UserError, match='not a whole safetensors file'):
    hf.load(folder, TABLE, structs())


def test_pickle_is_refused_with_the_way_out(tmp_path):
  (tmp_path / 'pytorch_model.bin').write_bytes(b'x')
  with pytest.raises(UserError, match='save_pretrained'):
    hf.load(tmp_path, TABLE, structs())


def test_a_missing_config_says_so(tmp_path):
  with pytest.raises(UserError, match='config.json is missing'):
    hf.read_config(tmp_path)


def test_bf16_files_load_as_fp32(folder):
  import ml_dtypes

  hf.save(folder, TABLE, params(), {}, dtype=ml_dtypes.bfloat16)
  loaded = hf.load(folder, TABLE, structs())
  want = params()['embed']['embedding'].astype(ml_dtypes.bfloat16)
  np.testing.assert_array_equal(
    loaded['embed']['embedding'], want.astype(np.float32)
  )
