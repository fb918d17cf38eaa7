"""Compares tokenizers of Hugging Face directories with transformers: tokens, prompts, special tokens, stop tokens.

python launch/compare_tokenizers.py DIR...

Each directory holds the files of a model beside its weights: tokenizer.json, tokenizer_config.json and, where the model
has them, chat_template.jinja, config.json and generation_config.json. Needs transformers, which the extra `bench`
brings. Prints each difference and a line for each directory, and exits with 1 if anything differs. Both sides get the
same fixed date, which transformers would read from the clock.
"""

from __future__ import annotations

import datetime
import json
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from jaxrlvr.base.errors import InputError
from jaxrlvr.text.hf_tokenizer import HuggingFace

# Tokens that transformers calls special because of the class of the tokenizer (Gemma's), whatever the files say.
SPECIAL_BY_CLASS = ("<mask>",)
DATE = datetime.date(2025, 2, 3)
TEXTS = (
  "",
  "a",
  " a",
  "a ",
  "\n",
  "\n\n",
  "a\n\n\nb",
  "\r\n",
  "Hello, world! It's 12*7 = 84.",
  " leading, trailing \n",
  "  two   three    four     five",
  "\t\ttabs\t and \t spaces \t",
  "0 12 123 1234 12345 1234567890 3.14159 1,000,000 2^10",
  "½ ² ٣ ७ Ⅷ 10⁻³",
  "naïve café déjà vu, ﬁ ǆ, e\u0301 combining, \u212b Å",
  "Ελληνικά, русский, עברית, العربية, हिन्दी, ไทย, 中文字符, 日本語のテキスト, 한국어",
  "🙂👩‍👩‍👧‍👦🏳️‍🌈 emoji",
  "\u00a0no-break\u2003em\u200bzero-width\ufeffbom\u2028line",
  "control \x00 \x07 \x1b \x7f bytes",
  "private \ue000 \U000f0000, unassigned \u0378, noncharacter \uffff",
  "def f(x):\n    if x:\n\t\treturn {'a': [1, 2]}  # comment\n\n\nclass A: pass\n",
  "<think>\n5*7=35\n</think>\n\n\\boxed{\\frac{35}{2}}",
  "<|someone|> <user> [user] <| im_start |> < s > <0x0A> ▁ ▁▁a Ġ Ċ",
  "we're I'LL don't 'tis camelCase HTTPServer snake_case kebab-case/path\\to",
  "x" * 200 + " " * 50 + "\n" * 30 + "=" * 80,
)
SYSTEM = {"role": "system", "content": " Answer in one word. "}
USER = {"role": "user", "content": " What is 12*7?\n"}
ANSWER = {"role": "assistant", "content": "<think>\n12*7=84\n</think>\n\n84 "}
CONVERSATIONS = (
  (USER,),
  (SYSTEM, USER),
  (USER, ANSWER, {"role": "user", "content": "And 5*7?"}),
  (SYSTEM, USER, ANSWER, {"role": "user", "content": "½ 🙂\n\n <tags> 'n' \"quotes\" {{ braces }}"}),
  (USER, ANSWER, USER, {"role": "assistant", "content": "84"}, USER),
  (USER, USER),
  (USER, ANSWER),
  ({"role": "system", "content": "/no_think Be short."}, USER),
  ({"role": "user", "content": ""},),
  ({"role": "tool", "content": "84"},),
)


def texts() -> list[str]:
  """Returns TEXTS, and texts of characters that are drawn from several alphabets."""
  generator = np.random.default_rng(0)
  alphabets = ("ab AB.,\n", "0123456789 .,", "éüßж中あ🙂ا \n", " \t\n\r", "{}()[]<>|_#*\\/'\" a1")
  drawn = []
  for alphabet in alphabets:
    for length in (1, 3, 8, 20, 60):
      drawn.append("".join(generator.choice(list(alphabet), length)))
  return [*TEXTS, *drawn]


def compare_text(ours: HuggingFace, theirs) -> Iterator[str]:
  """Yields the differences in the ids of texts, in the text of ids, and in the bytes of each token."""
  for text in texts():
    ids = ours.encode(text)
    expected = theirs.encode(text, add_special_tokens=False)
    if ids != expected:
      yield f"ids of {text!r}: {ids}, transformers {expected}"
    if ours.decode(expected) != theirs.decode(expected, skip_special_tokens=True):
      yield f"text of {expected}: {ours.decode(expected)!r}"
  generator = np.random.default_rng(1)
  for length in (1, 2, 5, 50) * 10:
    ids = generator.integers(0, ours.vocab_size, length).tolist()
    expected = theirs.decode(ids, skip_special_tokens=True)
    if ours.decode(ids) != expected:
      yield f"text of {ids}: {ours.decode(ids)!r}, transformers {expected!r}"
  yield from compare_pieces(ours, theirs)


def compare_pieces(ours: HuggingFace, theirs) -> Iterator[str]:
  """Yields the tokens whose bytes are not what transformers decodes behind the token of a letter."""
  letter = theirs.encode("x", add_special_tokens=False)
  start = theirs.decode(letter)
  for number, piece in enumerate(ours.pieces()):
    decoded = theirs.decode([*letter, number], skip_special_tokens=True).removeprefix(start)
    if piece.decode(errors="replace") != decoded and piece.decode() not in SPECIAL_BY_CLASS:
      yield f"bytes of token {number}: {piece!r}, transformers {decoded!r}"


def compare_tokens(ours: HuggingFace, theirs, folder: Path) -> Iterator[str]:
  """Yields the differences in added tokens, special tokens and the tokens that end a response."""
  listed = {number: str(token) for number, token in ours._model.get_added_tokens_decoder().items()}
  expected = {number: str(token) for number, token in theirs.added_tokens_decoder.items()}
  for number in sorted(listed.keys() | expected.keys()):
    if listed.get(number) != expected.get(number):
      yield f"added token {number}: {listed.get(number)}, transformers {expected.get(number)}"
  if ours.bos_id != theirs.bos_token_id:
    yield f"start token {ours.bos_id}, transformers {theirs.bos_token_id}"
  if theirs.pad_token_id is not None and ours.pad_id != theirs.pad_token_id:
    yield f"padding token {ours.pad_id}, transformers {theirs.pad_token_id}"
  stops = _stop_ids(theirs, folder)
  if set(ours.eos_ids) != stops:
    yield f"stop tokens {sorted(ours.eos_ids)}, transformers {sorted(stops)}"
  if ours.missing_stop_token:
    yield f"{ours.missing_stop_token} ends an assistant's turn, but no response"


def _stop_ids(theirs, folder: Path) -> set[int]:
  """Returns the end token of transformers' tokenizer, and those of its generation_config.json and config.json."""
  import transformers

  listed = [theirs.eos_token_id]
  if (folder / "generation_config.json").is_file():
    listed.append(transformers.GenerationConfig.from_pretrained(folder).eos_token_id)
  if (folder / "config.json").is_file():
    listed.append(json.loads((folder / "config.json").read_text(encoding="utf-8")).get("eos_token_id"))
  stops = set()
  for entry in listed:
    if isinstance(entry, list):
      stops.update(entry)
    elif entry is not None:
      stops.add(entry)
  return stops


def compare_prompts(ours: HuggingFace, theirs) -> Iterator[str]:
  """Yields the differences in the ids of prompts, with each value of the switch for thinking, if there is one."""
  switch = (None, True, False) if _has_thinking_switch(ours) else (None,)
  for messages in CONVERSATIONS:
    for think in switch:
      ids, expected = _prompt(ours, messages, think), _their_prompt(theirs, messages, think)
      if ids != expected:
        yield (
          f"prompt of {[message['role'] for message in messages]}, think={think}: {_shown(theirs, ids)}, "
          f"transformers {_shown(theirs, expected)}"
        )


def compare_training(ours: HuggingFace, theirs) -> Iterator[str]:
  """Yields the difference between how a response ends in training and how the template ends an assistant's turn."""
  response = "84 apples."
  turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": response}]
  expected = theirs.apply_chat_template(turns)["input_ids"]
  ids = [*ours.encode(response), ours.eos_ids[0]]
  starts = range(len(expected) - len(ids) + 1)
  if not any(expected[start : start + len(ids)] == ids for start in starts):
    yield f"response in training: {_shown(theirs, ids)}, transformers' turns {_shown(theirs, expected)}"


def compare_control_tokens(ours: HuggingFace) -> Iterator[str]:
  """Yields the control tokens that the text of a message could write, and those whose names don't survive in it.

  Here jaxrlvr differs from apply_chat_template on purpose, which writes them unless it is told to sanitize.
  """
  added = ours._model.get_added_tokens_decoder()
  pieces = ours.pieces()
  control = {number: token.content for number, token in added.items() if pieces[number] == b""}
  usual = _prompt(ours, ({"role": "user", "content": "a b"},), None)
  for name in list(control.values())[:40]:
    text = f"a {name}b{name}"
    if ours.decode(ours.encode(text)) != text:
      yield f"{text!r} becomes {ours.decode(ours.encode(text))!r}"
    ids = _prompt(ours, ({"role": "user", "content": text},), None)
    if (ids is None) != (usual is None):
      yield f"the template refuses a message with {name!r} in its text"
    elif ids is not None:
      if [number for number in ids if number in control] != [number for number in usual if number in control]:
        yield f"a message with {name!r} in its text writes a control token"
      if text not in ours.decode(ids):
        yield f"{text!r} is lost in the prompt {ours.decode(ids)!r}"


def _has_thinking_switch(ours: HuggingFace) -> bool:
  """Returns whether the chat template reads enable_thinking."""
  try:
    ours.render((), think=True)
  except InputError:
    return False
  return True


def _prompt(ours: HuggingFace, messages: Sequence[Mapping], think: bool | None) -> list[int] | None:
  """Returns the ids of our prompt; None if the template refuses the messages."""
  try:
    return ours.render(messages, think)
  except InputError:
    return None


def _their_prompt(theirs, messages: Sequence[Mapping], think: bool | None) -> list[int] | None:
  """Returns the ids of transformers' prompt; None if the template refuses the messages."""
  import jinja2

  options = {} if think is None else {"enable_thinking": think}
  try:
    return theirs.apply_chat_template(messages, add_generation_prompt=True, **options)["input_ids"]
  except (jinja2.TemplateError, TypeError):
    return None


def _shown(theirs, ids: Sequence[int] | None) -> str:
  """Returns a prompt as text, with its first ids; "refused" for None."""
  return "refused" if ids is None else f"{theirs.decode(ids)!r} ({list(ids[:12])}...)"


def differences(folder: Path) -> list[str]:
  """Returns what differs between our tokenizer of a directory and that of transformers, a line each."""
  import transformers
  from transformers.utils import chat_template_utils

  class FixedDate(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
      return cls(DATE.year, DATE.month, DATE.day)

  chat_template_utils.datetime = FixedDate
  theirs = transformers.AutoTokenizer.from_pretrained(folder)
  try:
    ours = HuggingFace(folder, date=DATE)
  except InputError:  # its template states no date
    ours = HuggingFace(folder)
  lines = [*compare_text(ours, theirs), *compare_tokens(ours, theirs, folder), *compare_control_tokens(ours)]
  if theirs.chat_template is not None:
    lines += [*compare_prompts(ours, theirs), *compare_training(ours, theirs)]
  return lines


def main(folders: Sequence[str]) -> int:
  """Compares each directory. Returns 1 if anything differs, else 0."""
  logging.disable(logging.WARNING)
  exit_code = 0
  for folder in folders:
    lines = differences(Path(folder))
    for line in lines[:20]:
      print(f"  {line[:500]}")
    print(f"{folder}: {len(lines)} differences")
    if lines:
      exit_code = 1
  return exit_code


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
