"""Held-out problems against training problems: which prompts count as equal, and what is done with shared ones."""

import json
import types

import pytest

from jaxrlvr.base.errors import InputError
from jaxrlvr.base.types import Problem
from jaxrlvr.config import files as configs
from jaxrlvr.data import files, overlap
from jaxrlvr.data import prepared as store
from jaxrlvr.stages import build_policy, rollout
from jaxrlvr.stages.evaluate import count_overlaps, load_held_out


def problem(text, system="", label="1"):
  turns = ({"role": "user", "content": text},)
  return Problem(text, ({"role": "system", "content": system}, *turns) if system else turns, label, label, "math")


def test_a_prompt_is_the_same_whatever_leaves_its_problem_the_same():
  first = overlap.prompt_digest(problem("What is $2 + 3$?"))
  for text in ("what is 2+3", " What  is\n\\(2+3\\)? ", "What is ２+3 ?", "What is 2\u200b+3。"):
    assert overlap.prompt_digest(problem(text, "Think.")) == first, text
  others = ("What is 2-3?", "What is 23?", "What is 2 3?", "What is 2+30?", "What was 2+3?", "What is 2+3!")
  assert first not in {overlap.prompt_digest(problem(text)) for text in others}


@pytest.mark.parametrize(
  ("one", "two", "same"),
  [
    ("x² + y₁", "x^2+y_1", True),
    ("10² boxes", "102 boxes", False),
    ("H₂O", "H2O", False),
    ("1½ cups", "1 1/2 cups", True),
    ("1½ cups", "11/2 cups", False),
    ("2 × 3 − 1", "2*3-1", True),
    ("Say “it’s”", 'say "it\'s"', True),
    ("Let x be\n 3 + \n 4 apples", "Let x be 3+4 apples", True),
    ("Rotate\n1 2\n3 4", "Rotate\n1 2 3 4", False),
    ("Rotate\n1 2\n3 4", "rotate: \n\n 1  2 \n3 4\n", False),
    ("Rotate\n1 2\n3 4", "rotate \n\n 1  2 \n3 4\n", True),
    ("Digits of 5!", "Digits of 5", False),
    ("?", "!", False),
  ],
)
def test_prompts_that_are_one_and_prompts_that_are_two(one, two, same):
  assert (overlap.prompt_digest(problem(one)) == overlap.prompt_digest(problem(two))) == same


def test_digests_are_kept_as_text():
  known = overlap.prompt_digests([problem("a"), problem("b")])
  assert overlap.from_text(overlap.to_text(known), "x") == known
  for text in ("[]", "{", '{"prompts": [1]}', "[" * 100_000):
    with pytest.raises(InputError, match="x: holds no digests"):
      overlap.from_text(text, "x")


class Letters:
  """A tokenizer in which every character is a token."""

  def render(self, messages):
    return [ord(ch) for turn in messages for ch in turn["content"]]

  def opening(self, messages):
    return ""


def write(path, texts):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text("".join(json.dumps({"question": text, "answer": "1"}) + "\n" for text in texts))
  return str(path)


def held_out(training, **keys):
  """Loads held-out problems as an evaluator does.

  training: the training problems. keys: keys of the config, with `__` in the place of dots. Returns (prompts by set,
  numbers of problems left out, numbers of problems shared with the training problems).
  """
  keys |= {"rl.prompt_tokens": 200}
  config = configs.load("base", {name.replace("__", "."): str(value) for name, value in keys.items()})
  policy = types.SimpleNamespace(tokenizer=Letters())
  with rollout.verifier_service(config) as service:
    trained = build_policy.digests_of_training_prompts(config, training)
    loaded, left = load_held_out(config, policy, service, trained, training)
  prompts = {}
  for name, held_out_set in loaded.items():
    prompts[name] = [problem.messages[-1]["content"] for problem in held_out_set.problems]
  return prompts, left, count_overlaps(config, loaded, trained) if trained else None


def test_shared_prompts_are_refused_left_out_or_told(tmp_path, caplog):
  source = write(tmp_path / "mine.jsonl", "abcdef")
  training = [problem("A"), problem("b?"), problem("x")]
  keys = dict(problems__source=source, heldout__source=source, heldout__count=0)
  with pytest.raises(InputError, match=r"set heldout: 2 of 6 problems are trained on as well, the first .*\('a'\)"):
    held_out(training, **keys)
  assert held_out(training, **keys, heldout__overlap="warn")[2] == {"heldout": 2}
  assert "2 of 6 problems are trained on as well" in caplog.text
  assert held_out(training, **keys, heldout__overlap="drop") == (
    {"heldout": list("cdef")},
    {"heldout": 2},
    {"heldout": 0},
  )
  keys |= dict(heldout__overlap="drop", heldout__count=3)
  assert held_out(training, **keys)[0] == {"heldout": list("cde")}  # those that are left out do not count
  with pytest.raises(InputError, match="holds 4 different problems but for 2 that are trained on, 5 were asked for"):
    held_out(training, **keys | dict(heldout__count=5))
  with pytest.raises(InputError, match="no problem is left"):
    held_out([problem(ch) for ch in "abcdef"], **keys | dict(heldout__count=0))


def test_prompts_of_the_run_that_a_policy_comes_from_are_trained_on_too(tmp_path):
  source = write(tmp_path / "mine.jsonl", "abc")
  keys = dict(init=tmp_path, problems__source=source, heldout__source=source, heldout__count=0, heldout__overlap="warn")
  assert held_out([], **keys)[2] is None  # nothing is known
  (tmp_path / overlap.FILE).write_text(overlap.to_text(overlap.prompt_digests([problem("b")])))
  assert held_out([], **keys)[2] == {"heldout": 1}
  assert held_out([problem("c")], **keys)[2] == {"heldout": 2}


def test_each_stage_hands_on_what_its_policy_was_trained_on(tmp_path, spec):
  (tmp_path / build_policy.TOKENIZER_FILE).touch()
  policy = types.SimpleNamespace(spec=spec)

  def run(name, init, *texts):
    (tmp_path / name).mkdir()
    config = configs.load("base", {"tokenizer": str(tmp_path), "init": str(tmp_path / init) if init else ""})
    build_policy.write_policy_files(config, policy, tmp_path / name, [problem(text) for text in texts])
    file = tmp_path / name / overlap.FILE
    return overlap.from_text(file.read_text(), "x") if file.is_file() else None

  def of(*texts):
    return overlap.prompt_digests(map(problem, texts))

  assert run("built-in", "") is None and run("sft", "built-in", "a", "b") == of("a", "b")
  assert run("cpt", "sft") == of("a", "b") and run("rl", "cpt", "c") == of("a", "b", "c")


def test_held_out_problems_are_named_or_follow_from_a_generator(tmp_path):
  source = write(tmp_path / "mine.jsonl", "abc")
  with pytest.raises(InputError, match="config.heldout.source is empty, and config.problems.source = .*mine.jsonl"):
    held_out([problem("a")], problems__source=source)
  with pytest.raises(InputError, match="config.heldout.source is empty"):  # as without training, in evaluate
    held_out([], problems__source=source, problems__count=0)
  followed = held_out([], heldout__count=3)[0]
  assert all(text.startswith("Start") for text in followed["heldout"])
  store.save(source, [Problem("z", problem("z").messages, "1", "1", "arithmetic", {"operations": 2})])
  assert len(held_out([], problems__source=source, problems__count=1, heldout__count=3)[0]["heldout"]) == 3
  write(tmp_path / "mine.jsonl", "abc")
  prepared = [Problem("z", ({"role": "user", "content": "z"},), "1", "1", "arithmetic", {"operations": 2})]
  assert len(held_out(prepared, problems__source=source, heldout__count=3)[0]["heldout"]) == 3
  both = dict(heldout__sets="arithmetic", heldout__source=source, heldout__name="mine", heldout__count=3)
  sets = held_out([], **both, heldout__columns="prompt=question,label=answer")[0]
  assert sets["mine"] == list("abc") and all(text.startswith("Start") for text in sets["arithmetic"])
  with pytest.raises(InputError, match="is the name of another set"):
    held_out([], **both | dict(heldout__name="arithmetic"))


def test_files_of_splits_are_told_apart(tmp_path, caplog):
  for name in ("train-00000-of-00001", "test-00000-of-00001"):
    write(tmp_path / "plain" / f"{name}.jsonl", [name])
  for name in ("train/0", "validation/0"):
    write(tmp_path / "folders" / f"{name}.jsonl", [name])
  for name in ("mine_train", "mine-test", "rest"):
    write(tmp_path / "ends" / f"{name}.jsonl", [name])

  def read(folder, prefer, name=""):
    return [file.stem for file in files.files(tmp_path / folder, split=files.Split(name, prefer, "KEY"))]

  for folder, train, test in (
    ("plain", "train-00000-of-00001", "test-00000-of-00001"),
    ("ends", "mine_train", "mine-test"),
  ):
    assert read(folder, files.TRAINING) == [train] and read(folder, files.HELD_OUT) == [test]
    assert read(folder, files.TRAINING, "test") == [test] and len(read(folder, files.TRAINING, "all")) >= 2
  assert files.files(tmp_path / "folders", split=files.Split("", files.HELD_OUT))[0].parent.name == "validation"
  assert "read is train, 1 of 2 files (KEY chooses another, or all)" in caplog.text
  with pytest.raises(InputError, match=r"KEY = 'dev': .* holds no such files, but test, train"):
    read("plain", files.TRAINING, "dev")
  with pytest.raises(InputError, match="KEY = 'test' has no effect"):
    files.files(tmp_path / "plain" / "test-00000-of-00001.jsonl", split=files.Split("test", key="KEY"))
