"""Small Hugging Face directories: a tokenizer with a chat template, random weights, or both."""

import dataclasses
import functools
import json

import numpy as np
import tokenizers
from safetensors import numpy as safetensors
from tokenizers import decoders, models, pre_tokenizers, trainers

from jaxrlvr.model import hf_weights
from jaxrlvr.model.rope import Llama3
from jaxrlvr.model.spec import Spec

CHATML = """{%- if messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'user' or message.role == 'assistant' %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role != 'system' %}
        {{- raise_exception('role ' ~ message.role) }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
LLAMA3 = """{{- bos_token }}
{%- if tools is not none %}{{ raise_exception('tools') }}{% endif %}
{%- if strftime_now is defined %}
    {%- set date_string = strftime_now("%d %b %Y") %}
{%- else %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: " + date_string + "<|eot_id|>" }}
{%- for message in messages %}
    {%- if message.role == 'skip' %}{%- continue %}{% endif %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {%- generation %}{{- message['content'] | trim + '<|eot_id|>' }}{% endgeneration %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
TURNS = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
START = "{{ '<|im_start|>assistant\n' }}"
ENDLESS = TURNS.replace("<|im_end|>", "<|im_start|>") + START
STYLES = {
  "chatml": dict(
    special=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    config=dict(eos_token="<|im_end|>", pad_token="<|endoftext|>", bos_token=None, chat_template=CHATML),
    generation=dict(eos_token_id=["<|im_end|>", "<|endoftext|>"]),
  ),
  "llama3": dict(
    special=("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    config=dict(
      eos_token={"__type": "AddedToken", "content": "<|eot_id|>"}, bos_token="<|begin_of_text|>", chat_template=LLAMA3
    ),
    generation=dict(eos_token_id=["<|end_of_text|>", "<|eot_id|>"]),
  ),
}
USER = ({"role": "user", "content": " What is 12*7?\n"},)
TINY = Spec(vocab=24, width=8, layers=2, heads=4, kv_heads=2, head_dim=6, mlp=16, max_positions=64, norm_eps=1e-5)
SPECS = {
  "llama": dataclasses.replace(TINY, tied=False, rope_scaling=Llama3(32.0, 1.0, 4.0, 16), rope_theta=500_000.0),
  "llama-tied": TINY,
  "qwen2": dataclasses.replace(TINY, family="qwen2", tied=False),
  "qwen3": dataclasses.replace(TINY, family="qwen3"),
}
PADDED = 352  # rows of the embedding, of which the tokenizer knows fewer


def write_tokenizer(folder, style="chatml", vocab=330, **config):
  """Trains a byte-level BPE and writes the directory around it; returns the tokenizer of `tokenizers`."""
  known = STYLES[style]
  folder.mkdir(exist_ok=True, parents=True)
  _trained(style, vocab).save(str(folder / "tokenizer.json"))
  model = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
  tokenizer_config = known["config"] | {"tokenizer_class": "PreTrainedTokenizerFast"} | config
  (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
  ids = [model.token_to_id(text) for text in known["generation"]["eos_token_id"]]
  (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ids, "temperature": 0.6}))
  return model


@functools.cache
def _trained(style, vocab):
  model = tokenizers.Tokenizer(models.BPE(byte_fallback=False))
  model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  model.decoder = decoders.ByteLevel()
  special = list(STYLES[style]["special"])
  trainer = trainers.BpeTrainer(
    vocab_size=vocab, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
  )
  text = ["Start with 5, then *7, +9. Last digit?", "What is 12 times 7? The answer is \\boxed{84}.", "5*7=35, 35+9=44"]
  model.train_from_iterator(text * 20, trainer)
  model.add_tokens([tokenizers.AddedToken(t, normalized=False, special=False) for t in ("<think>", "</think>")])
  if style == "llama3":  # adds its start token by itself, as Llama's file does
    bos = special[0]
    model.post_processor = tokenizers.processors.TemplateProcessing(
      single=f"{bos} $A", special_tokens=[(bos, model.token_to_id(bos))]
    )
  return model


def tensors_of(spec, seed=0, dtype=np.float32):
  """Returns random tensors by their names in files; the shapes are written out here, not taken from the library."""
  rng, s = np.random.default_rng(seed), spec
  q, kv = s.heads * s.head_dim, s.kv_heads * s.head_dim
  shapes = {"model.embed_tokens.weight": (s.vocab, s.width), "model.norm.weight": (s.width,)}
  shapes |= {} if s.tied else {"lm_head.weight": (s.vocab, s.width)}
  block = {
    "input_layernorm.weight": (s.width,),
    "post_attention_layernorm.weight": (s.width,),
    "self_attn.q_proj.weight": (q, s.width),
    "self_attn.k_proj.weight": (kv, s.width),
    "self_attn.v_proj.weight": (kv, s.width),
    "self_attn.o_proj.weight": (s.width, q),
    "mlp.gate_proj.weight": (s.mlp, s.width),
    "mlp.up_proj.weight": (s.mlp, s.width),
    "mlp.down_proj.weight": (s.width, s.mlp),
  }
  if s.family == "qwen2":
    block |= {f"self_attn.{x}_proj.bias": (n,) for x, n in (("q", q), ("k", kv), ("v", kv))}
  if s.family == "qwen3":
    block |= {f"self_attn.{x}_norm.weight": (s.head_dim,) for x in "qk"}
  shapes |= {f"model.layers.{i}.{name}": shape for i in range(s.layers) for name, shape in block.items()}
  return {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


def write_weights(folder, spec, tensors=None, shards=1, **config):
  """Writes a Hugging Face directory, whose weight files the safetensors package writes."""
  folder.mkdir(exist_ok=True, parents=True)
  tensors = tensors_of(spec) if tensors is None else tensors
  model_config = hf_weights.config_of(spec, "float32", {"eos_token_id": 2}) | config
  (folder / "config.json").write_text(json.dumps({k: v for k, v in model_config.items() if v != "absent"}))
  names = sorted(tensors)
  if shards == 1:
    safetensors.save_file(tensors, folder / "model.safetensors")
    return folder
  index = {}
  for n in range(shards):
    file = f"model-{n + 1:05d}-of-{shards:05d}.safetensors"
    safetensors.save_file({name: tensors[name] for name in names[n::shards]}, folder / file)
    index |= dict.fromkeys(names[n::shards], file)
  (folder / hf_weights.INDEX).write_text(json.dumps({"metadata": {}, "weight_map": index}))
  return folder


def write_model(folder, family="llama", style="llama3", shards=2):
  """Writes a tiny random model with its tokenizer; its weights are small, as at initialisation."""
  spec = dataclasses.replace(SPECS[family], vocab=PADDED, width=16, head_dim=4)
  tensors = {name: w * 0.1 + name.endswith("norm.weight") for name, w in tensors_of(spec).items()}
  known = write_tokenizer(folder, style).get_vocab_size()
  for name in {"model.embed_tokens.weight", "lm_head.weight"} & tensors.keys():
    tensors[name][known:] *= 10  # whoever looked at the padding would choose it
  write_weights(folder, spec, {name: w.astype(np.float32) for name, w in tensors.items()}, shards=shards)
  return folder
