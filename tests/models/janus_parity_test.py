"""Janus-Pro against transformers: reading, drawing, both layouts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import JanusConfig, JanusForConditionalGeneration

from tests.torch_fixtures import close, close_rms, randomise
from uae_jax import trees
from uae_jax.ckpt import hf, maps_janus
from uae_jax.models import janus, vq
from uae_jax.models.clip import patches
from uae_jax.sharding import rules, table_janus, table_vae
from uae_jax.types import KV, Batch

PAD, BOS, EOS, BOI, IMAGE = 102, 100, 101, 103, 104
CONFIG = dict(
  text_config=dict(
    model_type='llama', vocab_size=120, hidden_size=64, intermediate_size=96,
    num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
    rms_norm_eps=1e-6, bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD,
    rope_parameters=dict(rope_type='default', rope_theta=1e4),
  ),
  vision_config=dict(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=64,
    patch_size=16, projection_dim=64, num_image_tokens=16,
  ),
  vq_config=dict(
    num_embeddings=50, embed_dim=8, projection_dim=64,
    image_token_embed_dim=64, base_channels=32, channel_multiplier=[1, 1, 2],
    latent_channels=32, num_res_blocks=2, num_patches=4,
  ),
  image_token_id=IMAGE, tie_word_embeddings=False,
)  # fmt: skip
CODES = 16


def shapes_of(fields):
  v = fields['vision']
  module = janus.Janus(
    fields['vision'], fields['lm'], fields['draw'], image_pad=IMAGE
  )
  tokens = (v['size'] // v['patch']) ** 2
  ids = jnp.full((1, 1), IMAGE, jnp.int32)
  batch = Batch(
    patches=jnp.zeros((1, tokens, 3 * v['patch'] ** 2)),
    patch_hw=None, patch_window=None, patch_image=None,
    prefix_ids=ids, prefix_positions=jnp.zeros((1, 3, 1), jnp.int32),
    prefix_mask=jnp.ones((1, 1), bool), image=None,
  )  # fmt: skip
  init = lambda key: module.init(key, batch)['params']
  return module, jax.eval_shape(init, jax.random.key(0))


def vq_shapes(fields):
  module = vq.VQ(**fields)
  side = 4 * module.factor
  init = lambda key: module.init(key, jnp.zeros((1, side, side, 3)))['params']
  return module, jax.eval_shape(init, jax.random.key(0))


def load_both(folder):
  """(fields, policy, its parameters, tokenizer, its parameters)."""
  config = hf.read_config(folder)
  fields = maps_janus.from_hf(config)
  layout = maps_janus.layout_of(config)
  module, shapes = shapes_of(fields)
  params = hf.load(
    folder, maps_janus.table(fields['vision'], fields['lm']), shapes,
    ignore=maps_janus.ignore(layout, 'policy'),
  )  # fmt: skip
  coder, shapes = vq_shapes(fields['vq'])
  codes = hf.load(
    folder, maps_janus.vq_table(layout, **fields['vq']), shapes,
    ignore=maps_janus.ignore(layout, 'vq'),
  )  # fmt: skip
  return fields, module, params, coder, codes


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  """A random torch Janus, saved; and ours loaded from its folder."""
  theirs = randomise(JanusForConditionalGeneration(JanusConfig(**CONFIG)))
  folder = tmp_path_factory.mktemp('janus')
  theirs.save_pretrained(folder)
  return theirs, folder, *load_both(folder)


def reading(length=300):
  """ids with one image among words, and its pixels."""
  rng = np.random.default_rng(0)
  ids = rng.integers(3, 99, (2, length))
  ids[:, 0] = BOS
  ids[:, 5 : 5 + 16] = IMAGE
  pixels = rng.normal(size=(2, 64, 64, 3)).astype(np.float32)
  return ids, pixels


def batch_of(ids, pixels):
  b, s = ids.shape
  at = np.broadcast_to(np.arange(s), (b, 3, s))
  return Batch(
    patches=patches(jnp.asarray(pixels), 16),
    patch_hw=None, patch_window=None, patch_image=None,
    prefix_ids=jnp.asarray(ids), prefix_positions=jnp.asarray(at),
    prefix_mask=jnp.ones((b, s), bool), image=None,
  )  # fmt: skip


def apply(module, params, *args, **kw):
  with jax.default_matmul_precision('highest'):
    return module.apply({'params': params}, *args, **kw)


def chw(x):
  return torch.tensor(np.asarray(x)).permute(0, 3, 1, 2)


def test_logits_of_every_position(model):
  theirs, _, _, module, params, *_ = model
  ids, pixels = reading()
  with torch.no_grad():
    want = theirs(input_ids=torch.tensor(ids), pixel_values=chw(pixels)).logits
  close(apply(module, params, batch_of(ids, pixels)), want)


def test_bfloat16_stays_close(model):
  _, _, _, module, params, *_ = model
  batch = batch_of(*reading(40))
  full = apply(module, params, batch)
  close_rms(apply(module.clone(dtype='bfloat16'), params, batch), full)


def test_captions_equal_generate(model):
  """Greedy captions, token for token, through prefill and decode."""
  theirs, _, _, module, params, *_ = model
  ids, pixels = reading(30)
  with torch.no_grad():
    want = theirs.generate(
      torch.tensor(ids), pixel_values=chw(pixels), do_sample=False,
      attention_mask=torch.ones(ids.shape, dtype=int),
      max_new_tokens=12, min_new_tokens=12, generation_mode='text',
    )[:, 30:].numpy()  # fmt: skip
  run = functools.partial(apply, module, params)
  prefix = run(batch_of(ids, pixels), method='prefill')
  logits = run(prefix.hidden[:, None], method='logits')
  cache = run(2, 1, 12, method='empty_cache')
  got = []
  for t in range(12):
    logits = jnp.where(jnp.arange(120) == EOS, -jnp.inf, logits)
    got.append(jnp.argmax(logits, -1))
    logits, cache = run(prefix, cache, got[-1], jnp.int32(t), method='decode')
  np.testing.assert_array_equal(np.stack(got, -1)[:, 0], want)


def guided(pair, weight):
  cond, free = pair[:, 0], pair[:, 1]
  return free + weight * (cond - free)


def draw(module, params, ids, weight=5.0):
  """Greedy guided codes [B I], and the guided logits [B I K]."""
  free = np.where((ids == BOS) | (ids == BOI), ids, PAD)
  both = jnp.asarray(np.stack([ids, free], 1))
  run = functools.partial(apply, module, params)
  prompt = run(both, jnp.ones(both.shape, bool), method='read_prompt')
  cache = run(len(ids), 2, CODES, method='empty_cache')
  logits = run(prompt.hidden, method='code_logits')
  codes, seen = [], []
  step = jax.jit(functools.partial(run, method='decode_code'))
  for t in range(CODES):
    seen.append(guided(logits, weight))
    codes.append(jnp.argmax(seen[-1], -1))
    twice = jnp.stack([codes[-1]] * 2, 1)
    logits, cache = step(prompt, cache, twice, jnp.int32(t))
  return prompt, jnp.stack(codes, 1), jnp.stack(seen, 1)


def test_image_codes_equal_generate_with_guidance(model):
  theirs, _, _, module, params, *_ = model
  ids = np.array([[BOS, 5, 6, 7, 8, 9, BOI], [BOS, 30, 31, 32, 33, 34, BOI]])
  config = theirs.generation_config
  config.generation_kwargs = {'boi_token_id': BOI}
  config.pad_token_id, config.bos_token_id = PAD, BOS
  with torch.no_grad():
    want = theirs.generate(
      torch.tensor(ids), attention_mask=torch.ones(ids.shape, dtype=int),
      generation_mode='image', do_sample=False, guidance_scale=5.0,
    ).numpy()  # fmt: skip
  prompt, codes, seen = draw(module, params, ids)
  np.testing.assert_array_equal(codes, want)
  # Taught in one pass, the logits are those of the cached loop.
  twice = jnp.stack([codes] * 2, 1)
  taught = apply(module, params, prompt, twice, method='teach_codes')
  close(guided(taught, 5.0), seen)


def test_padded_prompts_are_as_if_alone(model):
  _, _, _, module, params, *_ = model
  ids = np.array([[BOS, 5, 6, BOI, PAD, PAD], [BOS, 7, 8, 9, 10, BOI]])
  mask = np.array([[1, 1, 1, 1, 0, 0], [1] * 6], bool)
  run = functools.partial(apply, module, params)
  both = run(ids[:, None], mask[:, None], method='read_prompt')
  alone = run(ids[:1, None, :4], mask[:1, None, :4], method='read_prompt')
  codes = jnp.arange(8).reshape(1, 1, 8)
  teach = functools.partial(run, method='teach_codes')
  got = teach(both, jnp.tile(codes, (2, 1, 1)))[:1]
  close(got, teach(alone, codes))


@pytest.mark.parametrize('grid', [(4, 4), (2, 6)])
def test_codes_to_pixels(model, grid):
  theirs, *_, coder, params = model
  codes = np.random.default_rng(1).integers(0, 50, (2, grid[0] * grid[1]))
  got = apply(coder, params, codes, grid[0], method='decode')
  vqmodel = theirs.model.vqmodel
  with torch.no_grad():
    book = torch.nn.functional.normalize(
      vqmodel.quantize.embedding.weight, dim=-1
    )
    z = book[torch.tensor(codes)].reshape(2, *grid, 8).permute(0, 3, 1, 2)
    want = vqmodel.decoder(vqmodel.post_quant_conv(z)).permute(0, 2, 3, 1)
    if grid == (4, 4):
      np.testing.assert_allclose(
        theirs.decode_image_tokens(torch.tensor(codes)).numpy(), want, atol=1e-5
      )
  close(got, want)


def test_pixels_to_codes(model):
  """Against transformers with a codebook of unit rows, where both agree."""
  theirs, *_, coder, params = model
  pixels = np.random.default_rng(2).uniform(-1, 1, (2, 16, 16, 3))
  pixels = pixels.astype(np.float32)
  vqmodel = theirs.model.vqmodel
  with torch.no_grad():
    hidden = vqmodel.quant_conv(vqmodel.encoder(chw(pixels)))
    z = torch.nn.functional.normalize(hidden, dim=1)
    book = torch.nn.functional.normalize(
      vqmodel.quantize.embedding.weight, dim=-1
    )
    scores = torch.einsum('bchw,kc->bhwk', z, book).reshape(2, -1, 50)
  got = apply(coder, params, pixels, method='latents')
  close(got, hidden.permute(0, 2, 3, 1))
  codes = apply(coder, params, pixels, method='encode')
  np.testing.assert_array_equal(codes, scores.argmax(-1))


def export(folder, fields, module, params, codes):
  layout = 'deepseek' if fields['vision']['fused'] else 'transformers'
  config = maps_janus.to_hf(**fields, image_pad=IMAGE)
  table = (
    *(r for r in maps_janus.table(fields['vision'], fields['lm'])),
    *_under('vq', maps_janus.vq_table(layout, **fields['vq'])),
  )
  hf.save(folder, table, {**params, 'vq': codes}, config)


def _under(prefix, rows):
  import dataclasses

  return [dataclasses.replace(r, path=f'{prefix}/{r.path}') for r in rows]


def test_export_is_read_back_by_transformers(model, tmp_path):
  theirs, folder, fields, module, params, _, codes = model
  export(tmp_path, fields, module, params, codes)
  want = load_file(folder / 'model.safetensors')
  got = load_file(tmp_path / 'model.safetensors')
  assert set(got) == set(want)
  for name, tensor in want.items():
    assert torch.equal(tensor, got[name]), name
  again, info = JanusForConditionalGeneration.from_pretrained(
    tmp_path, output_loading_info=True
  )
  assert not info['missing_keys'] and not info['unexpected_keys']
  ids, pixels = reading(30)
  with torch.no_grad():
    a, b = (m(input_ids=torch.tensor(ids), pixel_values=chw(pixels)).logits
            for m in (theirs, again.eval()))  # fmt: skip
  assert torch.equal(a, b)


def to_deepseek(state):
  """transformers' tensors under the names of the original release."""
  out, fused = {}, {}
  for name, x in state.items():
    name = name.replace('model.vision_model.', 'vision_model.vision_tower.')
    for new, old in (
      ('embeddings.patch_embedding', 'patch_embed.proj'),
      ('encoder.layers', 'blocks'),
      ('self_attn.projection_layer', 'attn.proj'),
      ('layer_norm', 'norm'), ('post_layernorm', 'norm'),
      ('model.aligner.fc1', 'aligner.layers.0'),
      ('model.aligner.hidden_layers.0', 'aligner.layers.2'),
      ('model.generation_aligner.fc1', 'gen_aligner.layers.0'),
      ('model.generation_aligner.hidden_layers.0', 'gen_aligner.layers.2'),
      ('model.generation_embeddings', 'gen_embed'),
      ('model.generation_head.proj_out', 'gen_head.output_mlp_projector'),
      ('model.generation_head', 'gen_head'),
      ('model.language_model', 'language_model.model'),
      ('lm_head', 'language_model.lm_head'),
      ('model.vqmodel', 'gen_vision_model'),
      ('encoder.down.', 'encoder.conv_blocks.'),
      ('decoder.up.', 'decoder.conv_blocks.'),
      ('.block.', '.res.'), ('mid.block_1', 'mid.0'), ('mid.attn_1', 'mid.1'),
      ('mid.block_2', 'mid.2'),
    ):  # fmt: skip
      name = name.replace(new, old)
    if name.endswith('position_embedding.weight'):
      out['vision_model.vision_tower.pos_embed'] = x[None]
    elif '.self_attn.' in name and 'vision_tower' in name:
      head, tail = name.split('.self_attn.')
      key = f'{head}.attn.qkv.{tail.split(".")[-1]}'
      fused.setdefault(key, {})[tail[0]] = x
    else:
      out[name] = x
  for key, parts in fused.items():
    out[key] = torch.cat([parts[p] for p in 'qkv'])
  out['gen_vision_model.quantize.codebook_used'] = torch.zeros(8)
  out['vision_model.vision_tower.attn_pool.latent'] = torch.zeros(1, 1, 32)
  return {k: v.contiguous() for k, v in out.items()}


def test_the_original_layout_gives_the_same_model(model, tmp_path):
  theirs, _, fields, module, params, coder, codes = model
  state = to_deepseek(theirs.state_dict())
  save_file(state, tmp_path / 'model.safetensors')
  fields = {**fields, 'vision': {**fields['vision'], 'fused': True}}
  other, shapes = shapes_of(fields)
  loaded = hf.load(
    tmp_path, maps_janus.table(fields['vision'], fields['lm']), shapes,
    ignore=maps_janus.ignore('deepseek', 'policy'),
  )  # fmt: skip
  batch = batch_of(*reading(40))
  np.testing.assert_allclose(
    apply(other, loaded, batch), apply(module, params, batch), atol=1e-5
  )
  book = hf.load(
    tmp_path, maps_janus.vq_table('deepseek', **fields['vq']),
    vq_shapes(fields['vq'])[1], ignore=maps_janus.ignore('deepseek', 'vq'),
  )  # fmt: skip
  jax.tree.map(np.testing.assert_array_equal, book, codes)
  # And back: every tensor that the model uses, byte for byte.
  out = tmp_path / 'out'
  export(out, fields, other, loaded, book)
  got = load_file(out / 'model.safetensors')
  unused = {k for k in state if 'attn_pool' in k or 'codebook_used' in k}
  assert set(got) == set(state) - unused
  for name, tensor in got.items():
    assert torch.equal(tensor, state[name]), name


@pytest.mark.parametrize(
  'name, count',
  [
    # Tower, aligner, embeddings, aligner and head of codes, decoder, head.
    ('janus-pro-1b', 303_688_704 + 6_295_552 + 131_072 + 4_214_784
     + 37_767_168 + 1_442_940_928 + 102400 * 2048),
    ('janus-pro-7b', 303_688_704 + 20_979_712 + 131_072 + 16_818_176
     + 83_906_560 + 6_490_935_296 + 102400 * 4096),
  ],
)  # fmt: skip
@pytest.mark.parametrize('fused', [False, True])
def test_real_sizes(name, count, fused):
  fields = janus.VARIANTS[name]
  fields = {**fields, 'vision': {**fields['vision'], 'fused': fused}}
  _, shapes = shapes_of(fields)
  assert trees.count(shapes) == count
  rules.specs(shapes, table_janus.rules(fused=fused, tied=False))
  sizes = vq.VARIANTS['vq-16']
  coder, coder_shapes = vq_shapes(sizes)
  assert trees.count(coder_shapes) == 71_883_403
  rules.specs(coder_shapes, table_vae.VQ)
  config = maps_janus.to_hf(**fields, vq=sizes, image_pad=100581)
  again = maps_janus.from_hf(config)
  assert {k: again['lm'][k] for k in fields['lm']} == fields['lm']
  assert again['vision'] == fields['vision']
  assert again['draw'] == fields['draw'] and again['vq'] == sizes
  if fused:
    return
  del config['architectures'], config['model_type']
  with torch.device('meta'):
    theirs = JanusForConditionalGeneration(JanusConfig(**config))
  hub = {k: tuple(v.shape) for k, v in theirs.state_dict().items()}
  flat = lambda tree: {p: x.shape for p, x in trees.flatten(tree).items()}
  for part, table, ours in (
    ('policy', maps_janus.table(fields['vision'], fields['lm']), shapes),
    ('vq', maps_janus.vq_table('transformers', **sizes), coder_shapes),
  ):
    skip = maps_janus.ignore('transformers', part)
    assert not hf.check(table, flat(ours), hub, skip)


def test_the_tiny_variant_draws():
  fields = janus.VARIANTS['tiny']
  module, shapes = shapes_of(fields)
  rules.specs(shapes, table_janus.rules(fused=False, tied=False))
  cache = module.apply({}, 2, 3, 4, method='empty_cache')
  assert isinstance(cache, KV) and cache.k.shape == (4, 2, 3, 4, 4, 32)
