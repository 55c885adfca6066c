"""Released UMM-1 models -> the folder of ours that each becomes.

- UAE (`zhiyuanyan1/UAE`): `llm_model/` holds Qwen2.5-VL-3B and the projector,
  `llm_lora/` whole weights laid over both, `dit/` the transformer of
  SD3.5-large, `dit_lora/` an adapter of it, `SD3/` the rest of a pipeline.
- UniWorld-V1: one checkpoint of Qwen2.5-VL-7B, of FLUX.1-dev's transformer
  and of projectors; SigLIP 2 and the rest of FLUX.1-dev are folders apart.

Only headers and configuration are read here; `infer.compose` writes.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from uae_jax import zoo
from uae_jax.ckpt import hf, peft
from uae_jax.ckpt.export import Tensor
from uae_jax.ckpt.safetensors_io import Entry
from uae_jax.infer import release_parts as lib
from uae_jax.infer.compose import Contents, Piece
from uae_jax.infer.release_parts import Part
from uae_jax.infer.uniworld import PROJECTOR, SIGLIP
from uae_jax.models.connector import VARIANTS

# umm.json: how the releases are used.
UAE = dict(
  system='You are a helpful assistant.',
  length=512,
  temperature=0.7,
  height=1024,
  width=1024,
  steps=40,
  guidance=5.0,
  # The release leads away from a sentence of its own: say --negative=….
  negative='',
  dtype='bfloat16',
)
UNIWORLD = dict(
  max_pixels=448 * 448,
  height=1024,
  width=1024,
  steps=28,
  guidance=3.5,
  dtype='bfloat16',
)

TOWER = 'denoise_tower'
# Stored with UniWorld; no released way of drawing reads it.
UNUSED = (rf'{TOWER}\.vae_projector\.[02]\.(weight|bias)',)


def is_uae(folder: Path) -> bool:
  """Has the folder UAE's layout, as far as it is there?"""
  return (folder / 'llm_model').is_dir() or (folder / 'dit').is_dir()


def uae(folder: Path, processor: Path | None = None) -> Contents:
  """UAE's release.

  Args:
    folder: the release.
    processor: has tokenizer and preprocessor where `llm_model` lacks them.

  Raises:
    UserError: listing everything that is missing or does not fit.
  """
  llm, dit, rest = (folder / name for name in ('llm_model', 'dit', 'SD3'))
  over = [p for p in [folder / 'llm_lora'] if p.is_dir()]
  policy, transformer, *_ = lib.every(
    lambda: zoo.policy_from_folder(llm),
    lambda: zoo.decoder_from_folder(dit),
    *(partial(lib.refuse_pickles, p) for p in (llm, *over)),
  )
  parts = uae_parts(policy, transformer, hf.headers(llm))
  connector = parts['connector'].model
  found, entries, (pairs, scale), constant, files, copies = lib.every(
    lambda: lib.locate(llm, parts, ignore=ignored(policy), over=over),
    lambda: lib.find(transformer, dit),
    lambda: lib.adapter(folder / 'dit_lora', transformer),
    lambda: lib.constant(rest, ('', '_2'), connector),
    lambda: lib.policy_files(processor or llm),
    lambda: lib.pipeline_files(rest, ()),
  )
  adapted = {
    name: Tensor(
      entry.shape,
      entry.dtype,
      partial(peft.merged, entry, pairs.get(name), scale),
    )
    for name, entry in entries.items()
  }
  pieces = {
    'policy': Piece(
      lib.stored(found['policy']), policy.hub_config, files=files
    ),
    'decoder/transformer': Piece(
      adapted, hf.read_config(dit), transformer.stem
    ),
    'decoder/connector': Piece(
      lib.stored(found['connector']) | constant, connector.hub_config
    ),
  }
  return Contents(pieces, copies, UAE)


def uae_parts(
  policy: zoo.Model, transformer: zoo.Model, header: Mapping[str, Entry]
) -> dict[str, Part]:
  """What UAE's `llm_model` holds; `header` has the projector's sizes."""
  width = policy.module.lm['width']
  first = header.get('projector.0.weight')
  connector = _projector(first, 'uae', transformer, width)
  return {
    'policy': Part(policy),
    'connector': Part(connector, made=('constant',)),
  }


def uniworld(
  folder: Path,
  flux: Path,
  siglip: Path | None = None,
  processor: Path | None = None,
) -> Contents:
  """UniWorld-V1's release.

  Args:
    folder: the release.
    flux: FLUX.1-dev, for all but the weights of its transformer. With its T5,
      prompts are read by both.
    siglip: SigLIP 2, which reads reference images; without it there are none.
    processor: has tokenizer and preprocessor where `folder` lacks them.

  Raises:
    UserError: listing everything that is missing or does not fit.
  """
  joint = (flux / 'text_encoder_2').is_dir()
  policy, transformer, eye, _ = lib.every(
    lambda: zoo.policy_from_folder(folder),
    lambda: lib.flux_decoder(flux / 'transformer'),
    lambda: siglip and lib.siglip_tower(siglip),
    lambda: lib.refuse_pickles(folder),
  )
  parts = uniworld_parts(policy, transformer, eye, hf.headers(folder))
  connector, sight = (parts[name].model for name in ('connector', PROJECTOR))
  found, seen, constant, files, copies = lib.every(
    lambda: lib.locate(folder, parts, ignore=(*ignored(policy), *UNUSED)),
    lambda: eye and lib.find(eye, siglip),
    lambda: lib.constant(flux, ('',), connector),
    lambda: lib.policy_files(processor or folder),
    lambda: lib.pipeline_files(flux, ('', '_2') if joint else ()),
  )
  pieces = {
    'policy': Piece(
      lib.stored(found['policy']), policy.hub_config, files=files
    ),
    'decoder/transformer': Piece(
      lib.stored(found['transformer']),
      hf.read_config(flux / 'transformer'),
      transformer.stem,
    ),
    'decoder/connector': Piece(
      lib.stored(found['connector']) | constant, connector.hub_config
    ),
    f'decoder/{PROJECTOR}': Piece(
      lib.stored(found[PROJECTOR]), sight.hub_config
    ),
  }
  if eye:
    pieces[f'decoder/{SIGLIP}'] = Piece(
      lib.stored(seen),
      eye.hub_config,
      files=[siglip / 'preprocessor_config.json'],
    )
  return Contents(pieces, copies, {**UNIWORLD, 'joint': joint})


def uniworld_parts(
  policy: zoo.Model,
  transformer: zoo.Model,
  eye: zoo.Model | None,
  header: Mapping[str, Entry],
) -> dict[str, Part]:
  """What UniWorld's one checkpoint holds and is read by its drawing.

  Args:
    policy: the language model.
    transformer: FLUX.
    eye: SigLIP; None trusts the checkpoint as to its width.
    header: has the sizes of the projectors.
  """

  def projector(name, variant, width):
    under = f'{TOWER}.{name}_projector'
    first = header.get(f'{under}.0.weight')
    model = _projector(first, variant, transformer, width)
    made = [row.path for row in model.table if row.path == 'constant']
    return Part(model, lambda hub: hub.replace('projector', under, 1), made)

  return {
    'policy': Part(policy),
    'transformer': Part(transformer, lambda hub: f'{TOWER}.denoiser.{hub}'),
    'connector': projector('denoise', 'uniworld', policy.module.lm['width']),
    PROJECTOR: projector(
      'siglip', 'uniworld-siglip', eye and eye.module.vision['width']
    ),
  }


def ignored(policy: zoo.Model) -> tuple[str, ...]:
  """Tensors that may lie beside those of a language model."""
  tied = policy.module.lm['tied']
  return (*policy.ignore, *([r'lm_head\.weight'] if tied else []))


def _projector(
  first: Entry | None, variant: str, decoder: zoo.Model, width: int | None
) -> zoo.Model:
  """A connector of a variant's kind and of the sizes that are there.

  Args:
    first: its first kernel in the release, where there is one.
    variant: of `models.connector`.
    decoder: that reads the result.
    width: of what the projector reads; None is what `first` has.
  """
  fields = dict(
    VARIANTS[variant],
    context_dim=decoder.module.joint_attention_dim,
    pooled_dim=decoder.module.pooled_projection_dim,
  )
  if first is not None and len(first.shape) == 2:
    fields['hidden'] = first.shape[0]
    width = width or first.shape[1]
  return zoo.conditioner(fields, width or 1)
