"""Speed of jaxrlvr's parts beside the machine's limits and, where they are installed, its peers: one JSON line each.

  python launch/bench.py --size=S --core=0                      all parts, pinned to core 0
  python launch/bench.py --size=M --only=sample,update --rounds=9
  python launch/bench.py --size=section3_rl:qwen2.5-math-1.5b,v5e-8 --device=gpu

Every measurement is a process of its own that compiles, warms up and then does the work once a round; rounds of all of
them are interleaved, so that what disturbs the machine disturbs all alike. Peers need `pip install -e ".[bench]"`.
A line holds medians with the spread; `share` is the part of the roofline (limits measured first, work counted from
shapes) that was reached, `ratio` on a line "A / B" is how many times faster A was, round by round.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import NamedTuple


class Size(NamedTuple):
  """A model, and how much work of each kind."""

  model: dict  # fields of policy.spec.Spec
  problems: int  # sampled at once
  group: int  # responses to each
  prompt: int  # tokens
  response: int
  rows: int  # of an update; prompt + response tokens each
  micro: int  # rows of a micro-batch
  problems_per_step: int  # of a whole GRPO step


def _model(vocab, width, layers, heads, kv_heads, mlp):
  return dict(vocab=vocab, width=width, layers=layers, heads=heads, kv_heads=kv_heads, head_dim=width // heads, mlp=mlp)


SIZES = {
  "S": Size(_model(512, 256, 6, 8, 4, 768), 64, 8, 64, 128, 64, 16, 8),
  "M": Size(_model(32000, 768, 12, 12, 4, 2048), 8, 8, 64, 64, 16, 16, 1),
}
MEAN = 32  # tokens of a response whose length varies: one in MEAN tokens of the vocabulary ends it


class Work(NamedTuple):
  """One measurement, ready to run."""

  once: Callable[[], dict | None]  # does the work to the end
  tokens: int  # made or worked through
  flops: float = 0.0  # as counted from shapes
  bytes: float = 0.0


def _size(name: str) -> Size:
  if name in SIZES:
    return SIZES[name]
  from jaxrlvr.config import base

  path, _, arg = name.partition(":")
  c = base(path, arg)
  rl, m = c.rl, c.model
  fields = ("vocab", "width", "layers", "heads", "kv_heads", "head_dim", "mlp", "rope_theta", "qkv_bias", "tied")
  model = {name: m[name] for name in fields} | {"dtype": "bfloat16"}
  rows = rl.problems_per_step * rl.group_size
  return Size(
    model, rl.problems_per_step, rl.group_size, rl.prompt_tokens, rl.response_tokens, rows, rows // rl.microbatches,
    rl.problems_per_step,
  )  # fmt: skip


# ---- ours ----


def _ours(size: Size):
  import jax
  import numpy as np

  from jaxrlvr.policy import attention
  from jaxrlvr.policy import spec as policy_spec

  platform, dtype = jax.default_backend(), size.model.get("dtype", "float32")
  layers = size.model["layers"]
  spec = policy_spec.Spec(
    **size.model, attention=attention.resolve("auto", platform, dtype), unroll=layers if platform == "cpu" else 1
  )
  params = jax.jit(policy_spec.init, static_argnums=0)(spec, jax.random.key(0))
  return spec, params, np.random.default_rng(0)


def _sample(size: Size, problems: int, group: int, response: int, eos=(), shrink: int = 0) -> Work:
  import jax

  from jaxrlvr import counts
  from jaxrlvr.policy import forward
  from jaxrlvr.policy.sample import Sampling, sample

  spec, params, random = _ours(size)
  weights = jax.block_until_ready(jax.jit(lambda p: forward.cast(p, spec))(params))
  prompts = jax.device_put(random.integers(2, spec.vocab, (problems, size.prompt)).astype("int32"))
  lengths = jax.device_put(random.integers(size.prompt, size.prompt + 1, problems).astype("int32"))
  stops = jax.numpy.zeros((2, spec.vocab), jax.numpy.int32)
  settings = Sampling(group=group, max_tokens=response, eos_ids=tuple(eos), shrink=shrink)
  key, calls = jax.random.key(1), iter(range(10**6))

  def once():
    keys = jax.random.split(jax.random.fold_in(key, next(calls)), problems * group)
    out = jax.block_until_ready(sample(weights, prompts, lengths, keys, stops, spec, settings))
    return {"mean_tokens": round(float(out.length_B.mean()), 1)}

  cut, rows = counts.Cut(1, 1, 1), problems * group
  cost = counts.forward(spec, problems, size.prompt, 1, cut)
  mean = MEAN if eos else response
  if response > 1:
    levels = counts.level_steps(rows, response, mean, shrink)
    cost += counts.decode(spec, group, size.prompt, response, levels, cut)
  return Work(once, rows * mean if response > 1 else problems * size.prompt, cost.flops, cost.bytes)


def _train(size: Size, kind: str) -> Work:
  import jax
  import jax.numpy as jnp

  from jaxrlvr import counts, objective, optim
  from jaxrlvr.update import init_state, update

  spec, params, random = _ours(size)
  rows, slots, start = size.rows, size.prompt + size.response, size.prompt
  tokens_BS = jnp.asarray(random.integers(2, spec.vocab, (rows, slots)), jnp.int32)
  positions_BS, segments_BS = jnp.broadcast_to(jnp.arange(slots), (rows, slots)), jnp.ones((rows, slots), jnp.int32)
  cut, micro = counts.Cut(1, 1, 1), rows // size.micro
  if kind == "sft":
    weights_BS = jnp.full((rows, slots), 1.0 / (rows * (slots - 1)))
    batch, loss = objective.TextBatch(tokens_BS, positions_BS, segments_BS, weights_BS), None
    loss, scored = objective.language_modelling(spec), slots - 1
  else:
    zero_BT = jnp.zeros((rows, size.response))
    batch = objective.RolloutBatch(
      tokens_BS, positions_BS, segments_BS, zero_BT == 0, zero_BT + 1.0 / zero_BT.size,
      jnp.asarray(random.normal(size=rows), jnp.float32), zero_BT - 6, None, None,
    )  # fmt: skip
    loss = objective.grpo(spec, start=start, temperature=1.0, kl_beta=0.0, kl_estimator="k3")
    scored = size.response
  if kind == "score":

    def once():
      jax.block_until_ready(objective.logp(params, batch, spec, start=start, temperature=1.0, parts=micro))

    return Work(once, rows * slots, *counts.forward(spec, rows, slots, scored, cut)[::2])
  optimizer = optim.adamw(0.9, 0.999, 1e-8, 0.01, 1.0)
  box = [init_state(params, optimizer)]

  def once():
    box[0], metrics = update(box[0], batch, 1e-4, loss_fn=loss, optimizer=optimizer, microbatches=micro)
    jax.block_until_ready((box[0], metrics))

  return Work(once, rows * slots, *counts.update(spec, rows, slots, scored, micro, 4, cut)[::2])


def _varied_eos(size: Size) -> range:
  return range(2, 2 + size.model["vocab"] // MEAN)


OURS = {
  "prefill": lambda s: _sample(s, s.problems, 1, 1),
  "sample": lambda s: _sample(s, s.problems, s.group, s.response),
  "unshared": lambda s: _sample(s, s.problems * s.group, 1, s.response),
  "varied": lambda s: _sample(s, s.problems, s.group, s.response, _varied_eos(s), 3),
  "score": lambda s: _train(s, "score"),
  "update": lambda s: _train(s, "update"),
  "sft": lambda s: _train(s, "sft"),
}

# ---- peers ----


def _llama(size: Size):
  import torch
  from transformers import LlamaConfig, LlamaForCausalLM

  torch.set_num_threads(len(os.sched_getaffinity(0)))
  torch.manual_seed(0)
  m, device = size.model, "cuda" if torch.cuda.is_available() else "cpu"
  config = LlamaConfig(
    vocab_size=m["vocab"], hidden_size=m["width"], intermediate_size=m["mlp"], num_hidden_layers=m["layers"],
    num_attention_heads=m["heads"], num_key_value_heads=m["kv_heads"], head_dim=m["head_dim"],
    max_position_embeddings=size.prompt + size.response, tie_word_embeddings=m.get("tied", True),
    bos_token_id=1, eos_token_id=None, pad_token_id=0,
  )  # fmt: skip
  return torch, LlamaForCausalLM(config).to(device, getattr(torch, m.get("dtype", "float32")))


def _generate(size: Size, problems: int, group: int, eos=None) -> Work:
  torch, model = _llama(size)
  model.eval()
  prompts = torch.randint(2, size.model["vocab"], (problems, size.prompt), device=model.device)
  prompts = prompts.repeat_interleave(group, 0)
  least = {} if eos else {"min_new_tokens": size.response}

  def once():
    with torch.inference_mode():
      out = model.generate(
        prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=size.response, do_sample=True, top_k=0,
        temperature=1.0, top_p=1.0, pad_token_id=0, eos_token_id=eos and list(eos), cache_implementation="static",
        **least,
      )  # fmt: skip
    made = out[:, size.prompt :]
    if eos:
      return {"mean_tokens": round(float((made != 0).sum(1).float().mean()), 1)}
    assert made.shape[1] == size.response, made.shape

  return Work(once, problems * group * (MEAN if eos else size.response))


def _torch_update(size: Size, compiled: bool) -> Work:
  """The clipped loss on the responses' log-probabilities, backward, and AdamW."""
  torch, model = _llama(size)
  model.train()
  optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01)
  slots, rows = size.prompt + size.response, size.rows
  tokens = torch.randint(2, size.model["vocab"], (rows, slots), device=model.device)
  advantage, old = torch.randn(rows, device=model.device), torch.full((rows, size.response), -6.0, device=model.device)

  def loss_fn(tokens, old, advantage):
    given = dict(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False)
    logits = model(**given, logits_to_keep=size.response + 1).logits[:, :-1].float()
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


# (name of the peer, our work that is the same) -> the peer's
PEERS = {
  ("transformers", "sample"): lambda s: _generate(s, s.problems, s.group),
  ("transformers", "unshared"): lambda s: _generate(s, s.problems * s.group, 1),
  ("transformers", "varied"): lambda s: _generate(s, s.problems, s.group, _varied_eos(s)),
  ("torch", "update"): lambda s: _torch_update(s, False),
  ("torch.compile", "update"): lambda s: _torch_update(s, True),
}

# ---- a worker process ----


def _usage() -> tuple[float, float]:
  """(CPU seconds with those of ended children, peak resident MiB)."""
  own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
  return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime, own.ru_maxrss / 1024


def _watch_compiles() -> list[float]:
  """Seconds of each compilation of this process, from now on."""
  seconds = []
  if "jax" in sys.modules:
    import jax

    def told(event, duration, **_):
      if event == "/jax/core/compile/backend_compile_duration":
        seconds.append(duration)

    jax.monitoring.register_event_duration_secs_listener(told)
  return seconds


def serve(name: str, size: str) -> None:
  """Says ready after the warm-up, then does the work once for every line of stdin and says what it took."""
  peer, _, work = name.rpartition("/")
  if not peer:
    import jax  # noqa: F401
  compiles = _watch_compiles()
  begun = time.perf_counter()
  found = (PEERS[peer, work] if peer else OURS[work])(_size(size))
  found.once()
  ready = dict(tokens=found.tokens, flops=found.flops, bytes=found.bytes, warmup_s=time.perf_counter() - begun)
  print(json.dumps(ready | {"compiles": len(compiles), "compile_s": sum(compiles)}), flush=True)
  before = len(compiles)
  for _ in sys.stdin:
    cpu, begun = _usage()[0], time.perf_counter()
    more = found.once() or {}
    wall = time.perf_counter() - begun
    told = dict(wall_s=wall, cpu_s=_usage()[0] - cpu, peak_mib=_usage()[1], recompiles=len(compiles) - before)
    print(json.dumps(told | more), flush=True)


def main() -> None:
  p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  p.add_argument("--worker")
  p.add_argument("--size", default="S")
  args = p.parse_args()
  if args.worker:
    return serve(args.worker, args.size)


if __name__ == "__main__":
  main()
