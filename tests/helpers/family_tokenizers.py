"""Small tokenizers that are built as those of the model families are, with chat templates that use the same features.

Vocabularies are trained here, and templates are of our own making; only the construction is that of the families.
"""

import functools
import importlib.util
import json
from pathlib import Path
from typing import NamedTuple

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = (
  "What is 12 times 7? The answer is \\boxed{84}.\n\nAnswer in one word.  Start with 5, then *7, +9.",
  "<think>\n5*7=35, 35+9=44\n</think>\n    def f(x):\n        return x + 1\n",
  "we're they'll it's Don't camelCase HTTPServer snake_case naïve café ½ ² 中文 русский 🙂",
)
SPLITS = {
  # Words with the character before them, up to three digits, a line's end with the signs before it.
  "triples": r"(?i:'s|'re|'ll|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+(?!\S)|\s+",
  # The same with single digits.
  "digits": r"(?i:'s|'re|'ll|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+(?!\S)|\s+",
  # A word ends where its case changes, and single digits.
  "cases": r"[^\r\n\p{L}\p{N}]?\p{Lu}*[\p{Ll}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?\p{Lu}+|\p{N}|[^\s\p{L}\p{N}]+[\r\n]*|\s+",
}

# Roles that are plain text, a start token, the end token behind each answer.
PLAIN_ROLES = """{{ bos_token }}{% for turn in messages %}{% if turn['role'] == 'assistant' -%}
<|assistant|>
{{ turn['content'] + eos_token }}{{ '' if loop.last else '\n' }}
{%- else -%}
{{ '<|' + turn['role'] + '|>\n' + turn['content'] + '\n' }}
{%- endif %}{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}{% endfor %}"""

# A system message by default, `selectattr`, keys that messages lack, and an open think tag.
THINKER = """{%- set own = messages | selectattr('role', 'equalto', 'system') | list %}
{%- if own | length == 0 %}{{ '<|im_start|>system\nBe brief.<|im_end|>\n' }}{% endif %}
{%- for turn in messages %}
{{- '<|im_start|>' + turn.role + '\n' + turn.content }}
{%- if turn.get('functions', none) is not none %}{{ turn.functions }}{% endif %}
{{- eos_token if loop.last and turn.role == 'assistant' else '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>' }}{% endif %}"""

# A macro, a namespace, tools, a walk from the last message, and a switch for thinking.
SWITCHED = """{%- macro block(role, text) %}{{ '<|im_start|>' ~ role ~ '\n' ~ text ~ '<|im_end|>\n' }}{% endmacro %}
{%- if tools %}{{ block('system', tools | tojson) }}{% endif %}
{%- set seen = namespace(last=-1) %}
{%- for turn in messages[::-1] %}
  {%- if turn.role == 'user' %}{% set seen.last = messages | length - loop.index %}{% break %}{% endif %}
{%- endfor %}
{%- for turn in messages %}
  {%- set text = turn.content %}
  {%- if turn.role == 'assistant' and loop.index0 < seen.last %}
    {%- set text = text.split('</think>')[-1].lstrip('\n') %}
  {%- endif %}
  {{- block(turn.role, text) }}
{%- endfor %}
{%- if add_generation_prompt %}
  {{- '<|im_start|>assistant\n' }}
  {%- if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}
{%- endif %}"""

# The day, a switch with a default of its own and by words in the system message, and blocks of generation.
DATED = """{# ─── our own ─── #}
{%- if enable_thinking is not defined -%}{%- set enable_thinking = true -%}{%- endif -%}
{%- set mode = "/think" if enable_thinking else "/no_think" -%}
{%- if messages[0].role == "system" -%}
  {%- set own = messages[0].content -%}
  {%- if "/no_think" in own -%}{%- set mode = "/no_think" -%}{%- endif -%}
  {%- set own = own.replace("/no_think", "").rstrip() -%}
{%- endif -%}
{{- "<|im_start|>system\nToday: " ~ strftime_now("%d %B %Y") ~ "\nMode: " + mode + "\n" + (own or "Help.") -}}
{{- "<|im_end|>\n" -}}
{%- set mark = "outer" -%}
{%- for turn in messages -%}
  {%- set text = turn.content if turn.content is string else "" -%}
  {%- if turn.role == "user" -%}
    {{ "<|im_start|>user\n" + text + "<|im_end|>\n" }}
  {%- elif turn.role == "assistant" -%}
    {% generation %}
    {%- set mark = "inner" -%}
    {{ "<|im_start|>assistant\n" + text.lstrip("\n") + "<|im_end|>\n" }}
    {%- endgeneration %}
    {%- if mark != "outer" -%}{{ raise_exception("a block's variable is seen behind it") }}{%- endif -%}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{ "<|im_start|>assistant\n" ~ ("" if mode == "/think" else "<think>\n\n</think>\n") }}
{%- endif -%}"""

# Turns must alternate, the system message comes in front of the first user's turn, and the assistant has another name.
FOLDED = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
  {%- set lead, turns = messages[0]['content'] + '\n\n', messages[1:] -%}
{%- else -%}
  {%- set lead, turns = '', messages -%}
{%- endif -%}
{%- for turn in turns -%}
  {%- if (turn['role'] == 'user') != (loop.index0 % 2 == 0) -%}
    {{ raise_exception('turns must alternate') }}
  {%- endif -%}
  {{ '<start_of_turn>' + ('model' if turn['role'] == 'assistant' else turn['role']) + '\n' }}
  {{- lead if loop.first else '' }}
  {%- if turn['content'] is string -%}{{ turn['content'] | trim }}{%- else -%}{{ '<image>' }}{%- endif -%}
  {{ '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}"""

# Control tokens that take the spaces behind them, no start token, another end token where there is no answer to come.
STRIPPED = """{% for turn in messages %}{{ '<|' + turn['role'] + '|>\n' + turn['content'] + '<|end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"""

# The system message goes to the last user's turn, and answers begin with a space.
BRACKETED = """{%- if messages[0].role == "system" %}
  {%- set messages, own = messages[1:], messages[0].content %}
{%- endif %}
{{- bos_token }}
{%- for turn in messages %}
  {%- if (turn.role == "user") != loop.index is odd %}{{ raise_exception("turns must alternate") }}{% endif %}
  {%- if turn.role == "user" %}
    {{- "[INST] " + (own + "\n\n" if loop.last and own is defined else "") + turn.content + "[/INST]" }}
  {%- else %}
    {{- " " + turn.content | trim + eos_token }}
  {%- endif %}
{%- endfor %}"""

# A system message by default, put in front by joining lists.
JOINED = """{%- if messages[0].role != 'system' %}
  {%- set messages = [{'role': 'system', 'content': 'Be brief.'}] + messages %}
{%- endif %}
{{- bos_token }}
{%- for turn in messages %}
  {%- if turn.role == 'assistant' %}{{ turn.content + eos_token }}{% continue %}{% endif %}
  {%- set name = {'system': 'SYSTEM_PROMPT', 'user': 'INST'}.get(turn.role) or raise_exception('role ' + turn.role) %}
  {{- '[' + name + ']' + turn.content + '[/' + name + ']' }}
{%- endfor %}"""


class Family(NamedTuple):
  """How a family's tokenizer is built, and the files beside it."""

  kind: str  # a key of SPLITS for byte-level BPE, or "spaces", "prepend" or "metaspace" for BPE of characters
  control: tuple[str, ...]  # special tokens
  template: str
  config: dict  # of tokenizer_config.json
  generation: dict  # of generation_config.json; tokens by their texts
  model: dict  # of config.json
  text: tuple[str, ...] = ()  # added tokens that are no special ones
  normalizer: str = ""  # "nfc" or nothing
  rstrip: bool = False  # whether control tokens take the spaces behind them
  class_name: str = "PreTrainedTokenizerFast"


FAMILIES = {
  "olmo2": Family(
    "triples",
    ("<|endoftext|>", "<|pad|>"),
    PLAIN_ROLES,
    dict(bos_token="<|endoftext|>", eos_token="<|endoftext|>", pad_token="<|pad|>", unk_token="<|endoftext|>"),
    dict(eos_token_id="<|endoftext|>", pad_token_id="<|pad|>"),
    dict(model_type="olmo2"),
    class_name="GPT2Tokenizer",
  ),
  "olmo3": Family(
    "triples",
    ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"),
    THINKER,
    dict(bos_token="<|endoftext|>", eos_token="<|endoftext|>", pad_token="<|pad|>"),
    dict(eos_token_id=["<|im_end|>", "<|endoftext|>"], temperature=0.6, top_p=0.95),
    dict(model_type="olmo3"),
    class_name="GPT2Tokenizer",
  ),
  "qwen3": Family(
    "digits",
    ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    SWITCHED,
    dict(eos_token="<|im_end|>", pad_token="<|endoftext|>", bos_token=None),
    dict(bos_token_id="<|endoftext|>", eos_token_id=["<|im_end|>", "<|endoftext|>"], top_k=20, temperature=0.6),
    dict(model_type="qwen3"),
    text=("<tool_call>", "<think>", "</think>"),
    normalizer="nfc",
    class_name="Qwen2Tokenizer",
  ),
  "smollm3": Family(
    "triples",
    ("<|begin_of_text|>", "<|end_of_text|>", "<|pad|>", "<|im_start|>", "<|im_end|>"),
    DATED,
    dict(eos_token="<|im_end|>", pad_token="<|im_end|>", bos_token=None),
    dict(bos_token_id="<|begin_of_text|>", eos_token_id="<|im_end|>", pad_token_id="<|pad|>", temperature=0.6),
    dict(model_type="smollm3"),
    text=("<think>", "</think>"),
  ),
  "ministral": Family(
    "cases",
    ("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "<pad>"),
    JOINED,
    dict(bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"),
    dict(bos_token_id="<s>", eos_token_id="</s>", pad_token_id="<pad>"),
    dict(model_type="ministral3", transformers_version="5.0.0"),
  ),
  "gemma3": Family(
    "spaces",
    ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"),
    FOLDED,
    dict(bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>"),
    dict(bos_token_id="<bos>", eos_token_id=["<eos>", "<end_of_turn>"], pad_token_id="<pad>", top_k=64, top_p=0.95),
    dict(model_type="gemma3_text"),
    text=("<mask>", "\n\n", "▁▁", "<unused0>"),
    class_name="GemmaTokenizer",
  ),
  "phi3": Family(
    "prepend",
    ("<unk>", "<s>", "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
    STRIPPED,
    dict(bos_token="<s>", eos_token="<|endoftext|>", pad_token="<|endoftext|>", unk_token="<unk>"),
    dict(bos_token_id="<s>", eos_token_id=["<|endoftext|>", "<|assistant|>", "<|end|>"]),
    dict(model_type="phi3"),
    rstrip=True,
    class_name="LlamaTokenizer",
  ),
  "mistral": Family(
    "metaspace",
    ("<unk>", "<s>", "</s>", "[INST]", "[/INST]"),
    BRACKETED,
    dict(bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token=None),
    dict(bos_token_id="<s>", eos_token_id="</s>"),
    dict(model_type="mistral"),
    class_name="LlamaTokenizer",
  ),
}


@functools.cache
def _trained(name):
  """Trains the tokenizer of a family and returns it as JSON."""
  family = FAMILIES[name]
  model = _byte_level(family) if family.kind in SPLITS else _of_characters(family)
  special = [AddedToken(t, special=True, normalized=False, rstrip=family.rstrip) for t in family.control]
  model.add_special_tokens(special)
  model.add_tokens([AddedToken(t, special=False, normalized=False) for t in family.text])
  bos = family.config["bos_token"]
  if bos is not None:  # most add their start token by themselves, which no prompt may double
    model.post_processor = processors.TemplateProcessing(
      single=f"{bos} $A", special_tokens=[(bos, model.token_to_id(bos))]
    )
  return model.to_str()


def _byte_level(family):
  """Trains a byte-level BPE behind the family's split."""
  model = tokenizers.Tokenizer(models.BPE())
  model.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(Regex(SPLITS[family.kind]), "isolated"),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )
  if family.normalizer == "nfc":
    model.normalizer = normalizers.NFC()
  model.decoder = decoders.ByteLevel()
  alphabet = pre_tokenizers.ByteLevel.alphabet()
  trainer = trainers.BpeTrainer(vocab_size=340, initial_alphabet=alphabet, show_progress=False)
  model.train_from_iterator(CORPUS * 4, trainer)
  return model


def _of_characters(family):
  """Trains a BPE of characters with ▁ for spaces and a token for each byte, as SentencePiece's are."""
  spaces = normalizers.Replace(" ", "▁")
  trained = tokenizers.Tokenizer(models.BPE())
  trained.normalizer = spaces
  trained.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
  trained.train_from_iterator(CORPUS[:1] * 4, trainers.BpeTrainer(vocab_size=90, show_progress=False))
  parts = json.loads(trained.to_str())["model"]
  texts = [*family.control, *family.text, *[f"<0x{byte:02X}>" for byte in range(256)], "▁", *parts["vocab"]]
  vocab = {text: number for number, text in enumerate(dict.fromkeys(texts))}
  merges = [tuple(pair) for pair in parts["merges"]]
  if "▁▁" in family.text:
    merges.append(("▁", "▁"))
  model = tokenizers.Tokenizer(models.BPE(vocab, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
  steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
  if family.kind == "spaces":
    model.normalizer = spaces
    model.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
  else:
    steps.append(decoders.Strip(" ", 1, 0))
  if family.kind == "prepend":
    model.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces])
  if family.kind == "metaspace":
    model.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
  model.decoder = decoders.Sequence(steps)
  return model


def write_family(folder, name):
  """Writes the tokenizer's files of a family, with config.json and generation_config.json; returns the tokenizer."""
  family = FAMILIES[name]
  folder.mkdir(exist_ok=True, parents=True)
  model = tokenizers.Tokenizer.from_str(_trained(name))
  model.save(str(folder / "tokenizer.json"))
  listed = {}
  for number, token in model.get_added_tokens_decoder().items():
    flags = {flag: getattr(token, flag) for flag in ("lstrip", "rstrip", "normalized", "single_word", "special")}
    listed[str(number)] = {"content": token.content} | flags
  config = family.config | dict(tokenizer_class=family.class_name, added_tokens_decoder=listed)
  (folder / "tokenizer_config.json").write_text(json.dumps(config))
  (folder / "chat_template.jinja").write_text(family.template, encoding="utf-8")
  generation = {}
  for key, value in family.generation.items():
    if isinstance(value, list):
      generation[key] = [model.token_to_id(text) for text in value]
    elif isinstance(value, str):
      generation[key] = model.token_to_id(value)
    else:
      generation[key] = value
  (folder / "generation_config.json").write_text(json.dumps(generation))
  (folder / "config.json").write_text(json.dumps(family.model))
  return model


def comparison():
  """Returns launch/compare_tokenizers.py as a module."""
  file = Path(__file__).parents[2] / "launch" / "compare_tokenizers.py"
  spec = importlib.util.spec_from_file_location("compare_tokenizers", file)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module
