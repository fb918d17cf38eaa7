"""The works that `bench.py` measures (the machine's ceilings, parts of jaxrlvr, peers), and the worker process."""

from __future__ import annotations

import json
import math
import os
import resource
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class Size(NamedTuple):
  """The size of a model, and of each kind of work."""

  model: dict  # fields of model.spec.Spec
  problems: int  # problems that are sampled at once
  group: int  # responses to each problem
  prompt: int  # tokens of a prompt
  response: int  # tokens of a response
  rows: int  # rows of an update, each of prompt + response tokens
  micro: int  # rows of a microbatch
  problems_per_step: int  # problems of a whole GRPO step

  def of_a_step(self) -> Size:
    """Returns this size with the problems and rows of one GRPO step."""
    rows = self.problems_per_step * self.group
    return self._replace(problems=self.problems_per_step, rows=rows, micro=min(self.micro, rows))


def model(vocab, width, layers, heads, kv_heads, mlp):
  """Returns the fields of a `model.spec.Spec`; the heads' width is width / heads."""
  return dict(vocab=vocab, width=width, layers=layers, heads=heads, kv_heads=kv_heads, head_dim=width // heads, mlp=mlp)


SIZES = {
  "XS": Size(model(64, 32, 2, 4, 2, 64), 4, 4, 8, 8, 16, 8, 4),
  "S": Size(model(512, 256, 6, 8, 4, 768), 64, 8, 64, 128, 64, 8, 8),  # 8 rows: fastest for us and for torch
  "M": Size(model(32000, 768, 12, 12, 4, 2048), 8, 8, 64, 64, 16, 16, 1),
}
MEAN = 32  # tokens of a response whose length varies: one in MEAN tokens of the vocabulary ends it


class Work(NamedTuple):
  """One work, ready to be measured."""

  once: Callable[[], dict | None]  # does the work to the end; returns figures of this round, such as its tokens
  tokens: int  # tokens that a round samples or trains on
  flops: float = 0.0  # floating point operations of a round, counted from shapes; 0: not counted
  bytes: float = 0.0  # bytes of memory traffic of a round, counted from shapes; 0: not counted
  done: Callable[[], object] = lambda: None  # tidies up after the last round


def _size(name: str) -> Size:
  """Returns the size with a name of SIZES, that of a config named CONFIG:ARG, or one written as JSON."""
  if name in SIZES:
    return SIZES[name]
  if name.startswith("{"):
    return Size(**json.loads(name))
  from jaxrlvr.config import base

  path, _, arg = name.partition(":")
  c = base(path, arg)
  rl, m = c.rl, c.model
  fields = ("vocab", "width", "layers", "heads", "kv_heads", "head_dim", "mlp", "rope_theta", "family", "tied")
  model = {name: m[name] for name in (*fields, "dtype", "remat")}
  model["family"] = m.family or "llama"
  model["vocab"] = m.vocab or c.text.vocab  # 0: the tokenizer's of the built-in models
  rows = rl.problems_per_step * rl.group_size
  return Size(
    model,
    rl.problems_per_step,
    rl.group_size,
    rl.prompt_tokens,
    rl.response_tokens,
    rows,
    rows // rl.microbatches,
    rl.problems_per_step,
  )


# ---- ours ----


def _spec(size: Size):
  """Returns the spec of the size's model, with the attention and unrolling that suit this platform."""
  import jax

  from jaxrlvr.model import attention
  from jaxrlvr.model.spec import Spec

  platform, dtype = jax.default_backend(), size.model.get("dtype", "float32")
  unroll = size.model["layers"] if platform == "cpu" else 1
  return Spec(**size.model, attention=attention.resolve("auto", platform, dtype), unroll=unroll)


def _ours(size: Size):
  """Returns (spec, fresh weights, the generator that draws the data)."""
  import jax
  import numpy as np

  from jaxrlvr.model import weight_table

  spec = _spec(size)
  params = jax.jit(weight_table.init, static_argnums=0)(spec, jax.random.key(0))
  return spec, params, np.random.default_rng(0)


def _sampling(group: int, response: int, shrink: int, eos=(), int8=()):
  from jaxrlvr.sampling import Sampling

  return Sampling(group=group, max_tokens=response, eos_ids=tuple(eos), shrink=shrink, int8=int8)


def _sample_cost(size: Size, problems: int, group: int, response: int, mean: float, shrink: int, int8=()):
  """Returns the cost of sampling: of the prefill, and of decoding unless `response` is 1.

  mean: the mean length of responses, in tokens. shrink: how often the batch may be halved.
  """
  from jaxrlvr.model.row_layout import Separate
  from jaxrlvr.planning import flops as counts

  spec, one = _spec(size), counts.Shards(1, 1, 1)
  cost = counts.forward_cost(spec, problems, Separate(size.prompt), 1, one)
  if response > 1:
    levels = counts.level_steps(problems * group, response, mean, shrink)
    slots = _sampling(group, response, shrink).block_slots
    cost = cost.plus(counts.decode_cost(spec, group, size.prompt, slots, levels, one, int8))
  return cost


def _separate(size: Size):
  from jaxrlvr.model.row_layout import Separate

  return Separate(size.prompt + size.response)


def _shared_prompt(size: Size):
  from jaxrlvr.model.row_layout import SharedPrompt

  return SharedPrompt(size.prompt, size.group, size.response)


def _update_cost(size: Size, scored: int, layout):
  """Returns the cost of an update. scored: tokens of each response whose log-probability is trained on."""
  from jaxrlvr.planning import flops as counts

  rows = layout.rows(size.rows)
  scored *= size.rows // rows
  return counts.update_cost(_spec(size), rows, layout, scored, size.rows // size.micro, 4, counts.Shards(1, 1, 1))


def _sample(size: Size, problems: int, group: int, response: int, eos=(), shrink: int = 0, int8=()) -> Work:
  """Returns the work of sampling `group` responses of `response` tokens to each of `problems` prompts.

  With response = 1 it is the prefill alone, and its tokens are those of the prompts. eos: tokens that end a response,
  whose lengths then vary. shrink: how often the batch may be halved. int8: what is in 8 bits, "weights" and "cache".
  """
  import jax

  from jaxrlvr.sampling import sample
  from jaxrlvr.sampling.weights import lay_out_weights

  spec, params, random = _ours(size)
  weights = jax.block_until_ready(lay_out_weights(spec, None, int8)(params))
  prompts = jax.device_put(random.integers(2, spec.vocab, (problems, size.prompt)).astype("int32"))
  lengths = jax.device_put(random.integers(size.prompt, size.prompt + 1, problems).astype("int32"))
  stops = jax.numpy.zeros((2, spec.vocab), jax.numpy.int32)
  settings = _sampling(group, response, shrink, eos, int8)
  key, calls, rows = jax.random.key(1), iter(range(10**6)), problems * group

  def once():
    keys = jax.random.split(jax.random.fold_in(key, next(calls)), rows)
    out = jax.block_until_ready(sample(weights, prompts, lengths, keys, stops, spec, settings))
    return {"tokens": int(out.length_B.sum())} if eos else {}

  share = len(eos) / spec.vocab
  mean = (1 - (1 - share) ** response) / share if eos else response
  cost = _sample_cost(size, problems, group, response, mean, shrink, int8)
  return Work(once, rows * response if response > 1 else rows * size.prompt, cost.flops, cost.bytes)


def _grouped(batch, size: Size):
  """Returns a batch with the same responses, those of each group behind the prompt of its first row."""
  import jax
  import numpy as np

  layout = _shared_prompt(size)
  prompt_P = np.full(size.rows // size.group, size.prompt)
  length_PG = np.full((len(prompt_P), size.group), size.response)
  rows, parts = layout.rows(size.rows), size.rows // size.micro
  segments_RS, positions_RS, _ = layout.place(prompt_P, length_PG, range(size.rows), rows, parts)
  grouped = jax.tree.map(lambda x_RS: x_RS[segments_RS - 1, positions_RS], batch)
  return grouped.replace(segments_RS=jax.numpy.asarray(segments_RS), layout=layout)


def _train(size: Size, kind: str) -> Work:
  """Returns the work of training on random rows.

  kind: "sft", "update" (GRPO with each response behind its own prompt), "grouped" (GRPO, groups share a prompt) or
  "score" (log-probabilities alone).
  """
  import jax
  import jax.numpy as jnp

  from jaxrlvr.planning import flops as counts
  from jaxrlvr.training import objective
  from jaxrlvr.training import optimizer as optim
  from jaxrlvr.training.update import init_state, update

  spec, params, random = _ours(size)
  rows, slots = size.rows, size.prompt + size.response
  tokens_RS = jnp.asarray(random.integers(2, spec.vocab, (rows, slots)), jnp.int32)
  positions_RS, segments_RS = jnp.broadcast_to(jnp.arange(slots), (rows, slots)), jnp.ones((rows, slots), jnp.int32)
  micro = rows // size.micro
  if kind == "sft":
    batch = objective.TextBatch(tokens_RS, positions_RS, segments_RS, jnp.full((rows, slots), 1 / (rows * (slots - 1))))
    loss = objective.language_modelling(spec)
  else:
    weights_RS = jnp.where(positions_RS >= size.prompt, 1 / (rows * size.response), 0.0)
    advantage_RS = jnp.broadcast_to(random.normal(size=(rows, 1)).astype("float32"), (rows, slots))
    old_RS = jnp.full((rows, slots), -6.0)
    batch = objective.RolloutBatch(
      tokens_RS, positions_RS, segments_RS, weights_RS, advantage_RS, old_RS, None, None, _separate(size)
    )
    if kind == "grouped":  # the same, but that every group has one prompt
      batch = _grouped(batch, size)
    loss = objective.grpo(spec, temperature=1.0, kl_beta=0.0, kl_estimator="k3")
  if kind == "score":

    def once():
      jax.block_until_ready(objective.logp(params, batch, micro, spec, temperature=1.0, parts=micro))

    cost = counts.forward_cost(spec, rows, _separate(size), slots - 1, counts.Shards(1, 1, 1))
    return Work(once, rows * slots, cost.flops, cost.bytes)
  optimizer = optim.adamw(0.9, 0.999, 1e-8, 0.01, 1.0)
  scored = slots - 1 if kind == "sft" else size.response
  cost = _update_cost(size, scored, _shared_prompt(size) if kind == "grouped" else _separate(size))
  box = [init_state(params, optimizer)]

  def once():
    box[0], metrics = update(box[0], batch, 1e-4, loss_fn=loss, optimizer=optimizer, microbatches=micro)
    jax.block_until_ready((box[0], metrics))

  return Work(once, rows * slots, cost.flops, cost.bytes)


def _varied_eos(size: Size) -> range:
  return range(2, 2 + size.model["vocab"] // MEAN)


def _ceilings(size: Size) -> Work:
  """Returns the work of measuring the machine's ceilings, in the size's dtype.

  A round returns matmul_gflops (GFLOP/s by shape, of products that the size has and of a large one) and read_gb_s (GB/s
  of reading a large array).
  """
  import jax
  import jax.numpy as jnp

  m, dtype = size.model, size.model.get("dtype", "float32")
  host, slots = jax.default_backend() == "cpu", size.prompt + size.response
  big, work, length = (2048, 2e9, 2**28) if host else (8192, 2e13, 2**32)
  shapes = [
    (big, big, big),
    (size.problems * size.group, m["width"], m["mlp"]),
    (size.micro * slots, m["width"], m["mlp"]),
    (size.micro * size.response, m["width"], m["vocab"]),
  ]
  product, reads = jax.jit(jnp.matmul), (jax.jit(jnp.sum), jax.jit(lambda x: x @ x[0]))
  x = jnp.ones((length // jnp.dtype(dtype).itemsize // 4096, 4096), dtype)

  def seconds(function, arguments, times):
    begun = time.perf_counter()
    jax.block_until_ready([function(*arguments) for _ in range(times)][-1])
    return (time.perf_counter() - begun) / times

  def once():
    gflops = {}
    for a, b, c in shapes:
      factors = jnp.ones((a, b), dtype), jnp.ones((b, c), dtype)
      flops = 2 * a * b * c
      seconds(product, factors, 1)
      times = min(1000, math.ceil(work / flops))
      gflops[f"{a}x{b}x{c}"] = flops / 1e9 / seconds(product, factors, times)
    read_seconds = min(seconds(read, (x,), 4) for read in reads)
    return {"matmul_gflops": gflops, "read_gb_s": x.nbytes / 1e9 / read_seconds}

  return Work(once, 0)


class Gate:
  """Lets a loop in another thread run one iteration at a time.

  The loop calls `arrive` in each iteration, and waits there; `once` lets it run until it arrives again.
  """

  def __init__(self, loop: Callable[[], object]):
    self._go, self._come, self._failed, self._loop = threading.Semaphore(0), threading.Semaphore(0), [], loop
    self.thread = threading.Thread(target=self._run, daemon=True)

  def _run(self) -> None:
    try:
      self._loop()
      raise RuntimeError("the loop ended before the rounds did")
    except BaseException as error:  # `once` raises it
      self._failed.append(error)
      self._come.release()

  def arrive(self) -> None:
    """Waits, in the loop's thread, until `once` is called."""
    self._come.release()
    self._go.acquire()

  def once(self) -> None:
    """Lets the loop run from one arrival to the next: a whole iteration, wherever in it the gate stands.

    The first call starts the loop, which compiles before it arrives. Raises the error that ended the loop.
    """
    if not self.thread.ident:
      self.thread.start()
      self._come.acquire()  # compiles, makes the first responses
    if not self._failed:
      self._go.release()
      self._come.acquire()
    if self._failed:
      raise self._failed[0]


def _words(size: Size):
  """Returns a tokenizer with the vocabulary t0, t1, ...; t1 ends a text."""
  from tokenizers import Tokenizer, decoders, models, pre_tokenizers

  vocabulary = {f"\u2581t{i}": i for i in range(size.model["vocab"])}
  tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="\u2581t2"))
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
  tokenizer.decoder = decoders.Metaspace()
  return tokenizer


def _prompts(size: Size, count: int) -> list[str]:
  """Returns `count` random prompts of the size's length, as text."""
  import numpy as np

  token_PT = np.random.default_rng(0).integers(2, size.model["vocab"], (count, size.prompt))
  return [_text_of(token_T) for token_T in token_PT]


def _text_of(token_T) -> str:
  return " ".join(f"t{token}" for token in token_T)


def _model_folder(size: Size, folder: Path) -> None:
  """Writes a Hugging Face directory whose policy never draws the token that ends.

  No layer writes to one dimension of the residual stream: it stays positive, and that token's row is negative there.
  """
  import jax

  from jaxrlvr.device import sharding
  from jaxrlvr.model import hf_weights as weights
  from jaxrlvr.model import weight_table

  spec, params, _ = _ours(size)
  mesh, head = sharding.make_mesh(devices=jax.devices()[:1]), "embed" if spec.tied else "head"
  params["o"], params["down"] = params["o"].at[..., 0].set(0.0), params["down"].at[..., 0].set(0.0)
  params["embed"] = params["embed"].at[:, 0].set(2.0)
  params[head] = params[head].at[1, 0].set(-40.0)
  ids = {"eos_token_id": 1, "bos_token_id": None, "pad_token_id": 0}
  config = weights.config_of(spec, "float32", ids)
  (folder / "config.json").write_text(json.dumps(config))
  weights.save(folder, jax.device_put(params, weight_table.shardings(spec, mesh)), spec, "float32", 2**40)
  _words(size).save(str(folder / "tokenizer.json"))
  special = {"eos_token": "\u2581t1", "pad_token": "\u2581t0"}
  (folder / "tokenizer_config.json").write_text(json.dumps(special))


def _step(size: Size) -> Work:
  """Returns the work of one iteration of the stage rl, from one reward to the next."""
  from jaxrlvr.base import logbook
  from jaxrlvr.config import files as configs
  from jaxrlvr.rewards import spurious, table
  from jaxrlvr.stages.rl import rl

  size, folder = size.of_a_step(), Path(tempfile.mkdtemp())
  rows = [{"prompt": text, "answer": "A"} for text in _prompts(size, 16 * size.problems)]
  logbook.write_jsonl(folder / "problems.jsonl", rows)
  (folder / "model").mkdir()
  _model_folder(size, folder / "model")
  settings = {
    "model.path": folder / "model",
    "model.dtype": size.model.get("dtype", "float32"),
    "model.unroll": 64,
    "model.remat": size.model.get("remat", "none"),
    "mesh.fsdp": 1,
    "problems.count": 0,
    "heldout.count": 1,
    "heldout.overlap": "warn",
    "evaluate.samples": 1,
    "evaluate.pass_k": "1,",
    "evaluate.problems_per_batch": 1,
    "checkpoint.every": 10**9,
    "rl.steps": 10**5,
    "rl.problems_per_step": size.problems,
    "rl.group_size": size.group,
    "rl.kl_beta": 0.0,
    "rl.microbatches": size.rows // size.micro,
    "rl.prompt_tokens": size.prompt,
    "rl.response_tokens": size.response,
    "rl.shrink": 0,
    "rl.branches": size.group,
    "rl.reward": "gated",
    "rl.optim.lr": 1e-6,
    **{f"{use}.source": folder / "problems.jsonl" for use in ("problems", "heldout")},
    **{f"{use}.columns": "prompt=prompt,label=answer" for use in ("problems", "heldout")},
    **{f"{use}.verifier": "choice" for use in ("problems", "heldout")},
  }

  def gated(answers, grade):
    gate.arrive()
    return spurious.random_reward(answers, grade)

  table.REWARDS["gated"] = table.Reward(gated)
  config = configs.load("base", {key: str(value) for key, value in settings.items()})
  gate = Gate(lambda: rl(config, folder / "run"))

  def once():
    gate.once()
    name = "completions/mean_length"
    mean_lengths = [row[name] for row in logbook.read_jsonl(folder / "run" / "metrics.jsonl") if name in row]
    return {"tokens": round(mean_lengths[-1] * size.rows)} if mean_lengths else {}

  cost = _sample_cost(size, size.problems, size.group, size.response, size.response, 0)
  cost = cost.plus(_update_cost(size, size.response, _shared_prompt(size)))
  tokens = size.rows * size.response
  return Work(once, tokens, cost.flops, cost.bytes, lambda: shutil.rmtree(folder, ignore_errors=True))


def _device(size: Size) -> Work:
  """Returns the part of `_step` that runs on the device: sampling and the update."""
  size = size.of_a_step()
  sampling, training = _sample(size, size.problems, size.group, size.response), _train(size, "grouped")

  def once():
    sampling.once()
    training.once()

  return Work(once, sampling.tokens, sampling.flops + training.flops, sampling.bytes + training.bytes)


OURS = {
  "ceilings": _ceilings,
  "prefill": lambda s: _sample(s, s.problems, 1, 1),
  "sample": lambda s: _sample(s, s.problems, s.group, s.response),
  "unshared": lambda s: _sample(s, s.problems * s.group, 1, s.response),
  "varied": lambda s: _sample(s, s.problems, s.group, s.response, _varied_eos(s), 3),
  "score": lambda s: _train(s, "score"),
  "update": lambda s: _train(s, "update"),
  "grouped": lambda s: _train(s, "grouped"),
  "sft": lambda s: _train(s, "sft"),
  "step": _step,
}

# ---- peers ----


def _llama(size: Size):
  """Returns (torch, a random Llama of this size in transformers)."""
  os.environ["OMP_NUM_THREADS"] = str(len(os.sched_getaffinity(0)))  # for threads that torch is not told of
  import torch
  from transformers import LlamaConfig, LlamaForCausalLM

  torch.set_num_threads(len(os.sched_getaffinity(0)))
  torch.manual_seed(0)
  m, device = size.model, "cuda" if torch.cuda.is_available() else "cpu"
  config = LlamaConfig(
    vocab_size=m["vocab"],
    hidden_size=m["width"],
    intermediate_size=m["mlp"],
    num_hidden_layers=m["layers"],
    num_attention_heads=m["heads"],
    num_key_value_heads=m["kv_heads"],
    head_dim=m["head_dim"],
    max_position_embeddings=size.prompt + size.response,
    tie_word_embeddings=m.get("tied", True),
    bos_token_id=1,
    eos_token_id=None,
    pad_token_id=0,
  )
  return torch, LlamaForCausalLM(config).to(device, getattr(torch, m.get("dtype", "float32")))


def _generate(size: Size, problems: int, group: int, eos=None) -> Work:
  """Returns the work of transformers' generate with a static cache. eos: tokens that end a response; None: no token."""
  torch, model = _llama(size)
  model.eval()
  prompts = torch.randint(2, size.model["vocab"], (problems, size.prompt), device=model.device)
  prompts = prompts.repeat_interleave(group, 0)
  full_length = {} if eos else {"min_new_tokens": size.response}

  def once():
    with torch.inference_mode():
      out = model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        max_new_tokens=size.response,
        do_sample=True,
        top_k=0,
        temperature=1.0,
        top_p=1.0,
        pad_token_id=0,
        eos_token_id=eos and list(eos),
        cache_implementation="static",
        **full_length,
      )
    responses = out[:, size.prompt :]
    if eos:
      return {"tokens": int((responses != 0).sum())}
    assert responses.shape[1] == size.response, responses.shape

  return Work(once, problems * group * size.response)


def _torch_update(size: Size, compiled: bool) -> Work:
  """Returns the work of a GRPO update in torch: the clipped loss on the responses, the backward pass, and AdamW."""
  torch, model = _llama(size)
  model.train()
  optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01)
  slots, rows = size.prompt + size.response, size.rows
  tokens = torch.randint(2, size.model["vocab"], (rows, slots), device=model.device)
  advantage, old = torch.randn(rows, device=model.device), torch.full((rows, size.response), -6.0, device=model.device)

  def loss_fn(tokens, old, advantage):
    output = model(
      input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False, logits_to_keep=size.response + 1
    )
    logits = output.logits[:, :-1].float()
    chosen = torch.gather(logits, 2, tokens[:, size.prompt :, None])[..., 0]
    ratio = torch.exp(chosen - torch.logsumexp(logits, -1) - old)
    plain, clipped = ratio * advantage[:, None], ratio.clamp(0.8, 1.2) * advantage[:, None]
    return -torch.minimum(plain, clipped).mean()

  loss_fn = torch.compile(loss_fn) if compiled else loss_fn
  parts = rows // size.micro

  def once():
    for part in zip(*(x.split(size.micro) for x in (tokens, old, advantage)), strict=True):
      (loss_fn(*part) / parts).backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return {"grad": 0} if model.device.type == "cpu" else torch.cuda.synchronize()

  return Work(once, rows * slots)


def _trl(size: Size) -> Work:
  """Returns the work of TRL's trainer on the same iteration as `_step`, from one reward to the next."""
  from datasets import Dataset
  from transformers import PreTrainedTokenizerFast
  from trl import GRPOConfig, GRPOTrainer

  size, folder = size.of_a_step(), Path(tempfile.mkdtemp())
  torch, model = _llama(size)
  model.config.eos_token_id = model.generation_config.eos_token_id = 1
  special = dict(pad_token="\u2581t0", eos_token="\u2581t1", unk_token="\u2581t2")
  config = GRPOConfig(
    output_dir=str(folder),
    use_cpu=model.device.type == "cpu",
    bf16=model.dtype == torch.bfloat16,
    fp16=False,
    per_device_train_batch_size=size.micro,
    gradient_accumulation_steps=size.rows // size.micro,
    num_generations=size.group,
    max_completion_length=size.response,
    temperature=1.0,
    top_k=0,
    top_p=1.0,
    beta=0.0,
    learning_rate=1e-6,
    max_steps=10**5,
    gradient_checkpointing=False,
    report_to=[],
    logging_steps=10**6,
    save_strategy="no",
    disable_tqdm=True,
    loss_type="grpo",
    cache_implementation="static",
    generation_kwargs={"min_new_tokens": size.response},
  )
  sampled_tokens = []

  def reward(completion_ids, **_):
    gate.arrive()
    sampled_tokens.append(sum(map(len, completion_ids)))
    return [_share_of_odd(ids) for ids in completion_ids]

  trainer = GRPOTrainer(
    model=model,
    reward_funcs=reward,
    args=config,
    train_dataset=Dataset.from_dict({"prompt": _prompts(size, 16 * size.problems)}),
    processing_class=PreTrainedTokenizerFast(tokenizer_object=_words(size), **special),
  )
  gate = Gate(trainer.train)

  def once():
    gate.once()
    return {"tokens": sampled_tokens[-1]}

  return Work(once, size.rows * size.response, done=lambda: shutil.rmtree(folder, ignore_errors=True))


def _share_of_odd(ids) -> float:
  return sum(i % 2 for i in ids) / len(ids)


# Keys: (name of a peer, the part of OURS that it is compared with). Values make the peer's work for a size.
PEERS = {
  ("transformers", "sample"): lambda s: _generate(s, s.problems, s.group),
  ("transformers", "unshared"): lambda s: _generate(s, s.problems * s.group, 1),
  ("transformers", "varied"): lambda s: _generate(s, s.problems, s.group, _varied_eos(s)),
  ("torch", "update"): lambda s: _torch_update(s, False),
  ("torch.compile", "update"): lambda s: _torch_update(s, True),
  ("torch", "grouped"): lambda s: _torch_update(s, False),
  ("torch.compile", "grouped"): lambda s: _torch_update(s, True),
  ("device", "step"): _device,
  ("int8", "sample"): lambda s: _sample(s, s.problems, s.group, s.response, int8=("weights", "cache")),
  ("trl", "step"): _trl,
}
OWN = {"device", "int8"}  # peers that are jaxrlvr itself
NEEDED = {"transformers": "transformers", "torch": "torch", "torch.compile": "torch", "trl": "trl"}
NEEDED |= dict.fromkeys(OWN, "jax")

# ---- a worker process ----


def _cpu_seconds() -> float:
  """Returns the CPU seconds of this process and of children that ended."""
  used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
  return sum(u.ru_utime + u.ru_stime for u in used)


def _memory() -> dict:
  """Returns peak_mib (of this process) and memory_mib (all there is).

  With an accelerator that tells them, device_peak_mib is its peak and memory_mib is its memory.
  """
  memory = {"peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
  memory["memory_mib"] = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**20
  if "jax" in sys.modules:
    import jax

    if stats := jax.local_devices()[0].memory_stats():
      memory |= {"device_peak_mib": stats["peak_bytes_in_use"] / 2**20, "memory_mib": stats["bytes_limit"] / 2**20}
  return memory


def _watch_compiles() -> list[float]:
  """Returns a list to which each later compilation of this process adds its seconds."""
  import jax

  seconds = []

  def record(event, duration, **_):
    if event == "/jax/core/compile/backend_compile_duration":
      seconds.append(duration)

  jax.monitoring.register_event_duration_secs_listener(record)
  return seconds


def serve(name: str, size: str) -> None:
  """Runs a worker process: warms up, writes a first message, then does the work once for every line of stdin.

  name: PART, or PART/PEER. Each message is a line of JSON on stdout; `bench.Worker` says what it holds.
  """
  out = os.fdopen(os.dup(1), "w", buffering=1)
  os.dup2(2, 1)  # what libraries print must not get between the messages
  part, _, peer = name.partition("/")
  ours = not peer or peer in OWN
  if ours:
    from jaxrlvr.device import cpu_malloc

    cpu_malloc.keep_freed_memory()  # as the command line does
  compiles = _watch_compiles() if ours else []
  begun = time.perf_counter()
  make_work = PEERS[peer, part] if peer else OURS[part]
  work = make_work(_size(size))
  try:
    work.once()
    ready = dict(tokens=work.tokens, flops=work.flops, bytes=work.bytes, warmup_s=time.perf_counter() - begun)
    print(json.dumps(ready | {"compiles": len(compiles), "compile_s": sum(compiles)}), file=out)
    compiles_at_start = len(compiles)
    for _ in sys.stdin:
      cpu, begun = _cpu_seconds(), time.perf_counter()
      figures = work.once() or {}
      times = {"wall_s": time.perf_counter() - begun, "cpu_s": _cpu_seconds() - cpu}
      recompiles = len(compiles) - compiles_at_start
      print(json.dumps(times | _memory() | {"recompiles": recompiles} | figures), file=out)
  finally:
    work.done()
    sys.stderr.flush()
  os._exit(0)  # threads of a gate wait for good
