"""A page to try models on: image -> captions -> drawings -> similarities.

`python -m uae_jax.tools.demo --model=bundled:umm1 --model=runs/umm1/export`

Serves on this machine alone and asks nothing of the network. Every `--model`
has a column of its own, so that checkpoints stand side by side. Drop an image,
or draw a scene of the drawn world from objects. Needs `uae_jax[demo]`.
"""

import dataclasses
import html
import importlib.util
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags
from jaxtyping import UInt8
from PIL import Image

from uae_jax.data.pipeline import SceneSource
from uae_jax.data.preprocess import to_rgb
from uae_jax.data.scenes import draw, grammar
from uae_jax.errors import UserError
from uae_jax.infer.autoencoder import Autoencoder
from uae_jax.infer.load import load
from uae_jax.infer.scores import Compare, load_towers
from uae_jax.sharding import mesh as mesh_lib
from uae_jax.tools import cli

MODEL = flags.DEFINE_multi_string(
  'model', None, 'Folder, bundled:NAME or ORG/REPOSITORY; may repeat.',
  required=True,
)  # fmt: skip
TOWERS = flags.DEFINE_list(
  'towers', ['bundled:umm1/judge_clip', 'bundled:umm1/judge_views'],
  'Folders of towers that compare.',
)  # fmt: skip
CAPTIONS = flags.DEFINE_integer(
  'captions', 1, 'Of an image; several need a --temperature.', 1
)
HOST = flags.DEFINE_string('host', '127.0.0.1', 'Address to serve on.')
PORT = flags.DEFINE_integer('port', 7860, 'To serve on.', 1, 65535)
SEED = flags.DEFINE_integer('seed', 0, 'Of sampling and noise.')
SHARDS = flags.DEFINE_integer('model_shards', 1, 'Devices that share weights.')
OPTIONS = cli.define_options(*cli.CAPTION, *cli.DRAW, *cli.BOTH)

SHOWN = 320  # pixels that a smaller picture is enlarged to, dot by dot
INTRO = (
  'The image is described, and redrawn from the description alone. The scores '
  'are cosines of image and drawing.'
)
SCENE = (
  'Objects of the drawn world, which the bundled models know: at most one a '
  'place, four or fewer in training.'
)


@dataclasses.dataclass(frozen=True)
class Models:
  """What the page asks.

  Attributes:
    models: by name.
    towers: by name.
    captions: of an image.
    seed: of sampling and noise.
  """

  models: Mapping[str, Autoencoder]
  towers: Mapping[str, Compare]
  captions: int
  seed: int

  def __post_init__(self):
    for name, model in self.models.items():
      if model.describer is None or model.drawer is None:
        raise UserError(f'{name} cannot both describe and draw')
      if model.options.batch < self.captions:
        raise UserError(
          f'--captions={self.captions} needs --batch={self.captions}'
        )
      if self.captions > 1 and not model.options.temperature:
        raise UserError('several captions are all the same: say --temperature')

  def redraw(
    self, name: str, image: Any, texts: Sequence[str] = ()
  ) -> tuple[list[tuple[Image.Image, str]], str]:
    """Describes an image unless `texts` do, draws the texts, compares.

    Args:
      name: of the model.
      image: PIL, or uint8 [H W 3].
      texts: captions that somebody wrote; none asks the model.

    Returns:
      (picture, caption) of each drawing, and a table of captions and cosines.
    """
    model = self.models[name]
    words, noise = jax.random.split(jax.random.key(self.seed))
    image = np.asarray(to_rgb(image))
    texts = list(texts) or model.describe([image] * self.captions, words)
    drawn = model.draw(texts, noise)
    same = [image] * len(texts)
    scores = [compare(same, [*drawn]) for compare in self.towers.values()]
    rows = [
      [text, *(f'{float(x[i]):.3f}' for x in scores)]
      for i, text in enumerate(texts)
    ]
    pictures = [(enlarged(x), text) for x, text in zip(drawn, texts)]
    return pictures, table(['caption', *self.towers], rows)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """As HTML, which is read out and found like any other text."""
  line = lambda tag, cells: ''.join(
    f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells
  )
  body = ''.join(f'<tr>{line("td", row)}</tr>' for row in rows)
  return (
    f'<table><thead><tr>{line("th", heads)}</tr></thead>'
    f'<tbody>{body}</tbody></table>'
  )


def enlarged(image: UInt8[np.ndarray, 'H W 3']) -> Image.Image:
  """The picture, a small one with larger dots."""
  picture = Image.fromarray(image)
  times = max(1, SHOWN // max(picture.size))
  return picture.resize(
    (picture.width * times, picture.height * times), Image.Resampling.NEAREST
  )


def add_object(scene: Sequence[Sequence[int]], *words: str) -> list[list[int]]:
  """The scene with one more object, in place of any that stood there.

  Args:
    scene: rows as in `scenes.draw`.
    words: shape, colour, size, row and column, as `grammar.NAMES` has them.
  """
  new = [names.index(word) for names, word in zip(grammar.NAMES, words)]
  rows = [list(row) for row in scene if list(row[3:]) != new[3:]]
  return sorted([*rows, new], key=lambda row: row[3:])


def picture(scene: Sequence[Sequence[int]]) -> Image.Image:
  """A scene as the page shows it."""
  return enlarged(draw.render(np.array(scene, int)))


def page(models: Models) -> Any:
  """The page, not served yet."""
  import gradio as gr

  heads = ['caption', *models.towers]
  with gr.Blocks(title='uae_jax', analytics_enabled=False) as blocks:
    gr.Markdown(f'# Image → caption → image\n{INTRO}')
    scene = gr.State([])
    with gr.Row():
      with gr.Column(min_width=300):
        image = gr.Image(
          type='pil', format='png', label='Image', height=340,
          elem_id='image', sources=['upload', 'clipboard'],
        )  # fmt: skip
        redraw = gr.Button('Describe and redraw', variant='primary')
        with gr.Accordion('Draw a scene'):
          gr.Markdown(SCENE)
          picks = []
          for kinds in (('shape', 'colour', 'size'), ('row', 'col')):
            with gr.Row():
              picks += [_pick(gr, kind) for kind in kinds]
          with gr.Row():
            add = gr.Button('Add object', size='sm', min_width=80)
            some = gr.Button('Random scene', size='sm', min_width=80)
            clear = gr.Button('Clear', size='sm', min_width=80)
      columns = [
        _column(gr, i, name, heads, models.captions == 1)
        for i, name in enumerate(models.models)
      ]
    source = [image, scene]
    answers = [part for shown, rows, *_ in columns for part in (shown, rows)]

    def told(*args):
      try:
        return models.redraw(*args)
      except UserError as e:
        raise gr.Error(str(e)) from None

    def ask(image, scene):
      image = chosen(gr, image, scene)
      parts = [told(name, image) for name in models.models]
      return [part for pair in parts for part in pair]

    def tell(name):
      def answer(image, scene, text):
        if not text.strip():
          raise gr.Error('Write a caption first.')
        return told(name, chosen(gr, image, scene), [text])

      return answer

    redraw.click(ask, source, answers)
    for name, (shown, rows, text, button) in zip(models.models, columns):
      gr.on(
        [button.click, text.submit], tell(name), [*source, text], [shown, rows]
      )
    show = lambda scene: (picture(scene), scene)
    add.click(
      lambda scene, *words: show(add_object(scene, *words)),
      [scene, *picks], source,
    ).then(ask, source, answers)  # fmt: skip
    some.click(lambda: show(random_scene()), None, source).then(
      ask, source, answers
    )
    clear.click(lambda: (None, []), None, source)
    gr.on([image.upload, image.clear], lambda: [], None, scene)
  return blocks


def chosen(gr, image, scene):
  """The image to redraw: of a scene not its enlarged picture, but itself."""
  if scene:
    return draw.render(np.array(scene, int))
  if image is None:
    raise gr.Error('Drop an image or draw a scene first.')
  return image


def _pick(gr, kind):
  """A list of the words for one of `grammar.ATTRIBUTES`."""
  names = [*grammar.NAMES[grammar.ATTRIBUTES.index(kind)]]
  return gr.Dropdown(
    names, value=names[0], label=kind, min_width=105, elem_id=f'pick-{kind}'
  )


def _column(gr, i, name, heads, alone):
  """What a model shows: its name, drawings, scores, a caption to try."""
  with gr.Column(min_width=300, elem_id=f'model-{i}'):
    gr.Markdown(f'### {name}')
    shown = gr.Gallery(
      label='Redrawn', format='png', columns=1 if alone else 2, height=340,
      object_fit='contain', elem_id=f'drawn-{i}',
    )  # fmt: skip
    rows = gr.HTML(table(heads, []), elem_id=f'scores-{i}')
    text = gr.Textbox(
      label='A caption of yours', elem_id=f'text-{i}',
      placeholder='large red circle top left',
    )  # fmt: skip
    button = gr.Button('Redraw from it')
  return shown, rows, text, button


def random_scene() -> list[list[int]]:
  """A held-out scene."""
  source = SceneSource('heldout')
  return source[np.random.default_rng().integers(len(source))]['truth'].tolist()


def main() -> None:
  """Loads the models and serves the page until Ctrl-C."""
  if importlib.util.find_spec('gradio') is None:
    raise UserError("the page needs gradio: pip install 'uae_jax[demo]'")
  os.environ['GRADIO_ANALYTICS_ENABLED'] = 'False'
  mesh_lib.use_compilation_cache()
  mesh = mesh_lib.make_mesh(-1, SHARDS.value)
  if len(set(MODEL.value)) < len(MODEL.value):
    raise UserError(f'--model={MODEL.value} names one twice')
  loaded = {name: load(name, mesh, OPTIONS()) for name in MODEL.value}
  dtype = loaded[MODEL.value[0]].options.dtype
  models = Models(
    loaded, load_towers(TOWERS.value, mesh, dtype), CAPTIONS.value, SEED.value
  )
  import gradio as gr

  fonts = dict(font=['system-ui', 'sans-serif'], font_mono=['monospace'])
  page(models).launch(
    server_name=HOST.value,
    server_port=PORT.value,
    share=False,
    ssr_mode=False,
    footer_links=[],
    theme=gr.themes.Default(**fonts),
  )


if __name__ == '__main__':
  cli.run(main)
