"""The report on synthetic runs: its numbers, its verdicts, hostile text, and runs that are not whole."""

import json
import math
from html.parser import HTMLParser

import numpy as np
import pytest

from jaxrlvr import report
from jaxrlvr.analysis.passk import summarise
from jaxrlvr.report import Arm
from jaxrlvr.types import InputError

P, K, STEPS = 12, 4, 20
HOSTILE = {
  "script": "<script>alert(1)</script><img src=http://evil.example/x onerror=alert(2)>\\boxed{1}",
  "ansi": "\x1b[31mred\x1b[0m\x07\x00",
  "bidi": "abc\u202edcba\u2066x",
  "surrogate": "lone \ud800 and \udfff",
  "long": "A" * 1_000_000 + " the end of it",
  "markup": "</pre></article>{{ 7 * 7 }}{% raw %}&amp;\u2028",
}


def write_jsonl(path, rows):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def eval_rows(step, right_PK, texts):
  return [
    {
      "step": step, "set": "quiz", "problem": f"q/{p}", "sample": k, "prompt": "How many?", "truth": "1",
      "text": texts[(p * K + k) % len(texts)], "tokens": 5, "stop": "eos", "logp": -0.5, "certainty": 1.0,
      "true_reward": float(right_PK[p, k]), "scored": True, "cause": "", "answer": str(int(right_PK[p, k])),
      "cluster": int(right_PK[p, k]),
      "faithfulness": (1, 0.5, 0)[k % 3],
    }
    for p in range(P) for k in range(K)
  ]  # fmt: skip


def make_run(
  path, accuracy, reward, true=None, steps=STEPS, planned=STEPS, texts=("\\boxed{1}",), seed=0, finished=True
):
  """A run directory whose held-out accuracy and rewards follow the given functions of the share of steps done."""
  draw, rows = np.random.default_rng(seed), []
  for step in range(steps + 1):
    x = step / planned
    row = {"step": step}
    if step:
      row |= {"reward": reward(x), "true_reward": (true or reward)(x), "kl": 0.01 * x, "completions/mean_length": 30.0}
    if step % 10 == 0:
      right_PK = draw.permutation(np.arange(P * K) < round(accuracy(x) * P * K)).reshape(P, K)
      made = eval_rows(step, right_PK, texts)
      write_jsonl(path / "evals" / f"quiz_{step:06d}.jsonl", made)
      figures = {f"eval/quiz/{name}": value for name, value in summarise(made, (1, 2, 4)).items()}
      row |= {name: None if math.isnan(value) else value for name, value in figures.items()}
    rows.append(row)
  write_jsonl(path / "metrics.jsonl", rows)
  paid = [row | {"reward": 1.0, "label": "7"} for row in eval_rows(steps, np.zeros((P, K)), texts)]
  write_jsonl(path / "rollouts" / f"step_{steps:06d}.jsonl", paid)
  config = {"seed": 3, "rl": {"steps": planned, "reward": "verifiable"}, "problems": {"count": 8}}
  (path / "config.json").write_text(json.dumps(config))
  if finished:
    figures = {name: value for name, value in rows[-1].items() if name.startswith("eval/")}
    (path / "summary.json").write_text(json.dumps({"stage": "rl", "steps": steps, "finished": True} | figures))
  return path


class Page(HTMLParser):
  """Tags, attributes and visible text of a page; fails on a tag that is closed out of turn."""

  VOID = {"meta", "img", "br", "line", "input"}

  def __init__(self, text):
    super().__init__()
    self.tags, self.attributes, self.texts, self._open = [], [], [], []
    self.feed(text)
    self.close()
    assert not self._open, f"never closed: {self._open}"

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.attributes += [(tag, *pair) for pair in attrs]
    self._open += [] if tag in self.VOID else [tag]

  def handle_endtag(self, tag):
    if tag not in self.VOID:
      assert self._open.pop() == tag

  def handle_data(self, data):
    self.texts.append(data)

  @property
  def text(self):
    return " ".join(" ".join(self.texts).split())


def make(folder, arms, evaluations=None, tail=5, samples=6):
  path = report.write(folder, "Eight <problems>", arms, evaluations or {}, tail, samples)
  html = path.read_text(encoding="utf-8")
  return html, Page(html), json.loads((folder / "report.json").read_text())


def fast(x):
  return min(1.0, 0.2 + 3 * x) - 0.2 * max(0.0, x - 0.8)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
  """A report of an arm that gains and of one that memorises, with one measured policy and one that is missing."""
  root = tmp_path_factory.mktemp("two")
  make_run(root / "good", lambda x: 0.2 + 0.6 * x, fast, seed=1)
  make_run(root / "bad", lambda x: 0.25, fast, seed=2)
  arms = [Arm("good $arm_1$", root / "good"), Arm("_bad", root / "bad")]
  return root, *make(root / "page", arms, {"Start": root / "bad", "Lost": root / "nowhere"})


def rates(path, step):
  rows = [json.loads(line) for line in (path / "evals" / f"quiz_{step:06d}.jsonl").read_text().splitlines()]
  return np.array([np.mean([r["true_reward"] for r in rows if r["problem"] == f"q/{p}"]) for p in range(P)])


def test_gain_and_interval_equal_numbers_worked_out_apart(two):
  root, _, page, numbers = two
  change_P = rates(root / "good", STEPS) - rates(root / "good", 0)
  found = numbers["arms"][0]
  assert found["gain"] == pytest.approx(change_P.mean(), abs=1e-12) and found["paired_problems"] == P
  standard_error = change_P.std(ddof=1) / np.sqrt(P)
  assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * standard_error, rel=0.15)
  assert found["low"] < change_P.mean() < found["high"]
  assert (found["set"], found["K"], found["start_step"], found["end_step"]) == ("quiz", K, 0, STEPS)
  before, after = (100 * rates(root / "good", step).mean() for step in (0, STEPS))
  assert f"{before:.1f}% at step 0 to {after:.1f}% at step 20" in page.text
  assert f"{100 * change_P.mean():+.1f} points" in page.text
  gap_P = rates(root / "good", STEPS) - rates(root / "bad", STEPS)
  assert f"ends {100 * gap_P.mean():.1f} points above _bad" in numbers["lead"]


def test_saturation_and_rewards_are_those_of_the_metrics(two):
  _, _, page, numbers = two
  rewards = [fast(t / STEPS) for t in range(1, STEPS + 1)]
  t_sat = next(t for t, r in enumerate(rewards, 1) if r >= 0.99 * max(rewards))
  found = numbers["arms"][0]
  assert found["t_sat"] == t_sat and found["read_between"] == [0, 10]
  evals = [rates(two[0] / "good", step).mean() for step in (0, 10, 20)]
  at = evals[0] + (evals[1] - evals[0]) * t_sat / 10
  assert found["gain_at_t_sat"] == pytest.approx(at - evals[0]) and found["residual"] == pytest.approx(evals[2] - at)
  assert found["reward_first"] == pytest.approx(np.mean(rewards[:5]))
  assert found["reward_last"] == pytest.approx(np.mean(rewards[-5:]))
  assert f"saturated at step {t_sat}" in page.text


def test_verdicts_follow_the_numbers(two, tmp_path):
  assert [arm["kind"] for arm in two[3]["arms"]] == ["gained", "memorised"]
  assert "good $arm_1$ gained" in two[3]["lead"] and "_bad learned the training problems" in two[3]["lead"]
  for name, accuracy, reward, true in (
    ("misled", lambda x: 0.25, fast, lambda x: 0.3),
    ("flat", lambda x: 0.25, lambda x: 0.3, None),
    ("unclear", lambda x: 0.25, lambda x: 0.3 + 0.1 * x, None),
    ("fell", lambda x: 0.9 - 0.7 * x, fast, None),
  ):
    m = report._measure(report._Run(name, make_run(tmp_path / name, accuracy, reward, true, seed=2), 0), 5)
    assert report._kind(m) == name


def test_charts_are_beside_the_page_and_inside_it(two):
  root, _, page, numbers = two
  sources = [value for tag, name, value in page.attributes if (tag, name) == ("img", "src")]
  assert len(sources) == len(numbers["charts"]) == 6
  for file in numbers["charts"]:
    assert (root / "page" / file).read_bytes().startswith(b"\x89PNG")
  alts = [value for _, name, value in page.attributes if name == "alt"]
  assert any("good $arm_1$: first 0.35, last 0.96;" in alt for alt in alts)


def test_other_policies_and_missing_ones_are_told(two):
  _, _, page, numbers = two
  start, lost = numbers["evaluations"]
  assert start["sets"]["quiz"]["avg@4"] == pytest.approx(rates(two[0] / "bad", STEPS).mean())
  assert f"Start quiz {100 * rates(two[0] / 'bad', STEPS).mean():.1f} (" in page.text
  assert lost["sets"] == {} and "Lost: Not measured" in page.text


def test_nothing_is_loaded_and_the_policy_says_so(two):
  _, html, page, _ = two
  assert "script" not in page.tags and "link" not in page.tags and "iframe" not in page.tags
  policy = next(v for _, name, v in page.attributes if name == "content" and "default-src" in v)
  assert {"default-src 'none'", "img-src data:", "style-src 'unsafe-inline'"} <= set(policy.split("; "))
  for tag, name, value in page.attributes:
    assert not name.startswith("on"), (tag, name)
    if name in ("src", "href", "srcset", "action", "data"):
      assert value.startswith("data:image/png;base64,"), (tag, name, value[:60])
  style = html[html.index("<style>") : html.index("</style>")]
  assert "url(" not in style and "@import" not in style and "http:" not in html and "https:" not in html


def test_hostile_text_stays_text(tmp_path):
  make_run(tmp_path / "run", lambda x: 0.5, fast, texts=tuple(HOSTILE.values()))
  name = "<b>arm</b>\x1b[2J\u202e\ud800 😀"
  html, page, _ = make(tmp_path / "page", [Arm(name, tmp_path / "run")], samples=40)
  assert "script" not in page.tags and "b" in page.tags  # the page's own bold number
  assert page.tags.count("b") == 1 and page.tags.count("img") == 6 and len(html) < 2_000_000
  assert not [c for c in html if not c.isprintable() and c != "\n"]
  assert "<script>alert(1)</script><img src=http://evil.example/x onerror=alert(2)>" in page.text
  assert "⟨U+001B⟩[31mred⟨U+001B⟩[0m⟨U+0007⟩⟨U+0000⟩" in page.text and "abc⟨U+202E⟩dcba⟨U+2066⟩x" in page.text
  assert "lone ⟨U+D800⟩ and ⟨U+DFFF⟩" in page.text and "</pre></article>{{ 7 * 7 }}" in page.text
  assert "characters left out" in page.text and "the end of it" in page.text and "A" * 1500 not in page.text
  left_out = 1_000_014 - report.HEAD - report.TAIL
  assert f"{left_out:,} characters left out" in page.text


def test_samples_show_each_kind_with_its_labels(two):
  root, _, page, numbers = two
  files = [s["file"] for s in numbers["samples"] if s["arm"] == "good $arm_1$"]
  assert files == ["evals/quiz_000000.jsonl"] * 2 + ["evals/quiz_000020.jsonl"] * 2 + ["rollouts/step_000020.jsonl"] * 2
  for file, first in (("evals/quiz_000000.jsonl", 0), ("evals/quiz_000020.jsonl", 2)):
    rows = [json.loads(line) for line in (root / "good" / file).read_text().splitlines()]
    score = {(row["problem"], row["sample"]): row["true_reward"] for row in rows}
    assert [score[s["problem"], s["sample"]] for s in numbers["samples"][first : first + 2]] == [1.0, 0.0]
  assert "true reward 0 reward 1 faithful" in page.text and "label 7" in page.text and "stop: eos" in page.text


def test_same_input_same_page(two, tmp_path):
  root, html, _, _ = two
  arms = [Arm("good $arm_1$", root / "good"), Arm("_bad", root / "bad")]
  assert make(tmp_path, arms, {"Start": root / "bad", "Lost": root / "nowhere"})[0] == html


def test_unfinished_and_broken_runs_are_told(tmp_path):
  make_run(tmp_path / "half", lambda x: 0.25, fast, steps=13, finished=False)
  (tmp_path / "empty").mkdir()
  torn = make_run(tmp_path / "torn", lambda x: 0.2 + 0.6 * x, fast)
  (torn / "evals" / "quiz_000000.jsonl").write_text('{"half a row\n')
  with (torn / "metrics.jsonl").open("a") as f:
    f.write('{"step": 21, "rew')
  names = ("half", "empty", "torn", "absent")
  _, page, numbers = make(tmp_path / "page", [Arm(name, tmp_path / name) for name in names])
  kinds = {arm["arm"]: arm["kind"] for arm in numbers["arms"]}
  assert kinds["empty"] == kinds["absent"] == "unmeasured" and kinds["torn"] == "open"
  assert "Not finished: this is its state after step 13 of 20." in page.text
  assert "Nothing was logged" in page.text and f"There is no directory {tmp_path / 'absent'}." in page.text
  assert "quiz_000000.jsonl can't be read" in page.text and "Not finished yet: half, empty and absent." in page.text


def test_no_arm_or_one_named_twice_is_refused(tmp_path):
  for arms in ([], [Arm("a", tmp_path), Arm("a", tmp_path)]):
    with pytest.raises(InputError, match="report.runs"):
      report.write(tmp_path, "t", arms, {}, 5, 1)


def test_not_finite_values_are_unknown(tmp_path):
  run = make_run(tmp_path / "run", lambda x: 0.25, fast)
  summary = json.loads((run / "summary.json").read_text())
  (run / "summary.json").write_text(json.dumps(summary | {"eval/quiz/pass@4": math.nan}))
  _, _, numbers = make(tmp_path / "page", [Arm("run", run)], {"again": run})
  assert numbers["evaluations"][0]["sets"]["quiz"]["pass@4"] is None
