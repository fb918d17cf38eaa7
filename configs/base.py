"""Every config key: its default, what it must be, and what it means with its unit. Nothing else declares a key.

An experiment's file starts from `jaxrlvr.config.base()`, a ConfigDict of these defaults, and changes some; a command
line changes one by --config.KEY=VALUE. `jaxrlvr STAGE --help` prints the keys that a stage reads, with these meanings.
A key that is not here is an error. A key with `may_change` may have another value when a run is resumed; all other keys
must stay as they were.
"""

from collections.abc import Mapping

from jaxrlvr.config.rules import (
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
  is_date_or_empty,
  is_filled_text,
  is_share,
  is_text,
  matching,
  no_rule,
  one_of,
  one_of_table,
  parsed_by,
  rule,
  tasks_in,
)

SOURCE = PLACE._replace(own_names=tasks_in)  # a source of problems or texts, which may be a task of the user's own
COLUMNS = rule("strings `TARGET=COLUMN`", lambda value: all(map(is_text, value)))
LEVELS = each(one_of_table("jaxrlvr.tasks.splits:LEVELS"))
MESH = rule("-1 or at least 1", lambda value: value == -1 or value >= 1)


def optim(lr: float, schedule: str, warmup: float, b2: float) -> Group:
  """Declares the keys of AdamW and its learning rate, with these defaults."""
  o = Group()
  o.lr = Key(lr, at_least(0.0), "peak learning rate")
  o.schedule = Key(
    schedule,
    one_of_table("jaxrlvr.training.optimizer:SCHEDULES"),
    "course of the learning rate after the warm-up: constant | cosine | linear; cosine and linear fall to optim.floor",
  )
  o.warmup = Key(warmup, DECAY, "share of the updates in which the learning rate rises linearly to lr")
  o.floor = Key(0.0, SHARE, "learning rate at the end of a cosine or linear schedule, as a share of lr")
  o.b1 = Key(0.9, DECAY, "decay of AdamW's first moment, the mean of gradients")
  o.b2 = Key(b2, DECAY, "decay of AdamW's second moment, the mean of squared gradients")
  o.eps = Key(1e-8, POSITIVE, "small number that AdamW adds to the denominator")
  o.moment = Key("float32", DTYPE, "dtype of AdamW's first moment; bfloat16 saves 2 bytes for each weight")
  o.weight_decay = Key(
    0.01, at_least(0.0), "AdamW's weight decay: each update shrinks every weight by this share times the learning rate"
  )
  o.clip_norm = Key(1.0, at_least(0.0), "gradients with a larger global norm are scaled down to it; 0: no clipping")
  return o


def language_modelling(steps: Key, lr: float) -> Group:
  """Declares the keys of pre-training, CPT or SFT: updates on packed rows by the mean loss of their target tokens."""
  t = Group()
  t.steps = steps
  t.rows = Key(16, at_least(1), "batch size: rows of an update, each packed with documents")
  t.row_tokens = Key(128, at_least(2), "sequence length: tokens of a row, padding included")
  t.microbatches = Key(
    1,
    at_least(1),
    "microbatches that the rows of an update are split into; with more an update needs less memory, and its gradient "
    "stays the same",
    may_change=True,
  )
  t.optim = optim(lr, "cosine", warmup=0.05, b2=0.95)
  return t


def problems(source: Key, count: Key, seed: int) -> Group:
  """Declares the keys that say where problems come from and how the columns of their files are read."""
  p = Group()
  p.source = source
  p.columns = Key(
    (),
    COLUMNS,
    "columns of the file, each as TARGET=COLUMN; targets: prompt, label, boxed (a solution whose last box is the "
    "label), truth, id, trace, solution, extra (docs/data.md); (): prompt and label, found by the columns' names",
  )
  p.split = Key(
    "",
    matching(r"[\w.-]*", "the name of a split, such as train or test, or all"),
    "split that is read of a folder, or a set of the hub, that is divided into splits: by the beginning of its file "
    "names (train-*, test-*, validation-*), or by folders of such names; all: every file; empty: the split that the "
    "source names, as ORG/NAME@train or FOLDER@train, else train for problems, and for heldout test, or validation "
    "where there is no test",
  )
  p.system = Key("", TEXT, "system message that is put before prompts that have none")
  p.skip_bad = Key(
    0, at_least(0), "how many rows that can't be used may be skipped; they are counted, and more are an error"
  )
  p.count = count
  p.levels = Key((4,), LEVELS, "difficulties of generated problems, from 1 (easy) to 5, used in turn")
  p.kinds = Key(
    ("chain",),
    each(rule("a name", is_text)),
    "kinds of generated problems, used in turn: chain | expression | large (arithmetic), or tasks of Reasoning Gym",
  )
  p.seed = Key(seed, SEED, "random seed of generated problems")
  p.verifier = Key(
    "auto",
    one_of_table("jaxrlvr.data.columns:VERIFIER_CHOICES", named_by="jaxrlvr.tasks.own:scorer"),
    "verifier of answers to problems of a file: auto (graph for graph tasks, else math) | math | graph | choice | a "
    "function of your own, as my_verifier.py:check (docs/extending.md)",
  )
  p.unreadable = Key(
    "warn",
    one_of("warn", "drop", "error"),
    "what to do with problems whose label or truth the verifier can't parse: warn (and keep them) | drop (leave them "
    "out) | error",
  )
  p.too_long = Key(
    "error",
    one_of("error", "drop"),
    "what to do with prompts longer than rl.prompt_tokens: error | drop (leave them out and count them)",
  )
  p.copies = Key(
    "drop",
    one_of("drop", "keep", "error"),
    "what to do with rows that repeat the prompt of an earlier row: drop (leave them out and count them) | keep (each "
    "is a problem of its own) | error",
  )
  return p


def judge(name: Key) -> Group:
  """Declares the keys of a judge, which labels the reasoning of responses."""
  o = Group()
  o.name = name
  o.url = Key("", PLACE, "with judge http: URL of the endpoint, without /chat/completions", may_change=True)
  o.model = Key(
    "",
    PLACE,
    "with judge http: name of the model at the endpoint; with judge local: run directory of the judging policy, as "
    "`import` writes it",
  )
  o.key_variable = Key(
    "",
    matching(r"([A-Z_][A-Z0-9_]*)?", "the name of an environment variable"),
    "with judge http: environment variable that holds the API key; empty: no key is sent",
    may_change=True,
  )
  o.request = Key(
    '{"temperature": 0}',
    no_rule("the endpoint reads it"),
    "with judge http: further fields of each request, as a JSON object",
  )
  o.timeout_seconds = Key(60.0, POSITIVE, "with judge http: time limit of a call, in seconds", may_change=True)
  o.deadline_seconds = Key(
    180.0,
    POSITIVE,
    "with judge http: time limit of a label with all its retries, in seconds; a label that comes later counts as "
    "missing",
    may_change=True,
  )
  o.retries = Key(
    5,
    at_least(0),
    "with judge http: most retries of a call after status 429 or 5xx, a timeout or a lost connection; waits grow",
    may_change=True,
  )
  o.concurrency = Key(
    8,
    at_least(1),
    "with judge http: calls in flight at a time; with judge local: prompts sampled at a time; with one of your own: "
    "calls at a time of a function of one prompt, or prompts in a call of one that takes a list",
    may_change=True,
  )
  o.prompt_tokens = Key(
    4096, at_least(1), "with judge local: tokens to which all requests are padded; a longer request gets no label"
  )
  o.tokens = Key(1024, at_least(1), "with judge local: most tokens of a response")
  o.price_in = Key(
    0.0,
    at_least(0.0),
    "with judge http: price of a million prompt tokens, from which the summary's cost follows; 0: unknown",
    may_change=True,
  )
  o.price_out = Key(
    0.0,
    at_least(0.0),
    "with judge http: price of a million answer tokens, from which the summary's cost follows; 0: unknown",
    may_change=True,
  )
  o.file = Key("", PLACE, "with judge replay: labels.jsonl that an earlier run of the stage judge wrote")
  return o


c = Group()
c.seed = Key(
  0,
  rule("from 0 to 2**32 - 1", lambda value: 0 <= value < 2**32),
  "random seed of fresh weights, data order and samples",
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
  "SentencePiece model, or a run or Hugging Face directory that holds a tokenizer; empty: the tokenizer of init or "
  "model.path",
  may_change=True,
)
c.resume = Key(
  "auto",
  one_of("auto", "required", "never", "check"),
  "auto: continue if the workdir has a checkpoint | required: it must have one | never: the workdir must be unused | "
  "check: as auto, but also read the last checkpoint of a finished run, and if it is damaged continue from the "
  "checkpoint before it",
  may_change=True,
)
c.compile_cache = Key(
  "auto",
  PLACE,
  "folder where compiled programs are kept between runs; auto: ~/.cache/jaxrlvr, but none on CPU; empty: none",
  may_change=True,
)
c.tensorboard = Key(False, SWITCH, "also write TensorBoard events (needs the extra `tensorboard`)", may_change=True)

# Shape of fresh weights, and how to compute. Weights of `init` or `model.path` have a shape of their own, and take only
# think, date, stop_tokens, dtype, unroll, vocab_chunk, attention and remat from here.
c.model = Group()
c.model.path = Key(
  "",
  PLACE,
  "Hugging Face directory of a model of one of the families (docs/models.md), or ORG/NAME[@REVISION] of the hub",
  may_change=True,
)
c.model.adapter = Key(
  "",
  PLACE,
  "PEFT directory of LoRA adapters for model.path, or ORG/NAME[@REVISION] of the hub; where model.path is empty, they "
  "are for the base that the directory names; empty: none",
  may_change=True,
)
c.model.family = Key(
  "",
  one_of_table("jaxrlvr.model.families:FAMILIES", also=("",), named_by="jaxrlvr.model.families:own_family"),
  "family of fresh weights: gemma3_text | llama | ministral | ministral3 | mistral | olmo2 | olmo3 | phi3 | qwen2 | "
  "qwen3 | smollm3, or, as path.py:NAME or package.module:NAME, a family of your own that a Hugging Face directory may "
  "be of too (docs/extending.md); empty: llama, or what config.json states",
)
c.model.think = Key(
  "template",
  one_of("template", "on", "off"),
  "value of enable_thinking that the chat template gets: on | off | template (none, so that its own default holds)",
)
c.model.date = Key(
  "",
  rule("a date as YYYY-MM-DD, or nothing", is_date_or_empty),
  "day that a chat template states where it asks for today's (SmolLM3, Mistral Small), so that prompts don't depend on "
  "the clock; empty: such templates are refused, and Llama's state a date of their own",
)
c.model.stop_tokens = Key(
  (),
  rule("strings that are not empty", lambda value: all(map(is_filled_text, value))),
  "tokens that end a response, in addition to the end tokens that the Hugging Face directory names",
)
c.model.vocab = Key(0, at_least(0), "rows of the embedding table; 0: as many as the tokenizer has tokens")
c.model.width = Key(64, at_least(1), "width of the residual stream")
c.model.layers = Key(3, at_least(1), "number of layers, each of attention and an MLP")
c.model.heads = Key(4, at_least(1), "number of query heads")
c.model.kv_heads = Key(2, at_least(1), "number of key and value heads, which groups of query heads share (GQA)")
c.model.head_dim = Key(
  16, rule("an even number from 2: RoPE rotates pairs", lambda value: value >= 2 and value % 2 == 0), "width of a head"
)
c.model.mlp = Key(192, at_least(1), "hidden width of the SwiGLU MLP")
c.model.rope_theta = Key(10_000.0, POSITIVE, "base of the rotary frequencies")
c.model.rope_scaling = Key(0.0, at_least(0.0), "factor of Llama-3's scaling of rotary frequencies; 0: no scaling")
c.model.norm_eps = Key(1e-6, POSITIVE, "small number that RMSNorm adds to the mean square")
c.model.tied = Key(True, SWITCH, "use the embedding table as the output head too")
c.model.dtype = Key("float32", DTYPE, "dtype of activations; the weights that are trained are always float32")
c.model.unroll = Key(
  3,
  at_least(1),
  "layers that one iteration of the loop over layers computes; with more a program runs faster and compiles longer",
  may_change=True,
)
c.model.vocab_chunk = Key(
  8192,
  at_least(1),
  "tokens of the vocabulary for which scoring computes logits at a time; with fewer it needs less memory",
  may_change=True,
)
c.model.attention = Key(
  "auto",
  one_of_table("jaxrlvr.model.attention:ATTENTION", also=("auto",)),
  "how training and prefill compute attention: reference | mapped (a block of rows at a time) | xla | cudnn (GPU) | "
  "splash (TPU, Pallas) | auto (what suits the platform)",
  may_change=True,
)
c.model.remat = Key(
  "none",
  one_of_table("jaxrlvr.model.forward:REMAT"),
  "what the backward pass computes again to save memory: none (all activations are kept) | dots (all but products "
  "with weights) | full (each layer from its input: least memory, a third more work)",
  may_change=True,
)

c.lora = Group()  # low-rank adapters, which pretrain, cpt, sft and rl train in the place of all weights
c.lora.rank = Key(0, at_least(0), "rank of the adapters that are trained (LoRA); 0: none, all weights are trained")
c.lora.alpha = Key(32.0, POSITIVE, "what the adapters add to a weight is multiplied by alpha / rank")
c.lora.targets = Key(
  ("q", "k", "v", "o", "gate", "up", "down"),
  each(rule("a name", is_filled_text)),
  "weights that get adapters, of those that each layer multiplies with: q, k, v, o (attention), gate, up, down (MLP)",
)
c.lora.base_dtype = Key(
  "bfloat16",
  DTYPE,
  "dtype in which the frozen weights are kept, in 2 or 4 bytes each; bfloat16 rounds weights that have more digits",
)

c.mesh = Group()  # number of devices along each axis; one axis may be -1, which takes all devices that are left
c.mesh.data = Key(
  1, MESH, "number of copies of the weights, among which rows are split; -1: all devices that are left", may_change=True
)
c.mesh.fsdp = Key(
  -1, MESH, "devices among which both weights and rows are split (FSDP); -1: all devices that are left", may_change=True
)
c.mesh.tensor = Key(
  1,
  MESH,
  "devices among which heads, MLP and vocabulary are split; may exceed kv_heads, which are then repeated; -1: all "
  "devices that are left",
  may_change=True,
)
c.mesh.sample_tensor = Key(
  0,
  at_least(0),
  "as mesh.tensor, while sampling: devices among which heads, MLP and vocabulary are split; rows are split among the "
  "others. 0: up to as many as there are KV heads, and more while the weights take over a quarter of a device's "
  "memory; on CPU the fewest that are possible",
  may_change=True,
)

c.hosts = Group()  # runs of several processes (--distributed)
c.hosts.deadline_seconds = Key(
  1200.0,
  POSITIVE,
  "seconds that a process of a --distributed run waits for the others; must be more than their compile times differ by",
  may_change=True,
)
c.hosts.silence_seconds = Key(
  60.0,
  at_least(2.0),
  "seconds without a sign of life after which a process of a --distributed run counts as dead",
  may_change=True,
)

c.text = Group()  # what the built-in text consists of
c.text.vocab = Key(512, at_least(320), "tokens in the vocabulary of the built-in SentencePiece model")
c.text.documents = Key(4000, at_least(100), "built-in documents that the SentencePiece model is trained on")
c.text.levels = Key(
  (1, 2, 3, 4),
  LEVELS,
  "difficulties of problems in pre-training and CPT text, used in turn; level n has n + 1 operations",
)
c.text.kinds = Key(
  ("chain",),
  each(one_of_table("jaxrlvr.tasks.arithmetic.problems:KINDS")),
  "kinds of problems in pre-training and CPT text, used in turn: chain | expression | large",
)
c.text.filler = Key(0.1, SHARE, "share of pre-training documents that are general filler")
c.text.facts = Key(
  0.3, SHARE, "share of pre-training documents that are easy facts; all others are problems with an answer"
)
c.text.careful = Key(
  0.3, SHARE, "share of the answers in pre-training text that show every step; all others show one step and guess"
)
c.text.guess_right = Key(0.25, SHARE, "share of the guessed answers in pre-training text that are right")

c.pretrain = language_modelling(Key(600, at_least(1), "updates of pre-training"), lr=3e-3)

c.cpt = language_modelling(Key(800, at_least(1), "updates of CPT"), lr=3e-3)
c.cpt.source = Key(
  "",
  SOURCE,
  "text of CPT: a parquet or jsonl file, a folder of such, a set of the hub (ORG/NAME[:CONFIG][@SPLIT]), "
  "nemotron-cc-math[:FOLDER], or a task of your own with a corpus (docs/extending.md); empty: the built-in text",
)
c.cpt.column = Key(
  "", PLACE, "column that holds the text; empty: the data set's text column if it is known, else `text`"
)
c.cpt.skip_bad = Key(
  0, at_least(0), "how many rows without text may be skipped; they are counted, and more are an error"
)

c.sft = language_modelling(Key(60, at_least(0), "updates of SFT; 0: as many as sft.epochs take"), lr=1e-3)
c.sft.epochs = Key(
  0, at_least(0), "number of times that SFT sees each row of its source; 0: sft.steps says how long it is"
)
c.sft.source = Key(
  "",
  PLACE,
  "examples of SFT: a parquet or jsonl file, a folder of such or of tfds, or openthoughts-114k[:FOLDER]; empty: "
  "built-in ones",
)
c.sft.columns = Key(
  (),
  COLUMNS,
  "columns of the file, each as TARGET=COLUMN; targets: prompt, solution, trace (not where the solution holds it "
  "between think tags), and label or boxed (a column whose last box is the label) to check solutions by; (): found by "
  "the columns' names",
)
c.sft.system = Key("", TEXT, "system message that is put before prompts that have none")
c.sft.max_tokens = Key(
  0,
  at_least(0),
  "most tokens of prompt, trace and solution together; longer rows are left out, with either value of sft.thinking; "
  "0: sft.row_tokens",
)
c.sft.verified = Key(True, SWITCH, "leave out rows whose solution disagrees with their label")
c.sft.skip_bad = Key(
  0, at_least(0), "how many rows that can't be used may be skipped; they are counted, and more are an error"
)
c.sft.thinking = Key(
  True,
  SWITCH,
  "True: SFT teaches trace and answer (Thinking); False: the answer alone, to the same prompts (Non-thinking)",
)
c.sft.terse = Key(0.6, SHARE, "share of the built-in traces that show only the first step before the right answer")
c.sft.levels = Key((4,), LEVELS, "difficulties of the built-in problems of SFT, from 1 (easy) to 5, used in turn")

c.problems = problems(  # what RL trains on
  source=Key(
    "arithmetic",
    SOURCE,
    "arithmetic | graph | reasoning_gym (all generated); a task of your own, as my_task.py (docs/extending.md); a "
    "parquet, jsonl, json or csv file, a folder of such, a tfds folder; a set of the hub, ORG/NAME or "
    "ORG/NAME:CONFIG; or one with a layout of its own, skywork-or1 | scp-116k | openthoughts-114k, with NAME:FOLDER "
    "for a local copy",
  ),
  count=Key(
    8,
    at_least(0),
    "number N of problems to train on, the first of the source; 0: all. If a step takes more, they are repeated evenly",
  ),
  seed=100,
)

c.heldout = problems(  # what a policy is evaluated on, during RL and in the stage `evaluate`
  source=Key(
    "",
    SOURCE,
    "as problems.source; empty: the held-out problems of the generator that problems.source names, else an error. If "
    "heldout.sets or heldout.domain is set too, the source is evaluated in addition",
  ),
  count=Key(64, at_least(0), "number of held-out problems to take, the first of the source; 0: all"),
  seed=1,
)
c.heldout.name = Key(
  "heldout",
  rule(  # it is part of a file's name
    "letters, digits, '_', '-' and '.', at most 100 bytes of them",
    lambda value: matching(r"\w[\w.-]*", "").holds(value) and len(value.encode()) <= 100,
  ),
  "name that heldout.source has in metrics and file names",
)
c.heldout.overlap = Key(
  "error",
  one_of("error", "drop", "warn"),
  "what to do with held-out problems whose prompt is trained on too: error | drop (leave them out) | warn",
)
c.heldout.sets = Key(
  (),
  parsed_by("jaxrlvr.data.own_sets:parse_entries", "jaxrlvr.data.own_sets:names_of_code"),
  "evaluation sets to evaluate on: names that jaxrlvr.data.eval_sets lists (EVAL_SETS, GENERATED_SETS), and sets of "
  "your own as NAME=SOURCE or NAME=SOURCE[SETTING,...], such as "
  "mine=path.jsonl[prompt=question,label=answer,verifier=my_verifier.py:check,count=100] (docs/data.md)",
)
c.heldout.domain = Key(
  "",
  one_of_table("jaxrlvr.data.eval_sets:DOMAINS", also=("",)),
  "evaluate on all evaluation sets for a policy that is trained on this domain, and report the mean of the sets "
  "inside of the domain and of those outside: arithmetic | math | science | graph-qwen | graph-llama",
)
c.heldout.at_most = Key(0, at_least(0), "most problems of each set in heldout.sets or heldout.domain; 0: all")
c.heldout.folder = Key(
  "", PLACE, "folder that holds the study's evaluation sets; in its release it has think/ and non-think/"
)
c.heldout.prompts = Key(
  "non-think", one_of("think", "non-think"), "which prompts of the study's evaluation sets are used: think | non-think"
)

c.prepare = Group()
c.prepare.format = Key(
  "jsonl", one_of("jsonl", "tfds"), "format of the prepared set: jsonl | tfds (ArrayRecord, needs the extra `tfds`)"
)

c.filter = Group()
c.filter.samples = Key(16, at_least(2), "samples that are drawn for each problem")
c.filter.low = Key(1, at_least(0), "fewest right samples for which a problem is kept")
c.filter.high = Key(15, at_least(0), "most right samples for which a problem is kept")

c.subset = Group()
c.subset.count = Key(
  2048, at_least(1), "number of problems to put in order; a later run trains on the first N of them (problems.count)"
)

c.subset.solved = Key(
  "",
  TEXT,
  "column of problems.source that says how often each problem was solved: a name or a path, as in problems.columns; "
  "empty: as `jaxrlvr filter` wrote it",
)
c.subset.samples = Key(
  "",
  rule("a number from 2, as 16, or the name of a column", lambda value: not value.isdecimal() or int(value) >= 2),
  "with subset.solved: how many samples each problem was given, a number or a column",
)
c.subset.measure = Key(
  "solved",
  one_of("solved", "failed", "rate"),
  "what the column subset.solved holds: solved (number of right samples) | failed (number of wrong ones) | rate (share "
  "of right ones, from 0 to 1)",
)

c.corrupt = Group()
c.corrupt.samples = Key(96, at_least(2), "samples that are drawn for each problem")
c.corrupt.gammas = Key(
  (0.1, 0.3, 0.5, 0.7, 0.9),
  rule(
    "shares from 0 to 1 that differ in their first two decimals, as (0.1, 0.7)",
    lambda value: value and all(map(is_share, value)) and len({f"{share:.2f}" for share in value}) == len(value),
  ),
  "shares of the problems that get a new label; each share is written to a file of its own",
)
c.corrupt.label = Key(
  "wrong",
  one_of("wrong", "majority"),
  "new label of a problem: wrong (the policy's most frequent wrong answer) | majority (its most frequent answer)",
)

c.diagnose = Group()
c.diagnose.domain = Key(
  "",
  one_of_table("jaxrlvr.analysis.prediction:DOMAIN_NAMES", also=("",)),
  "domain whose rules of prediction apply: math | science | graph | arithmetic | other; empty: inferred from the "
  "problems",
)
c.diagnose.reference = Key(
  "",
  PLACE,
  "run directory of the stage diagnose for another policy, known to generalise, to compare with; needed for the "
  "domains science and graph",
)
c.diagnose.problems = Key(
  64,
  at_least(1),
  "number of problems of problems.source to sample, whatever problems.count is; fewer if a file holds fewer",
)
c.diagnose.samples = Key(16, at_least(2), "samples that are drawn for each problem (16 in the paper's solve@16)")

c.rl = Group()
c.rl.steps = Key(60, at_least(1), "steps of RL, each on one batch of problems")
c.rl.problems_per_step = Key(
  32, at_least(1), "batch size: problems of a step; if there are fewer in all, they are repeated evenly"
)
c.rl.group_size = Key(
  8,
  at_least(2, "a group of one has no spread and teaches nothing"),
  "responses to each problem that are trained on (its group)",
)
c.rl.minibatch_problems = Key(
  0, at_least(0), "problems of an update; 0: all problems of a step make one update, which is on-policy"
)
c.rl.microbatches = Key(
  4,
  at_least(1),
  "microbatches that the rows of an update are split into; with more an update needs less memory, and its gradient "
  "stays the same",
  may_change=True,
)
c.rl.pack = Key(
  True,
  SWITCH,
  "pack several responses into a row of an update, and leave out those without a gradient, to save time; False: one "
  "response a row",
  may_change=True,
)
c.rl.branches = Key(
  -1,
  at_least(-1),
  "how many responses share one copy of their prompt in a row of an update, to save time (not with model.attention "
  "splash or cudnn); 0: each has its own copy; -1: chosen by the lengths of prompts and responses",
  may_change=True,
)
c.rl.sample_parts = Key(
  1,
  at_least(1),
  "parts into which a step's problems are split, to be sampled one after another; with more sampling takes less "
  "memory and more time, and its samples stay the same",
  may_change=True,
)
c.rl.prompt_tokens = Key(
  48, at_least(1), "tokens to which all prompts are padded; for longer prompts see problems.too_long"
)
c.rl.response_tokens = Key(56, at_least(1), "most tokens of a response; longer ones are cut off")
c.rl.temperature = Key(
  1.0,
  above(0, "greedy samples of a problem are all alike"),
  "temperature of sampling and of the log-probabilities in the loss",
)
c.rl.top_k = Key(0, at_least(0), "sample from the k likeliest tokens only; 0: from all tokens")
c.rl.top_p = Key(
  1.0, FILLED_SHARE, "sample from the likeliest tokens that together have this probability; 1: from all tokens"
)
c.rl.stop_strings = Key(
  (),
  rule("strings that are not empty", lambda value: all(map(is_filled_text, value))),
  "strings that end a response as soon as one of them is complete",
)
c.rl.shrink = Key(
  1, at_least(0), "how often sampling may halve its batch as responses end; more saves work and compiles longer"
)
c.rl.cache_blocks = Key(
  0,
  at_least(0),
  "blocks that the KV cache of responses is split into, each allocated when decoding reaches it; 0: 1 to 4, by "
  "rl.response_tokens",
)
c.rl.sample_int8 = Key(
  (),
  rule('some of "weights", "cache"', lambda value: set(value) <= {"weights", "cache"}),
  "what the sampler of RL keeps in 8 bits to save memory and time; needs rl.importance_cap",
)
c.rl.reward = Key(
  "verifiable",
  parsed_by("jaxrlvr.rewards.expression:parse", "jaxrlvr.rewards.expression:own_names"),
  "reward of a response: a name (docs/rewards.md), a function of your own (docs/extending.md), or a sum of products, "
  'as "0.8*verifiable + 0.2*my_rewards.py:brief"',
)
c.rl.completions = Key(
  "text",
  one_of_table("jaxrlvr.rewards.functions:COMPLETIONS"),
  "what a reward function of your own gets as prompts and completions: text | messages (lists of {role, content}, as "
  "TRL passes them for conversational data)",
)
c.rl.votes = Key(
  0,
  at_least(0),
  "responses to each problem that are sampled and vote, for rewards by vote; the first rl.group_size of them are "
  "trained on; 0: rl.group_size",
)
c.rl.noise = Key(
  (0.0, 0.0), RATES, "artificial noise on a reward of 0 and 1: rates of false positives and of false negatives"
)
c.rl.correction = Key(
  "none",
  one_of_table("jaxrlvr.training.loss:CORRECTIONS"),
  "how advantages are corrected for a noisy reward: none | backward (from unbiased estimates of the clean rewards) | "
  "forward (one constant for paid responses and one for all others, without statistics of the group)",
)
c.rl.correction_noise = Key(
  (),
  rule(f"() or {RATES.words()}", lambda value: value == () or RATES.holds(value)),
  "rates of false positives and of false negatives that rl.correction corrects for; (): the rates of rl.noise",
)
c.rl.baseline = Key(
  "mean",
  one_of_table("jaxrlvr.training.loss:BASELINES"),
  "baseline that is subtracted from rewards: mean (of the group) | leave-one-out (mean of the group's other "
  "responses) | zero (the paper's GRPO-POS: right answers only) | one (its GRPO-NEG: wrong answers only) | positive, "
  "negative (GRPO-POS, GRPO-NEG as in the study's code: GRPO without the responses of reward 0, or of reward 1)",
)
c.rl.scale_std = Key(
  True, SWITCH, "divide advantages by the standard deviation of their group's rewards; False: don't, as Dr.GRPO"
)
c.rl.ratio = Key(
  "token",
  one_of_table("jaxrlvr.training.loss:RATIOS"),
  "probability ratio of new to old policy in the loss: token (of each token) | sequence (of the whole response, GSPO)",
)
c.rl.clip_low = Key(0.2, SHARE, "the probability ratio is clipped from below at 1 - clip_low")
c.rl.clip_high = Key(0.2, at_least(0.0), "the probability ratio is clipped from above at 1 + clip_high")
c.rl.dual_clip = Key(
  0.0,
  rule("0 (off) or above 1", lambda value: value == 0 or value > 1),
  "cap of the probability ratio where the advantage is negative (dual clip); 0: off",
)
c.rl.importance_cap = Key(
  0.0,
  at_least(0.0),
  "cap of importance weights, old policy's over sampler's probability, that correct for an inexact sampler (truncated "
  "importance sampling); 0: no such weights",
)
c.rl.reduce = Key(
  "token-mean",
  one_of_table("jaxrlvr.device.masked:REDUCTIONS"),
  "how losses of tokens become one: token-mean (over all tokens, DAPO) | sequence-mean-token-mean (mean over "
  "responses of the mean over a response's tokens, GRPO) | sequence-mean-token-sum (mean over responses of the sum) | "
  "constant-length (that sum divided by rl.response_tokens, Dr.GRPO)",
)
c.rl.kl_beta = Key(
  0.001,
  at_least(0.0),
  "weight in the loss of the KL divergence from the reference model, the starting policy; 0: no reference model",
)
c.rl.kl_estimator = Key(
  "k3",
  one_of_table("jaxrlvr.training.loss:KL"),
  "estimator of the KL divergence at a token, with d = reference's - policy's log-probability: k1 (-d) | k2 (d^2 / 2) "
  "| k3 (e^d - d - 1) | k3-k2 (k3's value, k2's gradient)",
)
c.rl.loss_terms = Key(
  (),
  parsed_by("jaxrlvr.training.terms:parse_terms", "jaxrlvr.training.terms:own_functions"),
  'terms added to the loss, each with its weight, as "-0.001*entropy" (a bonus for entropy) or '
  '"0.1*my_losses.py:NAME", a function of your own (docs/extending.md); (): none',
)
c.rl.mask_truncated = Key(
  False,
  SWITCH,
  "leave responses that were cut off out of the loss and of the mean and standard deviation of their group",
)
c.rl.max_unscored = Key(
  0.2, SHARE, "largest share of a step's responses that may be unscored; a larger one ends the run (exit code 3)"
)
c.rl.worthwhile_gain = Key(
  0.05,
  SHARE,
  "smallest gain in held-out accuracy that is worth having, as a share; a run memorises if its reward rose and the "
  "interval of its gain lies below this",
)
c.rl.stop_when_memorising = Key(
  False, SWITCH, "end the run, as finished, at the first evaluation by which it memorises", may_change=True
)
c.rl.optim = optim(1e-4, "constant", warmup=0.0, b2=0.999)

c.answer = Group()
c.answer.read = Key(
  "boxed",
  one_of_table("jaxrlvr.text.answer:READINGS", named_by="jaxrlvr.text.answer:own_reading"),
  "where the answer stands in the text that follows the thinking: boxed (in the last \\boxed{}) | hash (behind the "
  "last `####`, on its line, as in GSM8K) | last-number (the last number, as lm-eval's flexible-extract) | a function "
  "of your own, as my_reading.py:read, which takes that text and returns the answer or None (docs/extending.md)",
)

c.evaluate = Group()
c.evaluate.every = Key(10, at_least(0), "steps of RL between evaluations; 0: only at start and end")
c.evaluate.samples = Key(16, at_least(1), "samples that are drawn for each problem")
c.evaluate.temperature = Key(
  1.0,
  at_least(0.0),
  "temperature of sampling; 0: greedy, for which evaluate.samples must be 1, as all samples would be the same",
)
c.evaluate.pass_k = Key((1, 4, 8, 16), each(at_least(1)), "values of k in pass@k, each at most evaluate.samples")
c.evaluate.problems_per_batch = Key(
  64,
  at_least(1),
  "problems that are sampled at a time; with fewer sampling takes less memory and more time, and its samples stay the "
  "same",
  may_change=True,
)

c.judge = judge(  # who judges reasoning
  Key(
    "exact",
    one_of_table("jaxrlvr.judging.judges:JUDGES", named_by="jaxrlvr.judging.own:find"),
    "who labels reasoning: exact (for built-in arithmetic and tasks in one file, needs no model) | http (a model at a "
    "chat completions endpoint) | local (a policy) | replay (labels of an earlier run) | path.py:NAME or "
    "package.module:NAME, a judge of your own",
  )
)
c.judge.run = Key(
  "",
  PLACE,
  "run directory of rl or evaluate whose recorded responses are judged",
  may_change=True,  # its responses count, not their path
)
c.judge.set = Key(
  "",
  TEXT,
  "held-out set whose responses are judged (in evals/); empty: the responses that were trained on (in rollouts/)",
)
c.judge.steps = Key(
  (),
  each(at_least(0), empty=True),
  "training steps whose responses are judged; (): the first and the last recorded step, and the saturation step t_sat "
  "if the run saturated",
)
c.judge.problems = Key(8, at_least(1), "number of problems whose responses are judged, the same problems at each step")
c.judge.samples = Key(16, at_least(1), "responses to each problem that are judged; fewer if fewer are recorded")
c.judge.max_missing = Key(
  0.2,
  SHARE,
  "largest share of a step's labels that may be missing; a larger one ends the stage (exit code 3)",
  may_change=True,
)
c.judge.cache = Key(
  "",
  rule("a local folder", lambda value: "://" not in value),
  "folder where labels by language models (http, local, your own) are kept for use again, which runs may share; empty: "
  "cache/ in the run directory",
  may_change=True,
)
c.judge.second = judge(  # a second judge of the same responses, in the stage judge
  Key(
    "",
    one_of_table("jaxrlvr.judging.judges:JUDGES", also=("",), named_by="jaxrlvr.judging.own:find"),
    "second judge of the same responses, for the agreement kappa: exact | http | local | replay | path.py:NAME or "
    "package.module:NAME; empty: none",
  )
)

c.verify = Group()  # grading of answers, and the limits of a grading job, which runs in a worker process
c.verify.mode = Key(
  "strict",
  one_of("strict", "study"),
  "rules by which mathematics is graded: strict (docs/verifiers.md) | study (as the study's released code does)",
)
c.verify.workers = Key(2, at_least(1), "worker processes that grade at the same time", may_change=True)
c.verify.cpu_seconds = Key(
  1.5,
  POSITIVE,
  "CPU seconds of a grading job, after which its worker is killed and the answer is unscored",
  may_change=True,
)
c.verify.wall_seconds = Key(
  10.0,
  POSITIVE,
  "seconds from the start of a grading job after which its worker is killed and the answer is unscored",
  may_change=True,
)
c.verify.memory_mib = Key(
  1024,
  at_least(64),
  "MiB that a grading job may take on top of an idle worker, beyond which the answer is unscored",
  may_change=True,
)

c.checkpoint = Group()
c.checkpoint.every = Key(
  10,
  at_least(1),
  "steps between checkpoints; the last step and each step with an evaluation are saved too, before they are evaluated",
  may_change=True,
)
c.checkpoint.keep = Key(2, at_least(1), "number of checkpoints that are kept, the newest", may_change=True)
c.stop_after_bad_updates = Key(
  3, at_least(1), "number of updates in a row whose loss or gradient is not finite that ends the run (exit code 3)"
)

c.export = Group()
c.export.dtype = Key(
  "float32",
  DTYPE,
  "dtype of the weights in the files: float32 (as trained) | bfloat16 (rounded, half the size)",
  may_change=True,
)
c.export.shard_gib = Key(
  5.0, POSITIVE, "largest size of a weight file in GiB; a larger tensor gets a file of its own", may_change=True
)

c.export.lora = Key(
  "both",
  one_of("both", "merged", "adapter"),
  "what a policy with LoRA adapters is written as: merged (a Hugging Face model) | adapter (a PEFT directory) | both",
  may_change=True,
)

c.report = Group()
c.report.runs = Key(
  (),
  rule("strings `name=run directory`", lambda value: all(map(is_text, value))),
  'runs to report on, each "NAME=RUN DIRECTORY" or a directory alone: runs of rl, evaluate and judge, and grids',
  may_change=True,
)
c.report.title = Key("", TEXT, "headline of the page; empty: the title of the grid, or a default", may_change=True)
c.report.samples = Key(
  12,
  at_least(0),
  "sample responses of each run and step on the page; fewer where the page would grow too large",
  may_change=True,
)
c.saturation_tail = Key(
  50,
  at_least(0),
  "the saturation step t_sat is not looked for among so many steps at the end of a run (T - T_eff in the paper)",
  may_change=True,
)

c.plan = Group()
c.plan.stage = Key("rl", one_of("rl", "pretrain", "cpt", "sft"), "stage to plan", may_change=True)
c.plan.topology = Key(
  "v5e-8",
  no_rule("planning.tpu reads it, and lists the slices that it knows"),
  "TPU slice by the name that gcloud (v5p-16, which has 8 chips) or libtpu (v5e:2x4) uses",
  may_change=True,
)
c.plan.efficiency = Key(
  0.5, FILLED_SHARE, "share of a chip's peak speed (the roofline) that programs are assumed to reach", may_change=True
)
c.plan.mean_tokens = Key(
  0, at_least(0), "assumed mean number of tokens of a response; 0: rl.response_tokens", may_change=True
)

c.paper = Group()  # what the study says of an experiment; the summary and the report show it
c.paper.setting = Key("", TEXT, "model and domain that the study trained, in words")
c.paper.figure = Key("", TEXT, "figures and tables of the paper that show the experiment")
c.paper.expected = Key("", TEXT, "what the paper found, in words")
c.paper.t_sat = Key(0, at_least(0), "step at which training saturated in the paper; 0: it does not say")
c.paper.gains = Key(
  (),
  no_rule("what the paper says, copied by hand into a config file"),
  "gains until t_sat in the paper, a pair for each held-out set: its name, and percentage points of accuracy",
)

c.grid = Group()
c.grid.jobs = Key(
  1,
  at_least(0),
  "number of links that the stage `grid` runs at a time, each in a process with its share of the cores; 0: it runs "
  "none and only writes their command lines",
)

c.chain = Key(
  (),
  rule("links {'name': ..., 'stage': ...}", lambda value: all(isinstance(link, Mapping) for link in value)),
  'runs that the stages `chain` and `grid` start, set in a config file: a tuple of links, each {"name": its directory '
  'below the workdir, "stage": ...}. A link may also have "init" and "tokenizer" (names of earlier links), "set" '
  '({key: value} that differ from this config), "files" ({key: path that begins with the name of an earlier link}), '
  '"runs" ({title: name of an earlier link}, for a report) and, for rl links of a grid, "cell" ({"arm": ..., '
  '"setting": ..., "n": number of problems or None}, its place in the tables of the report)',
  may_change=True,
)


def get_config(arg: str = ""):
  """Returns a ConfigDict of the defaults."""
  if arg:
    raise ValueError(f"base takes no argument, got {arg!r}")
  return defaults(c)
