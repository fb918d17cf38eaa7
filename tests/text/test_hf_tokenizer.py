"""Tokenizers of Hugging Face directories: bytes of pieces, chat templates, control tokens, stop ids."""

import json
import os
import time

import pytest
import tokenizers
from tokenizers import decoders, models

from helpers.hf_directories import ENDLESS, START, STYLES, TURNS, USER, write_tokenizer
from jaxrlvr.base.errors import InputError
from jaxrlvr.text.hf_tokenizer import HuggingFace
from jaxrlvr.text.stop_strings import automaton
from jaxrlvr.text.template import Template


@pytest.mark.parametrize("style", STYLES)
def test_text_goes_in_and_out(tmp_path, style):
  model = write_tokenizer(tmp_path, style)
  ours = HuggingFace(tmp_path)
  text = "<think>\nnaïve ½ 🙂 \t 12*7=84\n</think>\n\n\\boxed{84}"
  ids = ours.encode(text)
  assert ids == model.encode(text, add_special_tokens=False).ids
  assert ours.decode(ids) == text and ours.decode([*ids, ours.eos_ids[0], ours.pad_id]) == text
  pieces = ours.pieces()
  assert len(pieces) == ours.vocab_size == model.get_vocab_size()
  assert b"".join(pieces[i] for i in ids).decode() == text
  control = {model.token_to_id(t) for t in STYLES[style]["special"]}
  assert {i for i, p in enumerate(pieces) if p == b""} == control and pieces[model.token_to_id("<think>")] == b"<think>"
  state = 0
  for i in ids:
    state = automaton(("84\n</think>",), pieces)[state, i]
  assert state == len("84\n</think>")


@pytest.mark.parametrize("style", STYLES)
def test_stop_ids_are_all_that_the_directory_names_its_own_first(tmp_path, style):
  model = write_tokenizer(tmp_path, style)
  last = model.token_to_id("</think>")
  (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": last}))
  tokenizer = HuggingFace(tmp_path)
  ends = [model.token_to_id(t) for t in STYLES[style]["generation"]["eos_token_id"]]
  own = tokenizer.eos_ids[0]
  assert set(tokenizer.eos_ids) == {*ends, last} and len(tokenizer.eos_ids) == 3
  assert model.id_to_token(own) == {"chatml": "<|im_end|>", "llama3": "<|eot_id|>"}[style]
  assert tokenizer.pad_id == (model.token_to_id("<|endoftext|>") if style == "chatml" else own)


def test_chat_templates_are_rendered_to_one_stream_of_tokens(tmp_path):
  chatml, llama3 = write_tokenizer(tmp_path / "q", "chatml"), write_tokenizer(tmp_path / "l", "llama3")
  ids = HuggingFace(tmp_path / "q").render(USER)
  text = "<|im_start|>system\nYou are helpful.<|im_end|>\n<|im_start|>user\n What is 12*7?\n<|im_end|>\n"
  text += "<|im_start|>assistant\n"
  assert ids == chatml.encode(text, add_special_tokens=False).ids
  ours = HuggingFace(tmp_path / "l")
  ids = ours.render(USER)
  assert ids.count(ours.bos_id) == 1 and ids[0] == ours.bos_id and ours.render(()) == [ours.bos_id]
  head = "<|start_header_id|>{}<|end_header_id|>\n\n"
  text = head.format("system") + "Today Date: 26 Jul 2024<|eot_id|>" + head.format("user") + "What is 12*7?<|eot_id|>"
  assert ids == llama3.encode(text + head.format("assistant")).ids
  assert HuggingFace(tmp_path / "q").render(()) == []


def test_thinking_is_the_templates_own_switch(tmp_path):
  write_tokenizer(tmp_path / "q", "chatml")
  write_tokenizer(tmp_path / "l", "llama3")
  plain, off = HuggingFace(tmp_path / "q"), HuggingFace(tmp_path / "q", think=False)
  closed = plain.encode("<think>\n\n</think>\n\n")
  assert off.render(USER) == plain.render(USER, False) == [*plain.render(USER), *closed]
  assert off.render(USER, True) == plain.render(USER)
  with pytest.raises(InputError, match="no chat template that reads enable_thinking"):
    HuggingFace(tmp_path / "l").render(USER, True)


HISTORY = TURNS.replace("m.content", "(m.content.split('</think>')[-1] if m.role == 'assistant' else m.content)")
OFF = "{{ '<think>\n\n</think>\n\n' if enable_thinking is defined and not enable_thinking else '<think>\n' }}"
OPENINGS = {  # template: what it leaves open, with thinking as it is by default
  TURNS + START + "{{ '<think>' }}": "<think>",
  TURNS + START + "{{ '<think>\n' }}": "<think>\n",
  TURNS + START + "{{ ' <think>  \n\n' }}": "<think>  \n\n",
  TURNS + START + "{{ '<think>\nOkay, so' }}": "<think>\nOkay, so",
  "{{ 'Write <think> first.' }}" + TURNS + START: "",
  TURNS.replace("m.content", "m.content + ' Begin with <think>.'") + START: "",
  TURNS + START: "",
  TURNS + START + "{{ '<think>\n\n</think>\n\n' }}": "",
  TURNS + START + OFF: "<think>\n",
  HISTORY + START + "{{ '<think>\n' }}": "<think>\n",
  HISTORY + START: "",
  "{{ 'Think: ' + messages[0].content + ' A: <think>' }}": "<think>",
  "{{ 'Think: ' + messages[0].content.split(' ')[0] + '\n<think>\n' }}": "<think>\n",
  "{{ messages | length }} <think> tags are for thoughts": "",
  TURNS + "Begin with <think> at once.\n\nAssistant:": "",
  TURNS + "### Response: <think>\nOkay": "<think>\nOkay",
  TURNS + START + "{% if not messages[-1].content.endswith('5?') %}{{ '<think>\n' }}{% endif %}": {
    3: "",
    None: "<think>\n",
  },
  "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content }}{% endfor %}{{ '<|assistant|><think>' }}": "<think>",
  TURNS + START + "{{ '[THINK]' }}": "",
  TURNS + START + "{{ '<reasoning>\n' }}": "",
  TURNS + START + "{{ '<thinking>' }}": "",
}
SPEAKERS = (
  ({"role": "user", "content": "Hi all"},),
  ({"role": "system", "content": "Use <think>."}, {"role": "user", "content": "Say <think>"}),
  ({"role": "user", "content": "a <think>"},),
  (*USER, {"role": "assistant", "content": "<think>\nx\n</think>\n4"}, {"role": "user", "content": "and </think> 5?"}),
)


@pytest.mark.parametrize("template", OPENINGS)
def test_a_think_tag_that_the_template_leaves_open_is_seen_and_no_other(tmp_path, template):
  write_tokenizer(tmp_path, chat_template=template)
  ours = HuggingFace(tmp_path)
  for number, messages in enumerate(SPEAKERS):
    opening = OPENINGS[template]
    if isinstance(opening, dict):
      opening = opening.get(number, opening[None])
    assert ours.opening(messages) == opening
  if OFF in template:
    assert ours.opening(USER, False) == "" and ours.opening(USER, True) == "<think>\n"
    assert HuggingFace(tmp_path, think=False).opening(USER) == ""


def test_without_a_template_nothing_is_opened(tmp_path):
  write_tokenizer(tmp_path, "llama3", chat_template=None)
  assert HuggingFace(tmp_path).opening(({"role": "user", "content": "<think>"},)) == ""


def test_no_text_spells_a_control_token(tmp_path):
  write_tokenizer(tmp_path)
  ours = HuggingFace(tmp_path)
  hostile = "a<|im_end|><|im_<|im_end|>end|>\ufdd0<think>"
  spelled = hostile.replace("\ufdd0", "")
  assert not set(ours.encode(hostile)) & {0, 1, 2} and ours.decode(ours.encode(hostile)) == spelled
  ids, usual = ours.render(({"role": "user", "content": hostile},)), ours.render(({"role": "user", "content": ""},))
  assert [i for i in ids if i in (0, 1, 2)] == [i for i in usual if i in (0, 1, 2)]
  assert spelled in ours.decode(ids) and ours.encode("<think>")[0] in ids


def test_thinking_tags_are_text_also_where_they_are_special(tmp_path):
  model = write_tokenizer(tmp_path)
  model.add_special_tokens(["<think>", "</think>"])
  model.save(str(tmp_path / "tokenizer.json"))
  ours, text = HuggingFace(tmp_path), "<think>5</think>"
  ids = ours.encode(text)
  assert len(ids) == 3 and ours.decode(ids) == text and b"".join(ours.pieces()[i] for i in ids) == text.encode()


def test_templates_by_file_and_by_name(tmp_path):
  write_tokenizer(
    tmp_path, chat_template=[{"name": "tool_use", "template": "x"}, {"name": "default", "template": "{{ 'ab' }}"}]
  )
  assert HuggingFace(tmp_path).render(USER) == HuggingFace(tmp_path).encode("ab")
  (tmp_path / "chat_template.jinja").write_text("{{ messages | tojson }}")
  text = HuggingFace(tmp_path).decode(HuggingFace(tmp_path).render(({"role": "user", "content": "<é>"},)))
  assert text == '[{"role": "user", "content": "<é>"}]'


def test_without_a_template(tmp_path):
  model = write_tokenizer(tmp_path, "llama3", chat_template=None)
  ours = HuggingFace(tmp_path)
  assert ours.render(({"role": "system", "content": "Add."}, *USER)) == model.encode("Add.\n\n What is 12*7?\n\n\n").ids


def test_pieces_of_a_metaspace_tokenizer(tmp_path):
  model = tokenizers.Tokenizer(
    models.BPE({"<0xC3>": 0, "<0xA9>": 1, "▁": 2, "a": 3, "▁a": 4, "</s>": 5}, [("▁", "a")], byte_fallback=True)
  )
  model.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
  model.add_special_tokens(["</s>"])
  model.save(str(tmp_path / "tokenizer.json"))
  (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
  assert HuggingFace(tmp_path).pieces() == [b"\xc3", b"\xa9", b" ", b"a", b" a", b""]


REFUSED = {
  "no end": (dict(eos_token=None), "end tokens .*wanted at least one id"),
  "number": (dict(eos_token=5), "tokenizer_config.json: eos_token = 5, wanted a text"),
  "object": (dict(pad_token={"id": 5}), "tokenizer_config.json: pad_token = .*, wanted a text"),
  "ids": (dict(), "end tokens .*'a': 1.*wanted at least one id below"),
  "unknown": (dict(eos_token="<eos>"), "names '<eos>', which tokenizer.json does not know"),
  "template": (dict(chat_template="{% if %}"), "chat template can't be read"),
  "no default": (dict(chat_template=[{"name": "rag", "template": ""}]), r"chat templates \['rag'\]"),
  "role": (dict(), "refuses messages of roles .'tool'.: role tool"),
  "clock": (
    dict(chat_template="{{ strftime_now('%d') }}"),
    "'strftime_now' is undefined; .* the day that it states in config.model.date",
  ),
  "escape": (dict(chat_template="{{ ''.__class__.__mro__ }}"), "unsafe"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(tmp_path, case):
  config, words = REFUSED[case]
  write_tokenizer(tmp_path, **config)
  if case == "no end":
    (tmp_path / "generation_config.json").unlink()
  if case == "ids":
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": {"a": 1}}')
  with pytest.raises(InputError, match=words):
    HuggingFace(tmp_path).render(({"role": "tool" if case == "role" else "user", "content": ""},))


HOSTILE = {
  "zero": "{{ 1/0 }}",
  "product": "{{ 'a' * 10**9 }}",
  "list": "{% for x in [0] * 10**9 %}{% endfor %}",
  "power": "{{ 10**10**9 }}",
  "width": "{{ '%01000000000d' % 1 }}",
  "filter": "{{ 'a' | center(4000000000) }}",
  "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
  "output": "{% for a in range(9999) %}{% for b in range(9999) %}aaaaaaaaaaaaaaaa{% endfor %}{% endfor %}",
  "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
  "doubling": "{% set n = namespace(s='a') %}{% for i in range(99) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
  "nesting": "{{ " + "(" * 5000 + ")" * 5000 + " }}",
  "index": "{{ messages[7].content.nothing.at.all }}",
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_templates_are_refused_in_bounded_time_and_memory(tmp_path, case):
  write_tokenizer(tmp_path, chat_template=HOSTILE[case])
  began = time.monotonic()
  with pytest.raises(InputError, match="tokenizer_config.json: its chat template"):
    HuggingFace(tmp_path)
  assert time.monotonic() - began < 60


def test_a_template_that_fails_at_some_messages_only_is_an_input_error_too(tmp_path):
  template = (
    "{% for m in messages %}{{ 1 / (m.content | length - 3) }}{{ 'a' * 10 ** (m.content | length) }}{% endfor %}"
  )
  write_tokenizer(tmp_path, chat_template=template)
  for text in ("abc", "a" * 9):
    with pytest.raises(InputError, match="its chat template refuses messages"):
      HuggingFace(tmp_path).render(({"role": "user", "content": text},))


def test_a_template_may_want_a_system_message(tmp_path):
  want = "{% if messages[0].role != 'system' %}{{ raise_exception('no system') }}{% endif %}{{ messages[1].content }}"
  write_tokenizer(tmp_path, chat_template=want)
  assert HuggingFace(tmp_path).decode(HuggingFace(tmp_path).render(SPEAKERS[1])) == "Say <think>"


def test_a_turns_end_that_ends_no_response_is_seen_and_may_be_named(tmp_path):
  model = write_tokenizer(tmp_path)
  assert HuggingFace(tmp_path).missing_stop_token == ""
  write_tokenizer(tmp_path, chat_template=ENDLESS)
  ours = HuggingFace(tmp_path)
  assert ours.missing_stop_token == "<|im_start|>"
  more = HuggingFace(tmp_path, stop_tokens=("<|im_start|>",))
  assert more.missing_stop_token == "" and more.eos_ids == (*ours.eos_ids, model.token_to_id("<|im_start|>"))
  with pytest.raises(InputError, match="stop token '<end>' is no token .*model.stop_tokens"):
    HuggingFace(tmp_path, stop_tokens=("<end>",))
  write_tokenizer(tmp_path, chat_template=TURNS.replace("<|im_end|>", ""))
  assert HuggingFace(tmp_path).missing_stop_token == ""
  write_tokenizer(tmp_path / "l", "llama3")
  assert HuggingFace(tmp_path / "l").missing_stop_token == ""


def test_tokens_that_only_the_config_lists_are_one_token(tmp_path):
  model = write_tokenizer(tmp_path)
  size = model.get_vocab_size()
  entry = {"content": "<tool>", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
  end = entry | {"content": "<|turn_end|>", "special": True}
  listed = {str(size): entry | {"special": False}, str(size + 1): end, "0": entry | {"content": "<|endoftext|>"}}
  write_tokenizer(tmp_path, added_tokens_decoder=listed)
  ours = HuggingFace(tmp_path)
  assert ours.encode("a<tool>") == [*ours.encode("a"), size] and ours.decode([size]) == "<tool>"
  assert ours.vocab_size == size + 2 and ours.pieces()[size] == b"<tool>" and ours.pieces()[size + 1] == b""
  assert size + 1 not in ours.encode("<|turn_end|>") and ours.decode([size + 1]) == ""
  for listed in ({str(size + 5): entry}, {"x": entry}, {str(size): {}}):
    write_tokenizer(tmp_path, added_tokens_decoder=listed)
    with pytest.raises(InputError, match="tokenizer_config.json: added_tokens_decoder"):
      HuggingFace(tmp_path)


def test_files_that_never_end_or_nest_too_deep_are_refused(tmp_path):
  write_tokenizer(tmp_path)
  (tmp_path / "tokenizer_config.json").write_text("[" * 100_000)
  with pytest.raises(InputError, match="tokenizer_config.json: is no JSON"):
    HuggingFace(tmp_path)
  for name in ("tokenizer_config.json", "generation_config.json", "chat_template.jinja", "tokenizer.json"):
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(InputError, match=f"{name}: is no regular file"):
      HuggingFace(tmp_path)
    (tmp_path / name).unlink()
    write_tokenizer(tmp_path)


def test_files_that_are_no_tokenizer(tmp_path):
  with pytest.raises(InputError, match="tokenizer.json: is no tokenizer"):
    HuggingFace(tmp_path)
  write_tokenizer(tmp_path)
  (tmp_path / "tokenizer_config.json").write_text("{")
  with pytest.raises(InputError, match="tokenizer_config.json: is no JSON"):
    HuggingFace(tmp_path)


def test_digest_covers_the_template(tmp_path):
  write_tokenizer(tmp_path)
  before = HuggingFace(tmp_path).digest
  (tmp_path / "chat_template.jinja").write_text("x")
  assert HuggingFace(tmp_path).digest != before


def test_a_refused_message_without_a_role_is_an_input_error():
  template = Template("{% if not messages[0].get('role') %}{{ raise_exception('no role') }}{% endif %}", {})
  with pytest.raises(InputError, match=r"refuses messages of roles \[None\].*no role"):
    template.render([{"content": "a"}])
