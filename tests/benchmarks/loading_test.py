"""The loading benchmark reads what it has written."""

import io

from PIL import Image

from benchmarks import loading, stores


def test_a_row_counts_images_of_a_camera(tmp_path):
  items = loading.photographs(3)
  sizes = {Image.open(io.BytesIO(x.data)).size for x in items}
  assert sizes == {(640, 480)} and len({x.data for x in items}) == 3
  assert items == loading.photographs(3)
  uri = stores.write('images', tmp_path / 'x', items)
  row = loading.measure(uri, str(tmp_path), threads=2, seconds=0.2)
  assert row['opened'] < 5 and 0 < row['batches'] < row['decoded'] < 1e5


def test_a_rate_is_images_by_time(monkeypatch):
  clock = iter([0.0, 1.0, 2.0, 3.0, 4.0, 4.0])  # a second between looks
  monkeypatch.setattr(loading.time, 'perf_counter', lambda: next(clock))
  calls = []
  assert loading.rate(lambda: calls.append(1), 8, 4.0) == 8 * 3 / 4
  assert len(calls) == 4  # one to warm up
