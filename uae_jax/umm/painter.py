"""The decoder half of UMM-1: conditioning and noise -> pixels.

A velocity model (`models.mmdit` or `models.flux`), the noise levels it is
run at, its guidance, and the VAE whose latents it moves; without a VAE the
flow is over pixels in [-1, 1]. Letters as in `types`; N drawings, h and w
sides of a latent, R and Q of an image.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from uae_jax.errors import UserError
from uae_jax.models import flux
from uae_jax.models.flux import Flux
from uae_jax.models.mmdit import MMDiT
from uae_jax.models.vae import VAE
from uae_jax.rollout import walk as walk_lib
from uae_jax.rollout.flow import FlowSchedule
from uae_jax.rollout.paint import paint
from uae_jax.rollout.walk import Trajectory, Walk
from uae_jax.sharding import chunks

Params = Mapping[str, Any]  # `decoder` and, where there is one, `vae`
# context [N L E], pooled [N F], mask [N L]; grid [N h w G] is laid beside x
Conditioning = Mapping[str, Array]


@dataclasses.dataclass(frozen=True)
class Painter:
  """Modules and options; parameters travel separately.

  Attributes:
    decoder: the velocity model.
    schedule: its noise levels.
    height: of the image in pixels.
    width: of the image in pixels.
    guidance: classifier-free guidance; 1 is off and costs one pass a step.
    vae: None where the flow is over pixels.
    dtype: the decoder and the VAE compute in it.
    size: drawings of a data shard at once; 0 is all.
    walk: how chance comes into drawings that train the decoder.
  """

  decoder: MMDiT | Flux
  schedule: FlowSchedule
  height: int
  width: int
  guidance: float = 1.0
  vae: VAE | None = None
  dtype: str = 'float32'
  size: int = 0
  walk: Walk | None = None

  def __post_init__(self):
    multiple, most = self.multiple, self.most
    if self.height % multiple or self.width % multiple:
      raise UserError(
        f'drawings of {self.width}x{self.height}: both must be multiples of '
        f'{multiple}'
      )
    if max(self.height, self.width) > most:
      raise UserError(
        f'drawings of {self.width}x{self.height}: the decoder has no positions '
        f'beyond {most} pixels'
      )

  @property
  def multiple(self) -> int:
    """Pixels on a side of what becomes one token."""
    flat = isinstance(self.decoder, Flux)
    patch = flux.PACK if flat else self.decoder.patch_size
    return patch * (1 if self.vae is None else self.vae.factor)

  @property
  def most(self) -> float:
    """Pixels on a side that the decoder has positions for."""
    if isinstance(self.decoder, Flux):
      return math.inf
    return self.decoder.pos_embed_max_size * self.multiple

  @property
  def shape(self) -> tuple[int, int, int]:
    """[h w C] of what the flow moves."""
    if self.vae is None:
      return self.height, self.width, 3
    f = self.vae.factor
    return self.height // f, self.width // f, self.vae.latent

  def noise(self, rng: Key[Array, ''], *lead: int) -> Float[Array, '*n h w C']:
    """fp32 noise of leading axes `lead`."""
    return jax.random.normal(rng, (*lead, *self.shape), jnp.float32)

  def velocity(
    self,
    params: Params,
    x: Float[Array, 'N h w C'],
    t: Float[Array, 'N'],
    cond: Conditioning,
  ) -> Float[Array, 'N h w C']:
    """The decoder's velocity at times t in 0..1000.

    A `grid` joins x as further channels, as FLUX.1 Fill and Control have it.
    """
    if 'grid' in cond:
      x = jnp.concatenate([x, cond['grid'].astype(x.dtype)], -1)
    return self.decoder.apply(
      {'params': params['decoder']},
      x, t, cond['context'], cond['pooled'], cond.get('mask'),
    )  # fmt: skip

  def encode(
    self, params: Params, images: Float[Array, 'N R Q 3']
  ) -> Float[Array, 'N h w C']:
    """Images in [0, 1] -> where the flow ends."""
    x = images * 2 - 1
    if self.vae is None:
      return x
    return self.vae.apply({'params': params['vae']}, x, method='encode')

  def decode(
    self, params: Params, x: Float[Array, 'N h w C']
  ) -> Float[Array, 'N R Q 3']:
    """Where the flow ends -> fp32 images in [0, 1]."""
    if self.vae is not None:
      x = self.vae.apply(
        {'params': params['vae']}, x.astype(self.dtype), method='decode'
      )
    return jnp.clip(x.astype(jnp.float32) * 0.5 + 0.5, 0.0, 1.0)

  def __call__(
    self,
    params: Params,
    noise: Float[Array, 'N h w C'],
    cond: Conditioning,
    unconditional: Conditioning | None = None,
  ) -> Float[Array, 'N R Q 3']:
    """Draws N images; `unconditional` is needed where guidance is on."""

    def piece(_, noise, cond, unconditional):
      x = paint(
        functools.partial(self.velocity, params),
        noise.astype(self.dtype),
        cond,
        self.schedule,
        guidance=self.guidance,
        unconditional=unconditional,
      )
      return self.decode(params, x)

    with jax.named_scope('draw'):
      return chunks.map_pieces(piece, self.size, noise, cond, unconditional)

  def by_chance(
    self,
    params: Params,
    noise: Float[Array, 'N h w C'],
    cond: Conditioning,
    unconditional: Conditioning | None,
    start: Int[Array, 'N'],
    rng: Key[Array, ''],
  ) -> tuple[Float[Array, 'N R Q 3'], Trajectory]:
    """Draws N images with `walk`, and keeps what trains the decoder."""
    shape = (len(noise), self.walk.window, *self.shape)
    chance = jax.random.normal(rng, shape, jnp.float32)

    def piece(_, noise, chance, start, cond, unconditional):
      x, path = walk_lib.draw(
        functools.partial(self.velocity, params),
        noise.astype(self.dtype),
        chance,
        start,
        cond,
        self.schedule,
        self.walk,
        self.guidance,
        unconditional,
      )
      return self.decode(params, x), path

    with jax.named_scope('draw'):
      return chunks.map_pieces(
        piece, self.size, noise, chance, start, cond, unconditional
      )

  def score(
    self, params: Params, path: Trajectory
  ) -> tuple[Float[Array, 'N W'], Float[Array, 'N W h w C']]:
    """Log-probabilities and scaled means; see `rollout.walk.score`."""
    with jax.named_scope('draw'):
      return walk_lib.score(
        functools.partial(self.velocity, params),
        path,
        self.schedule,
        self.walk,
        self.dtype,
        self.guidance,
      )
