"""Multiple choice about images: MMBench, MMMU and MMT-Bench.

Questions, prompts, rotations and means are those of VLMEvalKit
(`image_mcq.py`, `utils/multiple_choice.py`), answers are matched without a
judge. A question is answered twice: by the letter that is likeliest to open
the answer, and by the letter that the generated answer says. MMBench's are
circular: a question is right if it is so under every rotation of its options.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxtyping import Array, Key

from uae_jax.errors import UserError
from uae_jax.eval import choice_tsv
from uae_jax.eval.benchmark import Score, mean_score, mean_scores
from uae_jax.eval.choice_text import FORMS, prompt, said
from uae_jax.eval.choice_tsv import STEP, Row

MARK = re.compile(r'<image (\d+)>')  # where an image stands in a text
LETTER = ' (letter)'  # of a score by the likeliest letter


@dataclasses.dataclass(frozen=True)
class Question:
  """What a captioner is asked.

  Attributes:
    images: PIL images or uint8 [H W 3]; none is a question about nothing.
    text: they stand before it, or at its `<image 1>`, `<image 2>`, ….
    options: letters, or whole texts, whose odds are asked for.
  """

  images: Sequence[Any]
  text: str
  options: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Answer:
  """What it answers.

  Attributes:
    text: generated.
    odds: log-probability of each letter as the first token.
  """

  text: str
  odds: Mapping[str, float]


Ask = Callable[[Sequence[Question], Key[Array, '']], list[Answer]]


@dataclasses.dataclass(frozen=True)
class Kind:
  """What tells the benchmarks apart.

  Attributes:
    split: whose rows count, where the file has several; '' is all.
    circular: every rotation of the options is asked.
    tasks: a group's score is the mean of its categories'.
    open: questions without options are matched too.
  """

  split: str = ''
  circular: bool = False
  tasks: bool = False
  open: bool = False


KINDS = {
  'mmb': Kind(circular=True),
  'mmmu': Kind(split='validation', open=True),
  'mmt': Kind(tasks=True),
}

# What tables call groups and categories.
NAMES = {
  'mmb': {
    'coarse_perception': 'CP',
    'finegrained_perception (instance-level)': 'FP-S',
    'finegrained_perception (cross-instance)': 'FP-C',
    'logic_reasoning': 'LR',
    'relation_reasoning': 'RR',
    'attribute_reasoning': 'AR',
  },
  'mmmu': {},
  'mmt': {
    'visual_recognition': 'VR',
    'localization': 'Loc',
    'ocr': 'OCR',
    'counting': 'Count',
    'hallucination': 'HLN',
    'image_retrieval': 'IR',
    'threed': '3D',
    'visual_captioning': 'VC',
    'visual_grounding': 'VG',
    'doc_understanding': 'DU',
    'action_recognition': 'AR',
    'pixel_level_perception': 'PLP',
    'image-to-image_translation': 'I2IT',
    'relation_reasoning': 'RR',
    'intelligence_quotient_test': 'IQT',
    'emotion': 'Emo',
    'visual_illusion': 'VI',
    'meme_understanding': 'MemU',
    'visual_prompt_understanding': 'VPU',
    'anomaly_detection': 'AND',
    'keypoint_detection': 'KD',
    'visual_commonsense_reasoning': 'VCR',
    'image_evaluation_judgement': 'IEJ',
    'multiple_image_analysis': 'MIA',
    'cross_image_matching': 'CIM',
    'temporal_understanding': 'TU',
    'visual_code': 'VP',
    'medical_understanding': 'MedU',
    'autonomous_driving': 'AUD',
    'discipline_knowledge_reasoning': 'DKR',
    'embodied_ai': 'EA',
    'gui_navigation': 'GN',
    'small_object_detection': 'Small Object Detection',
    'person_reid': 'Person Re-ID',
    'transparent_object_detection': 'Transparent Object Det.',
    'salient_object_detection_rgbd': 'Salient Obj. Detection RGBD',
  },
}


class Choice:
  """A `benchmark.Benchmark`; its items are rows of the file, and rotations."""

  def __init__(
    self,
    kind: str,
    file: Path,
    ask: Ask,
    *,
    form: str = 'select',
    split: str | None = None,
  ):
    """Reads the file.

    Args:
      kind: of `KINDS`.
      file: TSV; see `choice_tsv`.
      ask: questions with letters -> answers.
      form: of `FORMS`.
      split: whose rows count; None is the benchmark's own, '' is all.

    Raises:
      UserError: the file cannot be used, or has no such split.
    """
    self.kind, self._names = KINDS[kind], NAMES[kind]
    self._folder, self._ask, self._form = file.parent, ask, FORMS[form]
    rows = choice_tsv.read_rows(file)
    if split is None:
      known = {row.split for row in rows}
      split = self.kind.split if known != {''} else ''
    kept = [row for row in rows if not split or row.split == split]
    if not kept:
      known = sorted({row.split for row in rows})
      raise UserError(f'{file} has no split {split!r}: it has {known}')
    if self.kind.circular:
      kept = choice_tsv.rotated(kept, file)
    self._rows = {row.name: row for row in kept}
    self.items = list(self._rows)
    self.settings = dict(
      benchmark=kind, file=file.name, md5=choice_tsv.digest(file), form=form,
      split=split,
    )  # fmt: skip

  def run(
    self, names: Sequence[str], folder: Path, rng: Key[Array, '']
  ) -> list[dict[str, Any]]:
    """Rows with `text` and `odds`; see `benchmark.Benchmark`."""
    del folder
    out, asked = [], []
    for name in names:
      try:
        asked.append((name, self.question(self._rows[name])))
      except UserError as e:
        out.append(dict(name=name, error=str(e)))
    answers = self._ask([q for _, q in asked], rng) if asked else []
    for (name, _), answer in zip(asked, answers, strict=True):
      right = self._rows[name].answer
      out.append(
        dict(name=name, text=answer.text, odds=dict(answer.odds), answer=right)
      )
    return out

  def question(self, row: Row) -> Question:
    """What is asked for a row.

    Raises:
      UserError: it has no right option, or its images cannot be had.
    """
    if row.options and row.answer not in row.options:
      letters = ''.join(row.options)
      raise UserError(f'{row.name}: answer {row.answer!r} is none of {letters}')
    if not row.options and not (self.kind.open and row.answer):
      raise UserError(f'{row.name}: no options')
    text = prompt(row, self._form)
    images = choice_tsv.read_images(row, self._folder)
    named = {int(n) for n in MARK.findall(text)}
    if not named <= set(range(1, len(images) + 1)):
      raise UserError(f'{row.name}: it has {len(images)} images, not {named}')
    return Question(images, text, tuple(row.options))

  def scores(self, rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Score]:
    """Accuracies in [0, 1]: of all, of groups, of categories; both ways."""
    answered = {k: v for k, v in rows.items() if 'error' not in v}
    text = {
      name: said(self._rows[name], row['text'])
      for name, row in answered.items()
    }
    letter = {
      name: max(row['odds'], key=row['odds'].get) == self._rows[name].answer
      for name, row in answered.items()
      if self._rows[name].options
    }
    out = self._table(text, '') | self._table(letter, LETTER)
    free = [hit for n, hit in text.items() if not self._rows[n].options]
    if free:
      out['open questions'] = mean_score(free)
    if len(answered) < len(rows):
      out['unusable'] = mean_score(['error' in row for row in rows.values()])
    return out

  def _table(self, hits: Mapping[str, bool], suffix: str) -> dict[str, Score]:
    """All scores of one way to answer."""
    out = {}
    if self.kind.circular:
      given = [hit for name, hit in hits.items() if int(name) < STEP]
      hits = self._rounds(hits)
    if not hits:
      return out
    out[f'accuracy{suffix}'] = mean_score([*hits.values()])
    if self.kind.circular:
      out[f'one order{suffix}'] = mean_score(given)
    groups, tasks = {}, {}
    for name, hit in hits.items():
      row = self._rows[name]
      groups.setdefault(row.group, {}).setdefault(row.category, []).append(hit)
      tasks.setdefault(row.category, []).append(hit)
    named = {}
    for group in sorted(groups.keys() - {''}):
      of_tasks = groups[group]
      named[self._names.get(group, group)] = (
        mean_scores(of_tasks, 'all')['all']
        if self.kind.tasks
        else mean_score([hit for part in of_tasks.values() for hit in part])
      )
    for task in sorted(tasks.keys() - {''}):
      name = self._names.get(task, task)
      name = f'{name} (category)' if name in named else name
      named[name] = mean_score(tasks[task])
    return out | {f'{name}{suffix}': score for name, score in named.items()}

  def _rounds(self, hits: Mapping[str, bool]) -> dict[str, bool]:
    """Whether each question is right under all of its rotations.

    One of which a rotation has no answer is left out.
    """
    names = {}
    for name in self.items:
      names.setdefault(str(int(name) % STEP), []).append(name)
    return {
      first: all(hits[name] for name in part)
      for first, part in names.items()
      if all(name in hits for name in part)
    }
