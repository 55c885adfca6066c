"""Export: the hub's layout, whole files or none, one tensor at a time."""

import json

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from safetensors.numpy import load_file

from tests.ckpt.hf_test import TABLE, assert_equal, params, structs
from uae_jax.ckpt import export, hf
from uae_jax.sharding import mesh as mesh_lib


def names(folder):
  return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize('kind', [np.float32, np.float16, 'bfloat16'])
def test_hub_to_ours_to_hub_is_byte_equal(tmp_path, kind):
  hf.save(tmp_path / 'a', TABLE, params(), {}, dtype=np.dtype(kind))
  loaded = hf.load(tmp_path / 'a', TABLE, structs())
  hf.save(tmp_path / 'b', TABLE, loaded, {}, dtype=np.dtype(kind))
  a = load_file(tmp_path / 'a' / 'model.safetensors')
  b = load_file(tmp_path / 'b' / 'model.safetensors')
  assert a.keys() == b.keys() and len(a) == 8
  assert all(a[k].tobytes() == b[k].tobytes() for k in a)
  assert all(a[k].dtype == b[k].dtype == np.dtype(kind) for k in a)


def test_mixed_dtypes_are_aligned_and_readable(tmp_path):
  mixed = params()
  mixed['embed']['embedding'] = mixed['embed']['embedding'].astype(np.float16)
  hf.save(tmp_path, TABLE, mixed, {})
  got = load_file(tmp_path / 'model.safetensors')
  np.testing.assert_array_equal(
    got['embed.weight'], mixed['embed']['embedding']
  )
  np.testing.assert_array_equal(got['scale'], mixed['scale'])


def test_shards_with_an_index(tmp_path):
  hf.save(tmp_path, TABLE, params(), {'a': 1}, max_shard=400)
  files = hf.find_files(tmp_path)
  n = len(files)
  assert n > 2
  assert [f.name for f in files] == [
    f'model-{i + 1:05d}-of-{n:05d}.safetensors' for i in range(n)
  ]
  for file, listed in files.items():
    tensors = load_file(file)
    assert sorted(tensors) == sorted(listed)
    size = sum(x.nbytes for x in tensors.values())
    assert size <= 400 or len(tensors) == 1
  index = json.loads((tmp_path / 'model.safetensors.index.json').read_text())
  total = sum(x.nbytes for x in jax.tree.leaves(params()))
  assert index['metadata']['total_size'] == total
  assert_equal(hf.load(tmp_path, TABLE, structs()), params())


def test_one_shard_needs_no_index(tmp_path):
  hf.save(tmp_path, TABLE, params(), {}, max_shard=10**6)
  assert names(tmp_path) == ['config.json', 'model.safetensors']


def test_sharded_parameters_are_gathered(tmp_path):
  mesh = mesh_lib.make_mesh(4, 2)
  flat = jax.tree.map(np.asarray, params())
  flat['layers']['o']['kernel'] = jax.device_put(
    flat['layers']['o']['kernel'],
    NamedSharding(mesh, P('model', None, 'data', None)),
  )
  hf.save(tmp_path, TABLE, flat, {})
  assert_equal(hf.load(tmp_path, TABLE, structs()), params())


def test_each_tensor_is_taken_to_the_host_alone(tmp_path, monkeypatch):
  sizes = []
  to_host = export.to_host
  monkeypatch.setattr(
    export, 'to_host', lambda x: sizes.append(x.size) or to_host(x)
  )
  hf.save(tmp_path, TABLE, jax.device_put(params()), {})
  assert sizes == [42, 72, 72, 12, 12, 72, 72, 1]


def test_a_failed_export_leaves_nothing(tmp_path, monkeypatch):
  monkeypatch.setattr(export, 'to_host', lambda x: 1 / 0)
  with pytest.raises(ZeroDivisionError):
    hf.save(tmp_path / 'new', TABLE, params(), {})
  assert names(tmp_path) == []


def test_a_failed_export_leaves_the_old_one(tmp_path, monkeypatch):
  folder = tmp_path / 'old'
  hf.save(folder, TABLE, params(), {'version': 1})
  monkeypatch.setattr(export, 'to_host', lambda x: 1 / 0)
  with pytest.raises(ZeroDivisionError):
    hf.save(folder, TABLE, params(), {'version': 2})
  assert hf.read_config(folder) == {'version': 1}
  assert names(tmp_path) == ['old']
  assert_equal(hf.load(folder, TABLE, structs()), params())


@pytest.mark.parametrize('sizes', [(None, 400), (400, None), (400, 700)])
def test_an_export_replaces_an_older_one_and_nothing_else(tmp_path, sizes):
  doubled = jax.tree.map(lambda x: 2 * x, params())
  hf.save(tmp_path, TABLE, params(), {}, max_shard=sizes[0])
  (tmp_path / 'tokenizer.json').write_text('x')
  hf.save(tmp_path, TABLE, doubled, {}, max_shard=sizes[1])
  assert_equal(hf.load(tmp_path, TABLE, structs()), doubled)
  listed = {f.name for f in hf.find_files(tmp_path)}
  assert {p.name for p in tmp_path.glob('*.safetensors')} == listed
  assert (tmp_path / 'tokenizer.json').read_text() == 'x'
