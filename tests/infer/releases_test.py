"""UAE and UniWorld-V1, composed and loaded, against torch's own modules."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import FluxTransformer2DModel
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers.models.qwen2_vl import (
  image_processing_pil_qwen2_vl as qwen_images,
)

from tests.infer import tiny_releases as tiny
from tests.torch_fixtures import close
from uae_jax import trees, zoo
from uae_jax.ckpt import hf, maps_flux
from uae_jax.errors import UserError
from uae_jax.infer import compose, release_parts, releases
from uae_jax.infer.load import load
from uae_jax.models import flux as flux_model
from uae_jax.models import mmdit, siglip, vlm
from uae_jax.sharding.mesh import make_mesh, put_batch
from uae_jax.umm.painter import Painter

PROMPTS = [
  'large red circle top left',
  'small blue square middle center , large white cross bottom right',
]
NEGATIVE = 'small green triangle'
BATCH, HEIGHT, WIDTH, STEPS, TIME = 8, 32, 48, 4, 700.0
AREA = 1024  # pixels of a reference image to the language model
RNG = jax.random.key(3)
SAID = dict(
  height=HEIGHT, width=WIDTH, steps=STEPS, batch=BATCH, dtype='float32',
  length=24, max_pixels=AREA,
)  # fmt: skip


@pytest.fixture(scope='module')
def uae(tmp_path_factory):
  """(language model, pipeline, the release, our folder of it)."""
  root = tmp_path_factory.mktemp('uae')
  language, pipeline = tiny.uae(root / 'release')
  contents = releases.uae(root / 'release')
  [*compose.write(contents, root / 'ours', {}, max_shard=20000)]
  return language, pipeline, root / 'release', root / 'ours'


@pytest.fixture(scope='module')
def uniworld(tmp_path_factory):
  """(torch modules, root of the release, our folder of it)."""
  root = tmp_path_factory.mktemp('uniworld')
  parts = tiny.uniworld(root)
  contents = releases.uniworld(
    root / 'uniworld', root / 'flux', root / 'siglip'
  )
  [*compose.write(contents, root / 'ours', {})]
  return parts, root, root / 'ours'


def drawer_of(folder, references=(), **said):
  with jax.default_matmul_precision('highest'):
    model = load(
      str(folder), make_mesh(-1, 1), {**SAID, **said}, describes=False,
      references=references,
    )  # fmt: skip
  return model.drawer


def run(drawer, monkeypatch):
  """Drawings, what they are drawn from, and the velocity at the noise."""
  texts = [*PROMPTS, *[PROMPTS[-1]] * (BATCH - len(PROMPTS))]
  draw, out = Painter.__call__, {}

  def watched(self, params, noise, cond, unconditional=None):
    t = jnp.full(len(noise), TIME)
    out['velocity'] = self.velocity(params, noise, t, cond)
    out['cond'], out['unconditional'] = cond, unconditional
    out['pixels'] = draw(self, params, noise, cond, unconditional)
    return out['pixels']

  def everything(*args):
    drawer.run(*args)
    return out

  monkeypatch.setattr(Painter, '__call__', watched)
  with jax.set_mesh(drawer.mesh), jax.default_matmul_precision('highest'):
    batch = put_batch(drawer.encode(texts), drawer.mesh)
    got = jax.jit(everything)(drawer.params, batch, RNG)
  monkeypatch.undo()
  return jax.device_get(got)


def latents(i):
  """The noise that ours starts row i from, as torch lays it out."""
  shape = (BATCH, HEIGHT // 2, WIDTH // 2, 4)
  noise = np.array(jax.random.normal(RNG, shape, jnp.float32))[i : i + 1]
  return torch.tensor(noise).permute(0, 3, 1, 2)


def row(cond, i):
  """The tokens of row i that are there."""
  return cond['context'][i][cond['mask'][i]]


def nhwc(x):
  return x.permute(0, 2, 3, 1)[0].numpy()


class TorchUAE:
  """Qwen2.5-VL, projector, SD3 and its scheduler, one prompt at a time."""

  def __init__(self, language, pipeline):
    self.language, self.pipeline = language, pipeline

  def context(self, text):
    text = (
      '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n'
      f'<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n'
    )
    ids = tiny.words()(text, add_special_tokens=False, return_tensors='pt')
    out = self.language(ids.input_ids, output_hidden_states=True)
    return self.language.projector(out.hidden_states[-1])

  def pooled(self):
    out = []
    for end in ('', '_2'):
      words = getattr(self.pipeline, f'tokenizer{end}')
      ids = words('', padding='max_length', max_length=77, return_tensors='pt')
      tower = getattr(self.pipeline, f'text_encoder{end}')
      out.append(tower(ids.input_ids).text_embeds)
    return torch.cat(out, -1)

  def velocity(self, x, t, context):
    return self.pipeline.transformer(
      x, encoder_hidden_states=context, pooled_projections=self.pooled(),
      timestep=torch.full((1,), float(t)),
    ).sample  # fmt: skip

  def draw(self, text, negative, guidance, x):
    vae, scheduler = self.pipeline.vae, self.pipeline.scheduler
    with_, without = self.context(text), self.context(negative)
    scheduler.set_timesteps(STEPS)
    for t in scheduler.timesteps:
      v, u = (self.velocity(x, t, c) for c in (with_, without))
      x = scheduler.step(u + guidance * (v - u), t, x).prev_sample
    c = vae.config
    x = vae.decode(x / c.scaling_factor + c.shift_factor).sample
    return (x / 2 + 0.5).clamp(0, 1)


@torch.no_grad()
def test_uae_conditions_and_draws_as_torch_does(uae, monkeypatch):
  language, pipeline, _, folder = uae
  theirs = TorchUAE(language, pipeline)
  drawer = drawer_of(folder, negative=NEGATIVE)
  got = run(drawer, monkeypatch)
  for i, text in enumerate(PROMPTS):
    want = theirs.context(text)
    close(row(got['cond'], i), want[0])
    close(row(got['unconditional'], i), theirs.context(NEGATIVE)[0])
    close(got['cond']['pooled'][i], theirs.pooled()[0])
    v = theirs.velocity(latents(i), TIME, want)
    close(got['velocity'][i], nhwc(v))
    want = nhwc(theirs.draw(text, NEGATIVE, 5.0, latents(i)))
    assert want.std() > 0.02  # there is something to see
    np.testing.assert_allclose(got['pixels'][i], want, atol=1e-4)


def test_uae_holds_what_was_laid_over_and_merged(uae):
  _, pipeline, release, folder = uae
  ours = tensors(folder / 'policy')
  base, over = tensors(release / 'llm_model'), tensors(release / 'llm_lora')
  assert {x.dtype for x in ours.values()} == {torch.float32}
  assert not [name for name in ours if 'projector' in name]
  for name, x in ours.items():
    memory = name.replace('model.', 'model.language_model.', 1)
    want = base[name] if name.startswith('visual.') else over[memory]
    assert torch.equal(x, want), name
  connector = tensors(folder / 'decoder' / 'connector')
  assert torch.equal(connector['projector.2.bias'], over['projector.2.bias'])
  ours = tensors(folder / 'decoder' / 'transformer')
  plain, merged = tensors(release / 'dit'), pipeline.transformer.state_dict()
  assert ours.keys() == plain.keys()
  moved = {name for name in ours if not torch.equal(ours[name], plain[name])}
  assert {name.split('.')[-3] for name in moved} >= {'attn', 'to_out'}
  assert 'pos_embed.proj.weight' in moved
  for name in ours:
    torch.testing.assert_close(ours[name], merged[name], atol=1e-6, rtol=0)
  options = json.loads((folder / 'umm.json').read_text())
  assert options == releases.UAE
  assert (folder / 'policy' / 'tokenizer.json').exists()
  names = {p.name for p in (folder / 'decoder').iterdir()}
  assert names == {'transformer', 'connector', 'vae', 'scheduler'}
  # The parts are folders of transformers and diffusers.
  kind = type(pipeline.transformer)
  again = kind.from_pretrained(folder / 'decoder' / 'transformer')
  assert again.config['num_layers'] == 2
  model, info = tiny.Qwen2_5_VLForConditionalGeneration.from_pretrained(
    folder / 'policy', output_loading_info=True
  )
  assert not info['missing_keys'] and not info['unexpected_keys']


def tensors(folder):
  """Every tensor of a folder's files."""
  out = {}
  for file in sorted(folder.glob('*.safetensors')):
    out |= load_file(file)
  return out


class TorchUniWorld:
  """UniWorld's context from its parts, for one prompt; FLUX draws it."""

  def __init__(self, parts):
    self.parts = parts

  def context(self, text, images=()):
    parts, words = self.parts, tiny.words()
    processor = qwen_images.Qwen2VLImageProcessorPil(
      min_pixels=AREA, max_pixels=AREA, patch_size=4, merge_size=2
    )
    seen = processor(images=list(images)) if images else None
    turn = ''
    for i in range(len(images)):
      n = int(np.prod(seen['image_grid_thw'][i])) // 4
      turn += f'<|vision_start|>{"<|image_pad|>" * n}<|vision_end|>'
    text = f'<|im_start|>user\n{text}{turn}<|im_end|>\n<|im_start|>assistant\n'
    ids = words(text, add_special_tokens=False, return_tensors='pt').input_ids
    kwargs = {}
    if images:
      kwargs = dict(
        pixel_values=torch.tensor(np.array(seen['pixel_values'])),
        image_grid_thw=torch.tensor(np.array(seen['image_grid_thw'])),
        mm_token_type_ids=(ids == tiny.IMAGE_PAD).int(),
      )
    out = parts['language'](ids, output_hidden_states=True, **kwargs)
    states = parts['denoise'](out.hidden_states[-1])[0]
    if images:
      blocks = iter(parts['eye'](self.patches(images)))
      pieces = []
      for token, state in zip(ids[0], states):
        if token == tiny.VISION_END:
          pieces.append(next(blocks))
        pieces.append(state[None])
      states = torch.cat(pieces)
    return states[None]

  def patches(self, images):
    x = [im.resize((24, 24), Image.Resampling.BILINEAR) for im in images]
    x = np.stack([np.asarray(im, np.float32) / 127.5 - 1 for im in x])
    x = torch.tensor(x).permute(0, 3, 1, 2)
    return self.parts['siglip'].vision_model(x).last_hidden_state

  def conditioning(self, text, images=(), joint=False):
    """(context, pooled) as FLUX reads them."""
    t5, pooled, _ = self.parts['pipeline'].encode_prompt(
      text if joint else '', None, max_sequence_length=256
    )
    context = self.context(text, images)
    return torch.cat([context, t5], 1) if joint else context, pooled

  def velocity(self, x, t, context, pooled):
    pipeline, (h, w) = self.parts['pipeline'], x.shape[2:]
    out = pipeline.transformer(
      hidden_states=pipeline._pack_latents(x, 1, x.shape[1], h, w),
      encoder_hidden_states=context, pooled_projections=pooled,
      timestep=torch.full((1,), t / 1000), guidance=torch.full((1,), 3.5),
      img_ids=pipeline._prepare_latent_image_ids(
        1, h // 2, w // 2, 'cpu', torch.float32
      ),
      txt_ids=torch.zeros(context.shape[1], 3),
    ).sample  # fmt: skip
    return pipeline._unpack_latents(out, h, w, 1)

  def draw(self, context, pooled, x):
    pipeline, (h, w) = self.parts['pipeline'], x.shape[2:]
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
      prompt_embeds=context, pooled_prompt_embeds=pooled, guidance_scale=3.5,
      num_inference_steps=STEPS, height=HEIGHT, width=WIDTH,
      latents=pipeline._pack_latents(x, 1, x.shape[1], h, w),
      output_type='np',
    ).images[0]  # fmt: skip


def photographs():
  """Two images of other sizes than any model wants."""
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
  images = [Image.fromarray(draw(7, 11)), Image.fromarray(draw(13, 6))]
  sizes = [(70, 45), (37, 61)]
  return [im.resize(s, Image.BICUBIC) for im, s in zip(images, sizes)]


@pytest.mark.parametrize(
  'joint, images', [(False, 0), (True, 0), (False, 1), (True, 2)]
)
@torch.no_grad()
def test_uniworld_conditions_and_draws_as_torch_does(
  uniworld, monkeypatch, joint, images
):
  parts, _, folder = uniworld
  theirs, images = TorchUniWorld(parts), photographs()[:images]
  got = run(drawer_of(folder, images, joint=joint), monkeypatch)
  for i, text in enumerate(PROMPTS):
    want = theirs.conditioning(text, images, joint)
    close(row(got['cond'], i), want[0][0])
    close(got['cond']['pooled'][i], want[1][0])
    v = theirs.velocity(latents(i), TIME, *want)
    close(got['velocity'][i], nhwc(v))
    image = theirs.draw(*want, latents(i))
    assert image.std() > 0.02
    np.testing.assert_allclose(got['pixels'][i], image, atol=1e-4)


def test_uniworld_is_used_as_released(uniworld):
  parts, root, folder = uniworld
  options = json.loads((folder / 'umm.json').read_text())
  assert options == {**releases.UNIWORLD, 'joint': True}
  names = {p.name for p in (folder / 'decoder').iterdir()}
  assert names == {
    'transformer', 'connector', 'vae', 'scheduler', 'siglip',
    'siglip_projector', 'text_encoder', 'text_encoder_2', 'tokenizer',
    'tokenizer_2',
  }  # fmt: skip
  state = tensors(folder / 'decoder' / 'transformer')
  want = parts['pipeline'].transformer.state_dict()
  assert state.keys() == want.keys()
  assert all(torch.equal(state[name], want[name]) for name in want)
  eye = tensors(folder / 'decoder' / 'siglip')
  assert not [name for name in eye if 'text_model' in name]
  stored = tensors(root / 'uniworld')
  assert [name for name in stored if 'vae_projector' in name]


def edited(folder, file, **changes):
  """Rewrites tensors of a file; None deletes."""
  state = load_file(folder / file)
  for name, x in changes.items():
    name = name.replace('__', '.')
    state.pop(name, None)
    if x is not None:
      state[name] = x
  save_file(state, folder / file)


def file_of(folder, name):
  index = json.loads((folder / 'model.safetensors.index.json').read_text())
  return index['weight_map'][name]


def test_everything_that_does_not_fit_uae_is_one_error(uae, tmp_path):
  folder = tmp_path / 'release'
  shutil.copytree(uae[2], folder)
  llm, rest = folder / 'llm_model', folder / 'SD3'
  edited(llm, file_of(llm, 'visual.merger.mlp.0.bias'),
         visual__merger__mlp__0__bias=None)  # fmt: skip
  last = 'model-00003-of-00003.safetensors'
  edited(folder / 'llm_lora', last, ghost=torch.ones(2),
         projector__2__bias=torch.ones(3))  # fmt: skip
  stem = 'diffusion_pytorch_model.safetensors'
  edited(folder / 'dit', stem, proj_out__bias=None)
  edited(rest / 'vae', stem, odd=torch.ones(1))
  shutil.rmtree(rest / 'scheduler')
  shutil.rmtree(rest / 'tokenizer_2')
  (llm / 'preprocessor_config.json').unlink()
  with pytest.raises(UserError) as e:
    releases.uae(folder)
  says = str(e.value)
  for text in (
    'missing visual.merger.mlp.0.bias',
    'unknown ghost [2]',
    'projector.2.bias is [3], expected [48]',
    'missing proj_out.bias',
    'unknown odd [1]',
    'scheduler_config.json is missing',
    'tokenizer_2 is missing',
    "lacks ['preprocessor_config.json']: say --processor=FOLDER",
  ):
    assert text in says, text
  assert '\n' not in says


def test_a_processor_may_come_from_elsewhere(uae, tmp_path):
  folder = tmp_path / 'release'
  shutil.copytree(uae[2], folder)
  for name in ('tokenizer.json', 'preprocessor_config.json'):
    (folder / 'llm_model' / name).unlink()
  contents = releases.uae(folder, tiny.PROCESSORS)
  names = {file.name for file in contents.pieces['policy'].files}
  assert names >= {'tokenizer.json', 'preprocessor_config.json'}


def test_everything_that_does_not_fit_uniworld_is_one_error(uniworld, tmp_path):
  _, root, _ = uniworld
  folder, flux = tmp_path / 'uniworld', tmp_path / 'flux'
  shutil.copytree(root / 'uniworld', folder)
  shutil.copytree(root / 'flux', flux)
  tower = 'denoise_tower'
  gone = f'{tower}.denoiser.x_embedder.weight'
  edited(folder, file_of(folder, gone), **{gone: None})
  wide = f'{tower}.siglip_projector.0.weight'
  edited(folder, file_of(folder, wide), **{wide: torch.ones(56, 7)})
  unused = f'{tower}.vae_projector.4.bias'
  edited(folder, 'model-00001-of-00002.safetensors', **{unused: torch.ones(1)})
  shutil.rmtree(flux / 'text_encoder')
  with pytest.raises(UserError) as e:
    releases.uniworld(folder, flux, root / 'siglip')
  for text in (
    f'missing {gone}',
    f'the index names {gone}',
    f'{wide} is [56, 7], expected [56, 24]',
    f'unknown {unused} [1]',
    'text_encoder/config.json is missing',
  ):
    assert text in str(e.value), text


def test_pickles_of_a_release_come_with_a_command(uniworld, tmp_path):
  _, root, _ = uniworld
  shutil.copytree(root / 'uniworld', tmp_path / 'release')
  for file in (tmp_path / 'release').glob('model*safetensors*'):
    file.unlink()
  torch.save({'a': torch.ones(2)}, tmp_path / 'release' / 'pytorch_model.bin')
  with pytest.raises(UserError, match='refused; convert them once with: pyth'):
    releases.uniworld(tmp_path / 'release', root / 'flux')


def test_composing_goes_on_where_it_stopped(uae, tmp_path, monkeypatch):
  out, note = tmp_path / 'ours', {'from': 'here'}
  contents = releases.uae(uae[2])
  steps = compose.write(contents, out, note)
  assert [next(steps), next(steps)] == ['policy', 'decoder/transformer']
  del steps
  assert not out.exists()
  written = []
  save = compose.export.save_tensors

  def watched(folder, *a, **kw):
    written.append(folder.name)
    return save(folder, *a, **kw)

  monkeypatch.setattr(compose.export, 'save_tensors', watched)
  done = [*compose.write(contents, out, note)]
  assert done[:2] == ['policy', 'decoder/transformer'] and len(done) == 5
  assert written == ['connector']
  names = {p.name for p in tmp_path.iterdir()}
  assert names == {'ours'}
  assert {p.name for p in out.iterdir()} == {'policy', 'decoder', 'umm.json'}
  for file in uae[3].rglob('*.json'):
    if 'index' not in file.name:  # that folder was written in more shards
      there = out / file.relative_to(uae[3])
      assert there.read_bytes() == file.read_bytes(), file
  with pytest.raises(UserError, match='is not an empty folder'):
    [*compose.write(contents, out, note)]


def test_parts_of_other_settings_are_made_again(uae, tmp_path):
  out = tmp_path / 'ours'
  contents = releases.uae(uae[2])
  next(compose.write(contents, out, {'dtype': None}))
  [*compose.write(contents, out, {'dtype': 'b'}, np.dtype(jnp.bfloat16))]
  for part in ('policy', 'decoder/transformer', 'decoder/connector'):
    kinds = {x.dtype for x in tensors(out / part).values()}
    assert kinds == {torch.bfloat16}, part


def test_what_a_folder_cannot_is_refused(uae, uniworld, tmp_path):
  root = tmp_path / 'plain'
  shutil.copytree(uniworld[2], root)
  for name in ('siglip', 'text_encoder_2'):
    shutil.rmtree(root / 'decoder' / name)
  with pytest.raises(UserError, match='no siglip.*--siglip=FOLDER'):
    drawer_of(root, photographs()[:1], joint=False)
  with pytest.raises(UserError, match='no text_encoder_2'):
    drawer_of(root)
  with pytest.raises(UserError, match='guidance as an input'):
    drawer_of(uae[3], joint=True)
  with pytest.raises(UserError, match='no captioner beside a decoder'):
    drawer_of(uniworld[1] / 'flux', joint=True)
  with pytest.raises(UserError, match='negative prompt has 3 tokens'):
    drawer_of(uae[3], negative=NEGATIVE, length=2)


def on_meta(make):
  """Names and shapes of a torch model of real size."""
  with torch.device('meta'):
    module = make()
  return {name: tuple(x.shape) for name, x in module.state_dict().items()}


def real_qwen(name, tied):
  fields = dict(vlm.VARIANTS[name], image_pad=151655)
  ours = zoo.policy(fields, {})
  config = tiny.Qwen2_5_VLConfig(**ours.hub_config)
  theirs = on_meta(lambda: tiny.Qwen2_5_VLForConditionalGeneration(config))
  hub = {tiny.released(name): shape for name, shape in theirs.items()}
  if tied:
    del hub['lm_head.weight']
  return ours, hub


def projectors(**sizes):
  """Names and shapes of two-layer projectors: width, hidden, out."""
  out = {}
  for name, (width, hidden, wide) in sizes.items():
    name = name.replace('__', '.')
    out |= {
      f'{name}.0.weight': (hidden, width), f'{name}.0.bias': (hidden,),
      f'{name}.2.weight': (wide, hidden), f'{name}.2.bias': (wide,),
    }  # fmt: skip
  return out


def check_real(parts, hub, ignore):
  rows, shapes = release_parts.table(parts)
  ours = {path: x.shape for path, x in trees.flatten(shapes).items()}
  assert not hf.check(rows, ours, hub, ignore)
  assert hf.check(rows, ours, {**hub, 'more': (1,)}, ignore)


def test_the_real_uniworld_checkpoint():
  policy, hub = real_qwen('qwen2.5-vl-7b', tied=False)
  fields = flux_model.VARIANTS['flux-dev']
  transformer = zoo.flux_decoder(fields)
  config = dict(maps_flux.to_hf(fields))
  del config['_class_name']
  theirs = on_meta(lambda: FluxTransformer2DModel(**config))
  hub |= {f'denoise_tower.denoiser.{k}': x for k, x in theirs.items()}
  hub |= projectors(
    denoise_tower__denoise_projector=(3584, 12288, 4096),
    denoise_tower__siglip_projector=(1152, 12288, 4096),
    denoise_tower__vae_projector=(64, 3072, 4096),
  )
  eye = zoo.siglip_tower(
    dict(siglip.VARIANTS['siglip2-so400m-16-512'], language=None)
  )
  parts = releases.uniworld_parts(policy, transformer, eye, {})
  check_real(parts, hub, (*releases.ignored(policy), *releases.UNUSED))
  assert sum(map(np.prod, hub.values())) == 20_365_253_696


def test_the_real_uae_checkpoint():
  policy, hub = real_qwen('qwen2.5-vl-3b', tied=True)
  transformer = zoo.decoder(mmdit.VARIANTS['sd3.5-large'])
  hub |= projectors(projector=(2048, 8192, 4096))
  parts = releases.uae_parts(policy, transformer, {})
  check_real(parts, hub, releases.ignored(policy))
  check_real(parts, {**hub, 'lm_head.weight': (151936, 2048)},
             releases.ignored(policy))  # fmt: skip
  assert sum(map(np.prod, hub.values())) == 3_754_622_976 + 50_343_936
  # Positions are a buffer of torch's.
  positions = 192**2 * 2432
  assert trees.count(transformer.shapes()) == 8_056_627_520 + positions
