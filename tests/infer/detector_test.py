"""Detectors of transformers, and CLIP's colours, on tiny random folders."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
import torch
import transformers
from PIL import Image
from transformers import (
  CLIPConfig,
  CLIPModel,
  DetrConfig,
  DetrForObjectDetection,
  Mask2FormerConfig,
  Mask2FormerForUniversalSegmentation,
)
from transformers.models.clip.image_processing_pil_clip import (
  CLIPImageProcessorPil,
)
from transformers.models.detr.image_processing_pil_detr import (
  DetrImageProcessorPil,
)
from transformers.models.mask2former.image_processing_pil_mask2former import (
  Mask2FormerImageProcessorPil,
)

from tests.torch_fixtures import close, randomise
from uae_jax.errors import UserError
from uae_jax.eval.geneval_rules import COLORS, OBJECTS, Detection
from uae_jax.infer.detector import (
  ALIASES,
  bilinear,
  known_name,
  load_detector,
  mask_detections,
)
from uae_jax.infer.zero_shot import (
  ColourClassifier,
  ZeroShot,
  color_prompts,
  crop,
  load_colours,
)
from uae_jax.sharding.mesh import make_mesh

# As COCO says them.
COCO = {
  'computer mouse': 'mouse',
  'tv remote': 'remote',
  'computer keyboard': 'keyboard',
}
LABELS = {i: COCO[n] if n in COCO else n for i, n in enumerate(OBJECTS)}
NAMES = dict(id2label=LABELS, label2id={v: k for k, v in LABELS.items()})
SIZE = {'shortest_edge': 64, 'longest_edge': 128}


def image(height=50, width=70, seed=0):
  shape = (height, width, 3)
  return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


@pytest.fixture(scope='module')
def masks_folder(tmp_path_factory):
  """A Mask2Former of which every number is random."""
  backbone = transformers.SwinConfig(
    image_size=64,
    patch_size=4,
    embed_dim=12,
    depths=[1, 1, 1, 1],
    num_heads=[1, 1, 2, 2],
    window_size=4,
    out_features=['stage1', 'stage2', 'stage3', 'stage4'],
  )
  config = Mask2FormerConfig(
    backbone_config=backbone,
    feature_size=32,
    mask_feature_size=32,
    hidden_dim=32,
    encoder_feedforward_dim=16,
    dim_feedforward=16,
    encoder_layers=1,
    decoder_layers=2,
    num_attention_heads=2,
    num_queries=6,
    **NAMES,
  )
  folder = tmp_path_factory.mktemp('mask2former')
  torch.manual_seed(0)
  Mask2FormerForUniversalSegmentation(config).save_pretrained(folder)
  Mask2FormerImageProcessorPil(size=SIZE).save_pretrained(folder)
  return folder


@pytest.fixture(scope='module')
def boxes_folder(tmp_path_factory):
  """A DETR of which every number is random."""
  backbone = transformers.ResNetConfig(
    embedding_size=8,
    hidden_sizes=[8, 8, 16, 16],
    depths=[1, 1, 1, 1],
    layer_type='basic',
    out_features=['stage4'],
  )
  config = DetrConfig(
    use_timm_backbone=False,
    use_pretrained_backbone=False,
    backbone=None,
    backbone_config=backbone,
    d_model=16,
    encoder_layers=1,
    decoder_layers=1,
    encoder_ffn_dim=16,
    decoder_ffn_dim=16,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
    num_queries=6,
    **NAMES,
  )
  folder = tmp_path_factory.mktemp('detr')
  torch.manual_seed(0)
  DetrForObjectDetection(config).save_pretrained(folder)
  DetrImageProcessorPil(size=SIZE).save_pretrained(folder)
  return folder


def reference_masks(folder, picture):
  """Scores and masks of all (query, class), as mmdetection has them, torch."""
  model = Mask2FormerForUniversalSegmentation.from_pretrained(folder).eval()
  processor = Mask2FormerImageProcessorPil.from_pretrained(folder)
  inputs = processor(images=Image.fromarray(picture), return_tensors='pt')
  with torch.no_grad():
    out = model(**inputs)
  grow = lambda x, size: torch.nn.functional.interpolate(
    x, size=size, mode='bilinear', align_corners=False
  )
  logits = grow(out.masks_queries_logits, inputs['pixel_values'].shape[-2:])
  logits = grow(logits, picture.shape[:2])[0]
  inside = (logits > 0).float()
  mean = (logits.sigmoid() * inside).flatten(1).sum(1)
  mean = mean / (inside.flatten(1).sum(1) + 1e-6)
  classes = out.class_queries_logits[0].softmax(-1)[:, :-1]
  return (classes * mean[:, None]).numpy(), (logits > 0).numpy()


def test_masks_boxes_and_scores_are_mmdetections(masks_folder):
  picture = image()
  [found] = load_detector(masks_folder, floor=0.0)([picture])
  scores, masks = reference_masks(masks_folder, picture)
  assert len(found) == 100 and {d.cls for d in found} <= set(OBJECTS)
  assert all(a.score >= b.score for a, b in zip(found, found[1:]))
  for d in found:
    fits = np.flatnonzero((masks == d.mask).all((1, 2)))
    assert len(fits), 'a mask that the reference does not have'
    want = scores[fits, OBJECTS.index(d.cls)]
    assert np.abs(want - d.score).min() < 1e-5
    ys, xs = np.nonzero(d.mask)
    box = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
    assert d.box == box and d.mask.shape == picture.shape[:2]


def test_images_of_a_batch_are_seen_one_by_one(masks_folder):
  detect = load_detector(masks_folder, floor=0.0)
  pictures = [image(), image(40, 30, 1)]
  both, alone = detect(pictures), detect(pictures[1:])
  assert [(d.cls, d.box) for d in both[1]] == [(d.cls, d.box) for d in alone[0]]
  assert both[1][0].mask.shape == (40, 30)


def test_the_floor_leaves_out_what_is_unsure(masks_folder, boxes_folder):
  for folder in (masks_folder, boxes_folder):
    [every] = load_detector(folder, floor=0.0)([image()])
    floor = every[len(every) // 2].score
    [some] = load_detector(folder, floor=floor)([image()])
    assert 0 < len(some) < len(every)
    assert min(d.score for d in some) > floor
    assert load_detector(folder)([image()]) == [[]]  # 0.3 of 80 classes


def test_boxes_are_those_of_transformers_in_pixels(boxes_folder):
  picture = image()
  [found] = load_detector(boxes_folder, floor=0.0)([picture])
  model = DetrForObjectDetection.from_pretrained(boxes_folder).eval()
  processor = DetrImageProcessorPil.from_pretrained(boxes_folder)
  with torch.no_grad():
    out = model(**processor(images=picture, return_tensors='pt'))
  scores, labels = out.logits[0].softmax(-1)[:, :-1].max(-1)
  x, y, w, h = out.pred_boxes[0].unbind(-1)
  boxes = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], -1)
  boxes = boxes * torch.tensor([70, 50, 70, 50])
  assert len(found) == len(scores) == 6
  for d, i in zip(found, scores.argsort(descending=True, stable=True)):
    assert d.cls == OBJECTS[labels[i]] and d.mask is None
    np.testing.assert_allclose(d.score, scores[i], atol=1e-6)
    np.testing.assert_allclose(d.box, boxes[i], atol=1e-3)


def test_bilinear_is_torchs_up_and_down():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(7, 12)).astype(np.float32)
  for h, w in ((28, 48), (5, 9), (7, 12), (13, 4)):
    want = torch.nn.functional.interpolate(
      torch.tensor(x)[None, None], (h, w), mode='bilinear', align_corners=False
    )[0, 0]
    close(bilinear(7, h) @ x @ bilinear(12, w).T, want.numpy())


def test_a_query_may_be_two_classes_and_empty_masks_are_nothing():
  logits = np.log(np.array([[0.5, 0.4, 0.1], [0.9, 0.05, 0.05]], np.float32))
  masks = np.full((2, 4, 4), -9.0, np.float32)
  masks[0, 1:3, 2:] = np.log(3)  # probability 0.75
  same = np.eye(4, dtype=np.float32)
  found = mask_detections(logits, masks, {0: 'cat', 1: 'dog'}, same, same, 0.2)
  assert [(d.cls, d.box) for d in found] == [
    ('cat', (2, 1, 4, 3)),
    ('dog', (2, 1, 4, 3)),
  ]
  np.testing.assert_allclose([d.score for d in found], [0.375, 0.3], 1e-5)
  [only] = mask_detections(logits, masks, {1: 'dog'}, same, same, 0.2)
  assert only.cls == 'dog'


def test_cocos_names_become_genevals():
  assert [known_name(name) for name in LABELS.values()] == list(OBJECTS)
  voc = {'TVmonitor': 'tv', 'sofa': 'couch', 'pottedplant': 'potted plant',
         'diningtable': 'dining table', 'motorbike': 'motorcycle',
         'aeroplane': 'airplane', 'cell_phone': 'cell phone'}  # fmt: skip
  assert {name: known_name(name) for name in voc} == voc
  assert known_name('N/A') is None and known_name('wall-brick') is None
  assert set(ALIASES.values()) <= set(OBJECTS)


def test_folders_that_are_no_detector_are_refused(
  boxes_folder, tmp_path, monkeypatch
):
  config = json.loads((boxes_folder / 'config.json').read_text())
  write = lambda **k: (tmp_path / 'config.json').write_text(
    json.dumps({**config, **k})
  )
  with pytest.raises(UserError, match='config.json is missing'):
    load_detector(tmp_path)
  write(architectures=['CLIPModel'])
  with pytest.raises(UserError, match='is CLIPModel, no detector'):
    load_detector(tmp_path)
  write()
  with pytest.raises(UserError, match='cannot be loaded'):
    load_detector(tmp_path)
  for name in ('model.safetensors', 'preprocessor_config.json'):
    (tmp_path / name).write_bytes((boxes_folder / name).read_bytes())
  write(id2label={**config['id2label'], '13': 'pew'})
  with pytest.raises(UserError, match="does not know 1 of .*'bench'"):
    load_detector(tmp_path)
  write(decoder_layers=2)
  with pytest.raises(UserError, match='lacks .* weights, the first is'):
    load_detector(tmp_path)
  monkeypatch.setattr(transformers.utils, 'is_torch_available', lambda: False)
  with pytest.raises(UserError, match=r'uae_jax\[detect\]'):
    load_detector(boxes_folder)


@pytest.fixture(scope='module')
def clip_folder(tmp_path_factory):
  """A CLIP of which every number is random, with words of the prompts."""
  folder = tmp_path_factory.mktemp('clip')
  words = ['a', 'photo', 'of', '-', 'colored', 'object', 'car', 'dog', *COLORS]
  names = ['<start>', '<unk>', *words, '<end>']  # the end is the largest id
  core = tokenizers.Tokenizer(
    tokenizers.models.WordLevel(
      {name: i for i, name in enumerate(names)}, unk_token='<unk>'
    )
  )
  core.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  core.post_processor = tokenizers.processors.TemplateProcessing(
    single=['<start>', '$A', '<end>'],
    special_tokens=[('<start>', 0), ('<end>', len(names) - 1)],
  )
  transformers.PreTrainedTokenizerFast(
    tokenizer_object=core,
    bos_token='<start>',
    eos_token='<end>',
    pad_token='<end>',
    unk_token='<unk>',
  ).save_pretrained(folder)
  text = dict(
    vocab_size=len(names),
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=16,
    eos_token_id=len(names) - 1,
    bos_token_id=0,
  )
  vision = dict(
    hidden_size=48,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=3,
    image_size=28,
    patch_size=14,
  )
  config = CLIPConfig(projection_dim=24, text_config=text, vision_config=vision)
  randomise(CLIPModel(config)).save_pretrained(folder)
  CLIPImageProcessorPil(
    size={'shortest_edge': 28}, crop_size={'height': 28, 'width': 28}
  ).save_pretrained(folder)
  return folder


def reference_colors(folder, crops, cls):
  """Colour logits of transformers' CLIP, [crops, colours]."""
  model = CLIPModel.from_pretrained(folder).eval()
  tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
  processor = CLIPImageProcessorPil.from_pretrained(folder)
  norm = lambda x: x / x.norm(dim=-1, keepdim=True)
  rows = []
  with torch.no_grad():
    for color in COLORS:
      texts = [f'a photo of a {color} {cls}',
               f'a photo of a {color}-colored {cls}',
               f'a photo of a {color} object']  # fmt: skip
      ids = tokenizer(texts, padding=True, return_tensors='pt')
      out = model.get_text_features(ids['input_ids'], ids['attention_mask'])
      rows.append(norm(norm(out.pooler_output).mean(0)))
    pixels = processor(images=crops, return_tensors='pt')['pixel_values']
    seen = norm(model.get_image_features(pixels).pooler_output)
    return (100 * seen @ torch.stack(rows).T).numpy()


@pytest.fixture(scope='module')
def clip(clip_folder):
  return ZeroShot(str(clip_folder), make_mesh(-1, 1))


def test_colours_are_those_of_transformers(clip, clip_folder):
  objects = [
    Detection('car', (3.4, 5.6, 40.5, 30.2), 0.9, None),
    Detection('car', (0, 0, 69, 50), 0.8, image(seed=2)[..., 0] > 99),
    Detection('car', (10, 4, 22, 44), 0.7, None),
  ]
  crops = [crop(image(), d) for d in objects]
  assert crops[0].size == (37, 24)
  want = reference_colors(clip_folder, crops, 'car')
  got = clip.logits(crops, clip.classes(color_prompts('car')))
  np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max())
  named = ColourClassifier(clip)
  assert named(image(), objects, 'car') == [COLORS[i] for i in want.argmax(1)]
  dog = reference_colors(clip_folder, crops[:1], 'dog')
  assert named(image(), objects[:1], 'dog') == [COLORS[dog.argmax()]]


def test_an_object_is_cut_out_on_grey():
  picture = image()
  mask = np.zeros((50, 70), bool)
  mask[10:20, 30:40] = True
  cut = np.asarray(crop(picture, Detection('car', (28, 9, 41, 20), 1, mask)))
  assert cut.shape == (11, 13, 3)
  np.testing.assert_array_equal(cut[1:, 2:12], picture[10:20, 30:40])
  assert (cut[0] == 0x99).all() and (cut[:, :2] == 0x99).all()
  thin = crop(picture, Detection('car', (5.1, 5.2, 5.3, 9), 1))
  assert thin.size == (1, 4)


def test_weights_may_be_cast(clip_folder, clip):
  half = load_colours(clip_folder, make_mesh(-1, 1), 'bfloat16').clip
  texts = ['a photo of a red car', 'a photo of a blue dog']
  a, b = half.embed_texts(texts), clip.embed_texts(texts)
  assert (jnp.asarray(a * b).sum(1) > 0.99).all()


def test_a_clip_without_words_is_refused(clip_folder, tmp_path):
  with pytest.raises(UserError, match='does not exist'):
    load_colours(tmp_path / 'none', make_mesh(-1, 1))
  config = json.loads((clip_folder / 'config.json').read_text())
  (tmp_path / 'config.json').write_text(json.dumps(config['vision_config']))
  with pytest.raises(UserError, match='both towers'):
    load_colours(tmp_path, make_mesh(-1, 1))
  for file in clip_folder.iterdir():
    if 'token' not in file.name:
      (tmp_path / file.name).write_bytes(file.read_bytes())
  with pytest.raises(UserError, match='no tokenizer'):
    load_colours(tmp_path, make_mesh(-1, 1))
