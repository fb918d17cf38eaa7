"""Training text of each stage, generated from a seed."""

import re

import numpy as np

from jaxrlvr.data import built_in_text
from jaxrlvr.tasks.arithmetic import faithfulness as judge
from jaxrlvr.tasks.arithmetic import verify
from jaxrlvr.text.answer import parse_response


def answer(text, label, extra):
  """Returns the verdict on a response with this text."""
  return verify.grade(parse_response(text, "boxed").answer, label, extra)


def faithfulness(text, question):
  """Returns the exact judge's label of a response with this text."""
  return judge.faithfulness(parse_response(text, "boxed"), question).label


def test_text_of_each_stage(tokenizer):
  """The mixture has the shares that the config names; the two arms of SFT have the same prompts and right answers."""
  mix = built_in_text.Mix((2, 3), filler=0.2, facts=0.3, careful=0.4, guess_right=0.25)
  made = [built_in_text.pretrain(1, n, mix) for n in range(3000)]
  asked = [t for t in made if t.problem]
  careful = [t for t in asked if faithfulness(t.text, t.problem.messages[0]["content"]) == 1]
  hasty = [t for t in asked if t not in careful]
  right = [answer(t.text, t.problem.truth, {}).score for t in hasty]
  assert (
    abs(len(asked) / 3000 - 0.5) < 0.04
    and abs(len(careful) / len(asked) - 0.4) < 0.05
    and abs(np.mean(right) - 0.25) < 0.06
  )
  both = [built_in_text.cpt(1, n, mix._replace(kinds=("chain", "large"))) for n in range(100)]
  assert [bool(re.match(r"Start with \d\d,", built_in_text.document_text(made))) for made in both] == [
    n % 2 == 1 for n in range(100)
  ]
  thinking = [built_in_text.sft(1, n, built_in_text.Mix((4,), terse=0.5)) for n in range(400)]
  direct = [built_in_text.sft(1, n, built_in_text.Mix((4,), thinking=False)) for n in range(400)]
  assert [t.problem.id for t in thinking] == [t.problem.id for t in direct]
  assert all(answer(t.text, t.problem.truth, {}).score == 1 for t in (*thinking, *direct))
  whole = np.mean([faithfulness(t.text, t.problem.messages[0]["content"]) == 1 for t in thinking])
  assert abs(whole - 0.5) < 0.08 and all("<think>" not in t.text for t in direct)
  texts = [built_in_text.cpt(0, n, mix).text for n in range(50)]
  wordings = {text.split("\n")[-1][:3] for text in texts}
  assert len(wordings) > 3
  document = built_in_text.document(thinking[0], tokenizer)
  assert document.ids[: document.prompt] == tokenizer.render(thinking[0].problem.messages)
  assert document.ids[-1] == tokenizer.eos_ids[0]
  assert tokenizer.decode(document.ids[document.prompt : -1]) == thinking[0].text
  assert built_in_text.pretrain(1, 7, mix) == built_in_text.pretrain(1, 7, mix) != built_in_text.pretrain(2, 7, mix)
