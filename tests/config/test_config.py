"""Configs: every key is read by some stage, and every mistake is named before anything is compiled."""

import json
import re
import sys
import tokenize
from pathlib import Path

import pytest
import yaml

from jaxrlvr import cli
from jaxrlvr.base.errors import InputError
from jaxrlvr.config import checks, links, manual
from jaxrlvr.config import files as configs
from jaxrlvr.config.rules import SWITCH, Group, Key, at_least, declared, each, one_of

ROOT = Path(__file__).parents[2]

BAD = (
  ("rl.stepz=3", "config.rl.stepz: no such key; did you mean config.rl.steps?"),
  ("rl=3", "config.rl: a group of keys"),
  ("rl.num_generations=8", "did you mean config.rl.group_size?"),
  ("actor_rollout_ref.rollout.n=8", "did you mean config.rl.group_size?"),
  ("rl.max_completion_length=8", "did you mean config.rl.response_tokens?"),
  ("per_device_train_batch_size=8", "did you mean config.rl.problems_per_step?"),
  ("rl.learning_rate=1e-6", "did you mean config.rl.optim.lr?"),
  ("sft.lr=1e-6", "did you mean config.sft.optim.lr?"),
  ("rl.beta=0.1", "did you mean config.rl.kl_beta?"),
  ("rl.epsilon=0.1", "did you mean config.rl.clip_low or config.rl.clip_high?"),
  ("rl.clip_ratio_high=0.28", "did you mean config.rl.clip_high?"),
  ("rl.num_iterations=4", "no such key; each response is trained on once (docs/names.md)"),
  ("sft.batch_size=8", "did you mean config.sft.rows?"),
  ("rl.steps=ten", "config.rl.steps = 'ten': has type str, wanted int"),
  ("rl.steps=1.5", "has type float, wanted int"),
  ("rl.steps=True", "has type bool, wanted int"),
  ("rl.steps=0", "config.rl.steps = 0: wanted at least 1"),
  ("rl.scale_std=1", "has type int, wanted bool"),
  ("rl.optim.lr=nan", "config.rl.optim.lr = 'nan'"),
  ("rl.optim.lr=1e999", "wanted a finite number"),
  ("rl.optim.lr=-1", "wanted at least 0"),
  ("rl.optim.schedule=cosin", "did you mean 'cosine'?"),
  ("rl.reward=verifable", "did you mean 'verifiable'?"),
  ("rl.reduce=mean", "wanted one of token-mean"),
  ("rl.group_size=1", "a group of one has no spread"),
  ("rl.minibatch_problems=5", "must be a multiple of config.rl.minibatch_problems"),
  ("rl.microbatches=7", "must be a multiple of config.rl.microbatches"),
  ("rl.dual_clip=0.5", "0 (off) or above 1"),
  ("rl.temperature=0", "greedy samples"),
  ("model.kv_heads=3", "multiple of config.model.kv_heads"),
  ("model.head_dim=5", "an even number from 2: RoPE rotates pairs"),
  ("model.dtype=float16", "one of float32, bfloat16"),
  ("evaluate.pass_k=32", "goes beyond config.evaluate.samples = 16; leave"),
  ("text.facts=0.95", "is above 1"),
  ("sft.levels=9", "one or more, each one of 1, 2, 3, 4, 5"),
  ("sft.levels=()", "one or more"),
  ("problems.kinds=ring", "each one of chain, expression"),
  ("resume=always", "one of auto, required, never"),
  ("seed=-1", "wanted from 0"),
  ("seed=99999999999", "wanted from 0"),
  ("text.levels=1.0", "each one of 1, 2"),
  ("evaluate.pass_k=1.5", "each at least 1"),
  ("heldout.name=../../x", "letters, digits"),
  ("heldout.name=" + "a" * 300, "at most 100 bytes"),
  ("heldout.columns=prompt=a", "config.heldout.columns has no effect: it is for a file, a folder or a set of the hub"),
  ("problems.columns=prompt=a", "(config.problems.source), and here there is only generated arithmetic; clear it"),
  ("cpt.skip_bad=1", "config.cpt.column or .skip_bad is set, but config.cpt.source is the built-in text"),
  ("sft.max_tokens=9", ".max_tokens is set, but config.sft.source is the built-in prompts"),
  ("heldout.skip_bad=1", "config.heldout.skip_bad has no effect"),
  (
    "heldout.folder=a",
    "config.heldout.folder has no effect: it is for the study's files (config.heldout.sets, .domain)",
  ),
  ("heldout.prompts=think", "config.heldout.prompts has no effect"),
  ("problems.system=Box it.", "config.problems.system has no effect"),
  ("problems.copies=keep", "config.problems.copies has no effect"),
  ("problems.split=a/b", "the name of a split"),
  ("rl.noise=(1e999, 0)", "finite"),
  ("study.jobs=2", "config.study.jobs: no such key; it is config.grid.jobs now"),
  ("report.runs=5", "strings `name=run directory`"),
  ("chain=5", "links {"),
)


@pytest.mark.parametrize("override,words", BAD, ids=[b[0] for b in BAD])
def test_mistakes_are_named(override, words):
  key, _, text = override.partition("=")
  with pytest.raises(InputError) as error:
    configs.load("base", {key: text})
  assert words in str(error.value) and "\n" not in str(error.value)


def test_overrides_are_read_as_the_type_of_their_key():
  c = configs.load(
    "demo:3",
    {
      "rl.steps": "7",
      "rl.optim.lr": "1",
      "rl.scale_std": "false",
      "sft.levels": "2,3",
      "init": "a=b",
      "rl.stop_strings": "x",
    },
  )
  assert (c.rl.steps, c.rl.optim.lr, c.rl.scale_std, c.sft.levels, c.init) == (7, 1.0, False, (2, 3), "a=b")
  assert isinstance(c.rl.optim.lr, float) and c.seed == 3 and c.rl.stop_strings == ("x",)


def test_only_keys_that_a_stage_reads_can_stop_it():
  """A wrong key of RL's training stops rl and plan, but no stage that only samples; likewise for the other keys."""
  wrong = {
    "rl.microbatches": ("7", {"rl", "plan"}),
    "rl.prompt_tokens": ("0", {"rl", "plan", "evaluate", "filter", "corrupt", "diagnose"}),
    "sft.optim.schedule": ("cosin", {"sft"}),
    "sft.terse": ("2.0", {"sft", "tokenizer"}),
    "heldout.overlap": ("no", {"rl", "evaluate"}),
    "filter.high": ("99", {"filter"}),
    "evaluate.samples": ("1", {"rl", "plan", "evaluate"}),  # beside pass_k
    "report.samples": ("-1", {"report", "chain", "grid"}),
    "seed": ("-1", set(manual.STAGE_PAGES)),
  }
  for key, (value, stages) in wrong.items():
    for stage in manual.STAGE_PAGES:
      if stage in stages:
        with pytest.raises(InputError, match=f"config.{key.split('.')[0]}|rows of an update"):
          configs.load("base", {key: value}, stage)
      else:
        configs.load("base", {key: value}, stage)
  with pytest.raises(InputError, match="config.sft.optim.schedule"):
    configs.load("base", {"sft.optim.schedule": "cosin", "plan.stage": "sft"}, "plan")
  assert set(manual.STAGE_PAGES) == set(cli.HELP)


def test_keys_without_effect_on_the_problems_are_refused():
  """Sizes are refused only if the command line sets them, as every config has them."""
  mine = {"problems.source": "mine.jsonl", "heldout.source": "mine.jsonl"}
  for changes, key in (
    (mine | {"problems.levels": "2"}, "config.problems.levels has no effect: it is for generated problems, generated"),
    (mine | {"heldout.seed": "2"}, "config.heldout.seed has no effect"),
    (mine | {"heldout.folder": "a"}, "config.heldout.folder has no effect"),
    ({"heldout.sets": "amc", "heldout.count": "9"}, "config.heldout.count .*study's files .*config.heldout.at_most is"),
    ({"heldout.sets": "amc", "heldout.columns": "prompt=a"}, "config.heldout.columns has no effect"),
    ({"heldout.sets": "arithmetic", "heldout.prompts": "think"}, "config.heldout.prompts has no effect"),
    (
      {"problems.source": "reasoning_gym", "problems.kinds": "gcd", "problems.copies": "keep"},
      "generated problems; clear",
    ),
  ):
    with pytest.raises(InputError, match=key):
      configs.load("base", changes)
  both = {"heldout.sets": "amc,arithmetic", "heldout.source": "mine.jsonl"}
  every = {"columns": "prompt=a,label=b", "skip_bad": "1", "folder": "a", "prompts": "think", "seed": "3", "count": "9"}
  configs.load("base", both | {f"heldout.{name}": value for name, value in every.items()})
  configs.load("smoke", {"heldout.sets": "amc"})  # whose file sets a count
  configs.load("colab", mine)  # and levels
  configs.load("base", {"problems.source": "reasoning_gym", "problems.kinds": "gcd", "problems.system": "Box it."})
  configs.load("base", {"problems.source": "arithmetic", "heldout.folder": "a"}, "sft")


def test_stages_read_no_group_beyond_their_own():
  """The groups of keys that a stage's module reads are listed on the stage's help page."""
  for stage in ("prepare", "evaluate", "rl", "diagnose", "judge", "report"):
    text = (ROOT / "jaxrlvr" / "stages" / f"{stage}.py").read_text()
    groups = {key.split(".")[0] for key in manual.keys_of(stage)}
    read = set(re.findall(r"\bconfig\.(\w+)", text)) & {key.split(".")[0] for key in declared()}
    assert read - {"init"} <= groups, stage


def test_stop_strings_from_a_shell_are_decoded(caplog):
  read = {
    r"\n\n": ("\n\n",),
    r"\nUser:,</s>": ("\nUser:", "</s>"),
    r"\\n": (r"\n",),
    r"('\n',)": ("\n",),
    " and": (" and",),
  }
  for text, strings in read.items():
    assert configs.load("base", {"rl.stop_strings": text}).rl.stop_strings == strings
  assert r"is read as ('\n\n',)" in caplog.text
  spaced = configs.load("base", {"problems.source": "a.jsonl", "problems.columns": "prompt=a, label=b"})
  assert spaced.problems.columns == ("prompt=a", "label=b")


def test_a_config_that_is_not_there_lists_those_that_are(tmp_path):
  with pytest.raises(InputError, match=r"name a file, or a config of .*: base, baselines, .*study"):
    configs.load("zzz")
  deep = tmp_path / "config.json"
  deep.write_text("[" * 100_000)
  with pytest.raises(InputError, match="is no config file"):
    configs.load(str(deep))
  links = [{"name": "a", "stage": 5}, {"name": "a", "stage": "sft", "set": [1]}, {"files": {"x": 1}}, {"b": 1}]
  for chain in links:
    deep.write_text(json.dumps({"chain": [chain]}))
    with pytest.raises(InputError, match="config.chain: link"):
      configs.load(str(deep))


def test_config_files_that_cannot_be_used(tmp_path):
  for text, words in (
    ("x = (\n", "SyntaxError"),
    ("import no_such_module\n", "1: ModuleNotFoundError"),
    ("x = 1\n", "defines no get_config"),
    ("def get_config(arg):\n  return 1 / 0\n", "2: ZeroDivisionError"),
    (
      "from jaxrlvr.config import base\ndef get_config(arg):\n  c = base()\n  c.rl.stepz = 1\n  return c\n",
      "4: AttributeError",
    ),
    (
      "from jaxrlvr.config import base\ndef get_config(arg):\n  c = base()\n  c.rl.steps = 'a'\n  return c\n",
      "4: TypeError",
    ),
    (
      "from jaxrlvr.config import base\ndef get_config(arg):\n  c = base()\n  c.rl.steps = True\n  return c\n",
      "type bool",
    ),
  ):
    file = tmp_path / "mine.py"
    file.write_text(text)
    with pytest.raises(InputError) as error:
      configs.load(str(file))
    assert words in str(error.value), error.value
  with pytest.raises(InputError, match=r"did you mean .*demo\.py"):
    configs.load("demos")


@pytest.mark.parametrize("name", sorted(p.stem for p in (ROOT / "configs").glob("*.py")))
def test_every_shipped_config_loads(name):
  configs.load(name)


@pytest.mark.parametrize("words, parts", [("cpt,v6e-64", 1), ("sft", 8), ("sft,topology=v5e-64", 64)])
def test_the_cut_of_a_preset_is_that_of_its_stage_and_slice(words, parts):
  c = configs.load(f"section4:{words},data=here")
  stage, *place = words.split(",")
  assert (c.plan.stage, c[stage].microbatches, c.heldout.folder) == (stage, parts, "here/eval")
  assert c.plan.topology == (place[0].removeprefix("topology=") if place else "v5e-16")


def test_an_override_that_would_change_no_link_is_refused(tmp_path, capsys):
  """Each link of the miniature sets its own seed, and both SFT links of the demo their targets."""
  for stage, name, key, value in (("grid", "miniature:1", "seed", 7), ("chain", "demo", "sft.thinking", True)):
    with pytest.raises(SystemExit):
      cli.run([stage, f"--config={name}", f"--config.{key}={value}", f"--workdir={tmp_path / 'run'}"])
    assert f"config.{key}: would change nothing, for each link of " in capsys.readouterr().err
  links.check_overrides(configs.load("demo"), ["seed", "rl.response_tokens", "rl.steps"])


def test_chains_are_checked_before_the_first_link_runs(tmp_path):
  from jaxrlvr.stages import STAGES
  from jaxrlvr.stages.links import read_links

  def config_of(*chain):
    c = configs.base()
    c.chain = chain
    return c

  with pytest.raises(InputError, match="no such key; did you mean config.sft.thinking"):
    checks.check(config_of({"name": "a", "stage": "sft", "set": {"sft.thinkin": True}}))
  for chain, words in (
    ((), "config.chain is empty"),
    (({"name": "a", "stage": "sftt"},), "of no known stage"),
    (({"name": "a", "stage": "sft", "init": "b"},), "no earlier link"),
    (({"name": "a", "stage": "sft"}, {"name": "a", "stage": "sft"}), "there twice"),
    (({"name": "a", "set": {"seed": 1}},), "has no stage"),
  ):
    links.check_overrides(config_of(*chain), ["seed"])
    with pytest.raises(InputError, match=words):
      read_links(config_of(*chain), tmp_path, STAGES)


def test_a_run_s_config_is_a_config(tmp_path):
  config = configs.load("demo", {"rl.stop_strings": "a,b", "rl.noise": "(0.1, 0)", "rl.steps": "3"})
  file = tmp_path / "config.json"
  file.write_text(json.dumps({"stage": "rl", **config.to_dict()}))
  assert configs.load(str(file)).to_dict() == config.to_dict()
  older = json.loads(file.read_text())
  del older["rl"]["branches"]
  file.write_text(json.dumps(older))
  assert configs.load(str(file), {"rl.steps": "4"}).rl.branches == -1
  mistakes = {
    "[1]": "is no config file",
    '{"rl": {"stepz": 1}}': "did you mean config.rl.steps",
    "{": "is no config",
  }
  for text, message in mistakes.items():
    file.write_text(text)
    with pytest.raises(InputError, match=message):
      configs.load(str(file))


YAML = """
# an experiment
base: demo:3
rl:
  optim: {lr: 1e-6}
  noise: [1e-1, 0]
  steps: 7
  reward: "one_box*verifiable"
heldout.count: 9
chain:
  - {name: a, stage: sft, set: {sft.steps: 3}}
"""


@pytest.mark.parametrize("name", ["my.yaml", "my.yml", "my.json"])
def test_a_file_of_keys_is_a_config(tmp_path, monkeypatch, name):
  monkeypatch.chdir(tmp_path)
  text = YAML
  if name == "my.json":  # yaml itself takes 1e-6 for a text
    text = json.dumps({"stage": "rl", **yaml.safe_load(YAML.replace("1e-1", "0.1").replace("1e-6", "1.0e-6"))})
  Path(name).write_text(text)
  config = configs.load(name, {"rl.group_size": "4"})
  same = configs.from_python("demo:3", {"rl.optim.lr": 1e-6, "rl.noise": (0.1, 0), "rl.steps": 7, "heldout.count": 9})
  configs.values.set_value(same, "rl.reward", "one_box*verifiable")
  configs.values.set_value(same, "chain", ({"name": "a", "stage": "sft", "set": {"sft.steps": 3}},))
  configs.values.set_value(same, "rl.group_size", 4)
  assert config.to_dict() == same.to_dict() and config.is_locked


def test_a_file_of_keys_starts_from_another_file_or_from_the_defaults(tmp_path, monkeypatch):
  (tmp_path / "first.json").write_text('{"rl.steps": 5, "rl": {"problems_per_step": 16}}')
  (tmp_path / "second.yaml").write_text("base: first.json\nrl.steps: 6\n")
  monkeypatch.chdir(tmp_path.parent)
  config = configs.load(str(tmp_path / "second.yaml"))
  assert (config.rl.steps, config.rl.problems_per_step, config.seed) == (6, 16, configs.base().seed)
  (tmp_path / "empty.yaml").write_text("# nothing\n")
  assert configs.load(str(tmp_path / "empty.yaml")).to_dict() == configs.base().to_dict()


@pytest.mark.parametrize(
  ("text", "words"),
  [
    ("rl:\n  stepz: 3\n", "my.yaml:2: config.rl.stepz: no such key; did you mean config.rl.steps"),
    ("seed: 1\nrl:\n  steps: ten\n", "my.yaml:3: config.rl.steps = 'ten': has type str, wanted int"),
    ("heldout.sets: math500\n", "my.yaml:1: .* has type str, wanted tuple like .*; write a list"),
    ("rl:\n  correction: no\n", "my.yaml:2: .* has type bool, wanted str like 'none'; put it in quotes"),
    ("rl: 3\n", "my.yaml:1: config.rl: a group of keys"),
    ("rl.steps: 3\nrl:\n  steps: 4\n", "my.yaml:3: rl.steps is there twice .before at .*my.yaml:1.; remove one"),
    ("rl:\n  steps: [\n", "my.yaml:3: is no YAML"),
    ("a: [!!python/object:os.system {}]\n", "my.yaml:1: "),
    ("- 1\n", "my.yaml: is no config file .*top level"),
    ("base: my.yaml\n", "my.yaml:1: base = 'my.yaml': starts from itself"),
    ("base: demmo\n", "no such file; did you mean .*demo.py"),
    ("base: 3\n", "my.yaml:1: base = 3: wanted the name of a config"),
    ("stage: rl\n", "my.yaml:1: config.stage: no such key"),
  ],
)
def test_a_file_of_keys_that_can_not_be_used_names_the_line(tmp_path, monkeypatch, text, words):
  monkeypatch.chdir(tmp_path)
  Path("my.yaml").write_text(text)
  with pytest.raises(InputError, match=words):
    configs.load("my.yaml")


def test_a_file_of_keys_takes_no_argument_and_needs_pyyaml(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  Path("my.yaml").write_text("rl.steps: 3\n")
  with pytest.raises(InputError, match="takes no argument; write it in the file, as base: demo:64"):
    configs.load("my.yaml:64")
  with pytest.raises(InputError, match="demo.yaml: no such file"):
    configs.load("demo.yaml")
  monkeypatch.setitem(sys.modules, "yaml", None)
  with pytest.raises(InputError, match="YAML needs PyYAML; pip install pyyaml"):
    configs.load("my.yaml")


def test_every_key_is_read_somewhere():
  """The last word of every key occurs in library code outside of this room; a key that nobody reads does nothing."""
  words = set()
  for path in (ROOT / "jaxrlvr").rglob("*.py"):
    if path.parent.name != "config":
      with path.open("rb") as f:
        words |= {w for t in tokenize.tokenize(f.readline) for w in re.findall(r"\w+", t.string) if t.type in (1, 3)}
  for key in declared():
    assert key.split(".")[-1] in words, f"config.{key} is read by nobody"


def test_each_key_has_a_meaning_and_a_rule_that_its_default_follows():
  for name, key in declared().items():
    assert key.meaning.strip() and key.rule.words(), name
    assert key.rule.holds(key.default), name


def test_meanings_name_what_is_in_the_tables_of_other_rooms():
  """Help pages load no other room, so a meaning lists the names that its rule looks up there, or names the table."""
  looked_up = [
    (name, key.meaning, key.rule.words().split("one of ")[1].split(";")[0].split(", "))
    for name, key in declared().items()
    if not key.rule.on_page and "one of " in key.rule.words()
  ]
  assert len(looked_up) > 20
  for name, meaning, options in looked_up:
    named = set(re.findall(r"[\w-]+", meaning)) | {str(level) for level in range(1, 6)} | {'""'}
    assert named.issuperset(options) or "jaxrlvr." in meaning, (name, set(options) - named)


def test_rules_and_groups():
  assert each(at_least(1)).words() == "one or more, each at least 1"
  assert not each(at_least(1)).holds(()) and each(at_least(1), empty=True).holds(())
  assert not each(at_least(1)).holds((1, 0)) and not each(at_least(1)).holds((1.0,))
  assert one_of("", "a").words() == 'one of "", a' and not one_of("", "a").holds("b")
  group = Group()
  group.x = Key(True, SWITCH, "a switch")
  with pytest.raises(AttributeError, match="x is declared twice"):
    group.x = Key(False, SWITCH, "another")


@pytest.mark.parametrize(
  "body,words",
  [
    ("  c = base()\n  with c.unlocked():\n    c.rl.stepz = 1\n  return c\n", "config.rl.stepz: unknown"),
    ("  c = base()\n  with c.unlocked():\n    del c.rl.steps\n  return c\n", "config.rl.steps: missing"),
    ("  c = base()\n  c.study.jobs = 2\n  return c\n", "mine.py:4: .*; study.jobs is grid.jobs now"),
  ],
)
def test_a_config_with_other_keys_is_refused(tmp_path, body, words):
  file = tmp_path / "mine.py"
  file.write_text("from jaxrlvr.config import base\ndef get_config(arg):\n" + body)
  with pytest.raises(InputError, match=words):
    configs.load(str(file))


def test_keys_of_the_held_out_source_are_not_those_of_own_sets():
  """A key without effect names the entry that could have it; one that an own set reads from `heldout` is taken."""
  files, task = {"heldout.sets": "amc,quiz=quiz.jsonl"}, {"heldout.sets": "near=arithmetic[count=3,levels=5]"}
  for changes, words in (
    (files | {"heldout.columns": "prompt=a,label=b"}, r"set's entry, as mine=path.jsonl\[prompt=A,label=B\]"),
    (files | {"heldout.verifier": "math"}, r"only a set of your own .*config.heldout.sets.*\[verifier=V\]"),
    (files | {"heldout.split": "test"}, r"as mine=path.jsonl\[split=S\]"),
    (files | {"heldout.count": "9"}, r"as mine=path.jsonl\[count=N\]"),
    (files | {"heldout.levels": "2"}, "config.heldout.levels has no effect: it is for generated problems"),
    (task | {"heldout.count": "9"}, "config.heldout.count has no effect: .*only a generated set with its own value"),
    (task | {"heldout.folder": "a"}, "config.heldout.folder has no effect"),
    (files | {"heldout.name": "quiz", "heldout.source": "a.csv"}, "config.heldout.name is the name of another set"),
    (files | {"heldout.name": "b"}, "config.heldout.name is set, but it is the name of the set of"),
    ({"heldout.sets": "quiz=a.jsonl[count=x]"}, r"config.heldout.sets: 'quiz=a.jsonl\[count=x\]': count=x: wanted"),
  ):
    with pytest.raises(InputError, match=words):
      configs.load("base", changes)
  configs.load("base", files | {"heldout.skip_bad": "1", "heldout.system": "Box it.", "heldout.at_most": "9"})
  configs.load("base", task | {"heldout.seed": "9"})
  both = {"heldout.source": "a.csv", "heldout.columns": "prompt=a,label=b", "heldout.count": "9"}
  assert configs.load("base", files | both).heldout.sets == ("amc", "quiz=quiz.jsonl")
