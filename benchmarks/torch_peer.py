"""The other side: the loop as one writes it with transformers and diffusers.

`generate` with its key-value cache, SD3's transformer under
FlowMatchEulerDiscreteScheduler, CLIP, and GRPO as TRL computes it (each
caption with its own copy of the image and prompt; k3; AdamW). It reads the
folders that this package has written, and the numpy arrays of one batch.
`agree` compares what both sides make of the same captions.
"""

import copy
import functools
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from safetensors.torch import load_file
from torch import nn

from benchmarks import worker

ACTIVATIONS = {'gelu': nn.GELU, 'silu': nn.SiLU}


class Connector(nn.Module):
  """One MLP per token, and one of their mean."""

  def __init__(self, folder: Path):
    super().__init__()
    config = json.loads((folder / 'config.json').read_text())
    weights = load_file(folder / 'model.safetensors')
    linear = lambda name: nn.Linear(*weights[f'{name}.weight'].shape[::-1])
    mlp = lambda name: nn.Sequential(
      linear(f'{name}.0'), ACTIVATIONS[config['act']](), linear(f'{name}.2')
    )
    self.projector, self.pooled = mlp('projector'), mlp('pooled')
    self.load_state_dict(weights)

  def forward(self, states, mask):
    weight = mask[..., None].to(states.dtype)
    mean = (states * weight).sum(-2) / weight.sum(-2).clamp(min=1)
    return self.projector(states), self.pooled(mean)


class Peer:
  """Models in one dtype, and one batch."""

  def __init__(self, given: dict, dtype: torch.dtype):
    self.device = 'cuda' if torch.cuda.is_available() else 'cpu'
    to = dict(device=self.device, dtype=dtype)
    place = {k: Path(v) for k, v in given['folders'].items()}
    o = self.o = given['options']
    policy = transformers.Qwen2_5_VLForConditionalGeneration
    self.policy = policy.from_pretrained(place['policy']).to(**to).train()
    self.policy.model.visual.requires_grad_(False)
    self.start = copy.deepcopy(self.policy).eval().requires_grad_(False)
    self.transformer = (
      SD3Transformer2DModel.from_pretrained(place['transformer'])
      .to(**to).eval().requires_grad_(False)
    )  # fmt: skip
    self.connector = Connector(place['connector']).to(**to)
    self.connector.requires_grad_(False)
    self.tower = transformers.CLIPModel.from_pretrained(place['reward'])
    self.tower = self.tower.to(**to).eval().requires_grad_(False)
    trained = [p for p in self.policy.parameters() if p.requires_grad]
    self.optimizer = torch.optim.AdamW(
      trained, lr=o['lr'], betas=(o['b1'], o['b2']), eps=o['eps'],
      weight_decay=0.0, fused=True,
    )  # fmt: skip
    self.trained, self.dtype = trained, dtype
    self.velocity = self.transformer
    arrays = np.load(given['arrays'])
    put = lambda name: torch.tensor(arrays[name]).to(self.device)
    b = len(arrays['image'])
    self.source = put('image').permute(0, 3, 1, 2).to(dtype)
    # Every image fills its bounds, so that nothing is padded.
    self.prefix = put('prefix_ids').long()
    hw = arrays['patch_hw'].max(1) + 1
    self.inputs = dict(
      pixel_values=put('patches').flatten(0, 1).to(dtype),
      image_grid_thw=torch.tensor([[1, *map(int, x)] for x in hw]).to(
        self.device
      ),
    )
    self.patches = len(self.inputs['pixel_values']) // b
    self.rows = b * o['group']
    self.tokens, self.mask = self._rows(put('tokens')), self._rows(put('mask'))
    noise = put('noise').repeat_interleave(o['group'], 0)
    self.noise = noise.permute(0, 3, 1, 2).to(dtype)
    self.images, self.scores = None, None

  def _rows(self, x):
    return x.reshape(-1, x.shape[-1])

  def _repeated(self):
    """Images and prompts, once for each caption."""
    g, inputs = self.o['group'], self.inputs
    pixels = inputs['pixel_values'].unflatten(0, (-1, self.patches))
    return dict(
      pixel_values=pixels.repeat_interleave(g, 0).flatten(0, 1),
      image_grid_thw=inputs['image_grid_thw'].repeat_interleave(g, 0),
    )

  def stages(self) -> dict:
    """By name; `agree` and `compile` are no part of a comparison."""
    names = ('rollout', 'draw', 'reward', 'update', 'step')
    return {name: functools.partial(self.whole, name) for name in names}

  def whole(self, name: str):
    """A stage to its end: CUDA works on after the call."""
    found = getattr(self, name)()
    if self.device == 'cuda':
      torch.cuda.synchronize()
    return found

  @torch.no_grad()
  def rollout(self):
    """Images -> captions."""
    self.policy.eval()
    ids = self.prefix
    out = self.policy.generate(
      input_ids=ids, attention_mask=torch.ones_like(ids),
      mm_token_type_ids=(ids == self.o['image_pad']).int(), **self.inputs,
      do_sample=True, temperature=1.0, top_k=0, top_p=1.0, use_cache=True,
      num_return_sequences=self.o['group'],
      max_new_tokens=self.o['length'], eos_token_id=self.o['eos'],
      pad_token_id=self.o['pad'], suppress_tokens=[self.o['image_pad']],
    )  # fmt: skip
    self.policy.train()
    tokens = out[:, ids.shape[1] :]
    tokens = F.pad(
      tokens, (0, self.o['length'] - tokens.shape[1]), value=self.o['pad']
    )
    ended = (tokens == self.o['eos']).int().cumsum(-1)
    self.tokens = tokens
    self.mask = (ended - (tokens == self.o['eos']).int()) == 0
    return dict(tokens=int(self.mask.sum()))

  @torch.no_grad()
  def condition(self):
    """Captions alone -> context and pooled vector; the template around each."""
    o = self.o
    words = self.mask & (self.tokens != o['eos'])
    rows = [
      torch.tensor([*o['before'], *t[w].tolist(), *o['after']])
      for t, w in zip(self.tokens.cpu(), words.cpu())
    ]
    longest = len(o['before']) + o['length'] + len(o['after'])
    ids = torch.stack(
      [F.pad(r, (0, longest - len(r)), value=o['pad']) for r in rows]
    )
    mask = torch.stack([torch.arange(longest) < len(r) for r in rows])
    ids, mask = ids.to(self.device), mask.to(self.device)
    states = self.start.model(input_ids=ids, attention_mask=mask.long())
    return self.connector(states.last_hidden_state, mask)

  @torch.no_grad()
  def draw(self):
    """Captions -> drawings in [0, 1]."""
    context, pooled = self.condition()
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    scheduler.set_timesteps(sigmas=self.o['sigmas'][:-1], device=self.device)
    x = self.noise.float()
    for t in scheduler.timesteps:
      v = self.velocity(
        hidden_states=x.to(self.dtype), timestep=t.expand(len(x)),
        encoder_hidden_states=context, pooled_projections=pooled,
        return_dict=False,
      )[0]  # fmt: skip
      x = scheduler.step(v.float(), t, x, return_dict=False)[0]
    self.images = (x * 0.5 + 0.5).clip(0, 1)
    return dict(images=len(x))

  @torch.no_grad()
  def reward(self):
    """Cosines of drawings with their sources."""
    ours, theirs = self._embed(self.source), self._embed(self.images)
    ours = ours.repeat_interleave(self.o['group'], 0)
    cosine = F.cosine_similarity(ours.float(), theirs.float(), dim=-1)
    self.scores = cosine.reshape(-1, self.o['group'])

  def _embed(self, images):
    side = self.o['side']
    if images.shape[-1] != side:
      images = F.interpolate(
        images.float(), (side, side), mode='bicubic', antialias=True
      ).clip(0, 1)
    shift = lambda name: torch.tensor(self.o[name], device=images.device)
    pixels = images - shift('mean').view(3, 1, 1)
    pixels = pixels / shift('std').view(3, 1, 1)
    out = self.tower.get_image_features(pixel_values=pixels.to(self.dtype))
    return out.pooler_output if hasattr(out, 'pooler_output') else out

  def logps(self, model):
    """Log-probability of each caption token [B G, L]."""
    g = self.o['group']
    prefix = self.prefix.repeat_interleave(g, 0)
    ids = torch.cat([prefix, self.tokens], 1)
    mask = torch.cat([torch.ones_like(prefix), self.mask.long()], 1)
    length = self.tokens.shape[1]
    logits = model(
      input_ids=ids, attention_mask=mask, **self._repeated(),
      mm_token_type_ids=(ids == self.o['image_pad']).int(),
      logits_to_keep=length + 1, use_cache=False,
    ).logits[:, :-1].float()  # fmt: skip
    chosen = logits.gather(-1, self.tokens.long()[..., None])[..., 0]
    return chosen - logits.logsumexp(-1)

  def update(self):
    """The reference, the loss, its gradient, AdamW."""
    o = self.o
    reward = self.scores.float()
    adv = reward - reward.mean(-1, keepdim=True)
    adv = adv / (reward.std(-1, keepdim=True, correction=0) + 1e-6)
    adv = adv.reshape(-1, 1)
    with torch.no_grad():
      ref = self.logps(self.start)
    logp = self.logps(self.policy)
    ratio = torch.exp(logp - logp.detach())
    clipped = ratio.clip(1 - o['clip_low'], 1 + o['clip_high'])
    kl = torch.exp(ref - logp) - (ref - logp) - 1
    loss = -torch.minimum(ratio * adv, clipped * adv) + o['beta'] * kl
    loss = (loss * self.mask).sum() / self.mask.sum()
    self.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(self.trained, o['clip_norm'])
    self.optimizer.step()
    return dict(loss=loss.item())

  def step(self):
    """All of them."""
    self.rollout()
    self.draw()
    self.reward()
    self.update()

  def fastest(self) -> str:
    """Draws by `torch.compile` from here on, if that is faster."""

    def seconds():
      self.whole('draw')
      start = time.perf_counter()
      self.whole('draw')
      return time.perf_counter() - start

    eager = seconds()
    try:
      self.velocity = torch.compile(self.transformer)
      if seconds() < eager:
        return 'compiled'
    except Exception as e:  # whatever its compilers raise
      print(f'torch.compile: {type(e).__name__}', file=sys.stderr)
    self.velocity = self.transformer
    return 'eager'


def agreement(peer: Peer, arrays) -> dict[str, float]:
  """Largest differences between both sides, from the same captions."""
  far = lambda a, b: float(np.abs(np.asarray(a) - np.asarray(b)).max())
  out = {}
  with torch.no_grad():
    logp = peer.logps(peer.policy).float().cpu().reshape(arrays['logp'].shape)
    mask = arrays['mask']
    out['log-probabilities'] = far(logp[mask], arrays['logp'][mask])
    peer.draw()
    if mask.all():  # diffusers attends to padded text, too
      images = peer.images.permute(0, 2, 3, 1).float().cpu().numpy()
      out['drawings'] = far(
        images.reshape(arrays['images'].shape), arrays['images']
      )
    images = torch.tensor(arrays['images']).flatten(0, 1).permute(0, 3, 1, 2)
    peer.images = images.to(peer.device)
    peer.reward()
    out['rewards'] = far(peer.scores.cpu(), arrays['scores'])
  return out


def main() -> None:
  """`python -m benchmarks.torch_peer GIVEN.json DTYPE`: serves."""
  if torch.cuda.is_available():
    torch.set_float32_matmul_precision('high')  # TF32, as JAX has it
  given = json.loads(Path(sys.argv[1]).read_text())
  peer = Peer(given, getattr(torch, sys.argv[2]))
  stages = peer.stages()
  agrees = agreement(peer, np.load(given['arrays']))
  drawn_by = peer.fastest()
  for stage in stages.values():  # warms up
    stage()
  most = torch.cuda.max_memory_allocated
  if peer.device == 'cpu':
    most = worker.peak
  worker.serve(
    stages, most, draws=drawn_by, agrees=agrees, version=torch.__version__
  )


if __name__ == '__main__':
  main()
