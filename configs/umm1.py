"""UMM-1, Unified-GRPO on the captioner. `--config=configs/umm1.py[:variant]`.

The embedded default needs no download: tiny Qwen2.5-VL, connector, tiny SD3
MM-DiT and tiny CLIP towers, bundled, on drawn scenes. `:blind` starts from a
captioner that cannot tell shapes apart: what a reward that hardly sees them
makes of it.
"""

from ml_collections import ConfigDict

VARIANTS = ('', 'blind')


def get_config(variant: str = '') -> ConfigDict:
  """The whole run; every key is read, every default is here."""
  if variant not in VARIANTS:
    raise ValueError(f'configs/umm1.py:{variant} is none of {VARIANTS}')
  c = ConfigDict()
  c.stage = 'encoder'

  c.train = ConfigDict()
  c.train.steps = 500
  c.train.images = 24  # source images per step
  c.train.group_size = 8  # captions per image
  c.train.seed = 0
  c.train.lr = 6e-4
  c.train.trainable = (r'lm/.*',)  # regexes over policy parameter paths
  c.train.max_skipped = 10  # non-finite updates in a row before stopping

  c.lora = ConfigDict()
  c.lora.rank = 0  # 0: train.trainable is trained as it is; else adapters
  c.lora.alpha = 16.0  # the update is scaled by alpha / rank
  # Regexes over kernels of the policy; instead of train.trainable.
  c.lora.targets = (r'lm/layers/block/([qkvo]|mlp/(gate|up|down))/kernel',)
  c.lora.export = 'merged'  # merged | adapter (a PEFT folder)

  c.optim = ConfigDict()
  c.optim.schedule = 'cosine'  # constant | linear | cosine
  c.optim.warmup = 10  # updates
  c.optim.lr_floor = 0.0  # fraction of train.lr at the end
  c.optim.b1 = 0.9
  c.optim.b2 = 0.95
  c.optim.eps = 1e-8
  c.optim.weight_decay = 0.0
  c.optim.clip_norm = 1.0
  c.optim.inner_epochs = 1
  c.optim.minibatches = 1

  c.grpo = ConfigDict()
  c.grpo.beta = 0.005  # weight of the KL to the starting policy; 0: none kept
  c.grpo.kl = 'k3'  # k1 | k2 | k3
  c.grpo.clip_low = 0.2
  c.grpo.clip_high = 0.2
  c.grpo.ratio = 'token'  # token (GRPO) | sequence (GSPO)
  c.grpo.aggregation = 'token'  # sequence | token (DAPO) | constant
  c.grpo.scale = 'std'  # std | none (Dr.GRPO)
  c.grpo.filter_zero_std = True  # leave groups without variance out
  c.grpo.mask_truncated = False  # leave captions without EOS out

  c.rollout = ConfigDict()
  c.rollout.length = 24  # caption budget in tokens, EOS included
  c.rollout.temperature = 1.0
  c.rollout.top_k = 0  # 0: all
  c.rollout.top_p = 1.0
  c.rollout.bottleneck = 'text'  # text | hidden
  c.rollout.environment = 'reference'  # policy | reference re-encodes captions
  c.rollout.share_noise = True  # one starting noise for a group
  c.rollout.draw_steps = 1  # Euler steps of the decoder
  c.rollout.shift = 1.0  # of the noise levels; 0: as the decoder's scheduler
  c.rollout.guidance = 1.0  # against the empty caption; 1: off

  c.data = ConfigDict()
  # scenes:train | scenes:crowded (more objects) | images:DIR
  c.data.source = 'scenes:crowded'
  # scenes:validation for choosing settings; for photographs, images:DIR.
  c.data.heldout = 'scenes:heldout'
  c.data.prompt = 'describe every object in the image'
  c.data.system = ''  # system turn of the chat template; '': none
  c.data.side = 32  # pixels of the drawn image
  c.data.max_pixels = 1024  # of the image as the policy sees it

  c.model = ConfigDict()
  c.model.umm = 'umm1'  # umm1 | umm2
  c.model.dtype = 'float32'  # activations
  c.model.chunk = 0  # tokens whose logits exist at once when scored; 0: all
  c.model.remat = 'none'  # none | dots | full
  c.model.variant = 'tiny'  # built where a ckpt.* folder is ''
  c.model.connector = 'mlp'  # mlp | queries (MetaQuery), where it is built

  c.ckpt = ConfigDict()
  c.ckpt.policy = f'bundled:umm1/{variant or "policy"}'
  c.ckpt.decoder = 'bundled:umm1/decoder'
  c.ckpt.reward = 'bundled:umm1/reward'
  # Held-out towers, never a reward; comma separated.
  c.ckpt.judges = 'bundled:umm1/judge_clip,bundled:umm1/judge_views'
  c.ckpt.every = 125  # steps
  c.ckpt.keep = 2

  c.eval = ConfigDict()
  c.eval.every = 125  # steps; also before and after training
  c.eval.images = 256
  c.eval.batch = 64
  c.eval.prompts = False  # text to image as GenEval asks it; drawn scenes only
  c.eval.gallery = 32  # images kept for the report

  c.log = ConfigDict()
  c.log.every = 5.0  # seconds between lines on the terminal

  c.mesh = ConfigDict()
  c.mesh.data = -1  # -1: all devices left over by mesh.model
  c.mesh.model = 1
  return c
