"""Folders of decoders -> what paints, and the models it needs."""

import dataclasses
from pathlib import Path

from uae_jax import zoo
from uae_jax.ckpt import hf
from uae_jax.models.flux import Flux
from uae_jax.rollout.flow import FlowSchedule
from uae_jax.umm.painter import Painter

PARTS = {'decoder': 'transformer', 'vae': 'vae'}  # ours -> subfolder


def load_painter(
  folder: Path,
  *,
  height: int,
  width: int,
  steps: int,
  shift: float | None,
  guidance: float,
  dtype: str = 'float32',
  remat: str = 'none',
) -> tuple[dict[str, zoo.Model], Painter]:
  """The painter of a diffusers folder; weights are not read.

  Args:
    folder: has `transformer` and, for a decoder of latents, `vae`;
      `scheduler` says which noise levels it is used with.
    height: of a drawing in pixels.
    width: of a drawing in pixels.
    steps: of the decoder.
    shift: of the noise levels; None is what `scheduler` says, or 1.
    guidance: classifier-free; distilled for FLUX.1-dev, which has it as an
      input.
    dtype: the decoder computes in it.
    remat: what the decoder's blocks keep for a backward pass.

  Returns:
    The models by name of their parameters, and the painter.

  Raises:
    UserError: parts are missing, or drawings of this size cannot be.
  """
  models = {
    'decoder': zoo.decoder_from_folder(folder / PARTS['decoder'], remat=remat)
  }
  if (folder / PARTS['vae']).is_dir():
    models['vae'] = zoo.from_folder(folder / PARTS['vae'])
  module = models['decoder'].module
  vae = models['vae'].module if 'vae' in models else None
  if isinstance(module, Flux) and module.guidance_embeds:
    module = dataclasses.replace(module, distilled_guidance=guidance)
    models['decoder'] = dataclasses.replace(models['decoder'], module=module)
    guidance = 1.0
  painter = Painter(
    module, FlowSchedule(steps), height, width, guidance=guidance, vae=vae,
    dtype=dtype,
  )  # fmt: skip
  tokens = height * width // painter.multiple**2
  schedule = read_schedule(folder, module, steps, shift, tokens)
  return models, dataclasses.replace(painter, schedule=schedule)


def read_schedule(
  folder: Path, module, steps: int, shift: float | None, tokens: int
) -> FlowSchedule:
  """The noise levels that a pipeline's scheduler file asks for."""
  if not (folder / 'scheduler').is_dir():
    return FlowSchedule(steps, 1.0 if shift is None else shift)
  config = hf.read_config(folder / 'scheduler', 'scheduler_config.json')
  known = {'shift': 1.0, 'use_dynamic_shifting': False, **config}
  if shift is None and known['use_dynamic_shifting']:
    return FlowSchedule(steps, kind='flux', tokens=tokens)
  shift = known['shift'] if shift is None else shift
  kind = 'uniform' if isinstance(module, Flux) else 'sd3'
  return FlowSchedule(steps, shift, kind=kind)
