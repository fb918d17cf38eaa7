"""Jobs for verifiers: of a text, of the released code's cases, of hostile answers."""

import json
import pathlib

import pytest

from jaxrlvr.grading.service import Job
from jaxrlvr.tasks import verdicts
from jaxrlvr.text.answer import parse_response

DATA = pathlib.Path(__file__).parents[3] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.exists(), reason="needs ../shared/data")


def job(verifier, text, label, extra=None):
  """Returns the job that grades a response with this text."""
  return Job(verifier, parse_response(text, "boxed"), label, extra or {})


def read(text):
  """Returns the answer in a response with this text."""
  return parse_response(text, "boxed").answer


def parse_row(texts):
  """Returns the responses with these texts, parsed."""
  return [parse_response(text, "boxed") for text in texts]


SAYS = {True: verdicts.RIGHT, False: verdicts.WRONG, None: verdicts.UNPARSEABLE}


def unpacked(label):
  if isinstance(label, str) and label.startswith('["'):
    label = json.loads(label)
  return (label[0], {label[0]: label[1:]}) if isinstance(label, list) else (label, {})


def golden_jobs():
  cases = json.loads((DATA / "golden" / "verifier.json").read_text())["cases"]
  cases = [case for case in cases if case["scores"]["RULE_BASED"] is not None]
  labels = [unpacked(case["ground_truth"]) for case in cases]
  return cases, [
    job("math", case["response"], label, {"also": also}) for case, (label, also) in zip(cases, labels, strict=True)
  ]


def hostile_jobs(canary="/nowhere"):
  rows = [json.loads(line) for line in (DATA / "hostile" / "answers.jsonl").read_text().splitlines()]
  rows = [row for row in rows if row["scorer"] == "math_verify"]

  def text(row, key):
    return row[key] if row.get(key) is not None else "".join(part * count for part, count in row[f"{key}_segments"])

  responses = [text(row, "response").replace("{CANARY}", str(canary)) for row in rows]
  return rows, [job("math", said, text(row, "ground_truth")) for row, said in zip(rows, responses, strict=True)]
