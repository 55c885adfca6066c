"""What the update of a real size is said to save."""

import json
import sys

import pytest

from benchmarks import counted


def test_a_shared_prefix_saves_two_thirds_of_the_tokens(monkeypatch, capsys):
  monkeypatch.setattr(sys, 'argv', ['counted', '--json'])
  counted.main()
  found = json.loads(capsys.readouterr().out.splitlines()[-1])
  for part in ('reference', 'forward', 'backward'):
    shared, repeated = (found[k][part] for k in ('shared', 'repeated'))
    # The last caption token is scored and not read.
    assert shared['tokens'] == pytest.approx(1000 + 8 * 249)
    assert repeated['tokens'] == pytest.approx(8 * (1000 + 249))
    assert shared['flops'] < repeated['flops'] / 3
