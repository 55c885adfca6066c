"""Unified-Bench, protocol 2: pairwise win rates of captions, by LLM judges.

Of two captions of an image, a judge that sees the image says which would let
a painter who has never seen it redraw it more faithfully. Every pair is shown
in both orders, as judges favour a place.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxtyping import Array, Key

from uae_jax.data.preprocess import read_image
from uae_jax.errors import UserError
from uae_jax.eval.benchmark import Score, mean_scores
from uae_jax.eval.judge_client import Answer, Judge, Question, ask_all

NAME = 'caption_duel'
SYSTEM = (
  'You compare image captions by one standard: how faithfully the image could '
  'be redrawn from the caption alone.'
)
TASK = (
  'A skilled painter has never seen this image and is handed one caption of '
  'it, nothing else. With which of the two captions below would the painting '
  'come closer to the image? What counts: which objects there are and how '
  'many, their shapes, colours, materials and sizes, where they are and how '
  'they relate, background, light, style, and text to be read in the image. '
  'What a caption leaves out is lost, and what it says wrongly is painted '
  'wrongly. Neither length nor elegance counts in itself. Say in a sentence '
  'or two what decides, then "first", "second", or "tie" if there is no real '
  'difference.'
)
SCHEMA = dict(
  type='object',
  properties={
    'reason': dict(type='string'),
    'better': dict(type='string', enum=['first', 'second', 'tie']),
  },
  required=['reason', 'better'],
  additionalProperties=False,
)
OUTCOMES = ('win', 'tie', 'loss', 'unparsable')
# What an outcome adds to a rate, in percent; an outcome without one is not
# counted in it.
RATES = {
  'win_rate': dict(win=100, tie=50, loss=0),
  'win': dict(win=100, tie=0, loss=0),
  'tie': dict(win=0, tie=100, loss=0),
  'loss': dict(win=0, tie=0, loss=100),
  'unparsable': dict(win=0, tie=0, loss=0, unparsable=100),
}


def outcome(ours_first: str | None, ours_second: str | None) -> str:
  """One of `OUTCOMES`, from what was called better in either order.

  Args:
    ours_first: 'first', 'second', 'tie' or None, our caption being the first.
    ours_second: the same, our caption being the second.
  """
  if None in (ours_first, ours_second):
    return 'unparsable'
  if (ours_first, ours_second) == ('first', 'second'):
    return 'win'
  if (ours_first, ours_second) == ('second', 'first'):
    return 'loss'
  return 'tie'


def question(image: Any, first: str, second: str) -> Question:
  """About two captions of an image, in this order."""
  captions = f'First caption:\n{first}\n\nSecond caption:\n{second}'
  return Question([image, TASK, captions], SCHEMA, SYSTEM)


class CaptionDuel:
  """The benchmark; see `benchmark.Benchmark`.

  Attributes:
    settings: what decides a row.
    items: images that have a caption of ours and of a baseline.
    unpaired: what is missing -> the captioned names that it is missing of.
    missing: items that got no row -> why; another run may bring it.
  """

  def __init__(
    self,
    images: Mapping[str, Path],
    ours: Mapping[str, str],
    baselines: Mapping[str, Mapping[str, str]],
    judges: Mapping[str, Judge],
  ):
    """Pairs the captions.

    Args:
      images: files by name.
      ours: captions by name of image.
      baselines: by name, each with captions by name of image.
      judges: by what they are called in tables.

    Raises:
      UserError: there is no pair.
    """
    self._images, self._ours = images, ours
    self._baselines, self._judges = baselines, judges
    self.items = sorted(
      name
      for name in ours
      if name in images and any(name in b for b in baselines.values())
    )
    if not self.items:
      raise UserError(
        'no image has a caption of both sides: names in the captions must be '
        'paths below the folder of images'
      )
    names = sorted({*ours}.union(*baselines.values()))
    sources = {'image': images, 'caption of ours': ours}
    sources |= {f'caption of {name}': b for name, b in baselines.items()}
    lacking = {
      what: [name for name in names if name not in source]
      for what, source in sources.items()
    }
    self.unpaired = {what: left for what, left in lacking.items() if left}
    self.missing: dict[str, str] = {}
    self.settings = dict(
      captions=_digest(ours),
      baselines={name: _digest(b) for name, b in baselines.items()},
      judges={label: judge.settings for label, judge in judges.items()},
      task=TASK,
    )

  def run(
    self, names: Sequence[str], folder: Path, rng: Key[Array, '']
  ) -> list[dict[str, Any]]:
    """Rows of items; none for what a judge did not answer.

    A row has `duels`: by baseline and judge, the `outcome` and both
    `answers`, the one with our caption first before the other.

    Raises:
      UserError: see `judge_client.Judge.ask_many`.
    """
    del folder, rng
    rows, images = {}, {}
    for name in names:
      try:
        images[name] = read_image(self._images[name])
      except UserError:
        rows[name] = dict(name=name, error='cannot be read')
    pairs = [
      (name, baseline)
      for name in images
      for baseline, captions in self._baselines.items()
      if name in captions
    ]
    questions = []
    for name, baseline in pairs:
      both = self._ours[name], self._baselines[baseline][name]
      questions.append(question(images[name], *both))
      questions.append(question(images[name], *both[::-1]))
    answers = ask_all([*self._judges.values()], questions)
    for name in names:
      self.missing.pop(name, None)
    for label, given in zip(self._judges, answers):
      for i, (name, baseline) in enumerate(pairs):
        both = given[2 * i : 2 * i + 2]
        row = rows.setdefault(name, dict(name=name, duels={}))
        row['duels'].setdefault(baseline, {})[label] = _duel(both)
        for answer in both:
          if answer.error:
            self.missing[name] = f'{label}: {answer.error}'
    return [rows[name] for name in names if name not in self.missing]

  def scores(self, rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Score]:
    """In percent: `win_rate`, and all of `RATES` by baseline and judge.

    `RATE/BASELINE/JUDGE` is a mean over images. `RATE/BASELINE` first takes
    the mean over the judges that came to a verdict on an image, `win_rate`
    then that over baselines, so that intervals are over images throughout.
    """
    rows = [row for row in rows.values() if 'error' not in row]
    groups = {'win_rate': _present(map(self._overall, rows))}
    for baseline in self._baselines:
      for rate in RATES:
        of = [_rates(row, baseline, rate) for row in rows]
        groups[f'{rate}/{baseline}'] = _present(_mean(r.values()) for r in of)
        for label in self._judges:
          values = _present(r.get(label) for r in of)
          groups[f'{rate}/{baseline}/{label}'] = values
    return mean_scores(groups)

  def _overall(self, row: Mapping[str, Any]) -> float | None:
    """An image's win rate over all judges and baselines."""
    by_baseline = (
      _mean(_rates(row, baseline, 'win_rate').values())
      for baseline in self._baselines
    )
    return _mean(_present(by_baseline))

  def tokens(
    self, rows: Mapping[str, Mapping[str, Any]]
  ) -> dict[tuple[str, str], tuple[int | None, int | None]]:
    """(input, output) by (baseline, judge); None where it is not known."""
    keys = ('input_tokens', 'output_tokens')
    return {
      (baseline, label): tuple(
        _total([answer[key] for answer in _answers(rows, baseline, label)])
        for key in keys
      )
      for baseline in self._baselines
      for label in self._judges
    }

  def dropped(
    self, rows: Mapping[str, Mapping[str, Any]]
  ) -> dict[str, list[str]]:
    """Fields that judges did not take, by judge."""
    fields = {
      label: sorted(
        {
          field
          for baseline in self._baselines
          for answer in _answers(rows, baseline, label)
          for field in answer['dropped']
        }
      )
      for label in self._judges
    }
    return {label: names for label, names in fields.items() if names}

  def table(
    self,
    rows: Mapping[str, Mapping[str, Any]],
    scores: Mapping[str, Score],
  ) -> str:
    """In Markdown: a line for every baseline and judge, and their means."""
    lines = [
      ['baseline', 'judge', 'images', 'win rate %', '95 % interval',
       'win %', 'tie %', 'loss %', 'unparsable %', 'tokens in', 'tokens out',
       'USD'],
      ['---'] * 12,
    ]  # fmt: skip
    tokens = self.tokens(rows)
    costs = {
      (baseline, label): self._judges[label].cost(*used)
      for (baseline, label), used in tokens.items()
    }
    for baseline in self._baselines:
      for label in self._judges:
        at = baseline, label
        spent = [*map(_count, tokens[at]), _usd(costs[at])]
        shown = _shown(scores, f'{baseline}/{label}')
        lines.append([baseline, label, *shown, *spent])
      if len(self._judges) > 1:
        ats = [(baseline, label) for label in self._judges]
        used = [_total([tokens[at][i] for at in ats]) for i in (0, 1)]
        spent = [*map(_count, used), _usd(_total([costs[at] for at in ats]))]
        lines.append([baseline, 'mean', *_shown(scores, baseline), *spent])
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def _digest(captions: Mapping[str, str]) -> str:
  text = json.dumps(dict(captions), sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def _duel(answers: Sequence[Answer]) -> dict[str, Any]:
  """What is kept of a pair of answers."""
  better = [a.value['better'] if a.value else None for a in answers]
  return dict(
    outcome=outcome(*better),
    answers=[
      dict(
        better=b,
        text=a.text,
        input_tokens=a.input_tokens,
        output_tokens=a.output_tokens,
        dropped=list(a.dropped),
      )
      for a, b in zip(answers, better)
    ],
  )


def _answers(
  rows: Mapping[str, Mapping[str, Any]], baseline: str, label: str
) -> list[Mapping[str, Any]]:
  """All of a judge about a baseline."""
  return [
    answer
    for row in rows.values()
    if baseline in row.get('duels', {})
    for answer in row['duels'][baseline][label]['answers']
  ]


def _rates(
  row: Mapping[str, Any], baseline: str, rate: str
) -> dict[str, float]:
  """What an image adds to a rate, by judge; no judge where it is not asked."""
  worth = RATES[rate]
  return {
    label: worth[duel['outcome']]
    for label, duel in row['duels'].get(baseline, {}).items()
    if duel['outcome'] in worth
  }


def _mean(values) -> float | None:
  values = list(values)
  return sum(values) / len(values) if values else None


def _present(values) -> list[float]:
  return [value for value in values if value is not None]


def _total(values: Sequence[Any]) -> Any:
  """Their sum; None if one is."""
  return None if None in values else sum(values)


def _shown(scores: Mapping[str, Score], which: str) -> list[str]:
  """Images, win rate, interval and shares of a line of the table."""
  rates = {rate: scores.get(f'{rate}/{which}') for rate in RATES}
  main = rates['win_rate']
  shares = [f'{s.value:.1f}' if s else '–' for s in rates.values()][1:]
  if main is None:
    return ['0', '–', '–', *shares]
  interval = f'{main.low:.1f} to {main.high:.1f}'
  return [str(main.n), f'{main.value:.1f}', interval, *shares]


def _count(tokens: int | None) -> str:
  return '–' if tokens is None else f'{tokens:,}'


def _usd(cost: float | None) -> str:
  return '–' if cost is None else f'{cost:.4f}'
