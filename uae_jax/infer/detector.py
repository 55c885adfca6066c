"""Objects in images, by a detector of transformers in a folder of the user's.

Mask2Former and MaskFormer give boxes and masks, as GenEval's own detector
does; DETR and its kin boxes alone. They run on torch, which comes with the
extra `detect`. Scores and boxes of masks are those of mmdetection's
`MaskFormerFusionHead`, which GenEval's thresholds were chosen on.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from uae_jax import zoo
from uae_jax.ckpt import hf
from uae_jax.data.preprocess import to_rgb
from uae_jax.errors import UserError
from uae_jax.eval.geneval_rules import OBJECTS, THRESHOLD, Detection

MOST = 100  # detections of an image, as mmdetection keeps
# COCO's, VOC's and LVIS's words -> GenEval's.
ALIASES = {
  'mouse': 'computer mouse',
  'remote': 'tv remote',
  'remote control': 'tv remote',
  'keyboard': 'computer keyboard',
  'cellphone': 'cell phone',
  'mobile phone': 'cell phone',
  'motorbike': 'motorcycle',
  'aeroplane': 'airplane',
  'sofa': 'couch',
  'pottedplant': 'potted plant',
  'potted-plant': 'potted plant',
  'diningtable': 'dining table',
  'tvmonitor': 'tv',
  'television': 'tv',
  'hair dryer': 'hair drier',
  'hair drier': 'hair drier',
  'doughnut': 'donut',
  'fridge': 'refrigerator',
}
MASKS = (
  'Mask2FormerForUniversalSegmentation',
  'MaskFormerForInstanceSegmentation',
)
BOXES = 'ForObjectDetection'  # how the others' names end

Detect = Callable[[Sequence[Any]], list[list[Detection]]]


def load_detector(name: str, floor: float = THRESHOLD) -> Detect:
  """Images of any size -> the objects in each, the surest first.

  Args:
    name: folder or ORG/REPOSITORY of a detector with COCO's classes.
    floor: detections of no higher score are left out; GenEval reads none.

  Raises:
    UserError: the folder holds no such detector, or torch is missing.
  """
  import transformers  # heavy

  folder = zoo.resolve(name)
  kind = (hf.read_config(folder).get('architectures') or ['nothing'])[0]
  if kind not in MASKS and not kind.endswith(BOXES):
    raise UserError(
      f'{folder} is {kind}, no detector: take a Mask2Former of COCO instances '
      'or a DETR'
    )
  if not transformers.utils.is_torch_available():
    raise UserError("detectors need torch: pip install 'uae_jax[detect]'")
  transformers.utils.logging.disable_progress_bar()
  try:
    # The PIL processors need no torchvision.
    processor = transformers.AutoImageProcessor.from_pretrained(
      folder, backend='pil', local_files_only=True
    )
    model, info = getattr(transformers, kind).from_pretrained(
      folder,
      local_files_only=True,
      use_safetensors=True,
      output_loading_info=True,
    )
  except (
    OSError, ValueError, ImportError, AttributeError, RuntimeError,
  ) as e:  # fmt: skip
    reason = str(e).strip().splitlines()[0]
    raise UserError(f'{folder} cannot be loaded: {reason}') from None
  if lacking := sorted(info['missing_keys']):
    # transformers would go on with random numbers in their place.
    raise UserError(
      f'{folder} lacks {len(lacking)} weights, the first is {lacking[0]}'
    )
  names = _names(model.config.id2label, folder)
  gpu = transformers.utils.is_torch_cuda_available()
  model = model.eval().requires_grad_(False).to('cuda' if gpu else 'cpu')
  objects = _by_masks if kind in MASKS else _by_boxes

  def one(image):
    image = to_rgb(image)
    inputs = processor(images=image, return_tensors='pt').to(model.device)
    found = objects(model(**inputs), inputs, image, names, processor, floor)
    return sorted(found, key=lambda d: -d.score)

  return lambda images: [one(image) for image in images]


def known_name(label: str) -> str | None:
  """GenEval's word for a detector's class; None where it has none."""
  label = label.strip().lower().replace('_', ' ')
  label = ALIASES[label] if label in ALIASES else label
  return label if label in OBJECTS else None


def mask_detections(
  logits: Float[np.ndarray, 'Q C'],
  masks: Float[np.ndarray, 'Q h w'],
  names: Mapping[int, str],
  rows: Float[np.ndarray, 'H h'],
  cols: Float[np.ndarray, 'W w'],
  floor: float,
) -> list[Detection]:
  """What the queries of a mask transformer saw.

  A query may be of several classes. Its score is the class's probability
  times the mean probability of the mask inside itself; the box is around the
  mask, its far ends exclusive.

  Args:
    logits: of classes, the last is "no object".
    masks: logits.
    names: of the classes that matter.
    rows: from the masks' rows to those of the image.
    cols: the same for columns.
    floor: of scores, exclusive.
  """
  sure = np.exp(logits - logits.max(1, keepdims=True))
  sure = (sure / sure.sum(1, keepdims=True))[:, :-1]
  order = np.argsort(-sure, axis=None, kind='stable')[:MOST]
  out, seen = [], {}
  for q, c in zip(*np.unravel_index(order, sure.shape)):
    if sure[q, c] <= floor or int(c) not in names:
      continue
    if q not in seen:
      seen[q] = _mask(rows @ masks[q] @ cols.T)
    mask, box, inside = seen[q]
    score = float(sure[q, c] * inside)
    if box is not None and score > floor:
      out.append(Detection(names[int(c)], box, score, mask))
  return out


@functools.lru_cache(64)
def bilinear(size: int, out: int) -> Float[np.ndarray, 'o s']:
  """Resampling as torch's `interpolate`: pixel centres, no antialias."""
  at = (np.arange(out) + 0.5) * size / out - 0.5
  at = np.clip(at, 0, size - 1)
  low = np.floor(at).astype(int)
  high = np.minimum(low + 1, size - 1)
  weights = np.zeros((out, size), np.float32)
  np.add.at(weights, (np.arange(out), low), 1 - (at - low))
  np.add.at(weights, (np.arange(out), high), at - low)
  return weights


def _mask(
  logits: Float[np.ndarray, 'H W'],
) -> tuple[Bool[np.ndarray, 'H W'], tuple | None, float]:
  """A mask, the box around it, and its mean probability inside."""
  mask = logits > 0
  if not mask.any():
    return mask, None, 0.0
  ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
  box = (xs[0], ys[0], xs[-1] + 1, ys[-1] + 1)
  inside = (1 / (1 + np.exp(-logits[mask]))).mean()
  return mask, tuple(map(float, box)), float(inside)


def _by_masks(outputs, inputs, image, names, processor, floor):
  masks = outputs.masks_queries_logits[0].float().cpu().numpy()
  logits = outputs.class_queries_logits[0].float().cpu().numpy()
  padded = inputs['pixel_values'].shape[-2:]
  if 'pixel_mask' in inputs:
    real = inputs['pixel_mask'][0].bool().cpu().numpy()
    filled = (int(real.any(1).sum()), int(real.any(0).sum()))
  else:
    filled = padded
  # To the padded input, without the padding, to the image.
  rows, cols = (
    bilinear(f, size) @ bilinear(m, p)[:f]
    for f, size, m, p in zip(
      filled, (image.height, image.width), masks.shape[1:], padded
    )
  )
  return mask_detections(logits, masks, names, rows, cols, floor)


def _by_boxes(outputs, inputs, image, names, processor, floor):
  del inputs
  [found] = processor.post_process_object_detection(
    outputs, threshold=floor, target_sizes=[(image.height, image.width)]
  )
  labels, scores, boxes = (
    found[key].cpu().numpy() for key in ('labels', 'scores', 'boxes')
  )
  ends = np.array([image.width, image.height] * 2)
  return [
    Detection(names[int(c)], tuple(map(float, box)), float(score))
    for c, score, box in zip(labels, scores, np.clip(boxes, 0, ends))
    if int(c) in names
  ]


def _names(labels: Mapping[int, str], folder: Path) -> dict[int, str]:
  """Index of a class -> GenEval's name of it.

  Raises:
    UserError: GenEval's classes are not all there.
  """
  names = {int(i): known_name(label) for i, label in labels.items()}
  names = {i: name for i, name in names.items() if name}
  lacking = [name for name in OBJECTS if name not in names.values()]
  if lacking:
    raise UserError(
      f'{folder} does not know {len(lacking)} of the {len(OBJECTS)} classes of '
      f'COCO, among them {lacking[0]!r}: take a detector of COCO'
    )
  return names
