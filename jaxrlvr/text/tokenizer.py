"""The interface of all tokenizers, the SentencePiece tokenizer of the built-in models, and its training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from jaxrlvr.base.errors import InputError
from jaxrlvr.text.tags import THINK, THINK_END

ROLES = {"system": "<|system|>", "user": "<|user|>", "assistant": "<|assistant|>"}


class Tokenizer(Protocol):
  """The interface of a tokenizer: what the library asks of one. Its classes are SentencePiece and HuggingFace.

  `vocab_size`: how many ids there are, from 0. `pad_id`: the id of padding. `bos_id`: the id of the start token; None:
  there is none. `eos_ids`: all ids that end a response, at least one; training writes the first. Tokenizers are
  hashable, so that they can key a cache.
  In all methods, `messages` are the turns of a conversation, each with the keys role and content; the answer to it is
  not among them. `think` switches thinking on or off in chat templates that have such a switch; None leaves it as the
  template has it. Other templates raise InputError for True and False.
  """

  vocab_size: int
  pad_id: int
  bos_id: int | None
  eos_ids: tuple[int, ...]

  def __hash__(self) -> int: ...

  def encode(self, text: str) -> list[int]:
    """Returns the ids of a text. Control tokens that the text spells become ordinary tokens."""

  def decode(self, ids: Sequence[int]) -> str:
    """Returns the text of the ids, without control tokens."""

  def pieces(self) -> list[bytes]:
    """Returns the bytes of each id, vocab_size of them; those of control tokens are empty."""

  def render(self, messages: Sequence[Mapping[str, str]], think: bool | None = None) -> list[int]:
    """Returns the ids of the prompt, up to where the answer begins; without messages, only the start token, if any."""

  def opening(self, messages: Sequence[Mapping[str, str]], think: bool | None = None) -> str:
    """Returns the end of the prompt from a `<think>` that it leaves open; "" if it leaves none open.

    The text of a response is this opening followed by what the policy writes.
    """

  def opens_thinking(self, messages: Sequence[Mapping[str, str]], think: bool | None = None) -> bool:
    """Returns whether the prompt leaves a think tag open, so that a response begins inside its thinking."""

  def rendered(self, messages: Sequence[Mapping[str, str]]) -> str:
    """Returns the prompt as text for people, with control tokens by name."""


def continuation(response: str, opening: str) -> str:
  """Returns a complete response without the part that the prompt already wrote, for training on it.

  `opening` is `Tokenizer.opening` of the prompt. From a response that begins with `<think>`, the opening is removed,
  so that no think tag is doubled. A response without thinking gets a `</think>` in front, so that its answer does not
  stand inside the open tag.
  """
  if not opening:
    return response
  behind_tag = opening.removeprefix(THINK)
  if not response.startswith(THINK):
    line_break = "" if behind_tag.endswith("\n\n") else "\n"
    return f"{line_break}{THINK_END}\n\n{response}"
  thinking = response.removeprefix(THINK)
  if not behind_tag:
    return thinking
  thinking = thinking.removeprefix(behind_tag).lstrip()
  if behind_tag[-1].isspace():
    return thinking
  return f"\n{thinking}"


class SentencePiece:
  """A tokenizer from a SentencePiece model file, with the chat layout of the built-in models.

  Implements `Tokenizer`. A prompt is the start token, each message behind the token of its role, and the token of the
  assistant. These role tokens and the thinking tags must be pieces of the model.
  """

  def __init__(self, path: str | Path):
    """Raises InputError for a file that is absent, is no SentencePiece model, or lacks one of those pieces."""
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
    """Returns the ids of a text. Control tokens that the text spells become ordinary tokens."""
    return self._model.encode(text)

  def decode(self, ids: Sequence[int]) -> str:
    """Returns the text of the ids, without control tokens."""
    return self._model.decode([int(i) for i in ids])

  def pieces(self) -> list[bytes]:
    """Returns the bytes of each id, vocab_size of them; those of control tokens and of the unknown token are empty."""
    model = self._model
    pieces = []
    for token in range(self.vocab_size):
      text = model.id_to_piece(token)
      if model.is_byte(token):
        hexadecimal = text.removeprefix("<0x").removesuffix(">")
        pieces.append(bytes.fromhex(hexadecimal))
      elif model.is_control(token) or model.is_unknown(token):
        pieces.append(b"")
      else:
        pieces.append(text.replace("▁", " ").encode())
    return pieces

  def render(self, messages: Sequence[Mapping[str, str]], think: bool | None = None) -> list[int]:
    """Returns the ids of the prompt, up to where the answer begins; without messages, the start token alone.

    Raises InputError for an unknown role, and for a `think` other than None, as the layout has no switch.
    """
    if think is not None:
      raise InputError("the built-in chat layout has no switch for thinking; leave it to the template")
    ids = [self.bos_id]
    if not messages:
      return ids
    for message in messages:
      role = message["role"]
      if role not in ROLES:
        raise InputError(f"message with role {role!r}: wanted one of {', '.join(ROLES)}")
      ids.append(self._model.piece_to_id(ROLES[role]))
      ids += self.encode(message["content"])
    ids.append(self._model.piece_to_id(ROLES["assistant"]))
    return ids

  def opening(self, messages: Sequence[Mapping[str, str]], think: bool | None = None) -> str:
    """Returns "": the built-in chat layout never writes a think tag."""
    return ""

  def rendered(self, messages: Sequence[Mapping[str, str]]) -> str:
    """Returns the prompt as text, with the role pieces in front of their messages."""
    start = self._model.id_to_piece(self.bos_id)
    turns = [ROLES[message["role"]] + message["content"] for message in messages]
    return "".join([start, *turns, ROLES["assistant"]])

  def opens_thinking(self, messages: Sequence[Mapping[str, str]], think: bool | None = None) -> bool:
    """Returns False: the built-in chat layout never writes a think tag."""
    return False


def train_sentencepiece(texts: Iterable[str], path: str | Path, vocab_size: int) -> SentencePiece:
  """Trains a byte-pair model on texts, writes it to the file `path`, and returns the tokenizer that reads it.

  `vocab_size`: the model has at most this many pieces; fewer if the texts are small. Each digit is a piece of its own,
  characters outside the vocabulary become bytes, and the roles and the thinking tags are pieces. Ids: 0 padding, 1
  start, 2 end, 3 unknown.
  """
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
