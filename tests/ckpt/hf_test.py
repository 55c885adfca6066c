"""The strict loader: whatever is wrong with a folder is said, all at once."""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from safetensors.numpy import load_file, save_file

from uae_jax.ckpt import hf, safetensors_io
from uae_jax.errors import UserError
from uae_jax.sharding import mesh as mesh_lib

ROOT = Path(__file__).parent.parent.parent

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


def shard(folder, where):
  """Splits model.safetensors: tensor -> file, with the index."""
  tensors = load_file(folder / 'model.safetensors')
  (folder / 'model.safetensors').unlink()
  for file in sorted(set(where.values())):
    part = {k: tensors[k] for k in tensors if where[k] == file}
    save_file(part, folder / file)
  index = folder / 'model.safetensors.index.json'
  index.write_text(json.dumps({'weight_map': where}))
  return index


def two_shards(folder):
  names = sorted(load_file(folder / 'model.safetensors'))
  return {k: 'ab'[i >= 3] + '.safetensors' for i, k in enumerate(names)}


def assert_equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_round_trip(folder):
  loaded = hf.load(folder, TABLE, structs())
  assert_equal(loaded, params())


@pytest.mark.parametrize('piece', [1, 24, 80, 1 << 20])
def test_any_size_of_piece_gives_the_same(folder, monkeypatch, piece):
  monkeypatch.setattr(hf, 'PIECE', piece)
  assert_equal(hf.load(folder, TABLE, structs()), params())


@pytest.mark.parametrize('piece', [4, 300, 1 << 20])
def test_convolutions_come_in_pieces_too(tmp_path, monkeypatch, piece):
  monkeypatch.setattr(hf, 'PIECE', piece)
  table = (
    *hf.conv('c', 'c'),
    *hf.linear('patch', 'patch', bias=False, hub_shape=(4, 2, 3, 3)),
    hf.Row('cls', 'cls', hub_shape=(1, 1, 4)),
  )
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
  want = {
    'c': {'kernel': draw(3, 3, 2, 4), 'bias': draw(4)},
    'patch': {'kernel': draw(18, 4)},
    'cls': draw(4),
  }
  hf.save(tmp_path, table, want, {})
  hub = load_file(tmp_path / 'model.safetensors')
  np.testing.assert_array_equal(
    hub['c.weight'][3, 1], want['c']['kernel'][:, :, 1, 3]
  )
  assert_equal(hf.load(tmp_path, table, want), want)


@pytest.mark.parametrize('piece', [24, 1 << 20])
def test_parameters_land_in_their_sharding(folder, monkeypatch, piece):
  monkeypatch.setattr(hf, 'PIECE', piece)
  mesh = mesh_lib.make_mesh(4, 2)
  specs = {
    'embed': {'embedding': P(None, 'model')},
    'layers': {
      'q': {'kernel': P(None, 'model', None, 'data'), 'bias': P()},
      'o': {'kernel': P('model', None, 'data', None)},
    },
    'scale': P(),
  }
  is_spec = lambda x: isinstance(x, P)
  shardings = jax.tree.map(
    lambda spec: NamedSharding(mesh, spec), specs, is_leaf=is_spec
  )
  loaded = hf.load(
    folder, TABLE, structs(), dtype=ml_dtypes.bfloat16, shardings=shardings
  )
  want = jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16), params())
  assert_equal(loaded, want)
  assert all(
    x.sharding == s
    for x, s in zip(jax.tree.leaves(loaded), jax.tree.leaves(shardings))
  )
  o = loaded['layers']['o']['kernel']
  assert {s.data.shape for s in o.addressable_shards} == {(1, 3, 1, 6)}


def test_a_host_reads_only_the_rows_of_its_shards(folder, monkeypatch):
  """Regions that no device of this host holds are not read."""
  monkeypatch.setattr(hf, 'PIECE', 24)  # a row
  read = []
  rows = safetensors_io.Entry.rows
  monkeypatch.setattr(
    safetensors_io.Entry,
    'rows',
    lambda self, a, b: read.append((a, b)) or rows(self, a, b),
  )
  entries = hf.find(folder, TABLE, structs())
  box = ((2, 4), (0, 6))
  out = hf._read(
    TABLE[0], [entries['embed.weight']], (7, 6), np.dtype(np.float32), [box]
  )
  np.testing.assert_array_equal(out[box], params()['embed']['embedding'][2:4])
  assert read == [(2, 3), (3, 4)]


def test_the_host_never_holds_two_parameters():
  """Peak memory of a 300 MB load in a process of its own."""
  done = subprocess.run(
    [sys.executable, 'benchmarks/load_memory.py', '--gb=0.3', '--devices=1'],
    cwd=ROOT,
    capture_output=True,
    text=True,
    env={
      **os.environ,
      'JAX_PLATFORMS': 'cpu',
      'XLA_FLAGS': '',
      'PYTHONPATH': str(ROOT),
    },
    check=True,
  )
  result = json.loads(done.stdout)
  assert result['result_bytes'] > 4 * result['largest_bytes']
  slack = 96 * 2**20
  assert result['extra_bytes'] < 1.25 * result['largest_bytes'] + slack


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
  shard(folder, two_shards(folder))
  extra = load_file(folder / 'a.safetensors')
  save_file(extra | {'scale': tensors['scale']}, folder / 'a.safetensors')
  with pytest.raises(UserError, match='duplicate scale'):
    hf.load(folder, TABLE, structs())


def test_shards_are_read_through_the_index(folder):
  shard(folder, two_shards(folder))
  assert_equal(hf.load(folder, TABLE, structs()), params())
  (folder / 'b.safetensors').unlink()
  with pytest.raises(UserError, match='b.safetensors'):
    hf.load(folder, TABLE, structs())


def numbered(folder, count=3):
  """Splits model.safetensors into numbered shards, and drops the index."""
  names = sorted(load_file(folder / 'model.safetensors'))
  file = lambda i: f'model-{i % count + 1:05d}-of-{count:05d}.safetensors'
  shard(folder, {k: file(i) for i, k in enumerate(names)}).unlink()


def test_shards_need_no_index_where_all_are_there(folder):
  numbered(folder)
  assert_equal(hf.load(folder, TABLE, structs()), params())
  (folder / 'model-00002-of-00003.safetensors').unlink()
  with pytest.raises(UserError, match=r"missing \['model-00002-of-00003"):
    hf.load(folder, TABLE, structs())


def test_shards_of_two_sets_are_not_mixed(folder):
  numbered(folder)
  one = folder / 'model-00001-of-00003.safetensors'
  one.rename(folder / 'model-00001-of-00001.safetensors')
  with pytest.raises(UserError, match='are not all of them'):
    hf.find_files(folder)


def test_folders_laid_over_replace_and_the_last_file_wins(folder, tmp_path):
  base = load_file(folder / 'model.safetensors')
  first, second = tmp_path / 'first', tmp_path / 'second'
  for above in (first, second):
    above.mkdir()
  other = {name: x + 1 for name, x in base.items() if 'layers.1' in name}
  save_file(other, first / 'model-00001-of-00002.safetensors')
  again = {'layers.1.q.bias': base['layers.1.q.bias'] + 2}
  save_file(again, first / 'model-00002-of-00002.safetensors')
  three = np.array(base['scale'] + 3)
  save_file({'scale': three}, second / 'model.safetensors')
  got = hf.load(folder, TABLE, structs(), over=[first, second])
  want = params()
  for path in ('q/kernel', 'o/kernel'):
    part, leaf = path.split('/')
    want['layers'][part][leaf][1] += 1
  want['layers']['q']['bias'][1] += 2
  want['scale'] = three
  assert_equal(got, want)


def test_what_is_laid_over_is_checked_too(folder, tmp_path):
  (tmp_path / 'over').mkdir()
  ghosts = {'ghost': np.ones(2, np.float32), 'scale': np.ones(3, np.float32)}
  save_file(ghosts, tmp_path / 'over' / 'model.safetensors')
  with pytest.raises(UserError) as e:
    hf.load(folder, TABLE, structs(), over=[tmp_path / 'over'])
  assert 'unknown ghost [2]' in str(e.value)
  assert 'scale is [3], expected []' in str(e.value)


def test_an_index_that_names_a_tensor_its_shard_lacks(folder):
  where = two_shards(folder)
  index = shard(folder, where)
  where['scale'] = 'a.safetensors'
  index.write_text(json.dumps({'weight_map': where}))
  says = 'names scale in a.safetensors, which lacks it'
  with pytest.raises(UserError, match=says):
    hf.load(folder, TABLE, structs())


@pytest.mark.parametrize(
  'text', ['{}', '[]', '{"weight_map": {"a": 3}}', '{"weight_map": [1]}', 'x']
)
def test_a_broken_index(folder, text):
  (folder / 'model.safetensors.index.json').write_text(text)
  with pytest.raises(UserError, match='index.json'):
    hf.load(folder, TABLE, structs())


def with_header(folder, header: bytes, length=None):
  file = folder / 'model.safetensors'
  n = len(header) if length is None else length
  file.write_bytes(struct.pack('<Q', n) + header)


@pytest.mark.parametrize(
  'damage',
  [
    lambda f: (f / 'model.safetensors').write_bytes(b'abc'),
    lambda f: (f / 'model.safetensors').write_bytes(
      (f / 'model.safetensors').read_bytes()[:-40]
    ),
    lambda f: (f / 'model.safetensors').write_bytes(
      (f / 'model.safetensors').read_bytes() + b'more'
    ),
    lambda f: with_header(f, b'{}', 10**9),
    lambda f: with_header(f, b'{"a": '),
    lambda f: with_header(f, b'[1]'),
    lambda f: with_header(f, b'{"a": 1}'),
    lambda f: with_header(f, b'\xff\xfe'),
    lambda f: with_header(
      f, b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,8]}}'
    ),
    lambda f: with_header(
      f, b'{"a":{"dtype":"F32","shape":[0],"data_offsets":[4,4]}}'
    ),
    lambda f: with_header(
      f, b'{"a":{"dtype":"Q9","shape":[0],"data_offsets":[0,0]}}'
    ),
    lambda f: with_header(f, b'{"a":' * 2 + b'1}}'),
  ],
  ids=[
    'short', 'truncated', 'longer', 'length', 'cut', 'list', 'number',
    'unicode', 'size', 'hole', 'dtype', 'nested',
  ],
)  # fmt: skip
def test_a_damaged_file_is_refused_in_one_line(folder, damage):
  damage(folder)
  with pytest.raises(UserError, match='not a whole safetensors file') as e:
    hf.load(folder, TABLE, structs())
  assert '\n' not in str(e.value)


def test_a_name_twice_in_one_file_is_refused(folder):
  one = b'"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
  with_header(folder, b'{' + one + b',' + one + b'}')
  with pytest.raises(UserError, match='twice'):
    hf.load(folder, TABLE, structs())


def test_the_check_reads_headers_only(folder, monkeypatch):
  monkeypatch.setattr(safetensors_io.Entry, 'rows', None)
  edit(folder, stray=np.zeros(3, np.float32))
  with pytest.raises(UserError, match='unknown stray'):
    hf.load(folder, TABLE, structs())


def test_whole_numbers_are_no_weights(folder):
  edit(folder, scale=np.array(1, np.int32))
  with pytest.raises(UserError, match='scale is stored as int32'):
    hf.load(folder, TABLE, structs())


def test_pickle_is_refused_with_the_way_out(tmp_path):
  (tmp_path / 'pytorch_model.bin').write_bytes(b'x')
  with pytest.raises(UserError, match='save_pretrained'):
    hf.load(tmp_path, TABLE, structs())


def test_the_way_out_of_pickle_works(tmp_path):
  import torch
  from transformers import CLIPTextConfig, CLIPTextModel

  config = CLIPTextConfig(
    vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
    num_attention_heads=2, max_position_embeddings=4,
  )  # fmt: skip
  model = CLIPTextModel(config)
  model.save_pretrained(tmp_path)
  (tmp_path / 'model.safetensors').unlink()
  torch.save(model.state_dict(), tmp_path / 'pytorch_model.bin')
  with pytest.raises(UserError) as e:
    hf.find_files(tmp_path)
  command = str(e.value).split('once with: ')[1]
  assert command.startswith('python -c "') and command.endswith('"')
  exec(command.removeprefix('python -c "').removesuffix('"'), {})
  assert hf.find_files(tmp_path) == {tmp_path / 'model.safetensors': []}


def test_pickles_of_no_library_keep_their_names(tmp_path):
  import torch

  shared = torch.arange(3.0)
  state = {'a': shared, 'b': shared, 'c': torch.ones(2, 2).T}
  torch.save(state, tmp_path / 'pytorch_model-00001-of-00001.bin')
  command = hf.plain_conversion(tmp_path)
  assert command.startswith('python -c "') and command.endswith('"')
  exec(command.removeprefix('python -c "').removesuffix('"'), {})
  assert set(hf.headers(tmp_path)) == {'a', 'b', 'c'}


def test_another_stem_is_named(folder):
  with pytest.raises(UserError, match=r"has \['model.safetensors'\]"):
    hf.load(folder, TABLE, structs(), stem='other')


def test_a_missing_config_says_so(tmp_path):
  with pytest.raises(UserError, match='config.json is missing'):
    hf.read_config(tmp_path)


@pytest.mark.parametrize(
  'kind', [ml_dtypes.bfloat16, np.float16, np.float32, np.float64]
)
def test_every_storage_loads_as_fp32_or_as_it_is(folder, kind):
  hf.save(folder, TABLE, params(), {}, dtype=kind)
  stored = jax.tree.map(lambda x: x.astype(kind), params())
  as_fp32 = jax.tree.map(lambda x: x.astype(np.float32), stored)
  assert_equal(hf.load(folder, TABLE, structs()), as_fp32)
  kept = hf.load(folder, TABLE, structs(), dtype=None)
  assert all(x.dtype == kind for x in jax.tree.leaves(kept))
  assert_equal(kept, stored)


def test_layers_stored_in_two_dtypes_keep_the_wider(folder):
  bias = load_file(folder / 'model.safetensors')['layers.1.q.bias']
  edit(folder, layers__1__q__bias=bias.astype(np.float16))
  kept = hf.load(folder, TABLE, structs(), dtype=None)
  assert kept['layers']['q']['bias'].dtype == np.float32
