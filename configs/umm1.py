"""UMM-1, Unified-GRPO on the captioner. `--config=configs/umm1.py[:variant]`.

The embedded default needs no download: tiny Qwen2.5-VL, connector, tiny SD3
MM-DiT and tiny CLIP towers, bundled, on drawn scenes. `:blind` starts from a
captioner that cannot tell shapes apart: what a reward that hardly sees them
makes of it. `:glyphs` has a string of letters in every scene, for which
captioner and decoder were trained, and towers that never saw one. `:decoder`,
`:alternate` and `:joint` train what draws: alone, by turns with the captioner,
or together with it.

`:qwen3b-sd35m`, `:qwen3b-sd35l` (the sizes of UAE's release) and `:uniworld`
train real models on photographs. They read what `hf download` has put into
the hub's cache and folders of your own: `ckpt.decoder` has `transformer`,
`vae`, `scheduler` and `connector`, as `tools.compose` writes it.
`tools.plan` says what fits where.
"""

from ml_collections import ConfigDict

# Captioner, folder of the decoder, what differs.
REAL = {
  'qwen3b-sd35m': (
    'Qwen/Qwen2.5-VL-3B-Instruct', 'models/qwen3b-sd35m', {}
  ),
  'qwen3b-sd35l': ('models/uae/policy', 'models/uae/decoder', {}),
  'uniworld': (
    'models/uniworld/policy', 'models/uniworld/decoder',
    {'rollout.guidance': 3.5},
  ),
}  # fmt: skip
# Regexes over kernels of a decoder, SD3's or FLUX's: its attention.
ATTENTION = (r'.*/(q|k|v|((image|text)_)?out)/kernel',)
STAGES = ('decoder', 'alternate', 'joint')
VARIANTS = ('', 'blind', 'glyphs', *STAGES, *REAL)


def get_config(variant: str = '') -> ConfigDict:
  """The whole run; every key is read, every default is here."""
  if variant not in VARIANTS:
    raise ValueError(f'configs/umm1.py:{variant} is none of {VARIANTS}')
  c = ConfigDict()
  c.stage = 'encoder'  # encoder | decoder | alternate | joint

  c.train = ConfigDict()
  c.train.steps = 500
  c.train.images = 24  # source images per step
  # Images sampled for each that is learnt from; groups without variance go
  # first (DAPO's dynamic sampling).
  c.train.oversample = 1
  c.train.group_size = 8  # captions per image
  c.train.seed = 0
  c.train.lr = 6e-4
  c.train.trainable = (r'lm/.*',)  # regexes over policy parameter paths
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
  c.grpo.beta = 0.005  # weight of the KL to the starting policy; 0: none kept
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
  c.rollout.bottleneck = 'text'  # text | hidden
  c.rollout.environment = 'reference'  # policy | reference re-encodes captions
  c.rollout.share_noise = True  # one starting noise for a group
  c.rollout.draw_steps = 1  # Euler steps of the decoder
  c.rollout.shift = 1.0  # of the noise levels; 0: as the decoder's scheduler
  c.rollout.guidance = 1.0  # against the empty caption; 1: off

  # Of the decoder (Flow-GRPO), in the stages that train it.
  c.flow = ConfigDict()
  c.flow.lr = 3e-5
  c.flow.trainable = (r'.*',)  # regexes over decoder parameter paths
  c.flow.noise = 0.7  # of the steps that are drawn by chance
  c.flow.window = 2  # steps by chance, in a row; of draw_steps - 1
  c.flow.clip = 1e-3  # of the ratio of a step, a mean over its dimensions
  c.flow.beta = 0.0  # weight of the KL to the starting decoder; 0: none kept
  c.flow.weight = 1.0  # of the decoder's objective in stage 'joint'
  c.flow.lora_rank = 0  # 0: flow.trainable is trained as it is; else adapters
  c.flow.lora_alpha = 64.0
  c.flow.lora_targets = ATTENTION  # instead of flow.trainable
  c.flow.lora_export = 'merged'  # merged | adapter (a PEFT folder)
  c.flow.one_caption = True  # draw one caption of an image, not one each

  c.data = ConfigDict()
  # scenes:train | scenes:crowded (more objects) | glyphs:... | images:DIR
  c.data.source = 'scenes:crowded'
  # scenes:validation for choosing settings; for photographs, images:DIR.
  c.data.heldout = 'scenes:heldout'
  c.data.threads = 2  # that prepare batches ahead, each one of its own
  c.data.cache = '~/.cache/uae_jax/data'  # indices of tars, copies of Parquet
  c.data.max_bad = 0.1  # share of the items tried, beyond which a run stops
  c.data.prompt = 'describe every object in the image'
  c.data.system = ''  # system turn of the chat template; '': none
  c.data.side = 32  # pixels of the drawn image
  # Shapes of training batches, of images of like aspect: ('448x576', '512x512',
  # '576x448'), height first; (): squares of data.side, as evaluation has.
  c.data.buckets = ()
  c.data.max_pixels = 1024  # of the image as the policy sees it

  c.model = ConfigDict()
  c.model.umm = 'umm1'  # umm1 | umm2
  c.model.dtype = 'float32'  # activations
  c.model.attention = 'auto'  # 'splash', 'cudnn', 'xla'; see nn/kernels.py
  c.model.frozen_dtype = 'float32'  # matrices that are not trained
  c.model.chunk = 0  # tokens whose logits exist at once when scored; 0: all
  c.model.remat = 'none'  # none | dots | full
  c.model.variant = 'tiny'  # built where a ckpt.* folder is ''
  c.model.connector = 'mlp'  # mlp | queries (MetaQuery), where it is built

  # How much a step works on at once; 0 is everything. The loss is the same.
  c.memory = ConfigDict()
  c.memory.rollout_images = 0  # images of a data shard in one rollout
  c.memory.drawings = 32  # drawings of a data shard; more fit no CPU's cache
  c.memory.update_images = 0  # images of a data shard in one gradient
  c.memory.offload = ''  # optimizer,reference: wait in the host's memory

  c.ckpt = ConfigDict()
  c.ckpt.policy = 'bundled:umm1/policy'
  if variant == 'blind':
    c.ckpt.policy = 'bundled:umm1/blind'
  # What re-encodes captions where rollout.environment is 'reference'; '': what
  # umm.json beside ckpt.policy names (a run's export does), or ckpt.policy.
  c.ckpt.reader = ''
  c.ckpt.decoder = 'bundled:umm1/decoder'
  if variant == 'glyphs':
    c.ckpt.policy = 'bundled:umm1/glyphs/policy'
    c.ckpt.decoder = 'bundled:umm1/glyphs/decoder'
    c.data.source = 'glyphs:crowded'
    c.data.heldout = 'glyphs:heldout'
    c.rollout.length = 28
  c.ckpt.reward = 'bundled:umm1/reward'
  # Held-out towers, never a reward; comma separated.
  c.ckpt.judges = 'bundled:umm1/judge_clip,bundled:umm1/judge_views'
  c.ckpt.every = 125  # steps
  c.ckpt.keep = 2  # the newest
  c.ckpt.keep_best = True  # and the best evaluation by eval.watch
  c.ckpt.export = 'last'  # last | best: what export/ is made of

  c.eval = ConfigDict()
  c.eval.every = 125  # steps; also before and after training
  c.eval.images = 256
  c.eval.batch = 64
  c.eval.prompts = False  # text to image as GenEval asks it; drawn scenes only
  c.eval.gallery = 32  # images kept for the report
  c.eval.draw_steps = 0  # 0: as rollout.draw_steps
  # Evaluations without a better eval.watch before the run ends; 0: all steps.
  c.eval.patience = 0
  c.eval.watch = 'unified_score'

  c.log = ConfigDict()
  c.log.every = 5.0  # seconds between lines on the terminal
  c.log.wandb = ''  # a project of Weights & Biases, or none

  c.mesh = ConfigDict()
  c.mesh.data = -1  # -1: all devices left over by mesh.model
  c.mesh.model = 1
  if variant in STAGES:
    c.stage = variant
    c.rollout.draw_steps = 4
  if variant in REAL:
    real_size(c, *REAL[variant])
  return c


def real_size(c: ConfigDict, policy: str, decoder: str, more: dict) -> None:
  """What differs for real models; not tuned here."""
  c.train.steps = 1000
  c.train.images = 64
  c.train.lr = 1e-6
  c.grpo.beta = 0.01
  c.rollout.length = 256
  c.rollout.draw_steps = 10
  c.rollout.shift = 0.0
  c.rollout.guidance = 4.5
  c.data.source = 'images:data/train'
  c.data.heldout = 'images:data/heldout'
  c.data.prompt = 'Describe this image in detail.'
  c.data.system = 'You are a helpful assistant.'
  c.data.side = 512
  c.data.max_pixels = 448 * 448
  c.model.dtype = c.model.frozen_dtype = 'bfloat16'
  c.model.remat = 'full'
  c.model.chunk = 64
  c.memory.drawings = 2
  c.memory.update_images = 1
  c.update_from_flattened_dict(more)
  c.ckpt.policy, c.ckpt.decoder = policy, decoder
  c.ckpt.reward = 'openai/clip-vit-large-patch14'
  c.rewards.text_tower, c.rewards.text_tokenizer = c.ckpt.reward, ''
  c.rewards.length_target = 128
  c.ckpt.judges = 'facebook/dinov2-large'
  c.ckpt.every = c.eval.every = 100
