"""launch/*.sh without Google Cloud: the commands that they would run, and their answers to a gcloud that is played."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[2] / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sh"))
BASE = {"NAME": "slice", "ZONE": "us-west4-a", "TYPE": "v5litepod-16"}
KEEP = "--ssh-flag=-oConnectTimeout=30 --ssh-flag=-oServerAliveInterval=30 --zone=us-west4-a --quiet"
SSH = "gcloud compute tpus tpu-vm ssh slice --worker=all"
WORKER = "bash jaxrlvr/launch/worker.sh"

# Plays the states in $PLAY/states and the answers of the workers in $PLAY/answers, a line a call, and records in
# $PLAY/calls. Kinds of call in $PLAY/broken fail, a line once. When the play is over the slice is STOPPED.
PLAYED = r"""#!/usr/bin/env bash
pop() { local line; line=$(sed 1q "$PLAY/$1"); sed -i 1d "$PLAY/$1"; printf %s "$line"; }
said=$*
case $said in
  *worker.sh*) kind=${said#*worker.sh } kind=${kind%% *} ;;
  *" ssh "*) kind=unpack ;;
  *) kind=$4 ;;
esac
echo "$kind" >>"$PLAY/calls"
if [[ $(sed 1q "$PLAY/broken") == "$kind "* ]]; then pop broken >&2; echo >&2; exit 1; fi
case $kind in
  describe)
    state=$(pop states)
    case ${state:=STOPPED} in missing) echo "NOT_FOUND: no such thing" >&2; exit 1 ;; lost) exit 1 ;; esac
    echo "a warning" >&2
    echo "$state" ;;
  status)
    n=0
    for word in $(pop answers); do
      sum=${word#*@}; [[ $sum != "$word" ]] || sum=$SUM
      case ${word%@*} in
        idle) echo "worker host-w-$n idle" ;;
        running) echo "worker host-w-$n running 17 $sum" ;;
        *) echo "worker host-w-$n ended ${word%@*} $sum" ;;
      esac
      n=$((n + 1))
    done ;;
esac
"""

# Two hosts of its own, each a home directory; what is sent is really run there, by a shell.
LOCAL = r"""#!/usr/bin/env bash
command="" worker=""
for word; do
  case $word in --command=*) command=${word#--command=} ;; --worker=*) worker=${word#--worker=} ;; esac
done
code=0
for home in "$PLAY"/home*; do
  [[ $worker == all || $home == *"$worker" ]] || continue
  case $4 in
    scp) cp "$5" "$home/${6#*:}" ;;
    ssh) (cd "$home" && HOME=$home HOSTNAME=${home##*/} bash -c "$command") || code=$? ;;
  esac
done
exit $code
"""

RUN = r"""#!/usr/bin/env bash
trap 'echo saved; exit 143' TERM
[[ $1 != cpt ]] || trap '' TERM
echo "stage $1"
printf '%s\0' "$@" >"$HOME/arguments.new" && mv "$HOME/arguments.new" "$HOME/arguments"
[[ $1 != sft ]] || exit 3
for n in $(seq 100); do sleep 0.1; done
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
  """A small clone of the repository, with files of odd names."""
  checkout = tmp_path_factory.mktemp("clone")
  (checkout / "launch").mkdir()
  for script in SCRIPTS:
    shutil.copy(script, checkout / "launch")
  (checkout / ".gitignore").write_text("build/\n*.secret\n")
  for name in ("with space.py", "gone.py", "it's $HOME.txt"):
    (checkout / name).write_text(name)
  subprocess.run(["git", "init", "-q"], cwd=checkout, check=True)
  subprocess.run(["git", "add", "."], cwd=checkout, check=True)
  return checkout


@pytest.fixture
def launch(checkout, tmp_path):
  """A function that runs the clone's launch/tpu.sh with some words and settings."""
  (tmp_path / "bin").mkdir()

  def run(*words, **settings):
    known = {k: os.environ[k] for k in ("PATH", "HOME", "LANG") if k in os.environ}
    path = f"{tmp_path / 'bin'}:{known['PATH']}"
    env = known | BASE | {"PATH": path, "PLAY": str(tmp_path)} | settings
    env = {k: v for k, v in env.items() if v is not None}
    script = str(checkout / "launch" / "tpu.sh")
    return subprocess.run(
      ["bash", script, *words], env=env, text=True, capture_output=True, timeout=30, stdin=subprocess.DEVNULL
    )

  run.checkout, run.play = checkout, tmp_path
  return run


def gcloud(launch, text):
  path = launch.play / "bin" / "gcloud"
  path.write_text(text)
  path.chmod(0o755)


def wait_for(path):
  deadline = time.monotonic() + 10
  while not path.exists():
    assert time.monotonic() < deadline, f"no {path}"
    time.sleep(0.05)


def dry(launch, *words, **settings):
  done = launch(*words, DRY_RUN="1", **settings)
  assert done.returncode == 0, done.stderr
  return done.stdout.splitlines()


@pytest.mark.parametrize(
  "settings, expected",
  [
    ({}, "tpu-vm create slice --accelerator-type=v5litepod-16 --version=v2-alpha-tpuv5-lite --zone=us-west4-a --quiet"),
    (
      {"SPOT": "1", "TYPE": "v6e-8", "PROJECT": "mine"},
      "tpu-vm create slice --accelerator-type=v6e-8 --version=v2-alpha-tpuv6e --spot --zone=us-west4-a"
      " --project=mine --quiet",
    ),
    (
      {"QUEUED": "1", "SPOT": "1", "TYPE": "v5p-16", "VALID_UNTIL": "6h"},
      "queued-resources create slice --node-id=slice --accelerator-type=v5p-16 --runtime-version=v2-alpha-tpuv5 --spot"
      " --valid-until-duration=6h --zone=us-west4-a --quiet",
    ),
    (
      {"TYPE": "v4-32", "CREATE_FLAGS": "--network=n --internal-ips"},
      "tpu-vm create slice --accelerator-type=v4-32 --version=tpu-ubuntu2204-base --network=n --internal-ips"
      " --zone=us-west4-a --quiet",
    ),
    ({"VERSION": "v9"}, "tpu-vm create slice --accelerator-type=v5litepod-16 --version=v9 --zone=us-west4-a --quiet"),
  ],
)
def test_create(launch, settings, expected):
  assert dry(launch, "create", **settings) == [f"gcloud compute tpus {expected}"]


DESCRIBE = "gcloud compute tpus tpu-vm describe slice '--format=value(state)' --zone=us-west4-a --quiet"


@pytest.mark.parametrize(
  "words, settings, expected",
  [
    (["setup"], {}, [f"{SSH} '--command={WORKER} setup '\\''.[gcs]'\\'' '\\''jax[tpu]'\\''' {KEEP}"]),
    (
      ["setup"],
      {"EXTRAS": "gym"},
      [f"{SSH} '--command={WORKER} setup '\\''.[gcs,gym]'\\'' '\\''jax[tpu]'\\''' {KEEP}"],
    ),
    (
      ["run", "rl", "--config=demo", "--workdir=gs://b/w"],
      {},
      [f"{SSH} '--command={WORKER} run rl --config=demo --workdir=gs://b/w --distributed' {KEEP}"],
    ),
    (["status"], {}, [DESCRIBE, f"{SSH} '--command={WORKER} status' {KEEP}"]),
    (
      ["status"],
      {"QUEUED": "1"},
      [
        DESCRIBE.replace("tpu-vm", "queued-resources").replace("(state)", "(state.state)"),
        DESCRIBE,
        f"{SSH} '--command={WORKER} status' {KEEP}",
      ],
    ),
    (["tail"], {}, [f"{SSH.replace('=all', '=0')} '--command={WORKER} tail 20 follow' {KEEP}"]),
    (["tail", "3", "50"], {}, [f"{SSH.replace('=all', '=3')} '--command={WORKER} tail 50 follow' {KEEP}"]),
    (["tail", "all"], {}, [f"{SSH} '--command={WORKER} tail 20' {KEEP}"]),
    (["stop"], {"GRACE": "90"}, [f"{SSH} '--command={WORKER} stop 90' {KEEP}"]),
    (
      ["stop"],
      {"SSH_FLAGS": "--tunnel-through-iap"},
      [f"{SSH} '--command={WORKER} stop 600' {KEEP.replace(' --zone', ' --tunnel-through-iap --zone')}"],
    ),
    (["delete"], {}, ["gcloud compute tpus tpu-vm delete slice --zone=us-west4-a --quiet"]),
    (
      ["delete", "--yes"],
      {"QUEUED": "1"},
      ["gcloud compute tpus queued-resources delete slice --force --zone=us-west4-a --quiet"],
    ),
  ],
)
def test_commands(launch, words, settings, expected):
  assert dry(launch, *words, **settings) == expected


def test_sync_and_babysit_are_made_of_the_others(launch):
  pack, scp, unpack = dry(launch, "sync")
  assert shlex.split(pack)[:2] == ["bash", "-c"] and shlex.split(pack)[3:] == ["pack", "build/slice.tgz"]
  assert scp == (
    "gcloud compute tpus tpu-vm scp build/slice.tgz slice:jaxrlvr.new.tgz --worker=all --zone=us-west4-a --quiet"
  )
  assert shlex.split(unpack)[:7] == SSH.split() and "tar -xzf ../jaxrlvr.new.tgz" in unpack
  stage = ["rl", "--workdir=gs://b/w"]
  others = [*dry(launch, "create"), scp, unpack, *dry(launch, "setup"), *dry(launch, "run", *stage)]
  assert dry(launch, "babysit", *stage) == [pack, DESCRIBE, *others, f"{SSH} '--command={WORKER} status' {KEEP}"]


@pytest.mark.parametrize(
  "words, settings, message",
  [
    (["create"], {"NAME": None}, "NAME is not set"),
    (["status"], {"ZONE": ""}, "ZONE is not set"),
    (["create"], {"TYPE": None}, "TYPE is not set"),
    (["create"], {"TYPE": "h100-8"}, "unknown TYPE 'h100-8'"),
    (["create"], {"TYPE": "v6e-many"}, "does not end in a number"),
    (["frobnicate"], {}, "unknown command 'frobnicate'"),
    ([], {}, "usage:"),
    (["run"], {}, "which stage?"),
    (["tail", "some"], {}, "tail [N|all] [LINES]"),
    (["babysit"], {}, "which stage?"),
    (["babysit", "rl", "--workdir=runs/here"], {}, "needs --workdir=gs://"),
  ],
)
def test_bad_usage_ends_with_2_and_says_what(launch, words, settings, message):
  done = launch(*words, DRY_RUN="1", **settings)
  assert done.returncode == 2 and message in done.stderr and not done.stdout


def test_help_tells_every_command(launch):
  done = launch("--help", NAME=None, ZONE=None)
  script = (LAUNCH / "tpu.sh").read_text()
  commands = re.search(r"^  (create \| .*)\) need", script, re.M)[1].split(" | ")
  assert done.returncode == 0 and len(commands) == 9
  assert all(re.search(rf"^  {name} ", done.stdout, re.M) for name in commands)


@pytest.mark.parametrize("name", ["plan", "demo", "test", "colab"])
def test_help_installs_nothing(name, tmp_path):
  copy = tmp_path / "launch"
  copy.mkdir()
  for file in (LAUNCH / f"{name}.sh", LAUNCH / "venv.sh"):
    shutil.copy(file, copy)
  python = tmp_path / "python"
  python.write_text(f"#!/bin/sh\ntouch {tmp_path}/called\nexit 1\n")
  python.chmod(0o755)
  done = subprocess.run(
    ["bash", copy / f"{name}.sh", "--help"],
    capture_output=True,
    text=True,
    check=False,
    env=os.environ | {"PYTHON": str(python)},
  )
  assert done.returncode == 0 and f"bash launch/{name}.sh" in done.stdout and "set -e" not in done.stdout
  assert not (tmp_path / "called").exists() and not list(tmp_path.glob(".venv*"))


def test_two_hosts_from_sync_to_stop(launch):
  """Files and arguments arrive unchanged, a second run is refused, and stop lets the run save."""
  gcloud(launch, LOCAL)
  homes = [launch.play / "home0", launch.play / "home1"]
  for home in homes:
    home.mkdir()
  (launch.checkout / "new file").write_text("untracked")
  (launch.checkout / "key.secret").write_text("ignored")
  assert launch("sync").returncode == 0
  (launch.checkout / "gone.py").unlink()
  done = launch("sync")
  assert done.returncode == 0, done.stderr
  for home in homes:
    with tarfile.open(home / "jaxrlvr.tgz") as archive:
      names = set(archive.getnames())
    here = {str(p.relative_to(home / "jaxrlvr")) for p in (home / "jaxrlvr").rglob("*") if p.is_file()}
    assert here == names >= {"with space.py", "it's $HOME.txt", "new file", "launch/worker.sh"}
    assert not here & {"key.secret", "gone.py"}

  assert "nothing installed" in launch("run", "rl").stderr
  for home in homes:
    (home / "jaxrlvr/.venv/bin").mkdir(parents=True)
    (home / "jaxrlvr/.venv/bin/jaxrlvr").write_text(RUN)
    (home / "jaxrlvr/.venv/bin/jaxrlvr").chmod(0o755)
  odd = ["rl", '--config.a=it\'s "$HOME" `id` \\ *', "", "two\nlines\t$(id)", "--config.b={1, 2};&|<>!~", "é"]
  done = launch("run", *odd)
  assert done.returncode == 0 and done.stdout.count("started as process") == 2, done.stderr
  second = launch("run", "rl")
  assert second.returncode == 1 and second.stderr.count("a run is going on") == 2
  assert "a run is going on" in launch("sync").stderr
  for home in homes:
    wait_for(home / "arguments")
    assert (home / "arguments").read_text().split("\0")[:-1] == [*odd, "--distributed"]
    (home / "arguments").unlink()
  done = launch("stop", GRACE="10")
  assert re.findall(r"^worker (\S+) ended (\d+) \d+$", done.stdout, re.M) == [("home0", "143"), ("home1", "143")]
  tails = launch("tail", "all").stdout
  assert all(f"home{n}: {text}" in tails for n in (0, 1) for text in ("stage rl", "saved", "== "))

  assert launch("run", "sft").returncode == 0
  for home in homes:
    wait_for(home / "jaxrlvr-run/exit")
    assert (home / "jaxrlvr-run/exit").read_text() == "3\n"
    (home / "arguments").unlink()
  assert launch("run", "cpt").returncode == 0
  for home in homes:
    wait_for(home / "arguments")
  done = launch("stop", GRACE="1")
  assert done.stdout.count("killed after 1 seconds") == 2 and done.stdout.count(" ended 137 ") == 2
  assert launch("stop").stdout.count(" ended 137 ") == 2


STAGE = ("rl", "--config=base", "--workdir=gs://b/w")


@pytest.fixture
def babysit(launch):
  """A function that plays states of the TPU, answers of its workers and failing calls to babysit.

  It returns (exit code, calls of gcloud other than looks, stderr).
  """
  gcloud(launch, PLAYED)
  checksum = subprocess.run(
    ["bash", "-c", "printf '%s\\0' \"$@\" | cksum | cut -d ' ' -f 1", "-", *STAGE, "--distributed"],
    text=True,
    capture_output=True,
    check=True,
  ).stdout.strip()

  def play(states, answers, broken=(), **settings):
    for name, lines in (("states", states), ("answers", answers), ("broken", broken), ("calls", ())):
      (launch.play / name).write_text("".join(f"{line}\n" for line in lines))
    quick = {"POLL": "0", "BACKOFF": "0", "SUM": checksum, "WORKERS": "2", "SPOT": "1"}
    done = launch("babysit", *STAGE, **quick | settings)
    calls = (launch.play / "calls").read_text().split()
    return done.returncode, " ".join(c for c in calls if c not in ("describe", "status")), done.stderr

  return play


BEGIN = "create scp unpack setup run"
IDLE, RUNNING, DONE = "idle idle", "running running", "0 0"


def test_babysit_recreates_a_preempted_slice_and_ends_with_the_run(babysit):
  states = ["missing", "CREATING", "READY", "READY", "PREEMPTED", "missing", "READY", "READY", "READY"]
  code, calls, stderr = babysit(states, [IDLE, RUNNING, IDLE, RUNNING, DONE])
  assert (code, calls) == (0, f"{BEGIN} delete {BEGIN}"), stderr
  assert "slice is PREEMPTED" in stderr and "done" in stderr


def test_babysit_of_a_queued_slice(babysit):
  # Every look at a granted request is two calls: the request, then its node.
  states = ["missing", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE", "READY", "ACTIVE", "READY", "SUSPENDING"]
  states += ["SUSPENDED", "missing", "ACTIVE", "READY", "ACTIVE", "missing", "missing", "ACTIVE", "READY"]
  code, calls, stderr = babysit(states, [IDLE, RUNNING, IDLE, DONE], QUEUED="1")
  assert (code, calls) == (0, f"{BEGIN} delete {BEGIN} delete create"), stderr


@pytest.mark.parametrize("answer, code", [("2 2", 2), ("3 3", 3), ("1 3", 3), ("143 2", 2)])
def test_babysit_does_not_retry_what_a_retry_cannot_cure(babysit, answer, code):
  ended, calls, stderr = babysit(["READY"] * 3, [IDLE, RUNNING, answer])
  assert (ended, calls) == (code, "scp unpack setup run tail") and "can't cure" in stderr


@pytest.mark.parametrize("answer", ["143 143", "4 4", "1 134", "lost 0", IDLE])
def test_babysit_goes_on_after_other_ends(babysit, answer):
  code, calls, stderr = babysit(["READY"] * 4, [IDLE, RUNNING, answer, DONE])
  assert (code, calls) == (0, "scp unpack setup run run"), stderr
  assert ("failure 1 of 5" in stderr) == (answer != "143 143")


def test_babysit_gives_up_after_quick_failures_in_a_row(babysit):
  code, calls, stderr = babysit(["READY"] * 5, [IDLE, *["4 4"] * 4], LIMIT="3")
  assert (code, calls) == (1, "scp unpack setup run run run tail") and "gave up after 3" in stderr
  code, calls, _ = babysit(["READY"] * 6, [IDLE, *["4 4"] * 4, DONE], LIMIT="3", QUICK="0")
  assert (code, calls.count("run")) == (0, 5)


def test_babysit_waits_longer_before_each_retry(babysit, launch):
  (launch.play / "bin/sleep").write_text("#!/bin/sh\n")
  (launch.play / "bin/sleep").chmod(0o755)
  stderr = babysit(["READY"] * 12, [IDLE, *["4 4"] * 8], BACKOFF="30", LIMIT="8")[2]
  assert re.findall(r"again in (\d+) s", stderr) == ["30", "60", "120", "240", "480", "960", "960"]


def test_babysit_waits_for_capacity_without_end_but_not_for_other_refusals(babysit):
  full = ["create There is no more capacity in the zone"] * 4
  code, calls, stderr = babysit(["missing"] * 5 + ["READY"] * 2, [IDLE, DONE], full, LIMIT="2")
  assert (code, calls) == (0, "create " * 4 + BEGIN), stderr
  code, calls, stderr = babysit(["missing"] * 4, [], ["create Permission denied"] * 4, LIMIT="2")
  assert (code, calls) == (1, "create create") and "Permission denied" in stderr
  code, calls, stderr = babysit(["missing", "FAILED"] * 3, [], QUEUED="1", LIMIT="2")
  assert (code, calls) == (1, "create delete create delete") and "refused or broke" in stderr


def test_babysit_tries_again_when_a_new_slice_takes_no_connection_yet(babysit):
  code, calls, stderr = babysit(["READY"] * 4, ["", "", IDLE, DONE], ["scp refused", "setup refused"])
  assert (code, calls) == (0, "scp scp unpack setup scp unpack setup run"), stderr


def test_babysit_takes_no_answer_for_no_news(babysit):
  """While the API or a worker can't be reached, it neither deletes nor creates nor starts anything."""
  code, calls, _ = babysit(["READY", "lost", "READY", "READY", "READY"], [RUNNING, "running", RUNNING, DONE])
  assert (code, calls) == (0, "")


def test_babysit_stops_the_rest_of_a_run_that_has_lost_a_host(babysit):
  code, calls, stderr = babysit(["READY"] * 6, [IDLE, "1 running", "1 running", "1 143", DONE])
  assert (code, calls) == (0, "scp unpack setup run stop run"), stderr
  code, calls, _ = babysit(["READY"] * 6, [IDLE, "0 running", "0 running", "0 running", DONE])
  assert (code, calls) == (0, "scp unpack setup run")


def test_babysit_begun_again(babysit):
  assert babysit(["READY"], [DONE])[:2] == (0, "")
  assert babysit(["READY"] * 3, ["2 2", DONE])[:2] == (0, "scp unpack setup run")
  assert babysit(["READY"] * 3, ["0@7 0@7", DONE])[:2] == (0, "scp unpack setup run")
  code, calls, stderr = babysit(["READY"], ["running@7 running@7"])
  assert (code, calls) == (1, "") and "another command is running" in stderr
  assert babysit(["STOPPED"], [])[:2] == (1, "")


@pytest.mark.parametrize("pip, code", [(0, 0), (1, 2)], ids=["with pip", "without"])
def test_an_environment_where_python_has_no_ensurepip(tmp_path, pip, code):
  """Colab's and Debian's Python have none; a script plays that Python."""
  played = tmp_path / "python"
  played.write_text(
    f"""#!/usr/bin/env bash
echo "$@" >>calls
case $* in
  *ensurepip*) exit 1 ;;
  *--without-pip*)
    mkdir -p .venv/bin
    printf '#!/bin/sh\\necho own "$@" >>calls\\n' >.venv/bin/python
    chmod +x .venv/bin/python ;;
  *--pip*|*"-m pip"*) exit {pip} ;;
esac
"""
  )
  played.chmod(0o755)
  (tmp_path / "pyproject.toml").touch()
  command = ["bash", "-euo", "pipefail", "-c", f". {LAUNCH / 'venv.sh'}; install_jaxrlvr ."]
  done = subprocess.run(
    command, cwd=tmp_path, env={**os.environ, "PYTHON": str(played)}, text=True, capture_output=True, check=False
  )
  calls = (tmp_path / "calls").read_text()
  assert done.returncode == code, done.stderr
  assert "-m venv --clear --without-pip .venv" in calls and "-m pip --python .venv/bin/python install" in calls
  assert ("own -m pip install" in calls) == (not code) == ("install python3-venv" not in done.stderr)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse(script):
  subprocess.run(["bash", "-n", str(script)], check=True)


def test_shellcheck():
  shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
  if shellcheck is None:
    pytest.skip("no shellcheck on PATH; the test extra brings one")
  done = subprocess.run([shellcheck, "-x", *map(str, SCRIPTS)], text=True, capture_output=True, cwd=LAUNCH.parent)
  assert done.returncode == 0, done.stdout


def test_bench_says_how_fast_an_update_is(tmp_path):
  out = tmp_path / "lines.jsonl"
  words = ["--size=smoke", "--rounds=1", "--peers=none", "--only=update", f"--out={out}"]
  done = subprocess.run([sys.executable, LAUNCH / "bench.py", *words], text=True, capture_output=True)
  assert done.returncode == 0 and done.stdout == out.read_text(), done.stderr
  ceilings, update = (json.loads(line) for line in done.stdout.splitlines())
  assert ceilings["name"] == "ceilings" and ceilings["read_gb_s"][0] > 0
  assert (update["name"], update["size"], update["rounds"], update["tokens"]) == ("update", "smoke", 1, 32 * 60)
  assert update["compiles"] > 0 == update["recompiles"] and update["peak_mib"] > 100
  assert update["tokens_s"][0] == pytest.approx(update["tokens"] / update["wall_s"][0], rel=1e-3)
  assert update["share"] > 0 and "| update |" in done.stderr


def test_bench_tells_why_a_worker_failed():
  words = ["--size=none:of-these", "--rounds=1", "--peers=none", "--only=update"]
  done = subprocess.run([sys.executable, LAUNCH / "bench.py", *words], text=True, capture_output=True)
  lines = [json.loads(line) for line in done.stdout.splitlines()]
  assert [line["name"] for line in lines] == ["ceilings", "update"] and "no such file" in lines[1]["failed"]


def test_babysit_starts_again_what_lost_a_host_and_not_what_stopped_itself(babysit):
  """If a host crashes (137), or stops itself (3), the others end with 5."""
  code, calls, stderr = babysit(["READY"] * 5, [IDLE, "137 5", DONE])
  assert (code, calls) == (0, "scp unpack setup run run"), stderr
  for ended, expected in (("3 5", 3), ("5 2", 2)):
    code, calls, stderr = babysit(["READY"] * 5, [IDLE, ended])
    assert (code, calls) == (expected, "scp unpack setup run tail") and "a retry can't cure" in stderr
  code, calls, stderr = babysit(["READY"] * 5, [IDLE, *["1 5"] * 3], LIMIT="2")
  assert (code, calls) == (1, "scp unpack setup run run tail") and "gave up after 2 quick failures" in stderr
