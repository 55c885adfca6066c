"""Image preprocessing: any file, fixed bounds, windows and positions."""

import numpy as np
import pytest
from PIL import Image

from uae_jax.data import preprocess, tokenize
from uae_jax.errors import UserError


def _photo(h, w, seed=0):
  noise = np.random.default_rng(seed).integers(0, 256, (9, 13, 3), np.uint8)
  return Image.fromarray(noise).resize((w, h), Image.Resampling.BICUBIC)


def _view(**kwargs):
  sizes = dict(patch=4, merge=2, window=16, min_pixels=1024, max_pixels=1024)
  return preprocess.PolicyView(**(sizes | kwargs))


def test_smart_resize_facts():
  qwen = lambda h, w, lo=3136, hi=12845056: preprocess.smart_resize(
    h, w, 28, lo, hi
  )
  pinned = 448 * 448
  assert qwen(433, 701) == (420, 700)
  assert qwen(433, 701, pinned, pinned) == (336, 560)
  assert qwen(1024, 768, pinned, pinned) == (504, 364)
  assert qwen(42, 70) == (56, 56)  # 1.5 and 2.5 factors round to even
  with pytest.raises(UserError, match='1:200'):
    qwen(10, 2001)


@pytest.mark.parametrize(
  'grid, sizes',
  [((16, 16), [64] * 4), ((12, 18), [64, 64, 16, 32, 32, 8])],
)
def test_window_sizes(grid, sizes):
  hw, window = preprocess.patch_layout(*grid, 2, 112, 14)
  assert np.bincount(window).tolist() == sizes
  for i in range(len(sizes)):
    span = np.ptp(hw[window == i], axis=0)
    assert np.all(span < 8)
  np.testing.assert_array_equal(hw[:4], [(0, 0), (0, 1), (1, 0), (1, 1)])
  assert tuple(hw[4]) == (0, 2)
  assert len({tuple(at) for at in hw}) == grid[0] * grid[1]


def test_embedded_view():
  image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
  view = _view()
  out = view(image)
  assert (view.max_patches, view.max_tokens) == (64, 16)
  assert out['patches'].shape == (64, 96)
  assert out['patches'].dtype == np.float32
  assert np.bincount(out['patch_window']).tolist() == [16] * 4
  row, col = out['patch_hw'][37]
  want = image[row * 4 : row * 4 + 4, col * 4 : col * 4 + 4] / 255
  want = (want - preprocess.CLIP_MEAN) / preprocess.CLIP_STD
  got = out['patches'][37].reshape(3, 2, 4, 4)  # C T ph pw
  for t in range(2):
    np.testing.assert_allclose(
      got[:, t], want.transpose(2, 0, 1), rtol=1e-5, atol=1e-6
    )


def _walk(ids, grids, image_pad, merge):
  """The position rule, one token at a time."""
  out, now, i, grids = [], 0, 0, iter(grids)
  while i < len(ids):
    if ids[i] == image_pad:
      t, gh, gw = next(grids)
      gh, gw = gh // merge, gw // merge
      for a in range(t):
        for b in range(gh):
          for c in range(gw):
            out.append((now + a, now + b, now + c))
      i += t * gh * gw
      now += max(gh, gw)
    else:
      out.append((now,) * 3)
      now += 1
      i += 1
  return np.array(out).T


@pytest.mark.parametrize(
  'pieces',
  [
    [3, (1, 4, 6), 5],
    [(1, 8, 4), 1, (2, 4, 4)],
    [4],
    [(1, 2, 2)],
    [2, (1, 4, 4), (1, 6, 4), 9],
  ],
)
def test_mrope_positions(pieces):
  ids, grids = [], []
  for piece in pieces:
    if isinstance(piece, int):
      ids += [5] * piece
    else:
      grids.append(piece)
      ids += [9] * (piece[0] * piece[1] * piece[2] // 4)
  got = preprocess.mrope_positions(np.array(ids), grids, 9, 2)
  np.testing.assert_array_equal(got, _walk(ids, grids, 9, 2))


def test_every_size_fits_the_bounds():
  view = _view(min_pixels=20 * 20, max_pixels=32 * 32)
  for h, w in np.random.default_rng(0).integers(8, 400, (300, 2)):
    th, tw = np.array(view.size(h, w)) // view.factor
    assert 1 <= th * tw <= view.max_tokens
  # Pinned sizes, where Qwen's own rule would round up past the bound.
  h, w = _view().size(9, 13)
  assert h * w <= 1024 < np.prod(preprocess.smart_resize(9, 13, 8, 1024, 1024))


def test_padding_and_prefix(tmp_path):
  tokenize.build_word_tokenizer(str(tmp_path))
  tok = tokenize.load_tokenizer(str(tmp_path))
  template = tokenize.Template.from_tokenizer(tok, tokenize.PROMPT)
  view = _view(min_pixels=64, max_pixels=2048)
  out = view(_photo(24, 40))
  real, n = len(out['patches']), 16 + template.overhead
  assert real == 4 * 15
  out = preprocess.add_prefix(out, template, 2)
  out = preprocess.pad_to(out, view.max_patches, 40 + n, template.pad)
  assert out['patches'].shape == (128, 96) and not out['patches'][real:].any()
  for key in ('patch_window', 'patch_image'):
    assert np.all(out[key][real:] == -1) and np.all(out[key][:real] >= 0)
  assert out['prefix_positions'].shape == (3, 40 + n)
  assert out['prefix_mask'].sum() == n - 1
  assert np.sum(out['prefix_ids'] == template.image_pad) == 15
  assert np.all(out['prefix_ids'][n - 1 :] == template.pad)
  assert {out[k].dtype for k in out if k[:7] == 'prefix_'} == {
    np.dtype(np.int32), np.dtype(bool)
  }  # fmt: skip


@pytest.mark.parametrize(
  'bad', [dict(max_pixels=63), dict(min_pixels=2048), dict(window=12)]
)
def test_bad_views(bad):
  with pytest.raises(UserError):
    _view(**bad)


@pytest.mark.parametrize('mode', ['L', 'LA', 'P', 'RGBA', 'CMYK', '1', 'PA'])
def test_modes_keep_grey(mode):
  grey = Image.new('RGB', (5, 4), (255, 255, 255)).convert(mode)
  np.testing.assert_array_equal(np.asarray(preprocess.to_rgb(grey)), 255)


def test_transparent_is_white_and_16_bit_is_scaled(tmp_path):
  clear = Image.new('RGBA', (4, 4), (0, 0, 0, 0))
  assert np.asarray(preprocess.to_rgb(clear)).min() == 255
  keyed = Image.new('P', (4, 4), 0)
  keyed.save(tmp_path / 'p.png', transparency=0)
  assert preprocess.read_image(str(tmp_path / 'p.png')).min() == 255
  deep = Image.fromarray(np.full((4, 4), 32896, np.uint16))
  assert deep.mode == 'I;16'
  deep.save(tmp_path / 'deep.png')
  assert np.all(preprocess.read_image(str(tmp_path / 'deep.png')) == 128)


def test_exif_orientation(tmp_path):
  exif = Image.Exif()
  exif[0x0112] = 6  # turned by 90 degrees
  _photo(20, 30).save(tmp_path / 'x.jpg', exif=exif)
  assert preprocess.read_image(str(tmp_path / 'x.jpg')).shape == (30, 20, 3)


def test_unreadable_files_are_named(tmp_path):
  path = tmp_path / 'cut.png'
  _photo(40, 40).save(path)
  path.write_bytes(path.read_bytes()[:200])
  with pytest.raises(UserError, match='cut.png'):
    preprocess.read_image(str(path))
  Image.new('RGB', (1000, 2)).save(tmp_path / 'thin.png')
  with pytest.raises(UserError, match='thin.png'):
    preprocess.read_image(str(tmp_path / 'thin.png'))


def test_a_fitted_view_crops_the_middle():
  image = np.zeros((32, 96, 3), np.uint8)
  image[:, 32:64] = 255
  np.testing.assert_array_equal(preprocess.fitted_view(image, 32, 32), 255)
