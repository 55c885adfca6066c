"""UMM-2, Unified-GRPO on both halves. `--config=configs/umm2.py[:variant]`.

The embedded default needs no download: a tiny Janus with its image tokenizer
and tiny CLIP towers, bundled, on drawn scenes. `:caption` and `:image` train
one half of the loop alone, for comparison. `:flow` draws as X-Omni does: a
flow-matching detokenizer turns codes into pixels. `:janus-pro-1b` and
`:janus-pro-7b` are Janus-Pro on photographs; they read what `hf download` has
put into the hub's cache, or any folder that `ckpt.*` names.
"""

from ml_collections import ConfigDict

from uae_jax.data.janus import SYSTEM

REAL = {
  'janus-pro-1b': 'deepseek-community/Janus-Pro-1B',
  'janus-pro-7b': 'deepseek-community/Janus-Pro-7B',
}
VARIANTS = ('', 'caption', 'image', 'flow', *REAL)


def get_config(variant: str = '') -> ConfigDict:
  """The whole run; every key is read, every default is here."""
  if variant not in VARIANTS:
    raise ValueError(f'configs/umm2.py:{variant} is none of {VARIANTS}')
  c = ConfigDict()
  c.stage = 'encoder'

  c.train = ConfigDict()
  c.train.steps = 160
  c.train.images = 16  # source images per step
  # Images sampled for each that is learnt from; groups without variance go
  # first (DAPO's dynamic sampling).
  c.train.oversample = 1
  c.train.group_size = 8  # captions per image, one drawing each
  c.train.seed = 0
  c.train.lr = 3e-4
  # Regexes over policy parameter paths; the tower stays as it is.
  c.train.trainable = (r'(lm|code_embed|code_aligner|code_head)/.*',)
  c.train.max_skipped = 10  # updates in a row that guard skips, before it acts

  # Updates that are not finite are skipped; see docs/endurance.md.
  c.guard = ConfigDict()
  c.guard.spike = 0.0  # so are norms above spike times their average; 0: none
  c.guard.rollbacks = 0  # to a checkpoint before a run stops, on other data

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
  c.optim.accumulate = 1  # steps whose gradients make one update
  # 'REGEX=FACTOR' over paths of a part: its rate is train.lr (or flow.lr)
  # times that; 0 freezes.
  c.optim.groups = ()
  c.optim.ema = 0.0  # decay of an average, evaluated and exported; 0: none
  c.optim.inner_epochs = 1
  c.optim.minibatches = 1

  c.grpo = ConfigDict()
  # J = caption_weight J_caption + image_weight J_image; 0 leaves a half out.
  c.grpo.caption_weight = 0.0 if variant == 'image' else 1.0
  c.grpo.image_weight = {'caption': 0.0, 'image': 1.0}.get(variant, 0.3)
  c.grpo.beta = 0.005  # weight of the KL to the starting policy; 0: none kept
  c.grpo.image_beta = 0.02  # of image codes
  c.grpo.kl = 'k3'  # k1 | k2 | k3
  c.grpo.kl_target = 0.0  # per token; steers beta to it; 0: beta stays
  c.grpo.clip_low = 0.2
  c.grpo.clip_high = 0.2
  c.grpo.ratio = 'token'  # token (GRPO) | sequence (GSPO)
  c.grpo.aggregation = 'token'  # sequence | token (DAPO) | constant
  c.grpo.scale = 'std'  # std | none (Dr.GRPO)
  c.grpo.filter_zero_std = True  # leave groups without variance out
  c.grpo.mask_truncated = False  # leave captions without EOS out
  c.grpo.entropy = 0.0  # weight of the entropy, which keeps captions apart

  # A weight of 0 leaves a term out; see docs/rewards.md.
  c.rewards = ConfigDict()
  c.rewards.reconstruction_weight = 1.0  # of the towers of ckpt.reward
  c.rewards.weights = ''  # of each, 'reward=1,judge_clip=0.5'; '': their mean
  c.rewards.standardise = 'none'  # none | group: cosines, tower by tower
  c.rewards.length_weight = 0.0  # off for every token beyond length_target
  c.rewards.length_target = 16  # tokens, EOS included
  c.rewards.repetition_weight = 0.0  # times the share of repeated n-grams
  c.rewards.ngram = 3
  c.rewards.text = ''  # drawn | source: the image that captions should fit
  c.rewards.text_tower = 'bundled:umm1/reward'  # a CLIP with both towers
  c.rewards.text_tokenizer = 'bundled:umm1/processors'  # '': in text_tower
  c.rewards.text_head = 'cosine'  # cosine | logit (PickScore, HPS)
  c.rewards.text_weight = 1.0
  c.rewards.mine = ''  # a function of yours, 'my_module:fn'
  c.rewards.mine_weight = 1.0

  c.rollout = ConfigDict()
  c.rollout.length = 24  # caption budget in tokens, EOS included
  c.rollout.temperature = 1.0
  c.rollout.top_k = 0  # 0: all
  c.rollout.top_p = 1.0
  c.rollout.guidance = 1.0  # of image codes; 1: off
  c.rollout.image_temperature = 0.8
  c.rollout.image_top_k = 0
  c.rollout.image_top_p = 1.0
  c.rollout.draw_steps = 2  # Euler steps, where model.renderer is 'flow'
  c.rollout.shift = 1.0  # of their noise levels; 0: as the scheduler's file

  c.data = ConfigDict()
  # scenes:train | scenes:crowded (more objects) | images:DIR
  c.data.source = 'scenes:crowded'
  # scenes:validation for choosing settings; for photographs, images:DIR.
  c.data.heldout = 'scenes:heldout'
  c.data.threads = 2  # that prepare batches ahead, each one of its own
  c.data.cache = '~/.cache/uae_jax/data'  # indices of tars, copies of Parquet
  c.data.max_bad = 0.1  # share of the items tried, beyond which a run stops
  c.data.prompt = 'describe every object in the image'
  c.data.system = ''  # system text of the chat template; '': none
  c.data.side = 32  # pixels of the drawn image

  c.model = ConfigDict()
  c.model.umm = 'umm2'  # umm1 | umm2
  # vq: the tokenizer's own decoder; flow: a flow-matching detokenizer.
  c.model.renderer = 'flow' if variant == 'flow' else 'vq'
  c.model.dtype = 'float32'  # activations
  c.model.attention = 'auto'  # 'splash', 'cudnn', 'xla'; see nn/kernels.py
  c.model.frozen_dtype = 'float32'  # matrices that are not trained
  c.model.chunk = 0  # tokens whose logits exist at once when scored; 0: all
  c.model.remat = 'none'  # none | dots | full
  c.model.variant = 'tiny'  # built where ckpt.policy is ''

  # How much a step works on at once; 0 is everything. The loss is the same.
  c.memory = ConfigDict()
  c.memory.rollout_images = 0  # images of a data shard in one rollout
  c.memory.drawings = 0  # drawings of a data shard
  c.memory.update_images = 0  # images of a data shard in one gradient
  c.memory.offload = ''  # optimizer,reference: wait in the host's memory

  c.ckpt = ConfigDict()
  c.ckpt.policy = 'bundled:umm2/policy'  # Janus: policy and image tokenizer
  # Of the detokenizer, where model.renderer is 'flow'; '': from scratch.
  c.ckpt.decoder = 'bundled:umm2/detokenizer'
  c.ckpt.reward = 'bundled:umm1/reward'
  # Held-out towers, never a reward; comma separated.
  c.ckpt.judges = 'bundled:umm1/judge_clip,bundled:umm1/judge_views'
  c.ckpt.every = 40  # steps
  c.ckpt.keep = 2  # the newest
  c.ckpt.keep_best = True  # and the best evaluation by eval.watch
  c.ckpt.export = 'last'  # last | best: what export/ is made of

  c.eval = ConfigDict()
  c.eval.every = 80  # steps; also before and after training
  c.eval.images = 256
  c.eval.batch = 64
  c.eval.prompts = True  # text to image as GenEval asks it; drawn scenes only
  c.eval.gallery = 32  # images kept for the report
  # Evaluations without a better eval.watch before the run ends; 0: all steps.
  c.eval.patience = 0
  c.eval.watch = 'unified_score'

  c.log = ConfigDict()
  c.log.every = 5.0  # seconds between lines on the terminal
  c.log.wandb = ''  # a project of Weights & Biases, or none

  c.mesh = ConfigDict()
  c.mesh.data = -1  # -1: all devices left over by mesh.model
  c.mesh.model = 1
  if variant in REAL:
    real_size(c, variant)
  return c


def real_size(c: ConfigDict, variant: str) -> None:
  """What differs for Janus-Pro; not tuned here."""
  c.train.steps = 1000
  c.train.images = 32
  c.train.lr = 1e-6
  c.grpo.beta = c.grpo.image_beta = 0.01
  c.grpo.image_weight = 1.0
  c.rollout.length = 256
  c.rollout.guidance = 5.0
  c.rollout.image_temperature = 1.0
  c.data.source = 'images:data/train'
  c.data.heldout = 'images:data/heldout'
  c.data.prompt = 'Describe this image in detail.'
  c.data.system = SYSTEM
  c.data.side = 384
  c.model.dtype = c.model.frozen_dtype = 'bfloat16'
  c.model.remat = 'full'
  c.model.chunk = 64
  c.model.variant = variant
  c.memory.drawings = 8
  c.memory.update_images = 1
  c.ckpt.policy = REAL[variant]
  c.ckpt.reward = 'openai/clip-vit-large-patch14'
  c.rewards.text_tower, c.rewards.text_tokenizer = c.ckpt.reward, ''
  c.rewards.length_target = 128
  c.ckpt.judges = 'facebook/dinov2-large'
  c.ckpt.every = c.eval.every = 100
  c.eval.prompts = False
