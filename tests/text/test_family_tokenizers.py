"""Tokenizers that are built as the families' are: text, prompts, bytes of tokens, stop tokens, dates, rows."""

import datetime
import json

import pytest
import tokenizers
from tokenizers import AddedToken

from helpers.family_tokenizers import FAMILIES, comparison, write_family
from jaxrlvr.base.errors import InputError
from jaxrlvr.text.hf_tokenizer import HuggingFace
from jaxrlvr.text.template import Template

DATE = datetime.date(2025, 2, 3)
DATED = {"smollm3"}  # families whose template states a date
TEXTS = (
  "What is 12 times 7?  1234567\n\n\tx = 3.14\r\n",
  "naïve café ½ 中文🙂 \u00a0 <tags> camelCase  ",
  "",
)
SYSTEM, USER = {"role": "system", "content": "Add."}, {"role": "user", "content": " 5*7?\n"}
TURNS = (
  SYSTEM,
  USER,
  {"role": "assistant", "content": "<think>\n5*7\n</think>\n\n35"},
  {"role": "user", "content": "½"},
)
PROMPTS = {  # of SYSTEM and USER, and of TURNS
  "olmo2": (
    "<|endoftext|><|system|>\nAdd.\n<|user|>\n 5*7?\n\n<|assistant|>\n",
    "<|endoftext|><|system|>\nAdd.\n<|user|>\n 5*7?\n\n<|assistant|>\n<think>\n5*7\n</think>\n\n35<|endoftext|>\n"
    "<|user|>\n½\n<|assistant|>\n",
  ),
  "olmo3": (
    "<|im_start|>system\nAdd.<|im_end|>\n<|im_start|>user\n 5*7?\n<|im_end|>\n<|im_start|>assistant\n<think>",
    "<|im_start|>system\nAdd.<|im_end|>\n<|im_start|>user\n 5*7?\n<|im_end|>\n<|im_start|>assistant\n"
    "<think>\n5*7\n</think>\n\n35<|im_end|>\n<|im_start|>user\n½<|im_end|>\n<|im_start|>assistant\n<think>",
  ),
  "qwen3": (
    "<|im_start|>system\nAdd.<|im_end|>\n<|im_start|>user\n 5*7?\n<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>system\nAdd.<|im_end|>\n<|im_start|>user\n 5*7?\n<|im_end|>\n<|im_start|>assistant\n35<|im_end|>\n"
    "<|im_start|>user\n½<|im_end|>\n<|im_start|>assistant\n",
  ),
  "smollm3": (
    "<|im_start|>system\nToday: 03 February 2025\nMode: /think\nAdd.<|im_end|>\n<|im_start|>user\n 5*7?\n<|im_end|>\n"
    "<|im_start|>assistant\n",
    "<|im_start|>system\nToday: 03 February 2025\nMode: /think\nAdd.<|im_end|>\n<|im_start|>user\n 5*7?\n<|im_end|>\n"
    "<|im_start|>assistant\n<think>\n5*7\n</think>\n\n35<|im_end|>\n<|im_start|>user\n½<|im_end|>\n"
    "<|im_start|>assistant\n",
  ),
  "ministral": (
    "<s>[SYSTEM_PROMPT]Add.[/SYSTEM_PROMPT][INST] 5*7?\n[/INST]",
    "<s>[SYSTEM_PROMPT]Add.[/SYSTEM_PROMPT][INST] 5*7?\n[/INST]<think>\n5*7\n</think>\n\n35</s>[INST]½[/INST]",
  ),
  "gemma3": (
    "<bos><start_of_turn>user\nAdd.\n\n5*7?<end_of_turn>\n<start_of_turn>model\n",
    "<bos><start_of_turn>user\nAdd.\n\n5*7?<end_of_turn>\n<start_of_turn>model\n<think>\n5*7\n</think>\n\n35"
    "<end_of_turn>\n<start_of_turn>user\n½<end_of_turn>\n<start_of_turn>model\n",
  ),
  "phi3": (
    "<|system|>\nAdd.<|end|>\n<|user|>\n 5*7?\n<|end|>\n<|assistant|>\n",
    "<|system|>\nAdd.<|end|>\n<|user|>\n 5*7?\n<|end|>\n<|assistant|>\n<think>\n5*7\n</think>\n\n35<|end|>\n"
    "<|user|>\n½<|end|>\n<|assistant|>\n",
  ),
  "mistral": (
    "<s>[INST] Add.\n\n 5*7?\n[/INST]",
    "<s>[INST]  5*7?\n[/INST] <think>\n5*7\n</think>\n\n35</s>[INST] Add.\n\n½[/INST]",
  ),
}
STOPS = {  # the end tokens in order; the first ends a response in training
  "olmo2": ("<|endoftext|>",),
  "olmo3": ("<|endoftext|>", "<|im_end|>"),
  "qwen3": ("<|im_end|>", "<|endoftext|>"),
  "smollm3": ("<|im_end|>",),
  "ministral": ("</s>",),
  "gemma3": ("<end_of_turn>", "<eos>"),
  "phi3": ("<|end|>", "<|endoftext|>", "<|assistant|>"),
  "mistral": ("</s>",),
}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
  """(name, our tokenizer, the tokenizer of `tokenizers`, directory) of each family."""
  name = request.param
  folder = tmp_path_factory.mktemp("families") / name
  model = write_family(folder, name)
  return name, HuggingFace(folder, date=DATE if name in DATED else None), model, folder


def test_text_goes_in_and_out(family):
  name, ours, model, _ = family
  for text in TEXTS:
    ids = ours.encode(text)
    assert ids == model.encode(text, add_special_tokens=False).ids
    assert ours.decode(ids) == text
    prefix = " " if text and FAMILIES[name].kind in ("prepend", "metaspace") else ""
    assert b"".join(ours.pieces()[i] for i in ids).decode() == prefix + text


def test_bytes_of_each_token_are_what_it_adds_to_a_text(family):
  name, ours, model, _ = family
  start = model.encode("x", add_special_tokens=False).ids
  pieces = ours.pieces()
  assert len(pieces) == ours.vocab_size == model.get_vocab_size()
  for number, piece in enumerate(pieces):
    if model.id_to_token(number) in FAMILIES[name].control:
      assert piece == b""
    else:
      text = model.decode([*start, number], skip_special_tokens=False)
      assert "x" + piece.decode(errors="replace") == text


def test_prompts_are_those_written_down(family):
  name, ours, model, _ = family
  for messages, text in zip(((SYSTEM, USER), TURNS), PROMPTS[name], strict=True):
    assert ours.prompt_text(messages) == text
    assert ours.render(messages) == model.encode(text, add_special_tokens=False).ids
  lone = model.encode(ours.prompt_text((USER,)), add_special_tokens=False).ids  # some add a system message of their own
  assert ours.render((USER,)) == lone


def test_what_a_template_refuses_is_refused(family):
  name, ours, _, _ = family
  refuses = "raise_exception('turns" in FAMILIES[name].template or 'raise_exception("turns' in FAMILIES[name].template
  if refuses:
    with pytest.raises(InputError, match="turns must alternate"):
      ours.render((USER, USER))
  else:
    assert ours.render((USER, USER))


def test_thinking_goes_on_and_off_in_templates_that_have_the_switch(family):
  name, ours, _, _ = family
  if name not in ("qwen3", "smollm3"):
    with pytest.raises(InputError, match="reads enable_thinking"):
      ours.render((USER,), False)
    return
  assert ours.render((USER,)) == ours.render((USER,), True)
  assert ours.decode(ours.render((USER,), False)).endswith(
    "assistant\n<think>\n\n</think>\n" + "\n" * (name == "qwen3")
  )
  if name == "smollm3":
    assert "Mode: /no_think\nAdd." in ours.prompt_text(({"role": "system", "content": "Add. /no_think"}, USER))


def test_stop_tokens_begin_with_the_end_of_an_assistants_turn(family):
  name, ours, model, _ = family
  assert [model.id_to_token(number) for number in ours.eos_ids] == list(STOPS[name])
  assert ours.missing_stop_token == ""
  pad = FAMILIES[name].config.get("pad_token") or STOPS[name][0]
  assert ours.pad_id == model.token_to_id(pad)
  bos = FAMILIES[name].config["bos_token"]
  assert ours.bos_id == (None if bos is None else model.token_to_id(bos))


def test_no_message_writes_a_control_token(family):
  name, ours, model, _ = family
  control = {model.token_to_id(text) for text in FAMILIES[name].control}
  usual = [number for number in ours.render((USER,)) if number in control]
  for text in FAMILIES[name].control:
    hostile = f"a {text}b{text}{text[:3]}{text}"
    assert ours.decode(ours.encode(hostile)) == hostile
    ids = ours.render(({"role": "user", "content": hostile},))
    assert [number for number in ids if number in control] == usual
    assert hostile in ours.decode(ids)


def test_a_text_that_is_one_token_with_a_line_break_before_it_stays_whole(tmp_path):
  vocab = {text: number for number, text in enumerate(("▁", "\n", "\n/", "/", "<", "s", ">", "x", "</s>"))}
  model = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, [("\n", "/")]))
  model.normalizer = tokenizers.normalizers.Prepend("▁")
  model.decoder = tokenizers.decoders.Replace("▁", " ")
  model.add_special_tokens(["</s>"])
  model.save(str(tmp_path / "tokenizer.json"))
  edit(tmp_path / "tokenizer_config.json", eos_token="</s>")
  assert HuggingFace(tmp_path).encode("x</s>") == [*model.encode("x<").ids, *model.encode("/s>").ids]


def edit(file, **entries):
  """Changes entries of a JSON file, which is made if it is absent."""
  content = json.loads(file.read_text()) if file.exists() else {}
  file.write_text(json.dumps(content | entries))


def test_a_template_that_asks_for_the_day_gets_the_one_that_is_named(tmp_path):
  write_family(tmp_path, "smollm3")
  with pytest.raises(InputError, match="must not depend on the clock: name the day .* in config.model.date"):
    HuggingFace(tmp_path)
  assert "Today: 31 December 1999\n" in HuggingFace(tmp_path, date=datetime.date(1999, 12, 31)).prompt_text((USER,))
  write_family(tmp_path, "qwen3")
  with pytest.raises(InputError, match="no chat template that calls strftime_now; leave config.model.date empty"):
    HuggingFace(tmp_path, date=DATE)
  with pytest.raises(InputError, match="strftime_now of a form of 101 characters$"):
    Template("{{ strftime_now('a' * 101) }}", {}, DATE)


@pytest.mark.parametrize("special", [True, False])
def test_control_tokens_may_lie_beyond_the_rows_of_the_model(tmp_path, special):
  model = write_family(tmp_path, "gemma3")
  size = model.get_vocab_size()
  model.add_tokens([AddedToken("<image>", special=special, normalized=False)])
  model.save(str(tmp_path / "tokenizer.json"))
  edit(tmp_path / "config.json", text_config={"vocab_size": size})
  ours = HuggingFace(tmp_path)
  assert ours.vocab_size == len(ours.pieces()) == size + (not special)
  if special:
    assert max(ours.encode("a <image>")) < size
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}<image>")
    with pytest.raises(InputError, match=f"chat template writes '<image>', beyond the {size} rows of the model"):
      HuggingFace(tmp_path).render((USER,))
    edit(tmp_path / "tokenizer_config.json", pad_token="<image>")
    with pytest.raises(InputError, match=f"tokenizer_config.json names '<image>', beyond the {size} rows"):
      HuggingFace(tmp_path)


def test_names_of_special_tokens_in_a_file_of_their_own(tmp_path):
  model = write_family(tmp_path, "olmo3")
  names = {"eos_token": {"content": "<|im_end|>"}, "pad_token": "<|endoftext|>", "additional_special_tokens": []}
  edit(tmp_path / "special_tokens_map.json", **names)
  listed = HuggingFace(tmp_path)
  config = json.loads((tmp_path / "tokenizer_config.json").read_text())
  del config["added_tokens_decoder"]
  (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
  (tmp_path / "generation_config.json").unlink()
  ours = HuggingFace(tmp_path)
  assert listed.pad_id == model.token_to_id("<|pad|>") and ours.pad_id == model.token_to_id("<|endoftext|>")
  assert ours.eos_ids == (model.token_to_id("<|im_end|>"),)


def test_flags_of_an_added_token_are_those_of_the_config(tmp_path):
  model = write_family(tmp_path, "phi3")
  listed = json.loads((tmp_path / "tokenizer_config.json").read_text())["added_tokens_decoder"]
  ours = HuggingFace(tmp_path)
  assert ours.decode(ours.render((USER,))) == "5*7?\n"  # <|user|> takes the line break and the space behind it
  listed[str(model.token_to_id("<|user|>"))]["rstrip"] = False
  edit(tmp_path / "tokenizer_config.json", added_tokens_decoder=listed)
  ours = HuggingFace(tmp_path)
  assert ours.decode(ours.render((USER,))) == "\n 5*7?\n"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_nothing_differs_from_transformers(family):
  pytest.importorskip("transformers")
  assert comparison().differences(family[3]) == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_comparison_tells_what_differs(tmp_path, capsys):
  pytest.importorskip("transformers")
  write_family(tmp_path, "olmo2")
  edit(tmp_path / "config.json", model_type="qwen3")  # for which transformers has a class with another split
  edit(tmp_path / "tokenizer_config.json", tokenizer_class="Qwen2Tokenizer")
  assert comparison().main([str(tmp_path)]) == 1
  assert "ids of '0 12 123 1234" in capsys.readouterr().out
