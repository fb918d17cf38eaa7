"""Entries of heldout.sets: sets of a user's own with columns, verifiers, splits and counts of their own."""

from pathlib import Path

import pytest

from jaxrlvr.base.errors import InputError
from jaxrlvr.base.words import split_at_commas
from jaxrlvr.data import own_sets
from jaxrlvr.data.eval_sets import find_files, set_names

FILES = {"verifier": "auto", "columns": (), "split": "", "count": 0, "copies": "drop"}


@pytest.fixture(autouse=True)
def code(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  Path("mine.py").write_text(
    "def problems():\n  yield {}\n\n\ndef verify(answer, label):\n  return True\n\n\ndef odd(x):\n  return 1\n"
  )


@pytest.mark.parametrize(
  ("entry", "source", "settings", "template"),
  [
    ("quiz=a b/quiz.jsonl", "a b/quiz.jsonl", FILES, "quiz=a b/quiz.jsonl[{}]"),
    (" q = x[1].csv[]", "x[1].csv", FILES, "q=x[1].csv[{}]"),
    (
      "hard=openai/gsm8k:main@test[prompt=messages[:-1], boxed=messages[-1], count=9, extra.a=b?, count==7]",
      "openai/gsm8k:main@test",
      FILES | {"columns": ("prompt=messages[:-1]", "boxed=messages[-1]", "extra.a=b?", "count==7"), "count": 9},
      "hard=openai/gsm8k:main@test[{},count=9]",
    ),
    (
      "q=gs://bucket/q.jsonl[verifier=mine.py:verify,split=dev,copies=keep]",
      "gs://bucket/q.jsonl",
      FILES | {"verifier": "mine.py:verify", "split": "dev", "copies": "keep"},
      "q=gs://bucket/q.jsonl[{},verifier=mine.py:verify,split=dev,copies=keep]",
    ),
    ("task=mine.py", "mine.py", {}, "task=mine.py[{}]"),
    (
      "a=arithmetic[levels=4|5,kinds=chain|large,seed=-2,count=3]",
      "arithmetic",
      {"levels": (4, 5), "kinds": ("chain", "large"), "seed": -2, "count": 3},
      "a=arithmetic[{},levels=4|5,kinds=chain|large,seed=-2,count=3]",
    ),
  ],
)
def test_an_entry_describes_a_set(entry, source, settings, template):
  sets = ("math500", entry, "arithmetic")
  ((name, own_set),) = own_sets.parse_entries(sets).items()
  assert name == own_set.name == entry.partition("=")[0].strip()
  assert (own_set.source, own_set.settings) == (source, settings)
  assert own_set.template == f"math500,{template},arithmetic"
  assert set_names(sets, "math") == ("math500", name, "arithmetic")
  assert find_files(sets[1:], "", "nowhere", "think") == ({}, [])


def test_own_names_are_verifiers_and_tasks():
  sets = ("amc", "a=x.jsonl[verifier=mine.py:verify]", "b=x.jsonl[verifier=math]", "c=mine.py", "d=y.jsonl")
  assert own_sets.names_of_code(sets) == ["mine.py:verify", "mine.py:verify"]


@pytest.mark.parametrize(
  ("entry", "words"),
  [
    ("maths500", "wanted one of math500, .* or a set of your own as mine=.*; did you mean 'math500'?"),
    ("quiz.jsonl", "wanted one of .*a set of your own as mine=path.jsonl"),
    ("../q=a.jsonl", "the name '../q': wanted letters, digits"),
    ("=a.jsonl", "the name ''"),
    ("amc=a.jsonl", "amc is the name of a known set or mean; choose another"),
    ("in-domain=a.jsonl", "in-domain is the name of a known set or mean"),
    ("q=", "has no source; write q=path.jsonl"),
    ("q=a.jsonl[count=3", r"the bracket is not closed at the end; write NAME=SOURCE\[SETTING"),
    ("q=a.jsonl]", "the bracket is not opened"),
    ("q=a.jsonl[count=-1]", "count=-1: wanted a whole number, 0 for all"),
    ("q=a.jsonl[count=all]", "count=all: wanted a whole number"),
    ("q=a.jsonl[count=1,count=2]", "count is there twice"),
    ("q=a.jsonl[copies=all]", "copies=all: wanted drop, keep or error"),
    ("q=a.jsonl[split=a/b]", "split=a/b: wanted the name of a split"),
    ("q=a.jsonl[verifier=maths]", "verifier=maths: wanted auto, math, graph, choice, or a function of yours"),
    ("q=a.jsonl[verifier=mine.py:no]", "mine.py:no: there is no no"),
    ("q=a.jsonl[verifier=mine.py:odd]", r"verifier mine.py:odd: has the parameters \(x\)"),
    ("q=a.jsonl[levels=4]", "levels has no effect: it is for generated problems, and a.jsonl is not generated"),
    ("q=a.jsonl[cuont=5]", "columns entry 'cuont=5': wanted TARGET=COLUMN .*; other settings are verifier, split"),
    ("q=a.jsonl[prompt=a]", "no column for label; add label=COLUMN"),
    ("q=mine.py[verifier=math]", "verifier has no effect: it is for files, and mine.py is generated"),
    ("q=mine.py[prompt=a]", "prompt=a has no effect: mine.py is generated, and has only count, levels, kinds, seed"),
    ("q=mine.py[count=0]", "count=0: mine.py makes as many problems as are asked for"),
    ("q=mine.py[levels=6]", "levels=6: wanted levels among 1, 2, 3, 4, 5"),
    ("q=mine.py[kinds=]", "kinds=: wanted kinds of problems"),
    ("q=arithmetic[kinds=gcd]", "kinds=gcd: wanted kinds of arithmetic, chain"),
    ("q=other.py", "other.py: no such file"),
    (3, "wanted the name of a set, or one of your own as mine="),
  ],
)
def test_mistakes_name_the_entry_and_the_cure(entry, words):
  with pytest.raises(InputError, match=words) as error:
    own_sets.parse_entries((entry,))
  assert str(error.value).startswith(f"sets: {entry!r}: ")


def test_names_are_used_once():
  with pytest.raises(InputError, match="sets: 'q=b.jsonl': q is the name of another entry"):
    own_sets.parse_entries(("q=a.jsonl", "q=b.jsonl"))


def test_lists_are_split_outside_of_brackets():
  for text, words in (
    (" a, b,,c ", ["a", "b", "c"]),
    ("a=b[c=d[:-1],e],f", ["a=b[c=d[:-1],e]", "f"]),
    ("a[b,c", ["a[b", "c"]),
    ("a]b,c[", ["a]b", "c["]),
    ("", []),
  ):
    assert split_at_commas(text) == words, text
