"""The interface of all tokenizers, the SentencePiece tokenizer of the built-in models, and its training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from jaxrlvr.base.errors import InputError
from jaxrlvr.text.tags import THINK, THINK_END

# The control token of each role in the chat layout of the built-in models.
_ROLES = {"system": "<|system|>", "user": "<|user|>", "assistant": "<|assistant|>"}


class Tokenizer(Protocol):
  """The interface of a tokenizer. SentencePiece and text.hf_tokenizer.HuggingFace implement it.

  In all methods, messages are the turns of a conversation without the answer that is to come, each a mapping with the
  keys role ("system", "user" or "assistant") and content. think switches thinking on (True) or off (False) in chat
  templates that have such a switch; None leaves it as the tokenizer was made. Other templates raise InputError for True
  and False. Tokenizers are hashable, so that they can be keys of a cache.
  """

  vocab_size: int  # ids are 0 to vocab_size - 1
  pad_id: int  # the id of padding; it may be one of eos_ids
  bos_id: int | None  # the id of the start token; None: there is none
  eos_ids: tuple[int, ...]  # all ids that end a response, at least one; training writes the first

  def __hash__(self) -> int: ...

  def encode(self, text: str) -> list[int]:
    """Returns the ids of a text, without a start or an end token. A control token's name in it is ordinary text."""

  def decode(self, ids: Sequence[int]) -> str:
    """Returns the text of the ids. Control tokens are left out; bytes that are no UTF-8 become U+FFFD."""

  def pieces(self) -> list[bytes]:
    """Returns the bytes that each id stands for, vocab_size entries; b"" for control tokens."""

  def render(self, messages: Sequence[Mapping[str, str]], think: bool | None = None) -> list[int]:
    """Returns the ids of the prompt, up to where the answer begins; without messages, only the start token, if any."""

  def opening(self, messages: Sequence[Mapping[str, str]], think: bool | None = None) -> str:
    """Returns the `<think>` that the chat template leaves open at the end of the prompt, with what stands behind it.

    It is "" if the prompt leaves no such tag open. Then the policy's response begins outside of any thinking. The whole
    text of a response is this opening followed by what the policy writes.
    """

  def prompt_text(self, messages: Sequence[Mapping[str, str]]) -> str:
    """Returns as text what `render` returns as ids, for people to read: control tokens stand there by their names."""


def continuation(response: str, opening: str) -> str:
  """Returns what the policy has to write behind the prompt to give a response; SFT trains on that.

  A prompt that leaves a `<think>` open has already written the response's beginning. So the opening is removed from a
  response that begins with `<think>`. A response without thinking gets a `</think>` in front, so that its answer does
  not stand inside the open tag.

  response: the whole response, with its tags. opening: what `Tokenizer.opening` returns for the prompt; for "" the
  response is returned unchanged.
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
  assistant. Tokens of roles are `<|system|>`, `<|user|>` and `<|assistant|>`.
  """

  def __init__(self, path: str | Path):
    """Loads the model file at `path`, as `train_sentencepiece` writes it.

    Raises InputError for a file that is absent or is no SentencePiece model, and for a model that lacks a role token, a
    thinking tag, or one of the ids of padding, start and end.
    """
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
    for symbol in (THINK, THINK_END, *_ROLES.values()):
      if self._model.piece_to_id(symbol) == unknown:
        raise InputError(
          f"{path}: has no piece {symbol!r}; train it with `jaxrlvr tokenizer`, which adds it, or put the model's own "
          "tokenizer.json beside it"
        )
    if min(self.pad_id, self.bos_id, *self.eos_ids) < 0:
      raise InputError(f"{path}: pad, bos or eos id is switched off; train it with all three")

  def encode(self, text: str) -> list[int]:
    """Returns the ids of a text, without a start or an end token. A control token's name in it is ordinary text."""
    return self._model.encode(text)

  def decode(self, ids: Sequence[int]) -> str:
    """Returns the text of the ids. Control tokens are left out; bytes that are no UTF-8 become U+FFFD."""
    return self._model.decode([int(token) for token in ids])

  def pieces(self) -> list[bytes]:
    """Returns the bytes that each id stands for, vocab_size entries; b"" for control tokens and the unknown token."""
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

    Raises InputError for a role other than system, user and assistant, and for a `think` other than None, as the layout
    has no switch.
    """
    if think is not None:
      raise InputError("the built-in chat layout has no switch for thinking; leave it to the template")
    ids = [self.bos_id]
    if not messages:
      return ids
    for message in messages:
      role = message["role"]
      if role not in _ROLES:
        raise InputError(f"message with role {role!r}: wanted one of {', '.join(_ROLES)}")
      ids.append(self._model.piece_to_id(_ROLES[role]))
      ids += self.encode(message["content"])
    ids.append(self._model.piece_to_id(_ROLES["assistant"]))
    return ids

  def opening(self, messages: Sequence[Mapping[str, str]], think: bool | None = None) -> str:
    """Returns "": the built-in chat layout never writes a think tag."""
    return ""

  def prompt_text(self, messages: Sequence[Mapping[str, str]]) -> str:
    """Returns the prompt as text, such as `<s><|user|>2 + 2?<|assistant|>`. Raises KeyError for an unknown role."""
    start = self._model.id_to_piece(self.bos_id)
    turns = [_ROLES[message["role"]] + message["content"] for message in messages]
    return "".join([start, *turns, _ROLES["assistant"]])


def train_sentencepiece(texts: Iterable[str], path: str | Path, vocab_size: int) -> SentencePiece:
  """Trains a byte-pair tokenizer on texts, writes its model to the file `path`, and returns it.

  The same texts in the same order give the same model. Ids: 0 padding, 1 start, 2 end, 3 unknown. Each digit is a piece
  of its own, characters outside the vocabulary become bytes, and role tokens and thinking tags are pieces.

  texts: one training text each; it is read once. path: replaced if it exists; its folder must exist. vocab_size: the
  model has at most this many pieces, and fewer if the texts are few. Raises RuntimeError without texts, and if
  vocab_size is too small for the bytes, tags and characters (about 270 and one for each different character).
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
    control_symbols=list(_ROLES.values()),  # no text can spell a turn of the chat
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
