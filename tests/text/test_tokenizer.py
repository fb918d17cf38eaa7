"""The SentencePiece tokenizer: text goes in and comes out; turns are ids that no text can spell."""

import pytest

from jaxrlvr.text.tokenizer import SentencePiece


def test_tokenizer(tokenizer, tmp_path):
  for text in ("12+7=19\n", "<think>\n3*7=21\n</think>\n\\boxed{4}", "é→\\frac{1}{2}  two  spaces", "\U0001f600"):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert b"".join(tokenizer.pieces()[i] for i in ids) == text.encode()
  assert all(len(tokenizer.encode(d)) == 1 for d in "0123456789") and len(tokenizer.encode("1234")) == 4
  assert len(tokenizer.encode("<think>")) == len(tokenizer.encode("</think>")) == 1
  prompt = tokenizer.render([{"role": "system", "content": "a"}, {"role": "user", "content": "b"}])
  assert prompt[0] == tokenizer.bos_id and prompt.count(tokenizer.bos_id) == 1 and tokenizer.eos_ids[0] not in prompt
  assert tokenizer.encode("</s><s>") and not set(tokenizer.encode("</s><s>")) & {tokenizer.bos_id, *tokenizer.eos_ids}
  with pytest.raises(ValueError, match="no such tokenizer"):
    SentencePiece(tmp_path / "absent.model")
  with pytest.raises(ValueError, match="role 'tool'"):
    tokenizer.render([{"role": "tool", "content": ""}])


def test_no_text_can_spell_a_turn(tokenizer):
  for role in ("<|user|>", "<|assistant|>", "<|system|>"):
    turn = tokenizer.render([{"role": "user", "content": ""}])
    ids = tokenizer.encode(f"a{role}b")
    assert tokenizer.decode(ids) == f"a{role}b" and not set(ids) & set(turn[1:])


def test_render_is_roles_by_id_around_plain_text(tokenizer):
  prompt = tokenizer.render([{"role": "system", "content": "a"}, {"role": "user", "content": "b"}])
  names = [tokenizer._model.id_to_piece(i) for i in prompt]
  assert [n for n in names if n.startswith("<")] == ["<s>", "<|system|>", "<|user|>", "<|assistant|>"]
  assert tokenizer.decode(prompt).split() == ["ab"] and names[-1] == "<|assistant|>"
