"""Training text from files: order, epochs, bad rows, and the two arms of SFT."""

import functools
import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from helpers.hf_directories import USER, write_tokenizer
from jaxrlvr.base.errors import InputError
from jaxrlvr.base.types import Problem
from jaxrlvr.config import files as configs
from jaxrlvr.data import built_in_text, corpus
from jaxrlvr.data import files as rows
from jaxrlvr.stages import language_modelling
from jaxrlvr.text.answer import parse_response
from jaxrlvr.text.hf_tokenizer import HuggingFace
from jaxrlvr.text.tokenizer import train_sentencepiece
from jaxrlvr.training.packing import pack, rows_of


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
  texts = [built_in_text.document_text(built_in_text.cpt(0, n, built_in_text.Mix((1, 3)))) for n in range(300)]
  return train_sentencepiece(texts, tmp_path_factory.mktemp("tokenizer") / "t.model", 400)


def write_jsonl(path, rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return path


@pytest.fixture
def folder(tmp_path):
  """A folder with 120 texts: a parquet file with three row groups, and a jsonl file with two blocks."""
  table = pyarrow.Table.from_pylist([{"id": i, "text": f"p{i}"} for i in range(60)])
  pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=20)
  write_jsonl(tmp_path / "b.jsonl", [{"text": f"j{i}"} for i in range(60)])
  return tmp_path


def test_documents_are_a_function_of_seed_and_number(folder, monkeypatch):
  monkeypatch.setattr(rows, "BLOCK_LINES", 40)
  text_rows = corpus.TextRows(str(folder), "text", seed=1)
  texts = [text_rows(n).text for n in range(240)]
  first, second = texts[:120], texts[120:]
  everything = {f"p{i}" for i in range(60)} | {f"j{i}" for i in range(60)}
  assert len(text_rows) == 120 and set(first) == set(second) == everything and first != second
  blocks = [{f"p{start + i}" for i in range(20)} for start in (0, 20, 40)]
  blocks += [{f"j{i}" for i in range(40)}, {f"j{i}" for i in range(40, 60)}]
  same_texts = corpus.TextRows(str(folder), "text", seed=1)
  draw = np.random.default_rng(0).permutation(240)
  assert [same_texts(int(n)).text for n in draw] == [(first + second)[n] for n in draw]
  other = [corpus.TextRows(str(folder), "text", seed=2)(n).text for n in range(120)]
  epochs = (first, second, other)
  inside = [list(filter(blocks[0].__contains__, epoch)) for epoch in epochs]
  assert inside[0] != inside[1] != inside[2] != inside[0]  # the rows of a block change places by epoch and by seed
  block_of = {text: number for number, block in enumerate(blocks) for text in block}
  turns = [list(dict.fromkeys(map(block_of.get, epoch))) for epoch in epochs]
  assert turns[0] != turns[1] and [0, 1, 2, 3, 4] not in turns  # and so do the blocks


def test_text_rows_read_one_group_at_a_time(folder, monkeypatch):
  read = []
  original = rows._row_group
  monkeypatch.setattr(rows, "_row_group", lambda *group: read.append(group) or original(*group))
  texts = corpus.TextRows(str(folder / "a.parquet"), "", seed=0)
  assert len(texts) == 60 and not read
  assert all(texts(n).text for n in range(60)) and len(read) == 3


def test_rows_without_text_are_named_or_counted(tmp_path):
  path = tmp_path / "a.parquet"
  texts = ["a", None, "c", " ", "e"]
  pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path, row_group_size=2)
  with pytest.raises(ValueError, match=r"a\.parquet: row [13], column text: found (None|' '), .* raise skip_bad = 0"):
    [corpus.TextRows(str(path), "text", 0)(n) for n in range(5)]
  text_rows = corpus.TextRows(str(path), "text", 0, skip_bad=2)
  assert sorted(text_rows(n).text for n in range(10)) == ["", "", "", "", "a", "a", "c", "c", "e", "e"]
  assert text_rows.skipped == 2
  lines = tmp_path / "b.jsonl"
  lines.write_bytes(b'\xef\xbb\xbf{"text": "a"}\n\n{"text": 1}\n{"te')
  for skip, message in ((0, r"b\.jsonl:[34], "), (1, r"b\.jsonl:[34], .*skip_bad = 1")):
    text_rows = corpus.TextRows(str(lines), "text", 0, skip)
    assert len(text_rows) == 3
    with pytest.raises(ValueError, match=message):
      [text_rows(n) for n in range(3)]
  with pytest.raises(ValueError, match=r"a\.parquet: column body is missing, found text"):
    corpus.TextRows(str(path), "body", 0)
  pyarrow.parquet.write_table(pyarrow.table({"text": pyarrow.array([None, None], pyarrow.string())}), path)
  with pytest.raises(ValueError, match="column text: found None"):  # else packing would never end
    [text_rows(n) for text_rows in [corpus.TextRows(str(path), "text", 0, 99)] for n in range(2)]


def test_skipped_rows_leave_no_trace_in_a_batch(tmp_path, tokenizer):
  pyarrow.parquet.write_table(pyarrow.table({"text": ["1+1=2", None, "2+2=4"]}), tmp_path / "a.parquet")
  texts = corpus.TextRows(str(tmp_path), "text", 0, skip_bad=1)
  packed, _ = pack(lambda n: built_in_text.document(texts(n), tokenizer), (0, 0), 2, 64)
  for row in range(2):
    segments = packed.segments_BT[row]
    assert set(range(1, segments.max() + 1)) == set(segments[segments > 0])
    for segment in range(1, segments.max()):
      ids = packed.tokens_BT[row, segments == segment].tolist()
      assert ids[0] == tokenizer.bos_id and ids[-1] == tokenizer.eos_ids[0]
      assert tokenizer.decode(ids[1:-1]) in ("1+1=2", "2+2=4")


COLUMNS = ("prompt=q", "trace=t", "solution=s", "label=a")


def test_both_arms_train_on_the_same_prompts(tmp_path, tokenizer):
  lines = [
    {"q": f"{i}+1?", "t": f"{i}+1={i + 1}\n" * (1 + 9 * (i % 3 == 0)), "s": f"It is {i + 1}."} for i in range(12)
  ]
  lines = [row | {"a": str(i + 1) if i != 4 else "0"} for i, row in enumerate(lines)]
  path = write_jsonl(tmp_path / "a.jsonl", [*lines, lines[0]])
  asked = []

  def verified(pairs):
    asked.extend(pairs)
    return [solution == f"It is {problem.label}." for problem, solution in pairs]

  problems, counts = corpus.sft_problems(str(path), COLUMNS, tokenizer, 50, verified=verified)
  assert (counts["rows"], counts["copies"], counts["too_long"], counts["wrong"]) == (13, 1, 4, 1)
  assert len(problems) == 7 and len(asked) == 8  # only what fits is checked
  lengths = [len(built_in_text.document(corpus.response(p, True), tokenizer).ids) for p in problems]
  assert max(lengths) <= 50
  assert len(corpus.sft_problems(str(path), COLUMNS, tokenizer, max(lengths)).problems) == 8
  edge, counts = corpus.sft_problems(str(path), COLUMNS, tokenizer, max(lengths) - 1)
  assert 0 < len(edge) < 8 and counts["too_long"] > 4 and counts["wrong"] == 0
  thinking, direct = (corpus.responses(problems, 3, arm) for arm in (True, False))
  for number in range(21):
    with_trace, alone = thinking(number), direct(number)
    assert with_trace.problem is alone.problem and with_trace.prompt_is_context and alone.prompt_is_context
    assert with_trace.text == f"<think>\n{alone.problem.extra['trace'].strip()}\n</think>\n\n{alone.text}"
    document = built_in_text.document(alone, tokenizer)
    assert document.prompt == len(tokenizer.render(alone.problem.messages))
    assert tokenizer.decode(document.ids[document.prompt : -1]) == alone.problem.extra["solution"] == alone.text
  ids = [thinking(n).problem.id for n in range(21)]
  orders = [ids[:7], ids[7:14], ids[14:]]
  assert all(sorted(order) == sorted(orders[0]) for order in orders) and orders[0] != orders[1]
  assert [thinking(n).problem.id for n in range(7)] == orders[0]
  with pytest.raises(ValueError, match=r"no row is left to train on .*13 rows, .*too_long.*raise max_tokens = 5"):
    corpus.sft_problems(str(path), COLUMNS, tokenizer, 5)
  with pytest.raises(ValueError, match="holds no traces, .* add trace=COLUMN .*sft.thinking=False"):
    corpus.sft_problems(str(path), ("prompt=q", "solution=s"), tokenizer, 50)
  alone, _ = corpus.sft_problems(str(path), ("prompt=q", "solution=s"), tokenizer, 50, thinking=False)
  assert {one.extra["solution"] for one in alone} == {f"It is {i + 1}." for i in range(12)}
  with pytest.raises(ValueError, match="no columns; name them"):
    corpus.sft_problems(str(path), (), tokenizer, 50)


def test_the_stages_take_their_text_from_files(folder, tokenizer):
  """The problem's verifier checks each solution against its label."""
  lines = [{"q": f"{i}+1?", "t": "...", "s": f"\\boxed{{{i + (i != 2)}}}", "a": f'["{i + 1}"]'} for i in range(4)]
  lines[3]["a"] = '["x", "4"]'
  path = write_jsonl(folder.parent / "sft.jsonl", lines)
  config = configs.base()
  text, known, *_ = language_modelling.texts(config, "cpt", tokenizer)
  assert text(3) == built_in_text.cpt(0, 3, language_modelling.mix_of(config, "cpt")) and known == {}
  changes = {"cpt.source": str(folder), "sft.source": str(path), "sft.columns": COLUMNS, "verify.workers": 1}
  config = configs.derive(config, changes | {"sft.thinking": False})
  text, known, *_ = language_modelling.texts(config, "cpt", tokenizer)
  assert known["rows"] == 120 and {text(n).text for n in range(120)} >= {"p0", "j59"}
  text, known, *_ = language_modelling.texts(config, "sft", tokenizer)
  assert {text(n).text for n in range(3)} == {"\\boxed{1}", "\\boxed{2}", "\\boxed{4}"}
  assert (known["problems"], known["wrong"], known["too_long"]) == (3, 1, 0)
  asked = {one.messages[0]["content"] for one in language_modelling.texts(config, "sft", tokenizer).problems}
  assert asked == {"0+1?", "1+1?", "3+1?"}  # which held-out problems are compared with
  assert known == language_modelling.texts(config, "sft", tokenizer)[1]
  write_jsonl(path, [line | {"t": "!"} for line in lines])
  assert known["digest"] != language_modelling.texts(config, "sft", tokenizer)[1]["digest"]  # as many rows, other text
  text, known, *_ = language_modelling.texts(configs.derive(config, {"sft.verified": False}), "sft", tokenizer)
  assert known["problems"] == 4


FORMS = {  # (columns, a row) that hold one and the same trace and solution
  "apart": (COLUMNS[:3], {"t": "1+1=2", "s": "It is 2."}),
  "a tagged trace": (COLUMNS[:3], {"t": "<think>\n1+1=2\n</think>", "s": "It is 2."}),
  "a trace that opens": (COLUMNS[:3], {"t": "<think>1+1=2", "s": "It is 2."}),
  "a trace with its answer": (COLUMNS[:3], {"t": "<think>1+1=2</think>It is 2.", "s": "It is 2."}),
  "both tagged": (COLUMNS[:3], {"t": "<think>1+1=2</think>", "s": "<think>other</think>It is 2."}),
  "one column": (("prompt=q", "solution=s"), {"s": "<think>\n1+1=2\n</think>\n\nIt is 2."}),
  "one column, prefilled": (("prompt=q", "solution=s"), {"s": "1+1=2</think>It is 2."}),
}


@pytest.mark.parametrize("form", FORMS)
def test_think_tags_of_the_files_are_never_doubled(tmp_path, tokenizer, form):
  columns, row = FORMS[form]
  path = write_jsonl(tmp_path / "a.jsonl", [{"q": "1+1?"} | row])
  for arm, text in ((True, "<think>\n1+1=2\n</think>\n\nIt is 2."), (False, "It is 2.")):
    (problem,), _ = corpus.sft_problems(str(path), columns, tokenizer, 60, thinking=arm)
    assert corpus.response(problem, arm).text == text


def test_rows_whose_thinking_never_ends_or_is_missing_are_left_out_of_both_arms(tmp_path, tokenizer):
  solutions = ["<think>a</think>b", "<think>never", "<think>a</think> ", "b", "<think>\n\n</think>\n\nb"]
  path = write_jsonl(tmp_path / "a.jsonl", [{"q": str(n), "s": s} for n, s in enumerate(solutions)])
  for arm in (True, False):
    problems, counts = corpus.sft_problems(str(path), ("prompt=q", "solution=s"), tokenizer, 60, thinking=arm)
    assert [one.messages[0]["content"] for one in problems] == ["0"]
    assert (counts["unclosed"], counts["untraced"]) == (2, 2)


def answer_turn(template_end):
  turns = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
  return turns + "{{ '<|im_start|>assistant\n" + template_end + "' }}"


ENDS = {  # what a template writes behind the assistant's head: closed at once, for an answer without thinking
  "": "",
  "<think>": "<think>\n</think>\n\n",
  "<think>\\n": "<think>\n\n</think>\n\n",
  "<think>\\n\\n": "<think>\n\n</think>\n\n",
  " <think>  \\n": " <think>  \n\n</think>\n\n",
}


@pytest.mark.parametrize("end", ENDS)
def test_targets_add_only_what_the_template_left_out(tmp_path, end):
  write_tokenizer(tmp_path, chat_template=answer_turn(end))
  theirs = HuggingFace(tmp_path)
  problem = Problem("p", USER, "", "", "math", {"trace": "5*7=35", "solution": "\\boxed{35}"})
  for arm in (True, False):
    document = built_in_text.document(corpus.response(problem, arm), theirs)
    prompt, target = theirs.decode(document.ids[: document.prompt]), theirs.decode(document.ids[document.prompt : -1])
    assert document.ids[: document.prompt] == theirs.render(USER) and document.ids[-1] == theirs.eos_ids[0]
    whole = (prompt + target).partition("assistant\n")[2]
    if arm:
      assert whole.strip().count("<think>") == whole.count("</think>") == 1
      assert parse_response(whole, "boxed").trace.strip() == "5*7=35" and parse_response(whole, "boxed").answer == "35"
    else:
      assert whole == ENDS[end] + "\\boxed{35}" and parse_response(whole, "boxed").answer == "35"
      assert not (parse_response(whole, "boxed").trace or "").strip()


def test_a_trace_is_not_trained_on_behind_thinking_that_is_closed(tmp_path):
  write_tokenizer(tmp_path, chat_template=answer_turn("<think>\\n\\n</think>\\n\\n"))
  language_modelling.check_thinking(False, HuggingFace(tmp_path))
  with pytest.raises(InputError, match="sft.thinking = True, .*model.think=on"):
    language_modelling.check_thinking(True, HuggingFace(tmp_path))


@pytest.mark.parametrize("arm", (True, False))
def test_epochs_show_each_document_as_often_in_both_arms(tmp_path, tokenizer, arm):
  lines = [{"q": f"{i}+1?", "t": f"{i}+1={i + 1}\n" * (1 + i % 4), "s": f"It is {i + 1}."} for i in range(11)]
  path = write_jsonl(tmp_path / "a.jsonl", lines)
  changes = {"sft.source": str(path), "sft.columns": COLUMNS[:3], "sft.steps": 0, "sft.epochs": 3}
  config = configs.derive(configs.base(), changes | {"sft.thinking": arm})
  text, _, tokens, _ = language_modelling.texts(config, "sft", tokenizer)
  document = functools.cache(lambda number: built_in_text.document(text(number), tokenizer))
  assert [len(document(number).ids) for number in range(33)] == tokens
  for rows_, length in ((2, 64), (3, 80), (2, 20), (1, max(tokens))):
    steps, cursor, seen = -(-rows_of(tokens, length) // rows_), (0, 0), 0
    for step in range(steps):
      batch, cursor = pack(document, cursor, rows_, length, 33)
      seen += int(np.sum(batch.segments_BT > 0))
      assert (cursor == (33, 0)) == (step == steps - 1) and np.any(batch.target_BT)
    assert seen == sum(tokens)
  with pytest.raises(InputError, match="both set, or both 0"):
    configs.derive(config, {"sft.steps": 5})
  with pytest.raises(InputError, match="sft.epochs is set, but the built-in prompts"):
    configs.derive(configs.base(), {"sft.steps": 0, "sft.epochs": 1})
