"""Every config key: its default, what it must be, and what it means with its unit. Nothing else declares a key.

An experiment's file starts from `jaxrlvr.config.base()`, a ConfigDict of these defaults, and changes some; on a command
line it is `jaxrlvr STAGE --config=FILE[:ARG] --workdir=DIR --config.key=value`. A key that is not here is an error.
`may_change`: a run that is resumed may have another value than before.
"""

from collections.abc import Mapping

from jaxrlvr.config.keys import (
  DECAY,
  DTYPE,
  FILLED_SHARE,
  PLACE,
  POSITIVE,
  RATES,
  SEED,
  SHARE,
  SWITCH,
  TEXT,
  Group,
  Key,
  above,
  at_least,
  defaults,
  each,
  is_filled_text,
  is_share,
  is_text,
  matching,
  no_rule,
  one_of,
  one_of_table,
  parsed_by,
  rule,
)

COLUMNS = rule("strings `target=column`", lambda value: all(map(is_text, value)))
LEVELS = each(one_of_table("jaxrlvr.tasks.splits:LEVELS"))
MESH = rule("-1 or at least 1", lambda value: value == -1 or value >= 1)


def optim(lr: float, schedule: str, warmup: float, b2: float) -> Group:
  """AdamW and its learning rate."""
  o = Group()
  o.lr = Key(lr, at_least(0.0), "peak learning rate")
  o.schedule = Key(
    schedule,
    one_of_table("jaxrlvr.training.optimizer:SCHEDULES"),
    "how the learning rate goes on after the warm-up: constant | cosine | linear",
  )
  o.warmup = Key(warmup, DECAY, "linear warm-up, as a share of the updates")
  o.floor = Key(0.0, SHARE, "learning rate at the end of cosine and linear, as a share of lr")
  o.b1 = Key(0.9, DECAY, "decay of AdamW's first moment")
  o.b2 = Key(b2, DECAY, "decay of AdamW's second moment")
  o.eps = Key(1e-8, POSITIVE, "small number that AdamW adds to the divisor")
  o.moment = Key("float32", DTYPE, "dtype of AdamW's first moment; bfloat16 takes 2 bytes a weight less")
  o.weight_decay = Key(0.01, at_least(0.0), "AdamW's weight decay: each update takes lr times this share off a weight")
  o.clip_norm = Key(1.0, at_least(0.0), "gradients with a larger global norm are scaled down to it; 0: no clipping")
  return o


def language_modelling(steps: Key, lr: float) -> Group:
  """Pre-training, CPT and SFT: packed rows, loss over the mean of all target tokens of a batch."""
  t = Group()
  t.steps = steps
  t.rows = Key(16, at_least(1), "packed rows of an update")
  t.row_tokens = Key(128, at_least(2), "tokens of a row, padding included")
  t.microbatches = Key(
    1, at_least(1), "microbatches of an update; more take less memory, the gradient stays the same", may_change=True
  )
  t.optim = optim(lr, "cosine", warmup=0.05, b2=0.95)
  return t


def problems(source: Key, count: Key, seed: int) -> Group:
  """Problems, and what of their files is read as what."""
  p = Group()
  p.source = source
  p.columns = Key(
    (), COLUMNS, "which column holds what: `prompt=A`, `label=B`, ... (docs/data.md); (): found by their names"
  )
  p.split = Key(
    "",
    matching(r"[\w.-]*", "the name of a split, such as train or test, or all"),
    "split of a folder or a hub's set to read, where file names begin with a split (train-*, test-*, validation-*) or "
    "files lie in folders of such names; all: every file; empty: train for problems, test or else validation for "
    "heldout",
  )
  p.system = Key("", TEXT, "system message for prompts that have none")
  p.skip_bad = Key(0, at_least(0), "so many rows that can't be used are skipped and counted; one more is an error")
  p.count = count
  p.levels = Key((4,), LEVELS, "difficulties of generated problems, 1 to 5, taken in turn")
  p.kinds = Key(
    ("chain",),
    each(rule("a name", is_text)),
    "kinds of generated problems, taken in turn: chain | expression | large, or tasks of Reasoning Gym",
  )
  p.seed = Key(seed, SEED, "seed of generated problems")
  p.verifier = Key(
    "auto",
    one_of_table("jaxrlvr.data.columns:VERIFIER_CHOICES"),
    "how answers to a file's problems are graded: auto (graph tasks by name, else math) | math | graph | choice",
  )
  p.unreadable = Key(
    "warn",
    one_of("warn", "drop", "error"),
    "what to do with problems whose label or truth the verifier can't read: warn | drop (leave them out) | error",
  )
  p.too_long = Key(
    "error",
    one_of("error", "drop"),
    "what to do with prompts longer than rl.prompt_tokens; drop leaves them out and counts them",
  )
  p.copies = Key(
    "drop",
    one_of("drop", "keep", "error"),
    "what to do with rows that repeat the prompt of an earlier row; drop leaves them out and counts them, keep makes "
    "each a problem of its own",
  )
  return p


def judge(name: Key) -> Group:
  """Where labels of reasoning come from."""
  o = Group()
  o.name = name
  o.url = Key("", PLACE, "http: address of the endpoint, without /chat/completions", may_change=True)
  o.model = Key(
    "", PLACE, "http: name of the model at the endpoint; local: run directory of a policy, as `import` makes one"
  )
  o.key_variable = Key(
    "",
    matching(r"([A-Z_][A-Z0-9_]*)?", "the name of an environment variable"),
    "http: environment variable that holds the API key; empty: no key is sent",
    may_change=True,
  )
  o.request = Key(
    '{"temperature": 0}', no_rule("the endpoint reads it"), "http: further fields of each request, a JSON object"
  )
  o.timeout_seconds = Key(60.0, POSITIVE, "http: time limit of a call", may_change=True)
  o.deadline_seconds = Key(
    180.0,
    POSITIVE,
    "http: time limit of a label, with all retries; a label that comes later is missing",
    may_change=True,
  )
  o.retries = Key(
    5,
    at_least(0),
    "http: retries of a call after 429, 5xx, timeouts and lost connections, with growing waits",
    may_change=True,
  )
  o.concurrency = Key(8, at_least(1), "http: calls at the same time; local: prompts sampled at once", may_change=True)
  o.prompt_tokens = Key(
    4096, at_least(1), "local: longest request, to which all are padded; a longer one gets no label"
  )
  o.tokens = Key(1024, at_least(1), "local: longest response")
  o.price_in = Key(
    0.0, at_least(0.0), "http: price of a million prompt tokens, for the summary's cost; 0: unknown", may_change=True
  )
  o.price_out = Key(
    0.0, at_least(0.0), "http: price of a million answer tokens, for the summary's cost; 0: unknown", may_change=True
  )
  o.file = Key("", PLACE, "replay: labels.jsonl of an earlier judging")
  return o


c = Group()
c.seed = Key(
  0, rule("from 0 to 2**32 - 1", lambda value: 0 <= value < 2**32), "seed of weights, data order and samples"
)
c.init = Key(
  "",
  PLACE,
  "run directory to start from: its newest weights and its tokenizer; empty: model.path, or fresh weights",
  may_change=True,  # its weights count, not its path
)
c.tokenizer = Key(
  "",
  PLACE,
  "SentencePiece model, or a run or Hugging Face directory with a tokenizer; empty: that of init or model.path",
  may_change=True,
)
c.resume = Key(
  "auto",
  one_of("auto", "required", "never", "check"),
  "auto: continue if the workdir has a checkpoint | required: it must have one | never: the workdir must be unused | "
  "check: as auto, but read the last checkpoint of a finished run too, and where it is damaged continue from the one "
  "before",
  may_change=True,
)
c.compile_cache = Key(
  "auto",
  PLACE,
  "folder where compiled programs are kept; auto: ~/.cache/jaxrlvr, but none on CPU; empty: none",
  may_change=True,
)
c.tensorboard = Key(False, SWITCH, "write TensorBoard events too (extra `tensorboard`)", may_change=True)

# Shape of fresh weights; with `init` or `path` its own shape holds, and only how to compute is read from here.
c.model = Group()
c.model.path = Key(
  "", PLACE, "Hugging Face directory of a Llama, Qwen2 or Qwen3, or ORG/NAME[@REVISION] of the hub", may_change=True
)
c.model.think = Key(
  "template",
  one_of("template", "on", "off"),
  "whether the chat template is asked for thinking (enable_thinking); template: its own default",
)
c.model.stop_tokens = Key(
  (),
  rule("tokens, texts that are not empty", lambda value: all(map(is_filled_text, value))),
  "further tokens that end a response, besides those that the Hugging Face directory names",
)
c.model.vocab = Key(0, at_least(0), "rows of the embedding table; 0: as many as the tokenizer has tokens")
c.model.width = Key(64, at_least(1), "width of the residual stream")
c.model.layers = Key(3, at_least(1), "layers, each a block of attention and MLP")
c.model.heads = Key(4, at_least(1), "query heads")
c.model.kv_heads = Key(2, at_least(1), "key and value heads, shared by the query heads (GQA)")
c.model.head_dim = Key(
  16, rule("an even number from 2: RoPE rotates pairs", lambda value: value >= 2 and value % 2 == 0), "width of a head"
)
c.model.mlp = Key(192, at_least(1), "hidden width of the SwiGLU MLP")
c.model.rope_theta = Key(10_000.0, POSITIVE, "base of the rotary frequencies")
c.model.rope_scaling = Key(0.0, at_least(0.0), "factor of Llama-3 frequency scaling; 0: none")
c.model.norm_eps = Key(1e-6, POSITIVE, "small number that RMSNorm adds to the mean square")
c.model.qkv_bias = Key(False, SWITCH, "biases on q, k and v (Qwen2)")
c.model.qk_norm = Key(False, SWITCH, "RMSNorm of q and k (Qwen3)")
c.model.tied = Key(True, SWITCH, "whether the output head is the embedding table")
c.model.dtype = Key("float32", DTYPE, "dtype of activations; the weights that are trained are float32")
c.model.unroll = Key(
  3,
  at_least(1),
  "layers that one step of the scan over layers runs; more run faster and compile longer",
  may_change=True,
)
c.model.vocab_chunk = Key(
  8192, at_least(1), "columns of the output head that scoring holds at once; fewer take less memory", may_change=True
)
c.model.attention = Key(
  "auto",
  one_of_table("jaxrlvr.model.attention:ATTENTION", also=("auto",)),
  "attention of whole rows: reference | mapped | xla | cudnn (GPU) | splash (TPU, Pallas); auto: the platform's",
  may_change=True,
)
c.model.remat = Key(
  "none",
  one_of_table("jaxrlvr.model.forward:REMAT"),
  "what the backward pass recomputes: none (all activations are kept) | dots (only products with weights are kept) | "
  "full (each layer from its input: least memory, a third more work)",
  may_change=True,
)

c.mesh = Group()  # devices along each axis; one may be -1: all that are left
c.mesh.data = Key(
  1, MESH, "devices that each hold a copy of the weights and a part of the rows; -1: all that are left", may_change=True
)
c.mesh.fsdp = Key(-1, MESH, "devices that share the weights and the rows; -1: all that are left", may_change=True)
c.mesh.tensor = Key(
  1,
  MESH,
  "devices that share heads, MLP and vocabulary; may exceed kv_heads, which are then repeated; -1: all that are left",
  may_change=True,
)
c.mesh.sample_tensor = Key(
  0,
  at_least(0),
  "sampling: devices that share the weights as by `tensor`, without gathering them; rows are split over the others. 0: "
  "as many as there are KV heads, more if the weights then take over a quarter of a device; few on CPU",
  may_change=True,
)

c.hosts = Group()  # of several processes (--distributed)
c.hosts.deadline_seconds = Key(
  1200.0,
  POSITIVE,
  "seconds that a process of a --distributed run waits for the others; more than their compile times differ",
  may_change=True,
)
c.hosts.silence_seconds = Key(
  60.0,
  at_least(2.0),
  "seconds without a sign of life after which a process of a --distributed run counts as dead",
  may_change=True,
)

c.text = Group()  # what the embedded text is made of
c.text.vocab = Key(512, at_least(320), "tokens of the SentencePiece model")
c.text.documents = Key(4000, at_least(100), "built-in documents that the SentencePiece model is trained on")
c.text.levels = Key(
  (1, 2, 3, 4), LEVELS, "difficulty of problems in pre-training and CPT text; level n has n + 1 operations"
)
c.text.kinds = Key(
  ("chain",),
  each(one_of_table("jaxrlvr.tasks.arithmetic.problems:KINDS")),
  "kinds of these problems, taken in turn: chain | expression | large",
)
c.text.filler = Key(0.1, SHARE, "share of pre-training documents that are general filler")
c.text.facts = Key(
  0.3, SHARE, "share of pre-training documents that are easy facts; the rest are problems with an answer"
)
c.text.careful = Key(0.3, SHARE, "share of the answers that show every step; the others show one step and guess")
c.text.guess_right = Key(0.25, SHARE, "share of the guesses that are right")

c.pretrain = language_modelling(Key(600, at_least(1), "updates of pre-training"), lr=3e-3)

c.cpt = language_modelling(Key(800, at_least(1), "updates of CPT"), lr=3e-3)
c.cpt.source = Key(
  "", PLACE, "text: a parquet or jsonl file, a folder of such, or nemotron-cc-math[:FOLDER]; empty: the built-in text"
)
c.cpt.column = Key("", PLACE, "column that holds the text; empty: the data set's own, else `text`")
c.cpt.skip_bad = Key(0, at_least(0), "so many rows without text are skipped and counted; one more is an error")

c.sft = language_modelling(Key(60, at_least(0), "updates of SFT; 0: they follow from epochs"), lr=1e-3)
c.sft.epochs = Key(0, at_least(0), "times that SFT sees each row of its source; 0: steps says how long it is")
c.sft.source = Key(
  "",
  PLACE,
  "examples: a parquet or jsonl file, a folder of such or of tfds, or openthoughts-114k[:FOLDER]; empty: built-in ones",
)
c.sft.columns = Key(
  (),
  COLUMNS,
  "`prompt=A`, `solution=B`, `trace=C` (or B holds the trace between think tags); `label=D` or `boxed=D` to check them",
)
c.sft.system = Key("", TEXT, "system message for prompts that have none")
c.sft.max_tokens = Key(
  0, at_least(0), "longest prompt, trace and solution; longer ones are left out of both arms; 0: row_tokens"
)
c.sft.verified = Key(True, SWITCH, "leave out solutions that disagree with their label")
c.sft.skip_bad = Key(0, at_least(0), "so many rows that can't be used are skipped and counted; one more is an error")
c.sft.thinking = Key(
  True, SWITCH, "what SFT teaches. True: trace and answer; False: the answer alone, to the same prompts"
)
c.sft.terse = Key(0.6, SHARE, "share of the built-in traces that show only their first step, then the right answer")
c.sft.levels = Key((4,), LEVELS, "difficulties of the built-in problems, 1 to 5")

c.problems = problems(  # what RL trains on
  source=Key(
    "arithmetic",
    PLACE,
    "arithmetic | graph | reasoning_gym: generated; a parquet, jsonl, json or csv file, a folder of such, a tfds "
    "folder; a set of the hub, ORG/NAME or ORG/NAME:CONFIG; or one with a layout of its own, skywork-or1 | scp-116k | "
    "openthoughts-114k, with NAME:FOLDER for a local copy",
  ),
  count=Key(8, at_least(0), "N: the first N problems are taken; 0: all. Fewer than a batch are repeated uniformly"),
  seed=100,
)

c.heldout = problems(  # what evaluation uses, during RL and in `evaluate`
  source=Key(
    "",
    PLACE,
    "as problems.source; empty: if the problems of problems.source are generated, the held-out problems of that "
    "generator. Beside `sets` or `domain` it is one more set",
  ),
  count=Key(64, at_least(0), "the first so many held-out problems are taken; 0: all"),
  seed=1,
)
c.heldout.name = Key(
  "heldout",
  rule(  # it is part of a file's name
    "letters, digits, '_', '-' and '.', at most 100 bytes of them",
    lambda value: matching(r"\w[\w.-]*", "").holds(value) and len(value.encode()) <= 100,
  ),
  "name of the set of `source` in metrics",
)
c.heldout.overlap = Key(
  "error", one_of("error", "drop", "warn"), "what to do with held-out problems whose prompt is trained on as well"
)
c.heldout.sets = Key(
  (),
  each(one_of_table("jaxrlvr.data.eval_sets:EVAL_SETS", "jaxrlvr.data.eval_sets:GENERATED_SETS"), empty=True),
  "evaluation sets by name, of those in jaxrlvr.data.eval_sets (EVAL_SETS, GENERATED_SETS)",
)
c.heldout.domain = Key(
  "",
  one_of_table("jaxrlvr.data.eval_sets:DOMAINS", also=("",)),
  "arithmetic | math | science | graph-qwen | graph-llama: all sets of a domain, with means inside and outside of it",
)
c.heldout.at_most = Key(0, at_least(0), "problems of each named set; 0: all")
c.heldout.folder = Key(
  "", PLACE, "where the study's sets lie: the folder of its release that has think/ and non-think/"
)
c.heldout.prompts = Key("non-think", one_of("think", "non-think"), "which prompts of the study's sets are taken")

c.prepare = Group()
c.prepare.format = Key("jsonl", one_of("jsonl", "tfds"), "format of the prepared set; tfds: ArrayRecord (extra `tfds`)")

c.filter = Group()
c.filter.samples = Key(16, at_least(2), "samples of each problem")
c.filter.low = Key(1, at_least(0), "fewest right samples of a problem that is kept")
c.filter.high = Key(15, at_least(0), "most right samples of a problem that is kept")

c.subset = Group()
c.subset.count = Key(
  2048, at_least(1), "problems that are put in order; a later run takes the first N of them (problems.count)"
)

c.corrupt = Group()
c.corrupt.samples = Key(96, at_least(2), "samples of each problem")
c.corrupt.gammas = Key(
  (0.1, 0.3, 0.5, 0.7, 0.9),
  rule(
    "shares from 0 to 1 that differ in their first two decimals, as (0.1, 0.7)",
    lambda value: value and all(map(is_share, value)) and len({f"{share:.2f}" for share in value}) == len(value),
  ),
  "shares of the problems that get a wrong label, one file each",
)
c.corrupt.label = Key(
  "wrong",
  one_of("wrong", "majority"),
  "label that is given. wrong: the most frequent wrong answer | majority: the most frequent answer",
)

c.diagnose = Group()
c.diagnose.domain = Key(
  "",
  one_of_table("jaxrlvr.analysis.prediction:DOMAIN_NAMES", also=("",)),
  "domain whose rules apply: math | science | graph | arithmetic | other; empty: read from the problems",
)
c.diagnose.reference = Key(
  "", PLACE, "run directory of the diagnosis of a policy that is known to generalise; needed on Science and Graph"
)
c.diagnose.problems = Key(
  64,
  at_least(1),
  "problems of problems.source that are sampled, whatever problems.count is; fewer if a file holds fewer",
)
c.diagnose.samples = Key(16, at_least(2), "samples of each problem (solve@16 of the paper)")

c.rl = Group()
c.rl.steps = Key(60, at_least(1), "steps of RL, each on one batch of problems")
c.rl.problems_per_step = Key(32, at_least(1), "problems of a step; if there are fewer they are repeated uniformly")
c.rl.group_size = Key(8, at_least(2, "a group of one has no spread and teaches nothing"), "samples of each problem")
c.rl.minibatch_problems = Key(0, at_least(0), "problems of an update; 0: all of a step in one update (on-policy)")
c.rl.microbatches = Key(
  4, at_least(1), "microbatches of an update; more take less memory, the gradient stays the same", may_change=True
)
c.rl.pack = Key(
  True,
  SWITCH,
  "pack several responses on a row of an update, and none without a gradient; False: one response a row",
  may_change=True,
)
c.rl.branches = Key(
  -1,
  at_least(-1),
  "responses of a row of an update that share one prompt (not with splash or cudnn); 0: none; -1: chosen by lengths",
  may_change=True,
)
c.rl.sample_parts = Key(
  1,
  at_least(1),
  "parts of a step's problems that are sampled one after another; more take less memory, no sample changes",
  may_change=True,
)
c.rl.prompt_tokens = Key(48, at_least(1), "longest prompt, to which all prompts are padded")
c.rl.response_tokens = Key(56, at_least(1), "longest response")
c.rl.temperature = Key(
  1.0,
  above(0, "greedy samples of a problem are all alike"),
  "temperature of sampling, and of the log-probabilities that are trained on",
)
c.rl.top_k = Key(0, at_least(0), "sample among the k likeliest tokens; 0: among all")
c.rl.top_p = Key(
  1.0, FILLED_SHARE, "sample among the likeliest tokens that have this probability together; 1: among all"
)
c.rl.stop_strings = Key(
  (),
  rule("strings that are not empty", lambda value: all(map(is_filled_text, value))),
  "a response also ends where one of these is complete",
)
c.rl.shrink = Key(
  1, at_least(0), "how often the batch is halved as responses finish; more save work and compile longer"
)
c.rl.cache_blocks = Key(
  0, at_least(0), "blocks of the KV cache of responses, each used only once it is reached; 0: up to 4, by length"
)
c.rl.sample_int8 = Key(
  (),
  rule('some of "weights", "cache"', lambda value: set(value) <= {"weights", "cache"}),
  "what RL's sampler keeps in 8 bits; needs importance_cap",
)
c.rl.reward = Key(
  "verifiable",
  parsed_by("jaxrlvr.rewards.expression:parse"),
  'what a response is paid: a name (docs/rewards.md), or a sum of products: "0.8*verifiable + 0.2*one_box"',
)
c.rl.votes = Key(
  0, at_least(0), "samples of a problem that vote, of which the first group_size are trained on; 0: group_size"
)
c.rl.noise = Key((0.0, 0.0), RATES, "noise on a reward of 0 and 1: rates of false positives and of false negatives")
c.rl.correction = Key(
  "none",
  one_of_table("jaxrlvr.training.loss:CORRECTIONS"),
  "correction of advantages for noise: none | backward | forward",
)
c.rl.correction_noise = Key(
  (),
  rule(f"() or {RATES.words()}", lambda value: value == () or RATES.holds(value)),
  "rates that the correction assumes, of false positives and of false negatives; (): those of rl.noise",
)
c.rl.baseline = Key(
  "mean",
  one_of_table("jaxrlvr.training.loss:BASELINES"),
  "what is taken off rewards: mean | leave-one-out | zero, one (the paper's GRPO-POS, -NEG) | positive, negative (as "
  "released)",
)
c.rl.scale_std = Key(True, SWITCH, "divide advantages by the standard deviation of the group; False: Dr.GRPO")
c.rl.ratio = Key(
  "token", one_of_table("jaxrlvr.training.loss:RATIOS"), "probability ratio of the policy loss: token | sequence (GSPO)"
)
c.rl.clip_low = Key(0.2, SHARE, "the ratio is clipped below 1 - clip_low")
c.rl.clip_high = Key(0.2, at_least(0.0), "the ratio is clipped above 1 + clip_high")
c.rl.dual_clip = Key(
  0.0,
  rule("0 (off) or above 1", lambda value: value == 0 or value > 1),
  "cap of the loss for negative advantages, in units of the advantage; 0: off",
)
c.rl.importance_cap = Key(
  0.0, at_least(0.0), "cap of the importance weights against the sampler's log-probabilities; 0: no weights"
)
c.rl.reduce = Key(
  "token-mean",
  one_of_table("jaxrlvr.device.masked:REDUCTIONS"),
  "how token losses are averaged: token-mean | sequence-mean-token-mean | sequence-mean-token-sum | constant-length",
)
c.rl.kl_beta = Key(0.001, at_least(0.0), "weight of the KL to the starting policy in the loss; 0: no reference policy")
c.rl.kl_estimator = Key("k3", one_of_table("jaxrlvr.training.loss:KL"), "estimator of that KL: k1 | k2 | k3 | k3-k2")
c.rl.mask_truncated = Key(
  False, SWITCH, "leave responses that were cut off out of the loss and out of their group's mean and std"
)
c.rl.max_unscored = Key(0.2, SHARE, "share of a batch's rows that may be unscored; more end the run (exit 3)")
c.rl.worthwhile_gain = Key(
  0.05, SHARE, "smallest gain in held-out accuracy worth having; a run memorises if its interval excludes such a gain"
)
c.rl.stop_when_memorising = Key(
  False, SWITCH, "end the run, as finished, at the evaluation that shows it memorises", may_change=True
)
c.rl.optim = optim(1e-4, "constant", warmup=0.0, b2=0.999)

c.answer = Group()
c.answer.read = Key(
  "boxed",
  one_of_table("jaxrlvr.text.answer:READINGS"),
  "what counts as the answer behind the thinking: boxed (the last box) | hash (what follows the last `####` on its "
  "line, as in GSM8K) | last-number (as lm-eval's flexible-extract)",
)

c.evaluate = Group()
c.evaluate.every = Key(10, at_least(0), "RL steps between evaluations; 0: only at start and end")
c.evaluate.samples = Key(16, at_least(1), "samples of each problem")
c.evaluate.temperature = Key(
  1.0, at_least(0.0), "temperature of sampling; 0: greedy, for which samples must be 1, as all would be the same"
)
c.evaluate.pass_k = Key((1, 4, 8, 16), each(at_least(1)), "values k of pass@k, each at most `samples`")
c.evaluate.problems_per_batch = Key(
  64, at_least(1), "problems sampled at once; fewer take less memory, no sample changes", may_change=True
)

c.judge = judge(  # who judges reasoning
  Key(
    "exact",
    one_of_table("jaxrlvr.judging.judges:JUDGES"),
    "who labels reasoning: exact (built-in arithmetic, needs no model) | http (chat completions) | local (a policy) | "
    "replay (earlier labels)",
  )
)
c.judge.run = Key(
  "",
  PLACE,
  "run directory of a stage rl or evaluate, whose recorded responses are judged",
  may_change=True,  # its responses count, not their path
)
c.judge.set = Key(
  "", TEXT, "evaluated set whose responses are judged (evals/); empty: those that were trained on (rollouts/)"
)
c.judge.steps = Key(
  (),
  each(at_least(0), empty=True),
  "steps whose responses are judged; (): the first, t_sat if there is one, and the last that are recorded",
)
c.judge.problems = Key(8, at_least(1), "problems that are judged, the same at each step")
c.judge.samples = Key(16, at_least(1), "responses of a problem that are judged; fewer if fewer are recorded")
c.judge.max_missing = Key(
  0.2, SHARE, "share of a step's labels that may be missing; more end the stage (exit 3)", may_change=True
)
c.judge.cache = Key(
  "",
  rule("a local folder", lambda value: "://" not in value),
  "folder that keeps labels of http and local, which runs may share; empty: cache/ in the run directory",
  may_change=True,
)
c.judge.second = judge(  # who judges the same again, in the stage judge
  Key(
    "",
    one_of_table("jaxrlvr.judging.judges:JUDGES", also=("",)),
    "a second judge of the same, for kappa: exact | http | local | replay; empty: none",
  )
)

c.verify = Group()  # limits of one grading job in its worker process
c.verify.mode = Key(
  "strict",
  one_of("strict", "study"),
  "how mathematics is graded: strict (docs/verifiers.md) | study (as its released code does)",
)
c.verify.workers = Key(2, at_least(1), "grading jobs at the same time", may_change=True)
c.verify.cpu_seconds = Key(
  1.5,
  POSITIVE,
  "CPU seconds of a grading job, after which its worker is killed and the answer is unscored",
  may_change=True,
)
c.verify.wall_seconds = Key(10.0, POSITIVE, "seconds of a grading job from its start, likewise", may_change=True)
c.verify.memory_mib = Key(
  1024, at_least(64), "MiB of a grading job, on top of what an idle worker takes, likewise", may_change=True
)

c.checkpoint = Group()
c.checkpoint.every = Key(
  10,
  at_least(1),
  "steps between checkpoints; the last step and each that is evaluated are always saved, before the evaluation",
  may_change=True,
)
c.checkpoint.keep = Key(2, at_least(1), "newest checkpoints that are kept", may_change=True)
c.stop_after_bad_updates = Key(3, at_least(1), "so many updates in a row that are not finite end the run (exit 3)")

c.export = Group()
c.export.dtype = Key(
  "float32",
  DTYPE,
  "dtype of the weights in the files: float32, as trained | bfloat16, half the size and rounded",
  may_change=True,
)
c.export.shard_gib = Key(
  5.0, POSITIVE, "GiB of the largest file; a larger tensor is a file of its own", may_change=True
)

c.report = Group()
c.report.runs = Key(
  (),
  rule("strings `name=run directory`", lambda value: all(map(is_text, value))),
  '"name=run directory", or a directory alone, of rl, evaluate and judge runs and of grids',
  may_change=True,
)
c.report.title = Key("", TEXT, "headline of the page; empty: the grid's", may_change=True)
c.report.samples = Key(
  12,
  at_least(0),
  "responses of each run and step on the page; fewer where it would grow too large",
  may_change=True,
)
c.saturation_tail = Key(
  50, at_least(0), "number of last steps that cannot be t_sat (T - T_eff of the paper)", may_change=True
)

c.plan = Group()
c.plan.stage = Key("rl", one_of("rl", "pretrain", "cpt", "sft"), "stage that is planned", may_change=True)
c.plan.topology = Key(
  "v5e-8",
  no_rule("planning.tpu reads it, and lists the slices that it knows"),
  "TPU slice, by gcloud's name (v5p-16 has 8 chips) or libtpu's (v5e:2x4)",
  may_change=True,
)
c.plan.efficiency = Key(0.5, FILLED_SHARE, "share of the roofline that programs are taken to reach", may_change=True)
c.plan.mean_tokens = Key(
  0, at_least(0), "mean tokens of a response, an assumption; 0: rl.response_tokens", may_change=True
)

c.paper = Group()  # what the study says of an experiment; goes to the summary and the report
c.paper.setting = Key("", TEXT, "model and domain that the study trained")
c.paper.figure = Key("", TEXT, "where the paper shows it")
c.paper.expected = Key("", TEXT, "what the paper found")
c.paper.t_sat = Key(0, at_least(0), "step at which training saturated in the paper; 0: it does not say")
c.paper.gains = Key(
  (),
  no_rule("what the paper says, copied by hand into a config file"),
  "(set, points of accuracy gained until then) of each set of which the paper says it",
)

c.grid = Group()
c.grid.jobs = Key(
  1,
  at_least(0),
  "links that the stage `grid` runs at once, each a process with its share of the cores; 0: none, only the commands "
  "are written",
)

c.chain = Key(
  (),
  rule("links {'name': ..., 'stage': ...}", lambda value: all(isinstance(link, Mapping) for link in value)),
  'for the stages `chain` and `grid`: links {"name", "stage"} and, where wanted, "init" and "tokenizer" (names of '
  'earlier links), "set" ({key: value} that differ from this config), "files" ({key: path below an earlier link, which '
  'it begins with}), "runs" ({title: link} for a report) and, of rl links of a grid, "cell": {"arm", "setting", "n"}',
  may_change=True,
)


def get_config(arg: str = ""):
  """Returns a ConfigDict of the defaults."""
  if arg:
    raise ValueError(f"base takes no argument, got {arg!r}")
  return defaults(c)
