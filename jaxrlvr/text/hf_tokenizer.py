"""Reads the tokenizer of a Hugging Face directory: tokenizer.json, special tokens and the chat template."""

from __future__ import annotations

import datetime
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import tokenizers

from jaxrlvr.base.errors import InputError
from jaxrlvr.text.tags import THINK, THINK_END
from jaxrlvr.text.template import Template

TOKENIZER = "tokenizer.json"
# Files of a directory from which a tokenizer is built. Only tokenizer.json must exist. config.json and
# generation_config.json name the tokens that end a response.
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
# Two noncharacters of Unicode, which no text is meant to hold. Both are removed before a text becomes tokens.
_BREAK = "\ufdd0"  # where it stands, a text is cut in two before it becomes tokens
_END = "\ufdd1"  # marks the end of the last message in a prompt
_TAG = re.compile(f"<(?={THINK[1:]}|{THINK_END[1:]})")
_MENTION = re.compile(r"\w[ \t]+\Z")  # what precedes a think tag that a sentence mentions
_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")


class HuggingFace:
  """The tokenizer of a Hugging Face directory, with its chat template rendered as transformers renders it.

  Implements `text.tokenizer.Tokenizer`. It differs from transformers' apply_chat_template in one point: the text of a
  message never becomes a control token. If a message has the name of one, such as `<|im_end|>`, the name is cut into
  ordinary tokens. The thinking tags are ordinary text too, whatever the directory says of them.
  Templates that call `strftime_now` get the day `date`, because a prompt must not depend on the clock; without one the
  function is undefined, and Llama's templates then use a date of their own. Without a template, a prompt is the start
  token, if there is one, and the text of each message followed by a blank line.

  vocab_size: one more than the largest id, but no more than the rows that config.json gives the model if only control
  tokens lie beyond these. bos_id: the start token; None if the directory names none. eos_ids: all ids that end a
  response, first the one that the template writes behind an assistant's turn, if the directory names it. pad_id: the
  padding token, or the first of `eos_ids` if the directory names none.
  """

  def __init__(
    self,
    folder: str | Path,
    think: bool | None = None,
    stop_tokens: Sequence[str] = (),
    date: datetime.date | None = None,
  ):
    """Reads the directory `folder`, which must hold a tokenizer.json; the other files of FILES are optional.

    think: the value of `enable_thinking` for the template where a call gives none; None passes no value. stop_tokens:
    texts of tokens that end a response, in addition to those that the directory names. date: the day that the template
    states; None: it has none. Raises InputError for a file that can't be read, files that contradict each other, a
    directory that names no token that ends a response, and a date for a template that asks for none.
    """
    self._folder, self._think, self._date = Path(folder), think, date
    for file in (self._folder / name for name in FILES):
      if file.exists() and not file.is_file():
        raise InputError(f"{file}: is no regular file (a pipe, a device or a folder); take the model's own file")
    self._model = self._load_model()
    config = self._json("tokenizer_config.json")
    self._add_tokens(config.get("added_tokens_decoder") or {})
    self._control = self._control_tokens()
    self._spelled = _first_characters(text for text in self._control.values() if len(text) > 1)
    self._newline = self._newline_before_prefix()
    self.vocab_size = self._count_tokens()
    self._names = self._special_names(config)
    special = {name: self._id(text) for name, text in self._names.items()}
    self.bos_id = special.get("bos")
    self._template = self._compile(config)
    if date is not None and not (self._template and "strftime_now" in self._template.reads):
      raise InputError(f"{self._folder}: has no chat template that calls strftime_now; leave config.model.date empty")
    self.eos_ids = self._stop_ids(special.get("eos"), stop_tokens)
    self.pad_id = special.get("pad", self.eos_ids[0])

  def _load_model(self) -> tokenizers.Tokenizer:
    """Returns the tokenizer of tokenizer.json, without its truncation and padding."""
    file = self._folder / TOKENIZER
    try:
      model = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing narrower
      raise InputError(f"{file}: is no tokenizer ({error}); take the model's own file") from error
    model.no_truncation()
    model.no_padding()
    return model

  def _control_tokens(self) -> dict[int, str]:
    """Returns the special tokens by id, without the thinking tags."""
    added = self._model.get_added_tokens_decoder()
    special = {number: token.content for number, token in added.items() if token.special}
    return {number: text for number, text in special.items() if text not in (THINK, THINK_END)}

  def _count_tokens(self) -> int:
    """Returns one more than the largest id, or the rows of config.json if only control tokens lie beyond them."""
    size = max(self._model.get_vocab(with_added_tokens=True).values()) + 1
    config = self._json("config.json")
    rows = (config.get("text_config") or config).get("vocab_size")
    if type(rows) is not int or not 0 < rows < size:
      return size
    beyond_rows = [number for number in range(rows, size) if self._model.id_to_token(number) is not None]
    return rows if self._control.keys() >= set(beyond_rows) else size

  def _newline_before_prefix(self) -> list[int]:
    """Returns the ids of a line break if the tokenizer puts a ▁ in front of each text; [] for other tokenizers."""
    newline, letter, both = (self._model.encode(text, add_special_tokens=False).ids for text in ("\n", "x", "\nx"))
    return newline if both != newline + letter else []

  def _special_names(self, config: Mapping) -> dict[str, str]:
    """Returns the texts of the tokens that the directory names bos, eos, pad and unk, by these names.

    special_tokens_map.json counts only beside a tokenizer_config.json without added_tokens_decoder, but counts more
    there, as in transformers.
    """
    if "added_tokens_decoder" not in config:
      config = {**config, **self._json("special_tokens_map.json")}
    names = {}
    for name in ("bos", "eos", "pad", "unk"):
      text = self._text(config, f"{name}_token")
      if text:
        names[name] = text
    return names

  def _stop_ids(self, eos_id: int | None, stop_tokens: Sequence[str]) -> tuple[int, ...]:
    """Returns all ids that end a response, each once: those that the directory names, then those of `stop_tokens`.

    The id that the template writes behind an assistant's turn comes first, if the directory names it. Gemma and Phi,
    for example, name another end token in tokenizer_config.json.
    """
    stops = [] if eos_id is None else [eos_id]
    for name in ("generation_config.json", "config.json"):
      listed = self._json(name).get("eos_token_id")
      if isinstance(listed, list):
        stops += listed
      elif listed is not None:
        stops.append(listed)
    turn_end = self._turn_end()
    if turn_end in stops:
      stops.insert(0, turn_end)
    stops += [self._stop_id(text) for text in stop_tokens]
    valid = all(type(number) is int and 0 <= number < self.vocab_size for number in stops)
    if not stops or not valid:
      raise InputError(
        f"{self._folder}: end tokens {str(stops)[:200]}, wanted at least one id below {self.vocab_size}; "
        "set eos_token in tokenizer_config.json, or eos_token_id in generation_config.json"
      )
    return tuple(dict.fromkeys(stops))

  @property
  def digest(self) -> str:
    """Returns the SHA-256, in hexadecimal digits, of the contents of those of FILES that the directory holds."""
    files = [self._folder / name for name in FILES]
    contents = [file.read_bytes() for file in files if file.is_file()]
    return hashlib.sha256(b"\0".join(contents)).hexdigest()

  def encode(self, text: str) -> list[int]:
    """Returns the ids of a text, without a start or an end token; [] for "".

    A control token's name in the text is ordinary text.
    """
    return self._ids(self._cut(text))

  def decode(self, ids: Sequence[int]) -> str:
    """Returns the text of the ids. Control tokens are left out; bytes that are no UTF-8 become U+FFFD."""
    numbers = [int(number) for number in ids]
    ordinary = [number for number in numbers if number not in self._control]
    return self._model.decode(ordinary, skip_special_tokens=False)

  def pieces(self) -> list[bytes]:
    """Returns the bytes that each id stands for, vocab_size entries; b"" for control tokens and unused ids.

    Raises InputError for a vocabulary that is neither byte-level nor marks spaces with ▁.
    """
    decoder = json.dumps(self._json(TOKENIZER).get("decoder"), ensure_ascii=False)
    if "ByteLevel" in decoder:
      alphabet = _byte_alphabet()
    elif "ByteFallback" in decoder or "Metaspace" in decoder or "▁" in decoder:
      alphabet = None
    else:
      raise InputError(
        f"{self._folder / TOKENIZER}: is of a kind whose tokens have no bytes; wanted byte-level or ▁ BPE"
      )
    pieces = []
    for number in range(self.vocab_size):
      text = self._model.id_to_token(number)
      if text is None or number in self._control:
        pieces.append(b"")
      elif alphabet is not None:
        pieces.append(_byte_level_piece(text, alphabet))
      else:
        pieces.append(_metaspace_piece(text))
    return pieces

  def render(self, messages: Sequence[Mapping[str, str]], think: bool | None = None) -> list[int]:
    """Returns the ids of the prompt for a conversation, up to where the answer begins.

    Without messages, returns the start token alone, or [] if there is no such token. messages: the turns, each with the
    keys role and content, without the answer. think: switches thinking on or off in templates that have such a switch;
    None takes the value that the tokenizer was created with. Raises InputError if the template refuses the messages,
    has no switch for `think`, or writes a token for which the model has no row.
    """
    start = [] if self.bos_id is None else [self.bos_id]
    if not messages:
      self._thinking_switch(think)
      return start
    cut = [{**message, "content": self._cut(message["content"])} for message in messages]
    ids = self._ids(self._prompt(cut, think))
    if max(ids, default=0) >= self.vocab_size:
      text = self._model.id_to_token(max(ids))
      raise InputError(
        f"{self._folder}: its chat template writes {text!r}, beyond the {self.vocab_size} rows of the model"
      )
    if self._template is None:
      return [*start, *ids]
    return ids

  def opening(self, messages: Sequence[Mapping[str, str]], think: bool | None = None) -> str:
    """Returns the `<think>` that the template leaves open at the end of the prompt, with what it writes behind it.

    It is "" if the template writes no such tag there, or closes it. Tags in the messages never count, nor do tags that
    the template writes in earlier turns. The whole text of a response is this opening followed by what the policy
    writes. messages, think: as for `render`, with the same errors.
    """
    if self._template is None or not messages:
      return ""
    untagged = [{**message, "content": _TAG.sub(f"<{_BREAK}", message["content"])} for message in messages]
    last = untagged[-1]
    marked = [*untagged[:-1], {**last, "content": last["content"] + _END}]
    prompt = self._prompt(marked, think)
    if _END in prompt:
      unmarked_prompt = self._prompt(untagged, think)
      if prompt.replace(_END, "") != unmarked_prompt:  # the mark changes what the template writes
        prompt = unmarked_prompt
    _, mark, written = prompt.rpartition(_END)
    for control in self._control.values():
      if len(control) > 1:
        written = written.rpartition(control)[2]
    start = written.rfind(THINK)
    if start <= written.rfind(THINK_END):
      return ""
    opened = written[start:]
    if opened.strip() == THINK:
      return opened
    # A tag with text behind it may be no answer's if the end of the messages is unknown, or if a sentence mentions it.
    if not mark or _MENTION.search(written[:start]):
      return ""
    return opened

  def prompt_text(self, messages: Sequence[Mapping[str, str]]) -> str:
    """Returns the prompt of a conversation as text, as the template writes it, up to where the answer begins.

    Control tokens stand there by their names, such as `<|im_start|>`. Raises InputError if the template refuses the
    messages.
    """
    start = ""
    if self._template is None and self.bos_id is not None:
      start = self._control[self.bos_id]
    return start + self._prompt(messages, None)

  def _thinking_switch(self, think: bool | None) -> bool | None:
    """Returns the value of `enable_thinking` for the template; None passes no value.

    Raises InputError if there is a value but the template does not read it.
    """
    if think is None:
      think = self._think
    has_switch = self._template is not None and "enable_thinking" in self._template.reads
    if think is not None and not has_switch:
      raise InputError(f"{self._folder}: has no chat template that reads enable_thinking; leave the switch to it")
    return think

  def _prompt(self, messages: Sequence[Mapping[str, str]], think: bool | None) -> str:
    """Returns the text of a prompt, up to where the answer begins; without a template, without the start token."""
    think = self._thinking_switch(think)
    if self._template is None:
      return "".join(message["content"] + "\n\n" for message in messages)
    values = {} if think is None else {"enable_thinking": think}
    try:
      return self._template.render(messages, **values)
    except InputError as error:
      raise InputError(f"{self._folder}: {error}") from error

  @property
  def missing_stop_token(self) -> str:
    """Returns the control token that the template writes behind an assistant's turn, if it is not in `eos_ids`.

    Such a token ends turns in the model's training data, but no response here: the policy would write on behind it.
    Returns "" if the token is in `eos_ids`, if the template writes none, or if it refuses such a conversation.
    """
    number = self._turn_end()
    return "" if number is None or number in self.eos_ids else self._control[number]

  def _turn_end(self) -> int | None:
    """Returns the id of the control token that the template writes behind an assistant's turn.

    Returns None if it writes none there, if it refuses such a conversation, and without a template.
    """
    if self._template is None:
      return None
    turns = ({"role": "user", "content": "?"}, {"role": "assistant", "content": f"!{_END}"})
    try:
      text = self._template.render(turns, begin_answer=False)
    except InputError:
      return None
    if _END not in text:
      return None
    behind_turn = text.rpartition(_END)[2].lstrip()
    candidates = [(number, token) for number, token in self._control.items() if behind_turn.startswith(token)]
    return max(candidates, key=lambda candidate: len(candidate[1]), default=(None, ""))[0]

  def _stop_id(self, text: str) -> int:
    """Returns the id of a token of model.stop_tokens. Raises InputError for an unknown one."""
    number = self._model.token_to_id(text)
    if number is None:
      raise InputError(f"{self._folder}: stop token {text!r} is no token of {TOKENIZER}; correct model.stop_tokens")
    return number

  def _add_tokens(self, listed: Mapping) -> None:
    """Adds the tokens that only tokenizer_config.json lists, and gives the others its flags, as transformers does.

    `listed`: its added_tokens_decoder. Raises InputError if it can't be read, or an id in it is not the token's.
    """
    file = self._folder / "tokenizer_config.json"
    try:
      entries = sorted((int(number), dict(entry)) for number, entry in listed.items())
      known = {token.content: repr(token) for token in self._model.get_added_tokens_decoder().values()}
      tokens = [_added_token(entry) for _, entry in entries]
      self._model.add_tokens([token for token in tokens if known.get(token.content) != repr(token)])
      for number, entry in entries:
        content = entry["content"]
        actual = self._model.token_to_id(content)
        if actual != number:
          raise InputError(
            f"{file}: added_tokens_decoder gives {content!r} the id {number}, but {TOKENIZER} makes it {actual}; "
            "take both files of one model"
          )
    except InputError:
      raise
    except (TypeError, ValueError, KeyError, AttributeError) as error:
      raise InputError(f"{file}: added_tokens_decoder can't be read ({error}); take the model's own file") from error

  def _json(self, name: str) -> dict:
    """Returns the object in a JSON file of the directory; {} if the file is absent. Raises InputError."""
    file = self._folder / name
    try:
      content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
      if not isinstance(content, dict):
        raise ValueError(f"a {type(content).__name__}, wanted an object")
      return content
    except (ValueError, OSError, RecursionError) as error:
      raise InputError(f"{file}: is no JSON ({error}); take the model's own file") from error

  def _text(self, config: Mapping, name: str) -> str | None:
    """Returns the text of the token that tokenizer_config.json gives this name; None if it names none.

    The file may hold the text itself or an object with the key content. Raises InputError for anything else.
    """
    token = config.get(name)
    text = token.get("content") if isinstance(token, Mapping) else token
    if token is not None and not isinstance(text, str):
      raise InputError(
        f"{self._folder / 'tokenizer_config.json'}: {name} = {json.dumps(token)[:200]}, wanted a text; "
        "take the model's own file"
      )
    return text

  def _id(self, text: str) -> int:
    """Returns the id of a token that tokenizer_config.json names. Raises InputError for one without id, or row."""
    number = self._model.token_to_id(text)
    if number is None:
      raise InputError(f"{self._folder}: tokenizer_config.json names {text!r}, which {TOKENIZER} does not know")
    if number >= self.vocab_size:
      raise InputError(
        f"{self._folder}: tokenizer_config.json names {text!r}, beyond the {self.vocab_size} rows of the model"
      )
    return number

  def _cut(self, text: str) -> str:
    """Returns the text with _BREAK behind the first character of each control token that it spells."""
    text = text.replace(_BREAK, "")
    if self._spelled is None:
      return text
    return self._spelled.sub(rf"\g<0>{_BREAK}", text)

  def _ids(self, text: str) -> list[int]:
    """Returns the ids of a text whose parts between _BREAKs are encoded one by one.

    A tokenizer that puts a ▁ in front of each text gets later parts behind a line break, whose ids are taken off again.
    """
    first, *others = text.split(_BREAK)
    ids = self._model.encode(first, add_special_tokens=False).ids
    newline = self._newline
    for part in others:
      part_ids = self._model.encode("\n" + part if newline else part, add_special_tokens=False).ids
      if part_ids[: len(newline)] != newline:  # the line break is one token with what follows
        part_ids = newline + self._model.encode(part, add_special_tokens=False).ids
      ids += part_ids[len(newline) :]
    return ids

  def _compile(self, config: Mapping) -> Template | None:
    """Returns the chat template of chat_template.jinja, else of tokenizer_config.json; None if neither has one.

    Raises InputError for a template that can't be used.
    """
    file = self._folder / "chat_template.jinja"
    if not file.is_file():
      file = self._folder / "tokenizer_config.json"
    try:
      source = self._template_source(config)
    except (OSError, TypeError, KeyError, UnicodeDecodeError) as error:
      raise InputError(f"{file}: its chat template can't be read: {error}") from error
    if source is None:
      return None
    try:
      return Template(source, {f"{name}_token": text for name, text in self._names.items()}, self._date)
    except InputError as error:
      raise InputError(f"{file}: {error}") from error

  def _template_source(self, config: Mapping) -> str | None:
    """Returns the text of the chat template; of several in a list, the one named default. None if there is none."""
    file = self._folder / "chat_template.jinja"
    source = file.read_text(encoding="utf-8") if file.is_file() else config.get("chat_template")
    if isinstance(source, list):
      by_name = {entry["name"]: entry["template"] for entry in source}
      if "default" not in by_name:
        raise InputError(f"{self._folder}: chat templates {sorted(by_name)}, wanted one named 'default'")
      source = by_name["default"]
    if source is not None and not isinstance(source, str):
      raise TypeError(f"a {type(source).__name__}, wanted a text")
    return source


def _first_characters(names: Iterable[str]) -> re.Pattern | None:
  """Returns the pattern of the first character of each place where a text spells one of the names; None without names.

  Names are grouped by this character, because a pattern of one alternative a name is slow: Mistral has a thousand.
  """
  endings: dict[str, list[str]] = {}
  for name in names:
    endings.setdefault(name[0], []).append(re.escape(name[1:]))
  places = [f"{re.escape(first)}(?={'|'.join(group)})" for first, group in endings.items()]
  return re.compile("|".join(places)) if places else None


def _added_token(entry: Mapping) -> tokenizers.AddedToken:
  """Returns the token of an entry of added_tokens_decoder; flags that the entry lacks keep the library's default."""
  flags = {}
  for name in ("single_word", "lstrip", "rstrip", "normalized"):
    if name in entry:
      flags[name] = bool(entry[name])
  return tokenizers.AddedToken(entry["content"], special=bool(entry.get("special", False)), **flags)


def _byte_level_piece(text: str, alphabet: Mapping[str, int]) -> bytes:
  """Returns the bytes of a token of a byte-level vocabulary; those of a token with other characters are its own."""
  if all(character in alphabet for character in text):
    return bytes(alphabet[character] for character in text)
  return text.encode()


def _metaspace_piece(text: str) -> bytes:
  """Returns the bytes of a token of a vocabulary that writes a space as ▁ and a single byte as <0x0A>."""
  byte = _BYTE_PIECE.fullmatch(text)
  if byte:
    return bytes.fromhex(byte[1])
  return text.replace("▁", " ").encode()


def _byte_alphabet() -> dict[str, int]:
  """Returns the byte of each character of a byte-level BPE vocabulary (Radford et al. 2019)."""
  printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
  others = [byte for byte in range(256) if byte not in printable]
  alphabet = {chr(byte): byte for byte in printable}
  for place, byte in enumerate(others):
    alphabet[chr(256 + place)] = byte
  return alphabet
