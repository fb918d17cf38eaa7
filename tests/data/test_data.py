"""The embedded domain, its text and tokenizer, packing, and the order of problems."""

import random
import re

import numpy as np
import pytest

from jaxrlvr.base.types import Problem
from jaxrlvr.data import embedded_text
from jaxrlvr.data.problems import batch
from jaxrlvr.tasks.arithmetic import faithfulness as judge
from jaxrlvr.tasks.arithmetic import problems as arithmetic
from jaxrlvr.text.answer import parse
from jaxrlvr.text.tokenizer import SentencePiece, train_sentencepiece
from jaxrlvr.training.packing import Document, pack


def answer(text, label, extra):
  """The verdict on a response of this text."""
  return judge.answer(parse(text, "boxed").answer, label, extra)


def faithfulness(text, question):
  """The label of a response of this text."""
  return judge.faithfulness(parse(text, "boxed"), question).label


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
  made = [
    embedded_text.plain(text(0, n, embedded_text.Mix((1, 4), 0.2, 0.3)))
    for text in embedded_text.TEXTS.values()
    for n in range(300)
  ]
  return train_sentencepiece(made, tmp_path_factory.mktemp("tokenizer") / "t.model", 400)


def plain_value(tree):
  """The integer value of a tree by ordinary arithmetic, no digit dropped on the way."""
  if isinstance(tree, int):
    return tree
  a, b = plain_value(tree[1]), plain_value(tree[2])
  return {"+": a + b, "-": a - b, "*": a * b}[tree[0]]


@pytest.mark.parametrize("kind", arithmetic.KINDS)
def test_answers_are_the_last_digit_and_traces_are_faithful(kind):
  for level in arithmetic.LEVELS:
    for index in range(60):
      p = arithmetic.problem(0, "train", level, index, kind)
      tree, n = p.extra["tree"], p.extra["operations"]
      assert n == level + 1 and int(p.truth) == plain_value(tree) % 10 and p.label == p.truth
      asked = p.messages[0]["content"]
      assert arithmetic.asked(asked) == tree
      assert all(len(number) == (2 if kind == "large" else 1) for number in re.findall(r"\d+", asked))
      if kind == "expression":
        text = p.messages[0]["content"].removeprefix("Work out ").split(". Last")[0]
        assert eval(text) % 10 == int(p.truth)
      careful = arithmetic.careful(tree)
      assert answer(careful, p.label, p.extra).score == 1.0 and faithfulness(careful, asked) == 1.0
      for a, op, b, result in arithmetic.steps(tree)[0]:
        assert eval(f"{a}{op}{b}") == result >= 0


def test_train_and_heldout_never_meet():
  trains = {arithmetic.problem(s, "train", 1, i).id for s in range(3) for i in range(800)}
  held = {arithmetic.problem(s, "heldout", 1, i).id for s in range(3) for i in range(800)}
  assert not trains & held and len(held) > 100
  few, many = (arithmetic.problems(0, "train", (2, 4), n) for n in (8, 64))
  assert many[:8] == few and len({p.id for p in many}) == 64
  assert {p.extra["level"] for p in many} == {2, 4}
  with pytest.raises(ValueError, match="only .* exist"):
    arithmetic.problems(0, "heldout", (1,), 10**6 // 8)


def test_text_of_each_stage(tokenizer):
  """Shares of the mixture are what the config says; the two SFT arms have the same prompts and right answers."""
  mix = embedded_text.Mix((2, 3), filler=0.2, facts=0.3, careful=0.4, guess_right=0.25)
  made = [embedded_text.pretrain(1, n, mix) for n in range(3000)]
  asked = [t for t in made if t.problem]
  careful = [t for t in asked if faithfulness(t.text, t.problem.messages[0]["content"]) == 1]
  hasty = [t for t in asked if t not in careful]
  right = [answer(t.text, t.problem.truth, {}).score for t in hasty]
  assert (
    abs(len(asked) / 3000 - 0.5) < 0.04
    and abs(len(careful) / len(asked) - 0.4) < 0.05
    and abs(np.mean(right) - 0.25) < 0.06
  )
  both = [embedded_text.cpt(1, n, mix._replace(kinds=("chain", "large"))) for n in range(100)]
  assert [bool(re.match(r"Start with \d\d,", embedded_text.plain(made))) for made in both] == [
    n % 2 == 1 for n in range(100)
  ]
  thinking = [embedded_text.sft(1, n, embedded_text.Mix((4,), terse=0.5)) for n in range(400)]
  direct = [embedded_text.sft(1, n, embedded_text.Mix((4,), thinking=False)) for n in range(400)]
  assert [t.problem.id for t in thinking] == [t.problem.id for t in direct]
  assert all(answer(t.text, t.problem.truth, {}).score == 1 for t in (*thinking, *direct))
  whole = np.mean([faithfulness(t.text, t.problem.messages[0]["content"]) == 1 for t in thinking])
  assert abs(whole - 0.5) < 0.08 and all("<think>" not in t.text for t in direct)
  wordings = {t.text.split("\n")[-1][:3] for t in (embedded_text.cpt(0, n, mix) for n in range(50))}
  assert len(wordings) > 3
  document = embedded_text.document(thinking[0], tokenizer)
  assert document.ids[: document.prompt] == tokenizer.render(thinking[0].problem.messages)
  assert document.ids[-1] == tokenizer.eos_ids[0]
  assert tokenizer.decode(document.ids[document.prompt : -1]) == thinking[0].text
  assert embedded_text.pretrain(1, 7, mix) == embedded_text.pretrain(1, 7, mix) != embedded_text.pretrain(2, 7, mix)


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


def test_packing_keeps_documents_whole_and_resumes_anywhere():
  draw = random.Random(0)
  lengths = [draw.randint(1, 30) for _ in range(400)]

  def document(n):
    return Document([100 * n + i + 1 for i in range(lengths[n])], prompt=min(2, lengths[n]))

  cursor, seen = (0, 0), {}
  for _ in range(6):
    again = pack(document, cursor, 4, 16)
    packed, cursor = pack(document, cursor, 4, 16)
    assert all(np.array_equal(a, b) for a, b in zip(again[0], packed, strict=True))
    for row in range(4):
      for segment in range(1, packed.segments_BT[row].max() + 1):
        here = packed.segments_BT[row] == segment
        ids, positions = packed.tokens_BT[row, here], packed.positions_BT[row, here]
        number = (ids[0] - 1) // 100
        seen.setdefault(number, []).extend(ids.tolist())
        np.testing.assert_array_equal(positions, np.arange(len(ids)))
        want = [(i > 0) and ((token - 1) % 100 >= 2) for i, token in enumerate(ids)]
        np.testing.assert_array_equal(packed.target_BT[row, here], want)
        if lengths[number] <= 16:
          assert len(ids) == lengths[number]  # cut only if longer than a row
    assert not packed.target_BT[packed.segments_BT == 0].any()
  assert sorted(seen) == list(range(max(seen) + 1))
  assert all(ids == document(n).ids for n, ids in seen.items() if n < max(seen))


def test_few_problems_are_repeated_uniformly():
  problems = [Problem(str(i), (), "", "", "arithmetic") for i in range(8)]
  first, occurrence = batch(problems, 0, 1, 32)
  assert all([p.id for p in first].count(str(i)) == 4 for i in range(8))
  assert sorted(zip([p.id for p in first], occurrence.tolist(), strict=True)) == sorted(
    (str(i), n) for i in range(8) for n in range(4)
  )
  many = [Problem(str(i), (), "", "", "arithmetic") for i in range(50)]
  epoch = [p.id for step in range(1, 26) for p in batch(many, 3, step, 10)[0]]
  assert all(sorted(epoch[i : i + 50]) == sorted(p.id for p in many) for i in range(0, 250, 50))
  assert epoch[:50] != epoch[50:100] and [p.id for p in batch(many, 3, 7, 10)[0]] == epoch[60:70]


def test_no_text_can_spell_a_turn(tokenizer):
  for role in ("<|user|>", "<|assistant|>", "<|system|>"):
    turn = tokenizer.render([{"role": "user", "content": ""}])
    ids = tokenizer.encode(f"a{role}b")
    assert tokenizer.decode(ids) == f"a{role}b" and not set(ids) & set(turn[1:])


def test_problems_differ_by_seed_and_stream():
  def ids(seed, stream):
    return [arithmetic.problem(seed, "train", 4, i, stream=stream).id for i in range(20)]

  assert not set(ids(0, "rl")) & set(ids(1, "rl")) and not set(ids(0, "rl")) & set(ids(0, "sft"))
  many = [Problem(str(i), (), "", "", "arithmetic") for i in range(50)]
  assert [p.id for p in batch(many, 3, 1, 50)[0]] != [p.id for p in batch(many, 4, 1, 50)[0]]


def test_render_is_roles_by_id_around_plain_text(tokenizer):
  prompt = tokenizer.render([{"role": "system", "content": "a"}, {"role": "user", "content": "b"}])
  names = [tokenizer._model.id_to_piece(i) for i in prompt]
  assert [n for n in names if n.startswith("<")] == ["<s>", "<|system|>", "<|user|>", "<|assistant|>"]
  assert tokenizer.decode(prompt).split() == ["ab"] and names[-1] == "<|assistant|>"
