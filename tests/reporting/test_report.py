"""The report on synthetic runs and a grid: its numbers, conclusions, hostile text, and incomplete runs."""

import csv
import io
import json
import math
import re
import time
from html.parser import HTMLParser

import numpy as np
import pytest

from helpers import browser
from jaxrlvr import cli
from jaxrlvr.analysis.passk import pass_at_k
from jaxrlvr.base.errors import InputError
from jaxrlvr.reporting import charts as figures
from jaxrlvr.reporting import conclusions, curves, tables, wording
from jaxrlvr.reporting import page as report
from jaxrlvr.reporting import runs as results
from jaxrlvr.reporting import samples as responses
from jaxrlvr.reporting.runs import Cell
from jaxrlvr.stages.report import cells_of, named_places

P, K, STEPS = 12, 4, 20
RECORDED, JUDGED = (1, 0.5, 0, 1), (0.5, 1, 1, 0)  # labels by sample: of the run itself, and of a judge of 8 problems
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
      "step": step,
      "set": "quiz",
      "problem": f"q/{p}",
      "sample": k,
      "prompt": "How many?",
      "truth": "1",
      "text": texts[(p * K + k) % len(texts)],
      "tokens": 5,
      "stop": "eos",
      "logp": -0.5,
      "certainty": 1.0,
      "true_reward": float(right_PK[p, k]),
      "scored": True,
      "cause": "",
      "answer": str(int(right_PK[p, k])),
      "cluster": int(right_PK[p, k]),
      "faithfulness": RECORDED[k],
    }
    for p in range(P)
    for k in range(K)
  ]


def logged(rows):
  """Returns the metrics that an evaluation logs of these rows, with invented intervals."""
  score_PK = np.array([row["true_reward"] for row in rows]).reshape(P, K)
  figures_of_set = {f"avg@{K}": score_PK.mean()} | {
    f"pass@{k}": pass_at_k(K, score_PK.sum(1), k).mean() for k in (1, 2, 4)
  }
  figures_of_set |= {
    f"{name}_{end}": value + d for name, value in figures_of_set.items() for end, d in (("low", -0.1), ("high", 0.1))
  }
  return figures_of_set | {"format": 1.0, "faithful": 0.3, "unscored": 0.0, "mean_length": 5.0, "problems": float(P)}


def make_run(
  path,
  accuracy,
  reward,
  true=None,
  steps=STEPS,
  planned=STEPS,
  texts=("\\boxed{1}",),
  seed=0,
  finished=True,
  more=(("kl", 0.01), ("completions/mean_length", 30.0)),
  **config,
):
  """Writes a run directory; held-out accuracy and rewards follow the given functions of the share of steps done."""
  draw, rows = np.random.default_rng(seed), []
  for step in range(steps + 1):
    x = step / planned
    row = {"step": step}
    if step:
      row |= {"reward": reward(x), "true_reward": (true or reward)(x)} | dict(more)
    if step % 10 == 0:
      right_PK = draw.permutation(np.arange(P * K) < round(accuracy(x) * P * K)).reshape(P, K)
      evaluated = eval_rows(step, right_PK, texts)
      write_jsonl(path / "evals" / f"quiz_{step:06d}.jsonl", evaluated)
      row |= {f"eval/quiz/{name}": value for name, value in logged(evaluated).items()}
    rows.append(row)
  write_jsonl(path / "metrics.jsonl", rows)
  paid = [row | {"reward": 1.0, "label": "7"} for row in eval_rows(steps, np.zeros((P, K)), texts)]
  write_jsonl(path / "rollouts" / f"step_{steps:06d}.jsonl", paid)
  config = {"stage": "rl", "checkpoint": {}, "seed": 3, "rl": {"steps": planned, "reward": "verifiable"}} | config
  (path / "config.json").write_text(json.dumps(config))
  if finished:
    last = {name: value for name, value in rows[-1].items() if name.startswith("eval/")}
    (path / "summary.json").write_text(json.dumps({"stage": "rl", "steps": steps, "finished": True} | last))
  return path


def judge_run(path, of, steps=(0, STEPS), spread=0.5):
  """Writes a judge's directory over evaluated responses of the run `of`: the label of sample k is JUDGED[k]."""
  for step in steps:
    judged = [
      {
        "step": step,
        "problem": f"q/{p}",
        "sample": k,
        "correct": k == 0,
        "faithfulness": JUDGED[k],
        "key": "",
        "cluster": k % (1 + p % 2 + (step == 0)),
      }
      for p in range(8)
      for k in range(K)
    ]
    write_jsonl(path / "judged" / f"step_{step:06d}.jsonl", judged)
  judge_figures = {
    "F(1)/all": 0.5,
    "F(1)/all_low": 0.4,
    "F(1)/all_high": 0.6,
    "F(0.5)/all": 0.25,
    "F(0)/all": 0.25,
    "diversity_low": 0.1,
    "diversity_high": 0.9,
    "faithful_diversity": 0.2,
    "labelled/all": 32.0,
  }
  write_jsonl(
    path / "metrics.jsonl", [{"step": step, "diversity": spread - step / 100} | judge_figures for step in steps]
  )
  (path / "config.json").write_text(
    json.dumps({"stage": "judge", "checkpoint": {}, "judge": {"run": str(of), "set": "quiz"}})
  )
  (path / "summary.json").write_text(json.dumps({"kappa": {"faithfulness": {"kappa": 0.7}}}))
  return path


class Page(HTMLParser):
  """The tags, attributes and visible text of a page; fails on a tag that is closed in the wrong order."""

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


def make(folder, cells, evaluations=None, tail=5, samples=6):
  """Writes a report; returns (its html, the parsed page, report.json, the responses in the page).

  evaluations: {name: run directory} of runs of the stage evaluate.
  """
  measured = [Cell(name, workdir, evaluation=True) for name, workdir in (evaluations or {}).items()]
  path = report.write_report(folder, "Eight <problems>", cells, measured, tail, samples)
  html = path.read_text(encoding="utf-8")
  data = re.search(r'<script type="application/json" id="responses">(.*?)</script>', html, re.S)[1]
  return html, Page(html), json.loads((folder / "report.json").read_text()), json.loads(data)


def table(folder, name):
  with (folder / f"{name}.csv").open(newline="") as f:
    return list(csv.DictReader(f))


def fast(x):
  return min(1.0, 0.2 + 3 * x) - 0.2 * max(0.0, x - 0.8)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
  """A report on an arm that gains and one that memorises, with one measured policy and one that is missing."""
  root = tmp_path_factory.mktemp("two")
  make_run(root / "good", lambda x: 0.2 + 0.6 * x, fast, seed=1)
  make_run(root / "bad", lambda x: 0.25, fast, seed=2)
  (root / "start").mkdir()
  summary = json.loads((root / "bad" / "summary.json").read_text()) | {"stage": "evaluate", "steps": 0}
  (root / "start" / "summary.json").write_text(json.dumps(summary))
  cells = [Cell("good $arm_1$", root / "good"), Cell("_bad", root / "bad")]
  return root, *make(root / "page", cells, {"Start": root / "start", "Lost": root / "nowhere"})


def rates(path, step):
  """Returns the mean true reward of each problem at an evaluated step."""
  rows = results.read_jsonl(path / "evals" / f"quiz_{step:06d}.jsonl")
  reward = {(row["problem"], row["sample"]): row["true_reward"] for row in rows}
  reward_PK = np.array([reward[f"q/{p}", k] for p in range(P) for k in range(K)]).reshape(P, K)
  return reward_PK.mean(1)


def test_gain_and_interval_equal_numbers_worked_out_apart(two):
  root, _, page, numbers, _ = two
  change_P = rates(root / "good", STEPS) - rates(root / "good", 0)
  arm = numbers["arms"][0]
  assert arm["gain"] == pytest.approx(change_P.mean(), abs=1e-12) and arm["paired_problems"] == P
  standard_error = change_P.std(ddof=1) / np.sqrt(P)
  assert arm["high"] - arm["low"] == pytest.approx(2 * 1.96 * standard_error, rel=0.15)
  assert arm["low"] < change_P.mean() < arm["high"]
  assert (arm["set"], arm["K"], arm["start_step"], arm["end_step"]) == ("quiz", K, 0, STEPS)
  before, after = (100 * rates(root / "good", step).mean() for step in (0, STEPS))
  assert f"{before:.1f} → {after:.1f} {100 * change_P.mean():+.1f} {100 * arm['low']:+.1f} to" in page.text
  gap_P = rates(root / "good", STEPS) - rates(root / "bad", STEPS)
  assert f"ends {100 * gap_P.mean():.1f} points above _bad" in numbers["lead"]


def test_saturation_and_rewards_are_those_of_the_metrics(two):
  root, _, page, numbers, _ = two
  rewards = [fast(t / STEPS) for t in range(1, STEPS + 1)]
  t_sat = next(t for t, r in enumerate(rewards, 1) if r >= 0.99 * max(rewards))
  evals = [rates(root / "good", step).mean() for step in (0, 10, 20)]
  at = evals[0] + (evals[1] - evals[0]) * t_sat / 10
  row = table(root / "page", "saturation")[0]
  assert (row["arm"], row["set"], row["saturated"], float(row["t_sat"])) == ("good $arm_1$", "quiz", "1 of 1", t_sat)
  assert float(row["gain until t_sat"]) == pytest.approx(at - evals[0])
  assert float(row["residual"]) == pytest.approx(evals[2] - at)
  assert float(row["gain to the end"]) == pytest.approx(evals[2] - evals[0])
  assert numbers["arms"][0]["reward_first"] == pytest.approx(np.mean(rewards[:5]))
  assert numbers["arms"][0]["reward_last"] == pytest.approx(np.mean(rewards[-5:]))
  assert f"1 of 1 {t_sat} {float(row['t90']):.0f} {100 * (at - evals[0]):+.1f}" in page.text
  runs = table(root / "page", "runs")[0]
  both = [(runs[f"gain{end}"], row[f"gain to the end{end}"]) for end in ("", " low", " high")]
  assert all(one == other for one, other in both)  # one interval of one gain on the page
  assert float(table(root / "page", "runs")[0]["t_sat"]) == t_sat


def test_conclusions_follow_the_numbers(two, tmp_path):
  assert [arm["kind"] for arm in two[3]["arms"]] == ["gained", "memorised"]
  assert "good $arm_1$ gained" in two[3]["lead"] and "_bad learned the training problems" in two[3]["lead"]
  for name, accuracy, reward, true in (
    ("misled", lambda x: 0.25, fast, lambda x: 0.3),
    ("flat", lambda x: 0.25, lambda x: 0.3, None),
    ("unclear", lambda x: 0.25, lambda x: 0.3 + 0.1 * x, None),
    ("fell", lambda x: 0.9 - 0.7 * x, fast, None),
  ):
    run = results.RecordedRun(Cell(name, make_run(tmp_path / name, accuracy, reward, true, seed=2)), 5)
    assert conclusions.conclude(run).kind == name


def test_cautions_and_true_rewards_are_told_where_they_matter(two, tmp_path):
  assert "true reward" not in table(two[0] / "page", "runs")[0]  # the same as the reward
  run = make_run(tmp_path / "run", lambda x: 0.2 + 0.6 * x, fast, lambda x: 0.3)
  rows = results.read_jsonl(run / "metrics.jsonl")
  rows[0] |= {"eval/quiz/format": 0.4, "eval/quiz/unscored": 0.25}
  write_jsonl(run / "metrics.jsonl", rows)
  page = make(tmp_path / "page", [Cell("run", run)])[1]
  assert (
    "boxed answer went from 40.0% to 100.0%" in page.text and "25.0% of the first and 0.0% of the last" in page.text
  )
  row = table(tmp_path / "page", "runs")[0]
  assert (float(row["true reward"]), float(row["true reward first"])) == pytest.approx((0.3, 0.3))


def test_charts_are_beside_the_page_and_inside_it(two):
  root, _, page, numbers, _ = two
  sources = [value for tag, name, value in page.attributes if (tag, name) == ("img", "src")]
  assert numbers["charts"] == [
    "reward",
    "eval_quiz",
    "passk_quiz",
    "passk-by-k_quiz",
    "length",
    "kl",
    "eval-faithful_quiz",
    "passk-by-k_quiz_no-RL",
  ]
  assert len(sources) == len(numbers["charts"])
  for file in numbers["charts"]:
    assert (root / "page" / f"{file}.png").read_bytes().startswith(b"\x89PNG")
    assert "</svg>" in (root / "page" / f"{file}.svg").read_text()
  alts = [value for _, name, value in page.attributes if name == "alt"]
  assert any("good $arm_1$: first 0.35, last 0.96;" in alt for alt in alts)
  by_k = next(alt for alt in alts if alt.startswith("pass@k on quiz, %, over samples k."))
  last, first = (results.read_jsonl(root / "good" / "metrics.jsonl")[at] for at in (-1, 0))
  for label, row in (("good $arm_1$", last), ("good $arm_1$ before", first)):
    least, most = (wording.three_digits(100 * row[f"eval/quiz/pass@{k}"]) for k in (1, 4))
    assert f"{label}: first {least}, last {most}" in by_k


def test_labels_keep_what_the_font_draws():
  label = figures._plain("_γ = 0.7 · é 中\u202e")
  assert label == " _γ = 0.7 · é \\u4e2d\\u27e8U+202E\\u27e9" and len(figures._plain("x" * 50)) == 40


def test_other_policies_and_missing_ones_are_told(two):
  root, _, page, _, _ = two
  row = next(row for row in table(root / "page", "runs") if row["setting"] == "no RL")
  assert row["accuracy"] and not (row["accuracy first"] or row["paid by"] or row["reward"])  # evaluated once
  row = next(row for row in table(root / "page", "evaluations-quiz") if row["setting"] == "no RL")
  assert row["arm"] == "Start" and float(row["avg@4"]) == pytest.approx(rates(root / "bad", STEPS).mean())
  lost = next(row for row in table(root / "page", "runs") if row["run"] == "Lost")
  assert f"There is no directory {root / 'nowhere'}." in lost["notes"] and lost["notes"] in page.text


def test_nothing_is_loaded_and_the_policy_says_so(two):
  _, html, page, *_ = two
  assert page.tags.count("script") == 2 and not {"link", "iframe", "object", "base", "form"} & set(page.tags)
  policy = next(v for _, name, v in page.attributes if name == "content" and "default-src" in v)
  rules = dict(rule.split(maxsplit=1) for rule in policy.split(";"))
  assert rules["default-src"] == "'none'" and rules["img-src"] == "data:"
  assert re.fullmatch(r"'sha256-[\w+/]{43}='", rules["script-src"])  # the page's own, and no other
  for tag, name, value in page.attributes:
    assert not name.startswith("on"), (tag, name)
    if name in ("src", "href", "srcset", "action", "data"):
      assert value.startswith("data:image/png;base64,"), (tag, name, value[:60])
  without_images = re.sub(r'src="data:image/png;base64,[\w+/=]+"', "", html)
  assert not [
    word for word in ("http:", "https:", "src=", "url(", "@import", "import(", "fetch") if word in without_images
  ]


def test_hostile_text_stays_text(tmp_path):
  make_run(tmp_path / "run", lambda x: 0.5, fast, texts=tuple(HOSTILE.values()))
  name = "<b>arm</b>\x1b[2J\u202e\ud800 😀"
  html, page, _, shown = make(tmp_path / "page", [Cell(name, tmp_path / "run")], samples=40)
  assert "b" not in page.tags and page.tags.count("script") == 2 and len(html) < 2_000_000
  assert not [c for c in html if not c.isprintable() and c != "\n"]
  assert "<b>arm</b>⟨U+001B⟩[2J⟨U+202E⟩⟨U+D800⟩ 😀" in page.text and "evil.example" in html
  raw = re.search(r'id="responses">(.*?)</script>', html, re.S)[1]
  assert "<" not in raw and ">" not in raw
  texts = {row["head"] for row in shown}
  assert HOSTILE["script"] in texts and "⟨U+001B⟩[31mred⟨U+001B⟩[0m⟨U+0007⟩⟨U+0000⟩" in texts
  assert "abc⟨U+202E⟩dcba⟨U+2066⟩x" in texts and "lone ⟨U+D800⟩ and ⟨U+DFFF⟩" in texts
  assert HOSTILE["markup"].replace("\u2028", "⟨U+2028⟩") in texts
  cut = next(row for row in shown if row["left_out"])
  assert cut["left_out"] == 1_000_014 - responses.HEAD_CHARACTERS - responses.TAIL_CHARACTERS and cut["rest"].endswith(
    "the end of it"
  )
  assert len(cut["head"]) == responses.HEAD_CHARACTERS and len(cut["rest"]) == responses.TAIL_CHARACTERS


@pytest.mark.parametrize("name", ["=cmd|' /C calc'!A0", "+1+1", "@SUM(A1)", "-2+3", "\t=1", "a\x1b[2Jb", "\r=1"])
def test_no_cell_of_a_table_is_a_formula(tmp_path, name):
  """The hostile text is the name of a setting, an arm, a run and a reward, and in what the paper is said to report."""
  paper = {"figure": name, "setting": name, "expected": name, "t_sat": 3, "gains": []}
  run = make_run(tmp_path / "run", lambda x: 0.5, fast, rl={"steps": STEPS, "reward": name}, paper=paper)
  make(tmp_path / "page", [Cell(name, run, arm=name, setting=name)])
  written = 0
  for file in (tmp_path / "page").glob("*.csv"):
    for row in csv.reader(io.StringIO(file.read_text(encoding="utf-8"), newline="")):
      for cell in row:
        assert not re.match(r"\s*[=+@-]", cell) or re.fullmatch(r"-?[\d.e-]+", cell)
        assert cell.isprintable()
        written += cell.startswith("'")
  assert written >= 6


def test_responses_show_each_kind_with_its_labels(two):
  root, _, page, numbers, shown = two
  mine = [row for row in shown if row["run"] == "good $arm_1$"]
  assert {(r["where"], r["step"]) for r in mine} == {("quiz", 0), ("quiz", STEPS), ("training", STEPS)}
  for step in (0, STEPS):
    rows = results.read_jsonl(root / "good" / "evals" / f"quiz_{step:06d}.jsonl")
    score = {(row["problem"], row["sample"]): row["true_reward"] for row in rows}
    there = [row for row in mine if (row["where"], row["step"]) == ("quiz", step)]
    assert [score[r["problem"], r["sample"]] for r in there] == [r["true_reward"] for r in there] == [1, 0] * 3
  paid = [row for row in mine if row["where"] == "training"]
  assert all((row["reward"], row["true_reward"], row["label"]) == (1, 0, "7") for row in paid)
  assert f"{len(shown)} of {6 * P * K} responses" in page.text and numbers["responses"] == len(shown) == 36


def test_page_stays_small(tmp_path, monkeypatch):
  run = make_run(tmp_path / "run", lambda x: 0.5, fast, texts=("A" * 1000,))
  monkeypatch.setattr(responses, "PAGE_CHARACTERS", 20_000)
  monkeypatch.setattr(curves, "EMBEDDED_CHARTS", 2)
  cells = [Cell(name, run, "arm", name) for name in ("this", "that")]
  html, page, _, shown = make(tmp_path / "page", cells, samples=40)
  assert len(json.dumps(shown)) < 21_000 and len(shown) == 2 * 3 * 2 and "at most 2 a run" in page.text
  alts = [value for _, name, value in page.attributes if name == "alt"]
  assert [alt.split(",")[0] for alt in alts] == ["Training reward · this", "Training reward · that"]
  assert "is beside this page only." in page.text


def test_same_input_same_page(two, tmp_path):
  root, html, *_ = two
  cells = [Cell("good $arm_1$", root / "good"), Cell("_bad", root / "bad")]
  (tmp_path / "page").mkdir()
  (tmp_path / "page" / "former.csv").write_text("of other runs")
  (tmp_path / "page" / "report.json").write_text('{"tables": ["former"]}')
  second = make(tmp_path / "page", cells, {"Start": root / "start", "Lost": root / "nowhere"})[0]
  assert second == html
  assert {p.name for p in (root / "page").iterdir()} == {p.name for p in (tmp_path / "page").iterdir()}
  for path in (root / "page").glob("*.*"):
    assert path.read_bytes() == (tmp_path / "page" / path.name).read_bytes(), path


def test_unfinished_and_broken_runs_are_told(tmp_path, caplog):
  make_run(tmp_path / "half", lambda x: 0.25, fast, steps=13, finished=False)
  (tmp_path / "empty").mkdir()
  torn = make_run(tmp_path / "torn", lambda x: 0.2 + 0.6 * x, fast)
  (torn / "evals" / "quiz_000000.jsonl").write_text('{"half a row\n')
  (torn / "rollouts" / f"step_{STEPS:06d}.jsonl").write_text('["not a row"]\n')
  with (torn / "metrics.jsonl").open("a") as f:
    f.write('{"step": 21, "rew')
  strange = make_run(tmp_path / "strange", lambda x: 0.2 + 0.6 * x, fast)
  (strange / "config.json").write_text("[1]")
  with (strange / "metrics.jsonl").open("a") as f:
    f.write('{"step": 21, "reward": "much"}\n')
  names = ("half", "empty", "torn", "absent", "strange")
  _, page, numbers, _ = make(tmp_path / "page", [Cell(name, tmp_path / name) for name in names])
  kinds = {arm["arm"]: arm["kind"] for arm in numbers["arms"]}
  assert kinds["empty"] == kinds["absent"] == "unmeasured" and kinds["torn"] == "open" and kinds["strange"] == "gained"
  assert (
    "Not finished: this is its state after step 13 of 20." in page.text and "config.json can't be read" in page.text
  )
  assert "Nothing was measured" in page.text and f"There is no directory {tmp_path / 'absent'}." in page.text
  assert "torn: quiz_000000.jsonl can't be read" in caplog.text  # also where nobody looks at the page
  assert "quiz_000000.jsonl can't be read" in page.text and f"step_{STEPS:06d}.jsonl can't be read" in page.text
  assert "Not finished yet: half, empty and absent." in page.text
  states = {row["run"]: row["state"] for row in table(tmp_path / "page", "runs")}
  assert states == {
    "half": "not finished",
    "empty": "not there",
    "torn": "finished",
    "absent": "not there",
    "strange": "finished",
  }


@pytest.mark.parametrize(
  "file, line", [("run/metrics.jsonl", '{"step": 20.5}'), (f"judged/judged/step_{STEPS:06d}.jsonl", '{"step": 1}')]
)
def test_lines_that_are_of_another_kind_are_told(tmp_path, file, line):
  run = make_run(tmp_path / "run", lambda x: 0.2 + 0.6 * x, fast)
  cell = Cell("run", run, judged=judge_run(tmp_path / "judged", run))
  with (tmp_path / file).open("a") as f:
    f.write(line + "\n")
  assert f"{file.rpartition('/')[2]} can't be read" in make(tmp_path / "page", [cell])[1].text


@pytest.mark.parametrize(
  "file, change",
  [
    ("config.json", {"paper": 3}),
    ("config.json", {"paper": {"expected": "e", "gains": [1]}}),
    ("config.json", {"saturation_tail": "x", "rl": [], "heldout": {"domain": {}}}),
    ("summary.json", {"steps": {}, "stopped": 1, "unpaid": []}),
    ("metrics.jsonl", {"step": 0, "eval/quiz/avg@4_low": [], "eval/quiz/unscored": "much"}),
  ],
)
def test_values_of_another_kind_are_passed_over(tmp_path, monkeypatch, file, change):
  monkeypatch.setattr(figures, "draw_chart", lambda *_: {"png": b"", "svg": b""})  # charts have tests of their own
  run = make_run(tmp_path / "run", lambda x: 0.2 + 0.6 * x, fast)
  path = run / file
  if file.endswith(".json"):
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
  else:
    rows = results.read_jsonl(path)
    write_jsonl(path, [row | change if row["step"] == change["step"] else row for row in rows])
  _, page, numbers, _ = make(tmp_path / "page", [Cell("run", run)], {"again": run})
  assert numbers["arms"][0]["end"] == pytest.approx(rates(run, STEPS).mean()) and "run" in page.text


def test_no_arm_or_one_named_twice_is_refused(tmp_path):
  for cells in ([], [Cell("a", tmp_path), Cell("a", tmp_path)]):
    with pytest.raises(InputError, match="at least one, and each name once"):
      report.write_report(tmp_path, "t", cells, [], 5, 1)
  twice = [Cell("a", tmp_path, evaluation=True)] * 2
  with pytest.raises(InputError, match="each name once"):
    report.write_report(tmp_path, "t", [Cell("a", tmp_path)], twice, 5, 1)


def test_not_finite_values_are_unknown(tmp_path):
  run = make_run(tmp_path / "run", lambda x: 0.25, fast)
  (tmp_path / "again").mkdir()
  summary = json.loads((run / "summary.json").read_text()) | {"eval/quiz/pass@4": math.nan}
  (tmp_path / "again" / "summary.json").write_text(json.dumps(summary | {"steps": 0}))
  rollouts = run / "rollouts" / f"step_{STEPS:06d}.jsonl"
  rollouts.write_text(re.sub(r'"reward": [\d.]+', '"reward": Infinity', rollouts.read_text()))
  html, *_, shown = make(tmp_path / "page", [Cell("run", run)], {"again": tmp_path / "again"})
  assert "Infinity" not in html and None in {row["reward"] for row in shown}  # no browser parses it
  row = table(tmp_path / "page", "evaluations-quiz")[-1]
  assert row["arm"] == "again" and row["pass@4"] == "" and row["avg@4"]


# A grid: 2 arms x 2 settings x 2 seeds, judged; its numbers worked out here by other means

RATES = {"Base": 0.3, "CPT + Thinking": 0.6}  # what an arm gains from N = 64
SLOPES = {8: 4.0, 64: 3.0}  # by N, of the reward; seed 1 is slower


def share_of(arm, n, seed):
  return lambda x: 0.2 + RATES[arm] * min(1, 1.5 * x) * (0.5 if n == 8 else 1) + 0.05 * seed


def reward_of(n, seed):
  return lambda x: min(1.0, 0.2 + (SLOPES[n] - seed) * x)


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
  root = tmp_path_factory.mktemp("grid")
  cells = []
  for a, arm in enumerate(RATES):
    for n in SLOPES:
      for seed in (0, 1):
        name = f"{'bt'[a]}-{n}-{seed}"
        paper = (
          {
            "expected": "t_sat 55",
            "figure": "figure 1",
            "setting": "llama",
            "t_sat": 55,
            "gains": [["quiz", 12.5], ["amc", 8.8]],
          }
          if (a, n) == (1, 8)
          else {}
        )
        settings = {"seed": 10 * a + n + seed, "paper": paper, "rl": {"steps": STEPS, "reward": "verifiable"}}
        run = make_run(root / "rl" / name, share_of(arm, n, seed), reward_of(n, seed), more=(), **settings)
        judge_run(root / "judged" / name, run, spread=0.5 + 0.1 * seed)
        cells.append(
          {
            "name": name,
            "arm": arm,
            "setting": f"N = {n}",
            "n": n,
            "seed": seed,
            "rl": f"rl/{name}",
            "judged": f"judged/{name}",
          }
        )
  cells.append(cells[-1] | {"name": "lost", "arm": "Base", "setting": "majority", "n": None, "rl": "rl/lost"})
  cells.append(cells[0] | {"name": "unjudged", "setting": "majority", "n": None, "judged": ""})
  (root / results.GRID).write_text(json.dumps({"title": "Weak <supervision>", "cells": cells}))
  title, read_cells = results.read_grid(root)
  return root, title, read_cells, *make(root / "page", read_cells, samples=6)


def worked_out(root, arm, n, seed):
  """Returns (t_sat, mean of each problem [evaluated step, problem]) of a cell."""
  path = root / "rl" / f"{'bt'[list(RATES).index(arm)]}-{n}-{seed}"
  rewards = [reward_of(n, seed)(t / STEPS) for t in range(1, STEPS + 1)]
  t_sat = next(t for t, r in enumerate(rewards, 1) if r >= 0.99 * max(rewards))
  return t_sat, np.array([rates(path, step) for step in (0, 10, 20)])


def at(M_SP, step):
  return np.array([np.interp(step, (0, 10, 20), M_SP[:, p]) for p in range(P)])


def test_grid_saturation_is_that_of_its_runs(grid):
  root = grid[0]
  rows = {(row["setting"], row["arm"]): row for row in table(root / "page", "saturation")}
  for arm in RATES:
    for n in SLOPES:
      row, seeds = rows[f"N = {n}", arm], [worked_out(root, arm, n, seed) for seed in (0, 1)]
      assert row["saturated"] == "2 of 2"
      t_sats = [t for t, _ in seeds]
      assert float(row["t_sat"]) == np.mean(t_sats) and t_sats[0] < t_sats[1]
      assert (float(row["t_sat seeds low"]), float(row["t_sat seeds high"])) == tuple(t_sats)
      gains_SP = np.array([at(M, t) - M[0] for t, M in seeds])
      assert float(row["gain until t_sat"]) == pytest.approx(gains_SP.mean(), abs=1e-9)
      residuals = []
      for t, M in seeds:
        later = [M[i].mean() for i in range(3) if 10 * i >= t]
        residuals.append(max(at(M, t).mean(), *later) - at(M, t).mean())
      assert float(row["residual"]) == pytest.approx(np.mean(residuals), abs=1e-9)
      assert float(row["residual low"]) >= 0
      width = float(row["gain until t_sat high"]) - float(row["gain until t_sat low"])
      error = gains_SP.mean(0).std(ddof=1) / np.sqrt(P)
      assert width == pytest.approx(2 * 1.96 * error, rel=0.2)
      assert float(row["gain until t_sat seeds low"]) == pytest.approx(gains_SP.mean(1).min(), abs=1e-9)
      paper = ("figure 1 (llama): t_sat 55", "55", "0.125") if (arm, n) == ("CPT + Thinking", 8) else ("", "", "")
      assert (row["the paper"], row["t_sat paper"], row["gain until t_sat paper"]) == paper
  assert rows["majority", "Base"]["saturated"] == "1 of 2; not measured 1 of 2"


def test_a_run_s_own_tail_counts(tmp_path):
  path = make_run(tmp_path / "run", lambda x: 0.5, lambda x: min(1.0, 2 * x), saturation_tail=3)
  assert results.RecordedRun(results.Cell("one", path), tail=STEPS).t_sat == STEPS // 2


def test_the_story_is_told_of_the_domain_s_own_set(tmp_path):
  """Another set comes first by name."""
  path = make_run(tmp_path / "run", lambda x: x, lambda x: x, heldout={"domain": "arithmetic"})
  figures = {f"eval/{s}/avg@4": 0.5 for s in ("arithmetic-large", "arithmetic", "in-domain")}
  rows = [row | figures for row in results.read_jsonl(path / "metrics.jsonl")]
  write_jsonl(path / "metrics.jsonl", [dict(sorted(row.items())) for row in rows])
  run = results.RecordedRun(results.Cell("one", path), tail=5)
  assert (run.set, run.K) == ("arithmetic", 4)
  assert list(run.sets) == ["arithmetic", "arithmetic-large", "quiz"]  # a mean of one set is that set


def test_grid_gap_pairs_seeds_of_an_arm(grid):
  rows = table(grid[0] / "page", "gap")
  assert [(row["arm"], row["between"], row["n'"], row["n"]) for row in rows] == [
    (arm, "N = 64 − N = 8", "64", "8") for arm in RATES
  ]
  for row in rows:
    gaps = []
    for seed in (0, 1):
      (t_small, small), (_, large) = (worked_out(grid[0], row["arm"], n, seed) for n in SLOPES)
      gaps.append((at(large, t_small) - at(small, t_small)).mean())
    assert float(row["G(n', n)"]) == pytest.approx(np.mean(gaps), abs=1e-9) and row["pairs"] == "2"
    assert float(row["G(n', n) low"]) < np.mean(gaps) < float(row["G(n', n) high"])


def test_grid_evaluations_and_judgements(grid):
  root = grid[0]
  rows = {(r["setting"], r["arm"], r["at"]): r for r in table(root / "page", "evaluations-quiz")}
  seeds = [worked_out(root, "Base", 8, seed) for seed in (0, 1)]
  for moment, values in {
    "first": [M[0].mean() for _, M in seeds],
    "t_sat": [at(M, t).mean() for t, M in seeds],
    "best": [M.mean(1).max() for _, M in seeds],
    "last": [M[-1].mean() for _, M in seeds],
  }.items():
    assert float(rows["N = 8", "Base", moment]["avg@4"]) == pytest.approx(np.mean(values), abs=1e-9), moment
  metrics = [results.read_jsonl(root / "rl" / f"b-8-{seed}" / "metrics.jsonl") for seed in (0, 1)]
  assert float(rows["N = 8", "Base", "last"]["pass@2"]) == pytest.approx(
    np.mean([m[-1]["eval/quiz/pass@2"] for m in metrics])
  )
  row = next(r for r in table(root / "page", "reasoning") if (r["arm"], r["step"]) == ("CPT + Thinking", "0"))
  assert (float(row["faithful"]), float(row["in part"]), row["runs"], float(row["kappa"])) == (0.5, 0.25, "2", 0.7)
  ends = [float(row[f"diversity{end}"]) for end in ("", " seeds low", " seeds high")]
  assert ends == pytest.approx([0.55, 0.5, 0.6])


def test_grid_page(grid):
  root, title, cells, html, page, numbers, shown = grid
  assert title == "Weak <supervision>" and len(cells) == 10 and cells[0].judged == root / "judged" / "b-8-0"
  assert "What happened in each run" not in page.text and "1 of 10 runs are not there or not finished." in page.text
  states = {row["run"]: row["state"] for row in table(root / "page", "runs")}
  assert states.pop("lost") == "not there" and set(states.values()) == {"finished"}
  assert "seeds 100.0 to 100.0" not in page.text and "seeds 4 to 6" in page.text
  assert "the paper 55" in page.text and "the paper +12.5" in page.text and "figure 1 (llama): t_sat 55" in page.text
  rows = {row["arm"]: row for row in table(root / "page", "overview")}
  for arm in RATES:
    accuracies = [worked_out(root, arm, 8, seed)[1] for seed in (0, 1)]
    start, end = (100 * np.mean([M[step].mean() for M in accuracies]) for step in (0, -1))
    assert rows[arm]["N = 8"].startswith(f"{start:.1f} → {end:.1f}: "), rows
  assert rows["CPT + Thinking"]["N = 64"].endswith(": gained 2 of 2") and "1 of 1" in rows["Base"]["majority"]
  assert f"There is no directory {root / 'rl' / 'lost'}." in page.text
  charts = set(numbers["charts"])
  for setting in ("N-8", "N-64"):
    assert {
      f"{name}_{setting}"
      for name in ("reward", "eval_quiz", "judged-faithful", "judged-diversity", "judged-faithful-diversity")
    } <= charts
  labels = [
    (row["run"], int(row["problem"][2:]) < 8, row["sample"], row["faithful"]) for row in shown if row["where"] == "quiz"
  ]
  assert len({run for run, *_ in labels}) == 9 and {judged for _, judged, *_ in labels} == {True, False}
  for run, judged, k, label in labels:
    assert label == (JUDGED if judged and run != "unjudged" else RECORDED)[k]
  assert len(html) < 4e6


def test_domain_means_have_intervals_of_their_sets(tmp_path):
  run = make_run(tmp_path / "run", lambda x: 0.2 + 0.6 * x, fast, more=(), heldout={"domain": "math"})
  rows = results.read_jsonl(run / "metrics.jsonl")
  for name, other in (("math500", 0), ("amc", 1)):
    for row in (r for r in rows if "eval/quiz/avg@4" in r):
      evaluated = eval_rows(row["step"], np.random.default_rng(other).random((P, K)) < row["eval/quiz/avg@4"], ("x",))
      write_jsonl(run / "evals" / f"{name}_{row['step']:06d}.jsonl", evaluated)
      row[f"eval/{name}/avg@4"] = float(np.mean([r["true_reward"] for r in evaluated]))
  for row in (r for r in rows if "eval/amc/avg@4" in r):
    row["eval/in-domain/avg@4"] = (row["eval/math500/avg@4"] + row["eval/amc/avg@4"]) / 2
  write_jsonl(run / "metrics.jsonl", rows)
  make(tmp_path / "page", [Cell("run", run)])
  rows_by_set = {row["set"]: row for row in table(tmp_path / "page", "saturation")}
  assert list(rows_by_set) == ["math500", "amc", "quiz", "in-domain"]  # the domain's own first
  low, high = (float(rows_by_set["in-domain"][f"gain to the end {end}"]) for end in ("low", "high"))
  assert low < float(rows_by_set["in-domain"]["gain to the end"]) < high
  assert high - low < float(rows_by_set["amc"]["gain to the end high"]) - float(
    rows_by_set["amc"]["gain to the end low"]
  )


# Held-out problems that are trained on, phases, runs without reward, evaluations alone


def record(path, **summary):
  """Changes entries of a finished run's summary; None removes a key."""
  summary_now = json.loads((path / "summary.json").read_text()) | summary
  (path / "summary.json").write_text(
    json.dumps({key: value for key, value in summary_now.items() if value is not None})
  )
  return path


def test_captions_say_what_was_compared_with_the_training_problems(tmp_path):
  """One run shares no problem, one keeps shared ones, one left them out, and one recorded nothing about it."""
  records = {
    "none": {"heldout_overlap": {"quiz": 0}},
    "kept": {"heldout_overlap": {"quiz": 5}},
    "out": {"heldout_overlap": {"quiz": 0}, "heldout_left_out": {"quiz": 3}},
    "older": {},
  }
  phrases = {
    "none": f"none of its {P} problems is trained on",
    "kept": f"5 of its {P} problems trained on too",
    "out": f"none of its {P} problems is trained on (3 shared with the training problems left out)",
    "older": "not recorded whether any of its problems is trained on",
  }
  cells = []
  for name, summary in records.items():
    run = make_run(tmp_path / name, lambda x: 0.2 + 0.6 * x, fast, more=())
    cells.append(Cell(name, record(run, **summary), setting="with" if name == "kept" else "rest"))
  _, page, numbers, _ = make(tmp_path / "page", cells)
  joined = "; ".join(f"{phrases[name]} (1 of 3 runs)" for name in ("none", "out", "older"))
  assert f"Held out: {phrases['kept']}. (eval_quiz_with)" in page.text
  assert f"Held out: {joined}. (eval_quiz_rest)" in page.text
  assert {row["run"]: row["held out"] for row in table(tmp_path / "page", "runs")} == phrases
  assert "ever trained on" not in page.text
  assert "5 of its held-out problems are trained on too" in page.text  # beside what the gain means
  assert f"Trained on some of their held-out problems: kept (5 of {P})." in numbers["lead"]
  assert f"Held out: {phrases['none']} (1 of 4 runs); " in page.text  # of the table


def test_what_was_compared_is_read_from_any_summary(tmp_path):
  """Also for means of sets, for evaluations without RL, for unfinished runs, and where a value is no count."""
  path = make_run(tmp_path / "run", lambda x: 0.5, fast, heldout={"domain": "math"})
  rows = results.read_jsonl(path / "metrics.jsonl")
  for row in rows:
    row |= {
      f"eval/{name}/{key}": value for name in ("math500", "amc") for key, value in (("avg@4", 0.5), ("problems", 40))
    } | {"eval/in-domain/avg@4": 0.5}
  write_jsonl(path / "metrics.jsonl", rows)

  def told(name, **summary):
    record(path, heldout_overlap=None, heldout_left_out=None)
    return conclusions.held_out_phrase(results.RecordedRun(Cell("run", record(path, **summary)), 5), name)

  counts = {"math500": 2, "amc": 1}
  left = {"amc": 4}
  assert told("in-domain", heldout_overlap=counts, heldout_left_out=left) == (
    "3 of its 80 problems trained on too (4 shared with the training problems left out)"
  )
  assert told("amc", heldout_overlap=counts) == "1 of its 40 problems trained on too"
  for strange in ("all", [1], {"amc": "many"}, {"amc": True}, {"other": 0}):
    assert told("amc", heldout_overlap=strange).startswith("not recorded whether"), strange
  assert told("amc", heldout_overlap=counts, heldout_left_out="x") == "1 of its 40 problems trained on too"
  summary = json.loads((path / "summary.json").read_text()) | {"heldout_overlap": None}
  (path / "summary.json").write_text(json.dumps(summary))
  run = results.RecordedRun(Cell("run", path), 5)
  assert (
    conclusions.held_out_phrase(run, "amc") == "not compared with training problems: none of the policy are on record"
  )
  (path / "summary.json").unlink()
  assert conclusions.held_out_phrase(results.RecordedRun(Cell("run", path), 5), "amc").startswith(
    "not recorded yet whether"
  )


def test_phases_are_told_as_the_run_recorded_them(tmp_path):
  """The table has the last claim, since when it holds, and its interval; for several seeds their numbers."""
  names = ("learning", "memorising", "collapsed")

  def phased(name, claims, gain):
    run = make_run(tmp_path / name, lambda x: 0.5, fast, more=())
    rows = results.read_jsonl(run / "metrics.jsonl")
    for row in rows[1:]:
      row |= {claim: float(claim == claims(row["step"])) for claim in names}
    rows[10] |= dict(zip(("heldout_gain", "heldout_gain_low", "heldout_gain_high"), gain, strict=True))
    write_jsonl(run / "metrics.jsonl", rows)
    return run

  runs = {
    "turned": phased("turned", lambda step: "learning" if step < 10 else "memorising", (0.01, -0.02, 0.03)),
    "open": phased("open", lambda step: "", (0.01, -0.2, 0.3)),
    "older": make_run(tmp_path / "older", lambda x: 0.5, fast, more=()),
  }
  record(runs["turned"], stopped={"step": STEPS, "why": "memorising: the reward is full"})
  cells = [Cell(name, run) for name, run in runs.items()]
  _, page, _, _ = make(tmp_path / "page", cells)
  turned, undecided = table(tmp_path / "page", "phases")
  assert (turned["phase"], float(turned["since step"]), float(turned["at step"])) == ("memorising", 10, 10)
  assert [float(turned[f"held-out gain{end}"]) for end in ("", " low", " high")] == [0.01, -0.02, 0.03]
  assert (undecided["phase"], float(undecided["since step"])) == ("not decided", 1)
  states = {row["run"]: row["state"] for row in table(tmp_path / "page", "runs")}
  assert states == {"turned": "stopped itself", "open": "finished", "older": "finished"}
  assert f"Stopped itself at step {STEPS}: memorising: the reward is full." in page.text
  assert (
    tables.phase_counts([results.RecordedRun(cell, 5) for cell in cells]) == "memorising 1 of 3, not decided 1 of 3"
  )


def test_runs_without_reward_are_not_told_as_done(tmp_path):
  """One is finished and explains itself, one goes on, and in one nothing could be scored."""
  why = "no response was paid anything in 20 steps, so nothing is learned; answers: 100% cut off; raise it"
  shares = {f"answers/{kind}": float(kind == "cut_off") for kind in ("right", "wrong", "cut_off", "unparseable")}

  def unpaid(name, **keys):
    return make_run(tmp_path / name, lambda x: 0.1, lambda x: keys.pop("value", 0.0), more=shares.items(), **keys)

  runs = {
    "done": record(unpaid("done"), unpaid=why),
    "half": unpaid("half", steps=10, finished=False),
    "signed": make_run(tmp_path / "signed", lambda x: 0.1, lambda x: 0.0, more=(("reward_std", 1.0),)),  # -1 and 1
  }
  unscored = make_run(tmp_path / "unscored", lambda x: 0.1, lambda x: 0.0)
  write_jsonl(
    unscored / "metrics.jsonl",
    [row | {"reward": None} if row["step"] else row for row in results.read_jsonl(unscored / "metrics.jsonl")],
  )
  cells = [Cell(name, run) for name, run in (runs | {"unscored": unscored}).items()]
  _, page, numbers, _ = make(tmp_path / "page", cells)
  kinds = {arm["arm"]: arm["kind"] for arm in numbers["arms"]}
  assert kinds == {"done": "unpaid", "half": "unpaid", "signed": "flat", "unscored": "unpaid"}
  assert "done, half and unscored got no reward at all" in numbers["lead"]
  states = {row["run"]: row["state"] for row in table(tmp_path / "page", "runs")}
  assert (states["done"], states["half"], states["signed"]) == ("ended without reward", "not finished", "finished")
  rows = {row["run"]: row for row in table(tmp_path / "page", "phases")}
  assert rows["done"]["not paid"] == why and why in page.text
  assert rows["half"]["not paid"] == "no response was paid anything in 10 steps" and "signed" not in rows
  assert (float(rows["done"]["cut off"]), float(rows["done"]["right"])) == (1, 0)


def test_evaluations_alone_are_compared(two, tmp_path):
  """The page has their accuracy with intervals, differences over the same problems, pass@k and responses."""
  root = two[0]
  for name, of, step in (("before", "good", 0), ("after", "good", STEPS)):
    row = next(r for r in results.read_jsonl(root / of / "metrics.jsonl") if r["step"] == step)
    measured = {key: value for key, value in row.items() if key.startswith("eval/")}
    rows = results.read_jsonl(root / of / "evals" / f"quiz_{step:06d}.jsonl")
    write_jsonl(tmp_path / name / "evals" / "quiz_000000.jsonl", rows)
    summary = {"stage": "evaluate", "finished": True, "steps": 0, "heldout_overlap": {"quiz": 2}} | measured
    (tmp_path / name / "summary.json").write_text(json.dumps(summary))
    (tmp_path / name / "config.json").write_text(json.dumps({"stage": "evaluate", "checkpoint": {}, "seed": 1}))
  judged = judge_run(tmp_path / "judged", tmp_path / "after", steps=(0,))
  places = [str(tmp_path / name) for name in ("before", "after")]
  _, cells, evaluations = cells_of([*places, str(judged)])
  assert cells == [] and [cell.judged for cell in evaluations] == [None, judged]
  (tmp_path / "gone").mkdir()
  path = report.write_report(
    tmp_path / "page", "t", [], [*evaluations, Cell("gone", tmp_path / "gone", evaluation=True)], 5, 6
  )
  page, numbers = Page(path.read_text()), json.loads((path.parent / "report.json").read_text())
  first, last = (rates(root / "good", step) for step in (0, STEPS))
  share = [f"{100 * rate.mean():.1f}%" for rate in (last, first)]
  assert numbers["lead"] == f"Right answers of quiz, avg@4: after {share[0]}, before {share[1]}. Not measured: gone."
  row = table(path.parent, "differences")[0]
  assert (row["arm"], row["against"], row["problems"]) == ("after", "before", str(P))
  assert float(row["difference"]) == pytest.approx((last - first).mean())
  assert float(row["difference low"]) < (last - first).mean() < float(row["difference high"])
  runs = {row["run"]: row for row in table(path.parent, "runs")}
  assert float(runs["before"]["accuracy low"]) == pytest.approx(first.mean() - 0.1)  # as it was logged
  assert runs["gone"]["notes"].startswith("Nothing was measured") and runs["gone"]["state"] == "not there"
  assert f"Held out: 2 of its {P} problems trained on too. (passk-by-k_quiz)" in page.text
  assert numbers["charts"] == ["passk-by-k_quiz"] and numbers["responses"] > 6
  assert float(table(path.parent, "reasoning")[0]["faithful"]) == 0.5
  assert "t_sat" not in page.text and "Over training" not in page.text


def test_a_report_replaces_its_former_files_alone(tmp_path):
  """The report is written to a run directory, whose config.json and files of the user stay."""
  run = make_run(tmp_path / "run", lambda x: 0.5, fast, more=())
  page = tmp_path / "page"
  page.mkdir()
  (page / "report.json").write_text(json.dumps({"charts": ["old"], "tables": ["former", "../outside"]}))
  own = [page / "config.json", page / "mine.csv", page / "mine.png", tmp_path / "outside.csv"]
  former = [page / "old.png", page / "old.svg", page / "former.csv"]
  for file in (*own, *former):
    file.write_text("")
  make(page, [Cell("run", run)])
  assert all(file.is_file() for file in own) and not any(file.exists() for file in former)
  assert (page / "runs.csv").is_file() and (page / "reward.png").is_file()


def test_seeds_of_different_lengths_all_show(tmp_path):
  """One of two seeds was interrupted before its second evaluation; the other's curve is drawn to its end."""
  cells = [
    Cell("a", make_run(tmp_path / "a", lambda x: 0.2 + 0.5 * x, fast, more=()), arm="arm"),
    Cell("b", make_run(tmp_path / "b", lambda x: 0.2, fast, steps=4, finished=False, more=()), arm="arm"),
  ]
  make(tmp_path / "page", cells)
  for seeds in ([{0: 1.0, 10: 2.0, 20: 3.0}, {0: 1.0}], [{0: 1.0, 10: 2.0, 20: 3.0}, {5: 1.0}]):
    axes = figures._new_figure(2.9, "none")[1]
    figures._draw_line(axes, figures.Line("arm", 0, seeds, {}, None, True))
    assert [0, 10, 20] in [list(line.get_xdata()) for line in axes.lines], seeds
  row = table(tmp_path / "page", "evaluations-quiz")[-1]
  assert (row["at"], float(row["step"]), row["runs"]) == ("last", STEPS, "1 of 2")
  runs = [results.RecordedRun(cell, 5) for cell in cells]
  short = results.RecordedRun(Cell("c", make_run(tmp_path / "c", lambda x: 0.2, fast, steps=17, finished=False)), 5)
  assert tables.saturation_counts([*runs, short]) == "2 of 3; too short 1 of 3; not finished 1 of 3"


def test_right_and_wrong_responses_have_their_own_curves(tmp_path):
  """Charts show faithfulness over all, right and wrong responses, diversity over right ones, entropy, and pass@k."""
  run = make_run(tmp_path / "run", lambda x: 0.5, fast, more=(("entropy", 0.4),))
  judged = judge_run(tmp_path / "judged", run)
  rows = results.read_jsonl(judged / "metrics.jsonl")
  shares = {"F(1)/correct": 0.9, "F(0)/correct": 0.05, "F(0)/incorrect": 0.6, "diversity/correct": 0.3}
  write_jsonl(judged / "metrics.jsonl", [row | shares for row in rows])
  read = results.RecordedRun(Cell("run", run, judged=judged), 5)
  drawn = {drawing.key: drawing for drawing in curves.drawings_of({"run": [read]}, ["run"])}
  ends = {
    "judged-faithful": 50,
    "judged-faithful-right": 90,
    "judged-not-right": 5,
    "judged-not-wrong": 60,
    "judged-diversity-right": 0.3,
    "entropy": 0.4,
  }
  for key, value in ends.items():
    assert drawn[key].lines[0].seeds[0][STEPS] == pytest.approx(value), key
  last = results.read_jsonl(run / "metrics.jsonl")[-1]
  assert drawn["passk"].title == "pass@4 on quiz, %"
  assert drawn["passk"].lines[0].seeds[0][STEPS] == pytest.approx(100 * last["eval/quiz/pass@4"])


def test_gaps_count_the_pairs_that_they_are_of(tmp_path):
  """A small run that has not saturated has no t_sat at which a gap could be read."""
  cells = []
  for seed, reward in enumerate((fast, lambda x: 0.1 + 0.8 * x)):
    for n in (8, 64):
      path = make_run(tmp_path / f"{n}-{seed}", lambda x: 0.2 + 0.5 * x, reward, more=())
      cells.append(Cell(f"{n}-{seed}", path, "arm", f"N = {n}", n, seed))
  groups = results.group_runs([results.RecordedRun(cell, 5) for cell in cells])
  assert [row["pairs"] for row in tables.gap_rows(groups)] == ["1 of 2"]


# The command line


def test_entries_get_names(tmp_path, monkeypatch):
  for name in ("a/rl", "b/rl", "c", "lr=1"):
    (tmp_path / name).mkdir(parents=True)
  monkeypatch.chdir(tmp_path)
  assert list(named_places(["a/rl", "X=b/rl", "c/", "lr=1"])) == [
    ("a/rl", "a/rl"),
    ("X", "b/rl"),
    ("c", "c/"),
    ("lr=1", "lr=1"),
  ]
  flags, overrides = cli.parse_arguments(["report", "a/rl", "--workdir=w", "--config.seed", "3", "X=b/rl"])
  assert (flags.config, flags.stage) == ("base", "report") and overrides["seed"] == "3"
  assert overrides["report.runs"] == "('a/rl', 'X=b/rl')"
  with pytest.raises(SystemExit):
    cli.parse_arguments(["rl", "a/rl", "--workdir=w"])


def test_gather_sorts_runs_and_matches_judges(two, grid, tmp_path):
  judged = judge_run(tmp_path / "judged", two[0] / "good")
  title, cells, evaluations = cells_of([f"good={two[0] / 'good'}", str(judged), str(grid[0])])
  assert title == "Weak <supervision>" and len(cells) == 11 and evaluations == []
  assert (cells[0].name, cells[0].judged) == ("good", judged)
  with pytest.raises(InputError, match="not among the report's runs"):
    cells_of([str(judged)])
  with pytest.raises(InputError, match="holds no run"):
    cells_of([str(tmp_path)])
  (tmp_path / results.GRID).write_text('{"cells": [{"name": "x"}]}')
  with pytest.raises(InputError, match="grid.json: KeyError: 'rl'; wanted"):
    cells_of([str(tmp_path)])


def test_the_folder_of_a_chain_is_refused_with_the_links_to_name(tmp_path):
  stages = {"tokenizer": "tokenizer", "train": "rl", "test": "evaluate", "later": "rl"}
  chain = [{"name": name, "stage": stage} for name, stage in stages.items()]
  (tmp_path / "config.json").write_text(json.dumps({"stage": "chain", "checkpoint": {}, "chain": chain}))
  with pytest.raises(InputError, match="none of its links is such a run yet"):
    cells_of([str(tmp_path)])
  for name in ("tokenizer", "train", "test"):
    (tmp_path / name).mkdir()
    (tmp_path / name / "config.json").write_text(json.dumps({"stage": stages[name], "checkpoint": {}}))
  with pytest.raises(InputError) as refused:
    cells_of([f"{tmp_path}/"])
  assert str(refused.value).endswith(f"; name its links: {tmp_path}/train {tmp_path}/test")


def wait_for(tab, script, seconds=10):
  """Returns when the expression is true in the page; observers call back only after the next frame."""
  end = time.monotonic() + seconds
  while not tab.value(script):
    assert time.monotonic() < end, script
    time.sleep(0.05)


@pytest.mark.skipif(not browser.find(), reason="no Chromium on this machine")
def test_in_a_browser(grid, tmp_path):
  run = make_run(tmp_path / "run", lambda x: 0.5, fast, texts=tuple(HOSTILE.values()))
  shown = make(tmp_path / "page", [Cell("<i>arm</i>", run)], samples=40)[-1]
  late = [row for row in shown if row["step"] == STEPS]
  with browser.tab(browser.find(), tmp_path / "profile") as tab:
    pages = [(root / "page" / "index.html").as_uri() for root in (tmp_path, grid[0])]
    tab.open(pages[0])
    assert tab.value("list.children.length") == 12 and tab.value("count.textContent") == f"1 to 12 of {len(shown)}"
    pick = "const s = document.querySelector('select[name=Step]'); s.value = '20'; s.dispatchEvent(new Event('change'))"
    tab.value(f"{{ {pick} }}")
    assert tab.value("count.textContent") == f"1 to 12 of {len(late)}" and len(late) < len(shown)
    tab.value("document.getElementById('on').click()")
    assert tab.value("count.textContent").startswith("13 to 24")
    assert tab.value("[...list.querySelectorAll('article > p:first-child')].every(p => /step 20/.test(p.textContent))")
    assert not tab.value("list.querySelectorAll('img, script, i').length")
    for width, mobile in ((1280, False), (390, True)):
      tab.call("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=mobile)
      assert tab.value("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    tab.open(pages[1])
    tab.call("Emulation.setDeviceMetricsOverride", width=1280, height=800, deviceScaleFactor=1, mobile=False)
    assert tab.value("[...document.querySelectorAll('.scroll')].every(box => box.scrollWidth <= box.clientWidth)")
    assert not tab.value("document.querySelectorAll('.scroll.wide').length")
    tab.call("Emulation.setDeviceMetricsOverride", width=360, height=800, deviceScaleFactor=1, mobile=True)
    wait_for(tab, "document.querySelectorAll('.scroll.wide').length")
    says = "getComputedStyle(document.querySelector('.scroll.wide'), '::before').content"
    assert "scrolls sideways" in tab.value(says)
  messages = [
    e for e in tab.events if e["method"] in ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
  ]
  asked = [e["params"]["request"]["url"] for e in tab.events if e["method"] == "Network.requestWillBeSent"]
  assert not messages and [url for url in asked if not url.startswith("data:image/png")] == pages


def test_censored_runs_and_runs_that_never_rose_are_told(tmp_path):
  """In one arm one of three seeds saturates at step 4 and two in the tail; in another arm no reward rises."""

  def late(x):
    return 0.1 + 0.8 * x

  cells = []
  for seed, reward in enumerate((fast, late, late)):
    run = make_run(tmp_path / f"run{seed}", lambda x: 0.5, reward, seed=seed)
    cells.append(Cell(f"run{seed}", run, arm="mixed", seed=seed))
  for seed in (0, 1):
    flat = make_run(tmp_path / f"flat{seed}", lambda x: 0.5, lambda x: 0.0, seed=seed)
    cells.append(Cell(f"flat{seed}", flat, arm="flat", seed=seed))
  _, page, _, _ = make(tmp_path / "page", cells)
  mixed, flat = table(tmp_path / "page", "saturation")
  tail = 5  # of `make`
  run = results.RecordedRun(cells[1], tail)
  assert run.timing.state == "not saturated" and run.t_sat is None
  assert str(tables.time_value([run], [run.timing.t_sat])) == f"not by {STEPS - tail}"
  assert mixed["saturated"] == "1 of 3" and mixed["t_sat"] == ""
  assert float(mixed["t_sat at least"]) == results.RecordedRun(cells[0], tail).timing.t_eff
  assert "≥" in page.text
  assert flat["saturated"] == "no rise" and flat["t_sat"] == flat["t90"] == ""


def test_unlike_ends_are_not_compared(tmp_path):
  whole = make_run(tmp_path / "whole", lambda x: 0.2 + 0.5 * x, fast)
  begun = make_run(tmp_path / "begun", lambda x: 0.2, fast, steps=0, planned=STEPS, finished=False)
  _, page, numbers, _ = make(tmp_path / "page", [Cell("whole", whole), Cell("begun", begun)])
  assert "points above begun" not in numbers["lead"]
  assert "Not compared, as last evaluated at an earlier step: begun." in numbers["lead"]
  assert "Last evaluated at step 0, while others were at step 20: not compared." in page.text
