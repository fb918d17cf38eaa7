"""Tokenizers behind one small interface, the chat layout of the embedded models, and training of the embedded one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from jaxrlvr.base.errors import InputError
from jaxrlvr.text.tags import THINK, THINK_END

ROLES = {"system": "<|system|>", "user": "<|user|>", "assistant": "<|assistant|>"}


class Tokenizer(Protocol):
  """What the rest of the library needs to know of a tokenizer."""

  vocab_size: int
  pad_id: int
  bos_id: int | None
  eos_ids: tuple[int, ...]

  def __hash__(self) -> int: ...
  def encode(self, text: str) -> list[int]: ...
  def decode(self, ids: Sequence[int]) -> str: ...
  def pieces(self) -> list[bytes]: ...  # the bytes each id stands for; control ids stand for none
  # Up to where the answer begins. `think`: thinking on or off, for chat templates that know a switch.
  def render(self, messages: Sequence[Mapping[str, str]], think: bool | None = None) -> list[int]: ...
  # `<think>`, and what the chat template writes behind it, where the prompt ends in a think tag that it left open; else
  # "". The text of a response is this and what the policy writes.
  def opening(self, messages: Sequence[Mapping[str, str]], think: bool | None = None) -> str: ...
  def opens_thinking(self, messages: Sequence[Mapping[str, str]], think: bool | None = None) -> bool: ...
  # What `render` makes tokens of, as text that a person reads: control tokens by name.
  def rendered(self, messages: Sequence[Mapping[str, str]]) -> str: ...


def continuation(response: str, opening: str) -> str:
  """Returns what is to be written behind a prompt with this `Tokenizer.opening`, so that no think tag is doubled.

  Of a response that begins with `<think>` what the opening already says is left out. One without thinking closes the
  tag at once: its answer never stands inside an open one.
  """
  if not opening:
    return response
  begun = opening.removeprefix(THINK)
  if not response.startswith(THINK):
    return f"{THINK_END}\n\n{response}" if begun.endswith("\n\n") else f"\n{THINK_END}\n\n{response}"
  rest = response.removeprefix(THINK)
  if not begun:
    return rest
  rest = rest.removeprefix(begun).lstrip()
  return rest if begun[-1].isspace() else f"\n{rest}"


class SentencePiece:
  """A SentencePiece model file with this library's roles and thinking tags among its pieces."""

  def __init__(self, path: str | Path):
    import sentencepiece

    if not Path(path).is_file():
      raise InputError(f"{path}: no such tokenizer model; train one with `jaxrlvr tokenizer` or correct the path")
    try:
      self._model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError) as error:
      raise InputError(f"{path}: is no SentencePiece model ({error}); train one with `jaxrlvr tokenizer`") from error
    self.vocab_size = self._model.get_piece_size()
    self.pad_id, self.bos_id = self._model.pad_id(), self._model.bos_id()
    self.eos_ids: tuple[int, ...] = (self._model.eos_id(),)
    unknown = self._model.unk_id()
    for symbol in (THINK, THINK_END, *ROLES.values()):
      if self._model.piece_to_id(symbol) == unknown:
        raise InputError(f"{path}: has no piece {symbol!r}; train it with `jaxrlvr tokenizer`, which adds it")
    if min(self.pad_id, self.bos_id, *self.eos_ids) < 0:
      raise InputError(f"{path}: pad, bos or eos id is switched off; train it with all three")

  def encode(self, text: str) -> list[int]:
    return self._model.encode(text)

  def decode(self, ids: Sequence[int]) -> str:
    return self._model.decode([int(i) for i in ids])

  def pieces(self) -> list[bytes]:
    m = self._model
    made = []
    for i in range(self.vocab_size):
      if m.is_byte(i):
        made.append(bytes([int(m.id_to_piece(i)[3:5], 16)]))
      else:
        made.append(b"" if m.is_control(i) or m.is_unknown(i) else m.id_to_piece(i).replace("▁", " ").encode())
    return made

  def render(self, messages: Sequence[Mapping[str, str]], think: bool | None = None) -> list[int]:
    if think is not None:
      raise InputError("the embedded chat layout has no switch for thinking; leave it to the template")
    ids = [self.bos_id]
    if not messages:
      return ids
    for message in messages:
      if message["role"] not in ROLES:
        raise InputError(f"message with role {message['role']!r}: wanted one of {', '.join(ROLES)}")
      ids += [self._model.piece_to_id(ROLES[message["role"]]), *self.encode(message["content"])]
    return [*ids, self._model.piece_to_id(ROLES["assistant"])]

  def opening(self, messages: Sequence[Mapping[str, str]], think: bool | None = None) -> str:
    """Returns "": the embedded layout never writes a think tag."""
    return ""

  def rendered(self, messages: Sequence[Mapping[str, str]]) -> str:
    """Returns the prompt as text, with the role pieces in front of their messages."""
    said = "".join(ROLES[message["role"]] + message["content"] for message in messages)
    return f"{self._model.id_to_piece(self.bos_id)}{said}{ROLES['assistant']}"

  def opens_thinking(self, messages: Sequence[Mapping[str, str]], think: bool | None = None) -> bool:
    """Returns False, see `opening`."""
    return False


def train_sentencepiece(texts: Iterable[str], path: str | Path, vocab_size: int) -> SentencePiece:
  """Trains a BPE model with digits split, byte fallback and our special pieces, and writes it to `path`."""
  import io

  import sentencepiece

  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(texts),
    model_writer=model,
    model_type="bpe",
    vocab_size=vocab_size,
    split_digits=True,
    byte_fallback=True,
    character_coverage=1.0,
    normalization_rule_name="identity",
    remove_extra_whitespaces=False,
    add_dummy_prefix=False,
    control_symbols=list(ROLES.values()),  # no text can spell a turn of the chat
    user_defined_symbols=[THINK, THINK_END, "\n", "\\boxed{", "}"],
    pad_id=0,
    bos_id=1,
    eos_id=2,
    unk_id=3,
    hard_vocab_limit=False,
    num_threads=1,
    minloglevel=2,
  )
  Path(path).write_bytes(model.getvalue())
  return SentencePiece(path)
