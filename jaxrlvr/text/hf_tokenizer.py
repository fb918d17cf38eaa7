"""Tokenizers of Hugging Face directories: tokenizer.json, its special tokens and its chat template."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import tokenizers

from jaxrlvr.base.errors import InputError
from jaxrlvr.text.tags import THINK, THINK_END
from jaxrlvr.text.template import Template

TOKENIZER = "tokenizer.json"
# What a directory needs to stand alone as a tokenizer; config.json and generation_config.json name stop tokens.
FILES = (
  TOKENIZER,
  "tokenizer_config.json",
  "chat_template.jinja",
  "special_tokens_map.json",
  "added_tokens.json",
  "vocab.json",
  "merges.txt",
  "tokenizer.model",
  "generation_config.json",
  "config.json",
)
_BREAK = "\ufdd0"  # a noncharacter: cuts a text in two before it becomes tokens
_END = "\ufdd1"  # another one: stands behind the last message while the end of a prompt is looked for
_TAG = re.compile(f"<(?={THINK[1:]}|{THINK_END[1:]})")
_SENTENCE = re.compile(r"\w[ \t]+\Z")  # before a tag that is spoken of


class HuggingFace:
  """The tokenizer of a Hugging Face directory, and its chat template as transformers renders it.

  Text of messages and responses never becomes a control token: one that it spells is cut into ordinary ones. (That is
  the only difference from transformers' apply_chat_template.) The thinking tags are text, whatever the directory says.
  `strftime_now` is not known to templates: a prompt must not depend on the day, and Llama's then use a fixed date.
  Without a template a prompt is the start token, if there is one, and each message's text with a blank line behind it.
  """

  def __init__(self, folder: str | Path, think: bool | None = None, stop_tokens: Sequence[str] = ()):
    """`think`: what the template is told as `enable_thinking`; None: nothing.

    `stop_tokens`: tokens that end a response beside those that the directory names.
    """
    self._folder, self._think = Path(folder), think
    for file in (self._folder / name for name in FILES):
      if file.exists() and not file.is_file():
        raise InputError(f"{file}: is no regular file (a pipe, a device or a folder); take the model's own file")
    try:
      self._model = tokenizers.Tokenizer.from_file(str(self._folder / TOKENIZER))
    except Exception as error:  # the library raises nothing narrower
      raise InputError(f"{self._folder / TOKENIZER}: is no tokenizer ({error}); take the model's own file") from error
    self._model.no_truncation()
    self._model.no_padding()
    config = self._json("tokenizer_config.json")
    self._add_tokens(config.get("added_tokens_decoder") or {})
    added = self._model.get_added_tokens_decoder()
    control = {i: token.content for i, token in added.items() if token.special}
    self._control = {i: text for i, text in control.items() if text not in (THINK, THINK_END)}
    spelled = "|".join(re.escape(text) for text in self._control.values() if len(text) > 1)
    self._spelled = re.compile(f"(?=(?:{spelled}))(.)", re.S) if spelled else None
    self.vocab_size = max(self._model.get_vocab(with_added_tokens=True).values()) + 1
    self._names = {name: text for name in ("bos", "eos", "pad", "unk") if (text := self._text(config, f"{name}_token"))}
    special = {name: self._id(text) for name, text in self._names.items()}
    self.bos_id = special.get("bos")
    stops = [special["eos"]] if "eos" in special else []
    for found in (
      self._json("generation_config.json").get("eos_token_id"),
      self._json("config.json").get("eos_token_id"),
    ):
      stops += found if isinstance(found, list) else [] if found is None else [found]
    stops += [self._stop_id(text) for text in stop_tokens]
    if not stops or not all(type(i) is int and 0 <= i < self.vocab_size for i in stops):
      raise InputError(
        f"{self._folder}: end tokens {str(stops)[:200]}, wanted at least one id below {self.vocab_size}; "
        "set eos_token in tokenizer_config.json, or eos_token_id in generation_config.json"
      )
    self.eos_ids = tuple(dict.fromkeys(stops))
    self.pad_id = special.get("pad", self.eos_ids[0])
    self._template = self._compile(config)

  @property
  def digest(self) -> str:
    """Stands for everything that turns messages into tokens."""
    files = (self._folder / name for name in FILES)
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files if file.is_file())).hexdigest()

  def encode(self, text: str) -> list[int]:
    return self._ids(self._cut(text))

  def decode(self, ids: Sequence[int]) -> str:
    return self._model.decode([int(i) for i in ids if int(i) not in self._control], skip_special_tokens=False)

  def pieces(self) -> list[bytes]:
    decoder = json.dumps(self._json(TOKENIZER).get("decoder"), ensure_ascii=False)
    if "ByteLevel" in decoder:
      table = _byte_alphabet()
    elif "ByteFallback" in decoder or "Metaspace" in decoder or "▁" in decoder:
      table = None
    else:
      raise InputError(
        f"{self._folder / TOKENIZER}: is of a kind whose tokens have no bytes; wanted byte-level or ▁ BPE"
      )
    added = self._model.get_added_tokens_decoder()
    made = []
    for i in range(self.vocab_size):
      text = self._model.id_to_token(i)
      if text is None or i in self._control:
        made.append(b"")
      elif i in added:
        made.append(added[i].content.encode())
      elif table is not None:
        made.append(b"".join(bytes([table[c]]) if c in table else c.encode() for c in text))
      else:
        byte = re.fullmatch(r"<0x([0-9A-F]{2})>", text)
        made.append(bytes.fromhex(byte[1]) if byte else text.replace("▁", " ").encode())
    return made

  def render(self, messages: Sequence[Mapping[str, str]], think: bool | None = None) -> list[int]:
    start = [] if self.bos_id is None else [self.bos_id]
    if not messages:
      self._switched(think)
      return start
    cut = [{**message, "content": self._cut(message["content"])} for message in messages]
    ids = self._ids(self._rendered(cut, think))
    return [*start, *ids] if self._template is None else ids

  def opening(self, messages: Sequence[Mapping[str, str]], think: bool | None = None) -> str:
    """Returns the think tag that the template leaves open at the end of the prompt, with all that it writes behind it.

    Returns "" where it writes none there, or closes it. Tags in the messages' own text never count, nor do tags in
    turns before the answer's.
    """
    if self._template is None or not messages:
      return ""
    plain = [{**message, "content": _TAG.sub(f"<{_BREAK}", message["content"])} for message in messages]
    marked = [*plain[:-1], {**plain[-1], "content": plain[-1]["content"] + _END}]
    text = self._rendered(marked, think)
    if _END in text and text.replace(_END, "") != (without := self._rendered(plain, think)):
      text = without  # the template looks at how the message ends
    _, behind_messages, written = text.rpartition(_END)
    for control in self._control.values():
      written = written.rpartition(control)[2] if len(control) > 1 else written
    start = written.rfind(THINK)
    if start <= written.rfind(THINK_END):
      return ""
    opened = written[start:]
    if opened.strip() == THINK:
      return opened
    # Without the end of the messages in sight, or within a sentence, a tag with text behind it may be no answer's.
    return "" if not behind_messages or _SENTENCE.search(written[:start]) else opened

  def rendered(self, messages: Sequence[Mapping[str, str]]) -> str:
    """Returns the text of a prompt as the template writes it, up to where the answer begins."""
    start = self._control[self.bos_id] if self._template is None and self.bos_id is not None else ""
    return start + self._rendered(messages, None)

  def opens_thinking(self, messages: Sequence[Mapping[str, str]], think: bool | None = None) -> bool:
    """Returns whether the prompt ends in a think tag that the template opened and left open."""
    return bool(self.opening(messages, think))

  def _switched(self, think: bool | None) -> bool | None:
    """Returns what the template is told of thinking; InputError where it knows no switch."""
    think = self._think if think is None else think
    if think is not None and not (self._template and "enable_thinking" in self._template.reads):
      raise InputError(f"{self._folder}: has no chat template that reads enable_thinking; leave the switch to it")
    return think

  def _rendered(self, messages: Sequence[Mapping[str, str]], think: bool | None) -> str:
    """Returns the text of a prompt, up to where the answer begins; without a template, without the start token."""
    think = self._switched(think)
    if self._template is None:
      return "".join(message["content"] + "\n\n" for message in messages)
    values = {} if think is None else {"enable_thinking": think}
    try:
      return self._template.render(messages, **values)
    except InputError as error:
      raise InputError(f"{self._folder}: {error}") from error

  @property
  def unstopped(self) -> str:
    """The control token that the template writes behind an assistant's turn where it is none that ends a response."""
    if self._template is None:
      return ""
    turns = ({"role": "user", "content": "?"}, {"role": "assistant", "content": f"!{_END}"})
    try:
      text = self._template.render(turns, answer=False)
    except InputError:  # of a template without such turns nothing can be said
      return ""
    behind = text.rpartition(_END)[2].lstrip() if _END in text else ""
    found = [one for one in self._control.items() if behind.startswith(one[1])]
    if not found:
      return ""
    number, token = max(found, key=lambda one: len(one[1]))
    return "" if number in self.eos_ids else token

  def _stop_id(self, text: str) -> int:
    number = self._model.token_to_id(text)
    if number is None:
      raise InputError(f"{self._folder}: stop token {text!r} is no token of {TOKENIZER}; correct model.stop_tokens")
    return number

  def _add_tokens(self, listed: Mapping) -> None:
    """Adds the tokens that only tokenizer_config.json lists, as transformers does; InputError where ids don't fit."""
    file = self._folder / "tokenizer_config.json"
    try:
      wanted = sorted((int(number), dict(entry)) for number, entry in listed.items())
      known = {token.content for token in self._model.get_added_tokens_decoder().values()}
      for number, entry in wanted:
        content, special = entry["content"], bool(entry.get("special", False))
        if content not in known:
          flags = {
            name: bool(entry[name]) for name in ("single_word", "lstrip", "rstrip", "normalized") if name in entry
          }
          self._model.add_tokens([tokenizers.AddedToken(content, special=special, **flags)])
        if (is_at := self._model.token_to_id(content)) != number:
          raise InputError(
            f"{file}: added_tokens_decoder gives {content!r} the id {number}, but {TOKENIZER} makes it {is_at}; "
            "take both files of one model"
          )
    except (TypeError, ValueError, KeyError, AttributeError) as error:
      if isinstance(error, InputError):
        raise
      raise InputError(f"{file}: added_tokens_decoder can't be read ({error}); take the model's own file") from error

  def _json(self, name: str) -> dict:
    file = self._folder / name
    try:
      found = json.loads(file.read_text()) if file.is_file() else {}
      if not isinstance(found, dict):
        raise ValueError(f"a {type(found).__name__}, wanted an object")
      return found
    except (ValueError, OSError, RecursionError) as error:
      raise InputError(f"{file}: is no JSON ({error}); take the model's own file") from error

  def _text(self, config: Mapping, name: str) -> str | None:
    """Returns the token that tokenizer_config.json gives this name, as a text or as an object that holds it."""
    token = config.get(name)
    text = token.get("content") if isinstance(token, Mapping) else token
    if token is not None and not isinstance(text, str):
      raise InputError(
        f"{self._folder / 'tokenizer_config.json'}: {name} = {json.dumps(token)[:200]}, wanted a text; "
        "take the model's own file"
      )
    return text

  def _id(self, text: str) -> int:
    found = self._model.token_to_id(text)
    if found is None:
      raise InputError(f"{self._folder}: tokenizer_config.json names {text!r}, which {TOKENIZER} does not know")
    return found

  def _cut(self, text: str) -> str:
    """A break behind the first character of each control token that the text spells."""
    text = text.replace(_BREAK, "")
    return self._spelled.sub(rf"\1{_BREAK}", text) if self._spelled else text

  def _ids(self, text: str) -> list[int]:
    return [i for part in text.split(_BREAK) for i in self._model.encode(part, add_special_tokens=False).ids]

  def _compile(self, config: Mapping) -> Template | None:
    """The directory's chat template, in its own file or in tokenizer_config.json; None where there is none."""
    file, own = self._folder / "chat_template.jinja", self._folder / "tokenizer_config.json"
    try:
      source = file.read_text() if file.is_file() else config.get("chat_template")
      if isinstance(source, list):
        source = {one["name"]: one["template"] for one in source}
        if "default" not in source:
          raise InputError(f"{self._folder}: chat templates {sorted(source)}, wanted one named 'default'")
        source = source["default"]
      if source is not None and not isinstance(source, str):
        raise TypeError(f"a {type(source).__name__}, wanted a text")
    except (OSError, TypeError, KeyError, UnicodeDecodeError) as error:
      raise InputError(f"{file if file.is_file() else own}: its chat template can't be read: {error}") from error
    if source is None:
      return None
    try:
      return Template(source, {f"{name}_token": text for name, text in self._names.items()})
    except InputError as error:
      raise InputError(f"{file if file.is_file() else own}: {error}") from error


def _byte_alphabet() -> dict[str, int]:
  """The characters that stand for bytes in a byte-level BPE vocabulary (Radford et al. 2019)."""
  plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
  rest = [b for b in range(256) if b not in plain]
  return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(rest)}
