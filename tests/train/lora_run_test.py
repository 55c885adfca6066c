"""Adapters trained in the policy's stead, from config to export."""

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.train.loop_test import config, rows
from uae_jax import trees, zoo
from uae_jax.ckpt import peft
from uae_jax.errors import UserError
from uae_jax.nn import lora
from uae_jax.train import loop

LORA = {
  'lora.rank': 2,
  'lora.alpha': 8.0,
  'lora.targets': (r'lm/layers/block/[qv]/kernel',),
  'train.lr': 1e-2,
  'optim.warmup': 1,
}


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """The same run exported merged and as an adapter."""
  tmp = tmp_path_factory.mktemp('lora')
  for export in ('merged', 'adapter'):
    changed = config(**LORA, **{'lora.export': export})
    assert loop.run(changed, tmp / export) == 0
  return tmp


def test_the_reference_is_the_policy_without_adapters(runs):
  first, *later = rows(runs / 'merged', 'policy/')
  assert abs(first['policy/kl']) < 1e-6
  assert abs(first['policy/ratio_max'] - 1) < 1e-5
  assert max(row['policy/kl'] for row in later) > 1e-4


def test_merged_and_adapter_are_one_policy(runs):
  base = zoo.resolve('bundled:umm1/policy')
  model = zoo.policy_from_folder(base)
  adapter = peft.load(
    runs / 'adapter' / 'export' / 'adapter', model.table, model.shapes(),
    model.rename,
  )  # fmt: skip
  assert (adapter.rank, adapter.alpha) == (2, 8.0)
  assert all(np.abs(b).max() > 0 for _, b in lora.pairs(adapter.tree).values())
  start = model.load(base)
  want = trees.flatten(lora.merge(start, adapter.tree, 4.0))
  got = trees.flatten(model.load(runs / 'merged' / 'export' / 'policy'))
  changed = set()
  for path, x in trees.flatten(start).items():
    np.testing.assert_allclose(got[path], want[path], atol=1e-6)
    if not np.array_equal(got[path], x):
      changed.add(path)
  assert changed == {f'lm/layers/block/{name}/kernel' for name in 'qv'}
  assert not (runs / 'adapter' / 'export' / 'policy').exists()


def test_only_adapters_are_in_the_checkpoint(runs):
  sizes = [
    sum(f.stat().st_size for f in folder.rglob('*') if f.is_file())
    for folder in (
      runs / 'merged' / 'checkpoints' / '4',
      zoo.resolve('bundled:umm1/policy'),
    )
  ]
  assert sizes[0] < sizes[1] / 2
  assert load_file(
    runs / 'adapter' / 'export' / 'adapter' / 'adapter_model.safetensors'
  )


@pytest.mark.parametrize(
  'change, says',
  [
    ({'lora.targets': ('nothing',)}, 'match no kernel'),
    ({'lora.rank': -1}, 'lora.rank=-1'),
    ({'lora.export': 'both'}, 'lora.export'),
  ],
)
def test_mistakes_are_one_line(change, says, tmp_path):
  with pytest.raises(UserError, match=says):
    loop.run(config(**{**LORA, **change}), tmp_path / 'run')
  assert not (tmp_path / 'run').exists()
