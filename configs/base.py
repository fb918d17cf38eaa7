"""Every default, with its unit and meaning. An experiment's file starts from `jaxrlvr.config.base()` and changes some.

`jaxrlvr STAGE --config=FILE[:ARG] --workdir=DIR --config.key=value`; a key that is not here is an error.
"""

from ml_collections import ConfigDict


def optim(lr: float, schedule: str, weight_decay: float, b2: float) -> ConfigDict:
  o = ConfigDict()
  o.lr = lr  # peak learning rate
  o.schedule = schedule  # constant | cosine | linear, after the warm-up
  o.warmup = 0.0  # linear warm-up, as a share of the updates
  o.floor = 0.0  # where cosine and linear end, as a share of lr
  o.b1, o.b2, o.eps = 0.9, b2, 1e-8  # AdamW: decay of the moments, what is added to the divisor
  o.moment = "float32"  # dtype of the first moment: float32 | bfloat16 (2 bytes a weight less)
  o.weight_decay = weight_decay  # share of a weight that an update takes off, times lr
  o.clip_norm = 1.0  # largest global norm of a gradient; 0: no clipping
  return o


def language_modelling(steps: int, lr: float) -> ConfigDict:
  """Pre-training, CPT and SFT: packed rows, loss over the mean of all target tokens of a batch."""
  t = ConfigDict()
  t.steps = steps  # updates
  t.rows = 16  # packed rows an update
  t.row_tokens = 128  # slots of a row
  t.microbatches = 1  # parts a batch is cut into; changes memory, never the gradient
  t.optim = optim(lr, "cosine", weight_decay=0.01, b2=0.95)
  t.optim.warmup = 0.05
  return t


def judge(name: str) -> ConfigDict:
  """Where labels of reasoning come from."""
  o = ConfigDict()
  # exact (embedded arithmetic, needs no model) | http (chat completions) | local (a policy) | replay (former labels)
  o.name = name
  o.url = ""  # http: of the endpoint, up to where /chat/completions begins
  o.model = ""  # http: its name there; local: run directory of a policy, as of `import`
  o.key_variable = ""  # http: environment variable that holds the key; "": none is sent
  o.request = '{"temperature": 0}'  # http: further fields of each request, a JSON object
  o.timeout_seconds = 60.0  # http: of a call
  o.deadline_seconds = 180.0  # http: of a label, with all retries; what then is not there is missing
  o.retries = 5  # http: after 429, 5xx, timeouts and lost connections, with growing waits
  o.concurrency = 8  # http: calls at a time; local: prompts sampled at once
  o.prompt_tokens = 4096  # local: longest request, also the padded width; a longer one has no label
  o.tokens = 1024  # local: longest response
  o.price_in, o.price_out = 0.0, 0.0  # http: of a million tokens of prompts and of answers, for the cost; 0: unknown
  o.file = ""  # replay: the labels.jsonl of a former judging
  return o


def get_config(arg: str = "") -> ConfigDict:
  if arg:
    raise ValueError(f"base takes no argument, got {arg!r}")
  c = ConfigDict()
  c.seed = 0  # of everything: weights, data order, samples
  c.init = ""  # run directory whose newest weights (and tokenizer) to start from; "": model.path, or fresh weights
  c.tokenizer = ""  # SentencePiece model, run or Hugging Face directory that holds one; "": that of init or model.path
  # auto: go on if the workdir has a checkpoint | required | never: the workdir must be unused | check: as auto, but the
  # last checkpoint is read of a finished run too, and where it is damaged the run goes on from the one before
  c.resume = "auto"
  c.compile_cache = "auto"  # folder of compiled programs; auto: ~/.cache/jaxrlvr but none on CPU; "": none
  c.tensorboard = False  # write TensorBoard events too (extra `tensorboard`)

  # Shape of fresh weights; with `init` or `path` its own shape holds, and only how to compute is read from here.
  c.model = ConfigDict()
  c.model.path = ""  # Hugging Face directory of a Llama, Qwen2 or Qwen3, or ORG/NAME[@REVISION] of the hub
  c.model.think = "template"  # thinking in its chat template: template (its own default) | on | off
  c.model.stop_tokens = ()  # tokens that end a response beside those that the Hugging Face directory names
  c.model.vocab = 0  # rows of the embedding table; 0: as many as the tokenizer has tokens
  c.model.width = 64  # of the residual stream
  c.model.layers = 3  # blocks of attention and MLP
  c.model.heads = 4  # query heads
  c.model.kv_heads = 2  # key and value heads, shared by the query heads (GQA)
  c.model.head_dim = 16  # width of a head, even
  c.model.mlp = 192  # hidden width of the SwiGLU MLP
  c.model.rope_theta = 10_000.0  # base of the rotary frequencies
  c.model.rope_scaling = 0.0  # factor of Llama-3 frequency scaling; 0: none
  c.model.norm_eps = 1e-6  # of RMSNorm
  c.model.qkv_bias = False  # biases on q, k and v (Qwen2)
  c.model.qk_norm = False  # RMSNorm of q and k (Qwen3)
  c.model.tied = True  # output head = embedding table
  c.model.dtype = "float32"  # of activations: float32 | bfloat16; masters are float32
  c.model.unroll = 3  # layers a step of the scan over layers runs
  c.model.vocab_chunk = 8192  # columns of the head that scoring holds at once
  c.model.attention = "auto"  # reference | mapped | xla | cudnn (GPU) | splash (TPU, Pallas); auto: the platform's
  # What is kept of a layer for the backward pass: none (no recomputation: all is kept) | dots (the products with
  # weights) | full (recomputes the layer from its input: least memory, a third more work).
  c.model.remat = "none"

  c.mesh = ConfigDict()  # devices along each axis; one may be -1: all that are left
  c.mesh.data = 1  # copies of the weights, rows split
  c.mesh.fsdp = -1  # weights and rows split
  c.mesh.tensor = 1  # heads, MLP and vocabulary split; may exceed kv_heads, which are then repeated
  # Pieces that the weights are cut into in sampling, as by `tensor`, and never gathered; rows are split over the other
  # devices. 0: as many as there are KV heads, more if the weights then take over a quarter of a device; few on CPU.
  c.mesh.sample_tensor = 0

  c.hosts = ConfigDict()  # of several processes (--distributed)
  c.hosts.deadline_seconds = 1200.0  # that a process waits for the others; longer than they differ in compiling
  c.hosts.silence_seconds = 60.0  # without a sign of life, and a process counts as dead

  c.text = ConfigDict()  # what the embedded text is made of
  c.text.vocab = 512  # tokens of the SentencePiece model
  c.text.documents = 4000  # documents it is trained on
  c.text.levels = (1, 2, 3, 4)  # difficulty of problems in pre-training and CPT text; level n has n + 1 operations
  c.text.kinds = ("chain",)  # kinds of these problems, in turn: chain | expression | large (jaxrlvr.tasks.arithmetic)
  c.text.filler = 0.1  # share of pre-training documents that are general filler
  c.text.facts = 0.3  # share that are easy facts; the rest are problems with an answer
  c.text.careful = 0.3  # share of these answers with every step; the others show one step and guess
  c.text.guess_right = 0.25  # share of guesses that are right

  c.pretrain = language_modelling(steps=600, lr=3e-3)
  c.cpt = language_modelling(steps=800, lr=3e-3)
  c.cpt.source = ""  # "": the embedded text | parquet or jsonl, a folder of such | nemotron-cc-math[:FOLDER]
  c.cpt.column = ""  # of the text; "": the data set's own, else `text`
  c.cpt.skip_bad = 0  # rows without text that are skipped (and counted) before one is an error
  c.sft = language_modelling(steps=60, lr=1e-3)
  c.sft.epochs = 0  # times that SFT sees each row of its source (steps = 0: they follow from it); 0: as `steps` say
  c.sft.source = ""  # "": the embedded prompts | parquet, jsonl, a folder of such or tfds | openthoughts-114k[:FOLDER]
  # `prompt=A`, `solution=B`, `trace=C` (or B holds it, between think tags); to check solutions `label=D` or `boxed=D`
  c.sft.columns = ()
  c.sft.system = ""  # system message of its prompts that have none
  c.sft.max_tokens = 0  # longest prompt, trace and solution; longer ones are left out of both arms; 0: row_tokens
  c.sft.verified = True  # leave out solutions that disagree with their label
  c.sft.skip_bad = 0  # rows that can't be used, as in cpt
  c.sft.thinking = True  # targets: True: trace and answer; False: the same prompts, the answer alone
  c.sft.terse = 0.6  # share of traces that show their first step only and jump to the (right) answer
  c.sft.levels = (4,)  # difficulty of its problems

  c.problems = ConfigDict()  # what RL trains on
  # arithmetic | graph | reasoning_gym: generated; a parquet, jsonl, json or csv file, a folder of such, a tfds folder;
  # a set of the hub, ORG/NAME or ORG/NAME:CONFIG; or one with a layout of its own, skywork-or1 | scp-116k |
  # openthoughts-114k, with NAME:FOLDER for a local copy
  c.problems.source = "arithmetic"
  c.problems.columns = ()  # `prompt=A`, `label=B`, ...: what holds what (docs/data.md); (): by their names
  # Which files of a folder or a hub's set are read where their names begin with a split (train-*, test-*, validation-*)
  # or they lie in folders of such names: a split; all; "": for problems train, for heldout test or else validation.
  c.problems.split = ""
  c.problems.system = ""  # system message for prompts that have none
  c.problems.skip_bad = 0  # rows that can't be used and are skipped (and counted) before one is an error
  c.problems.count = 8  # N, the first so many problems, 0: all; fewer than a batch are repeated uniformly
  c.problems.levels = (4,)  # 1 to 5, difficulty of generated problems, in turn
  c.problems.kinds = ("chain",)  # in turn: chain | expression | large, or tasks of Reasoning Gym
  c.problems.seed = 100  # of generated problems
  # How answers to a file's problems are graded: auto (graph tasks by name, else math) | math | graph | choice.
  c.problems.verifier = "auto"
  c.problems.unreadable = "warn"  # problems whose label or truth the verifier can't read: warn | drop | error
  c.problems.too_long = "error"  # prompts over rl.prompt_tokens: error | drop (counted)
  c.problems.copies = (
    "drop"  # rows with the prompt of an earlier row: drop (told) | keep (problems of their own) | error
  )

  c.heldout = ConfigDict(c.problems.to_dict())  # what evaluation uses, during RL and in `evaluate`
  # As problems.source; "": if the problems of problems.source are generated, the held-out problems of that generator.
  # Beside `sets` or `domain` it is one more set.
  c.heldout.source = ""
  c.heldout.count = 64  # problems
  c.heldout.seed = 1  # of generated problems
  c.heldout.name = "heldout"  # name in metrics of the set that `source` gives
  c.heldout.overlap = "error"  # held-out problems whose prompt is trained on as well: error | drop | warn
  c.heldout.sets = ()  # names in jaxrlvr.data.eval_sets (EVAL_SETS, GENERATED)
  # arithmetic | math | science | graph-qwen | graph-llama: all its sets, with means inside and outside of it
  c.heldout.domain = ""
  c.heldout.at_most = 0  # problems of each set; 0: all
  c.heldout.folder = ""  # where the sets lie: the folder with think/ and non-think/ of the study's release
  c.heldout.prompts = "non-think"  # think | non-think: whose prompts

  c.prepare = ConfigDict()
  c.prepare.format = "jsonl"  # jsonl | tfds (ArrayRecord, extra `tfds`)

  c.filter = ConfigDict()
  c.filter.samples = 16  # a problem
  c.filter.low, c.filter.high = 1, 15  # how many of them a kept problem has right, at least and at most

  c.subset = ConfigDict()
  c.subset.count = 2048  # problems that are ordered; a later run takes the first N of them (problems.count)

  c.corrupt = ConfigDict()
  c.corrupt.samples = 96  # a problem
  c.corrupt.gammas = (0.1, 0.3, 0.5, 0.7, 0.9)  # shares of the problems with a wrong label, one file each
  c.corrupt.label = "wrong"  # wrong: the most frequent wrong answer | majority: the most frequent answer

  c.diagnose = ConfigDict()
  c.diagnose.domain = ""  # math | science | graph | arithmetic | other, which says what separates; "": by the problems
  c.diagnose.reference = (
    ""  # diagnosis of a policy known to generalise on such problems, where faithfulness says nothing
  )
  c.diagnose.problems = 64  # of problems.source, whatever problems.count is; fewer where a file holds fewer
  c.diagnose.samples = 16  # a problem; what the paper calls solve@16

  c.rl = ConfigDict()
  c.rl.steps = 60  # batches of problems
  c.rl.problems_per_step = 32  # problems of a batch; where there are fewer they are repeated uniformly
  c.rl.group_size = 8  # samples a problem
  c.rl.minibatch_problems = 0  # problems an update, 0: all of a step in one update (on-policy)
  c.rl.microbatches = 4  # parts of an update's rows; changes memory, never the gradient
  c.rl.pack = True  # several responses a row of an update, none without a gradient; False: one a row, all of them
  c.rl.branches = -1  # pieces of a row of an update that share a prompt (in CPUs' attention); 0: none; -1: by lengths
  c.rl.sample_parts = 1  # parts that a step's problems are sampled in, one by one; changes memory, never a sample
  c.rl.prompt_tokens = 48  # longest prompt; also the padded width
  c.rl.response_tokens = 56  # longest response
  c.rl.temperature = 1.0  # of sampling, and of the log-probabilities that are trained on
  c.rl.top_k = 0  # 0: off
  c.rl.top_p = 1.0  # 1: off
  c.rl.stop_strings = ()  # a response also ends where one of these is complete
  c.rl.shrink = 1  # times the batch is halved as responses finish; more: less work, longer compile
  c.rl.cache_blocks = 0  # pieces of the cache of responses, each made and read once it is reached; 0: up to 4 by length
  c.rl.sample_int8 = ()  # what RL's sampler keeps in 8 bits, "weights", "cache"; needs importance_cap
  c.rl.reward = "verifiable"  # a name in jaxrlvr.rewards, or a sum of products: "0.8*verifiable + 0.2*one_box"
  c.rl.votes = 0  # samples a problem that a majority vote looks at, the first group_size are trained on; 0: group_size
  c.rl.noise = (0.0, 0.0)  # online noise on a 0/1 reward: rates of false positives and of false negatives
  c.rl.correction = "none"  # of advantages, for noise: none | backward | forward (loss.CORRECTIONS)
  c.rl.correction_noise = ()  # the rates the correction assumes, false positive and negative; (): those of rl.noise
  c.rl.baseline = (
    "mean"  # mean | leave-one-out | zero, one (the paper's GRPO-POS, -NEG) | positive, negative (as released)
  )
  c.rl.scale_std = True  # divide advantages by the group's std; False: Dr.GRPO
  c.rl.ratio = "token"  # token | sequence (GSPO)
  c.rl.clip_low = 0.2  # the ratio counts down to 1 - clip_low
  c.rl.clip_high = 0.2  # and up to 1 + clip_high
  c.rl.dual_clip = 0.0  # cap of the loss for negative advantages, in units of the advantage; 0: off
  c.rl.importance_cap = 0.0  # truncated importance sampling against the sampler's logp; 0: off
  c.rl.reduce = "token-mean"  # token-mean | sequence-mean-token-mean | sequence-mean-token-sum | constant-length
  c.rl.kl_beta = 0.001  # weight of the KL to the starting policy in the loss; 0: no reference policy
  c.rl.kl_estimator = "k3"  # k1 | k2 | k3 | k3-k2
  c.rl.mask_truncated = False  # leave responses that were cut off out of the loss and out of their group's mean and std
  c.rl.max_unscored = 0.2  # share of a batch's rows that may be unscored before the run stops itself (exit 3)
  c.rl.worthwhile_gain = (
    0.05  # least gain in held-out accuracy worth having: memorising is claimed where it is excluded
  )
  c.rl.stop_when_memorising = False  # end the run, as if finished, at an evaluation by which it memorises
  c.rl.optim = optim(1e-4, "constant", weight_decay=0.01, b2=0.999)

  c.answer = ConfigDict()
  # What of a response, behind its thinking, is its answer: boxed (the last box) | hash (what follows the last `####` on
  # its line, as in GSM8K) | last-number (as lm-eval's flexible-extract)
  c.answer.read = "boxed"

  c.evaluate = ConfigDict()
  c.evaluate.every = 10  # RL steps between evaluations; 0: only at start and end
  c.evaluate.samples = 16  # a problem
  c.evaluate.temperature = 1.0  # 0: greedy, for which samples must be 1: all would be the same
  c.evaluate.pass_k = (1, 4, 8, 16)  # k of pass@k, each at most `samples`
  c.evaluate.problems_per_batch = 64  # sampled at once; changes memory, never a sample

  c.judge = judge("exact")  # who judges reasoning
  c.judge.second = judge("")  # who judges the same again, for kappa (stage judge); name "": nobody
  c.judge.run = ""  # run directory of a stage rl or evaluate, whose recorded responses are judged
  c.judge.set = ""  # name of the evaluated set they come from (evals/); "": what was trained on (rollouts/)
  c.judge.steps = ()  # at which steps; (): the first, t_sat where there is one, and the last that are recorded
  c.judge.problems = 8  # problems, the same at each step
  c.judge.samples = 16  # responses a problem, fewer where fewer are recorded
  c.judge.max_missing = 0.2  # share of a step's labels that may be missing before the stage stops itself (exit 3)
  c.judge.cache = ""  # folder of labels of http and local, which other runs may share; "": in the run directory

  c.verify = ConfigDict()  # limits of one grading job in its worker process
  c.verify.mode = "strict"  # strict | study: mathematics read as the released code does
  c.verify.workers = 2  # jobs at a time
  c.verify.cpu_seconds = 1.5  # then the worker is killed and the answer is unscored
  c.verify.wall_seconds = 10.0  # from the job's start
  c.verify.memory_mib = 1024  # MiB on top of what an idle worker takes

  c.checkpoint = ConfigDict()
  c.checkpoint.every = 10  # steps; the last step, and each that is evaluated, is always saved, before its evaluation
  c.checkpoint.keep = 2  # newest checkpoints kept
  c.stop_after_bad_updates = 3  # non-finite updates in a row before the run stops itself (exit 3)

  c.export = ConfigDict()
  c.export.dtype = "float32"  # of the weights in the files: float32, as trained | bfloat16, half the size and rounded
  c.export.shard_gib = 5.0  # GiB, largest file; a larger tensor is a file of its own

  c.report = ConfigDict()
  c.report.runs = ()  # "name=run directory", or a directory alone, of rl, evaluate and judge runs and of grids
  c.report.title = ""  # headline of the page; "": that of the grid
  c.report.samples = 12  # responses that the page holds of each run and step, fewer where it would grow too large
  c.saturation_tail = 50  # last steps in which saturation is not looked for (T - T_eff of the paper)

  c.plan = ConfigDict()
  c.plan.stage = "rl"  # what is planned: rl | pretrain | cpt | sft
  c.plan.topology = "v5e-8"  # TPU slice, by gcloud's name (v5p-16 has 8 chips) or libtpu's (v5e:2x4)
  c.plan.efficiency = 0.5  # share of the roofline that programs are taken to reach
  c.plan.mean_tokens = 0  # of a response, an assumption; 0: rl.response_tokens

  c.paper = ConfigDict()  # what the study says of an experiment; goes to the summary and the report
  c.paper.setting = ""  # model and domain
  c.paper.figure = ""  # where the paper shows it
  c.paper.expected = ""  # what it found
  c.paper.t_sat = 0  # step at which training saturated there; 0: not told
  c.paper.gains = ()  # (set, points of accuracy gained until then) of each set that it tells

  c.grid = ConfigDict()  # how the stage `grid` runs the links of a chain
  c.grid.jobs = 1  # links at once, each a process with its share of the cores; 0: none, only the commands are written

  # For the stages `chain` and `grid`: links {"name", "stage"} and, where wanted, "init" and "tokenizer" (names of
  # earlier links), "set" ({key: value} that differ from this config), "files" ({key: path below an earlier link, which
  # it begins with}), "runs" ({title: link} for a report) and, of rl links of a grid, "cell": {"arm", "setting", "n"}.
  c.chain = ()
  return c
