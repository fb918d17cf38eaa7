#!/usr/bin/env bash
# Runs jaxrlvr on a Cloud TPU slice of plain TPU VMs, with nothing but gcloud: launch/tpu.sh --help
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
  cat <<'END'
usage: SETTING=VALUE ... launch/tpu.sh COMMAND [ARGUMENT...]

  create                  make the slice: on demand, with SPOT=1 preemptible, with QUEUED=1 as a queued resource
  sync                    this checkout (tracked files, and untracked ones that git doesn't ignore) to ~/jaxrlvr
                          of every worker; files that are gone here go there
  setup                   on every worker: Python >= 3.11 if absent, .venv with jaxrlvr and jax[tpu]
  run STAGE [ARGUMENT...] start `jaxrlvr STAGE ARGUMENT... --distributed` on every worker and return; refused where a
                          run is going on. The run outlives this connection
  status                  the state of the slice, then of each worker: idle, running PID, ended EXIT_CODE
  tail [N] [LINES]        follow the log of worker N (default 0)
  tail all [LINES]        the last LINES (default 20) of every worker's log, each line behind its host's name
  stop                    SIGTERM to the run on every worker, which saves a checkpoint and exits with 143;
                          SIGKILL after GRACE seconds
  delete [--yes]          delete the slice, and with QUEUED=1 its request
  babysit STAGE [ARG...]  create, sync, setup, run; then watch: a slice that was preempted, failed or vanished is made
                          anew, and the same command goes on from its checkpoint. Ends when the run ends with 0, and on
                          2 (config) and 3 (training stopped itself), which a retry can't cure; the slice is left.
                          Crashes, storage (4) and lost hosts (5) are retried, up to LIMIT quick failures in a row.
                          Interrupt it before `stop`: it would start the run again.
                          It ships the checkout as it was when it began, and can itself be interrupted and repeated.

settings (environment):
  NAME, ZONE              of the slice; always needed
  TYPE                    v5litepod-8, v5litepod-16, v6e-8, v5p-16, v4-32, ...; for create and babysit
  VERSION                 TPU software; by TYPE where not set
  WORKERS                 how many hosts; by TYPE where not set, used by babysit
  PROJECT                 Google Cloud project; gcloud's own where not set
  SPOT=1, QUEUED=1        see create and delete; VALID_UNTIL=6h ends the wait of a queued request
  CREATE_FLAGS, SSH_FLAGS more flags for gcloud's create, and for its ssh and scp (--tunnel-through-iap), in words
  EXTRAS                  extras of jaxrlvr to install: gym,tfds
  GRACE                   seconds that stop waits (600)
  POLL, BACKOFF           seconds between two looks of babysit (60), and before its first retry, then doubled (30)
  QUICK, LIMIT            babysit gives up after LIMIT (5) failures in a row of less than QUICK seconds (1800) each
  DRY_RUN=1               print the commands, a line each, and run nothing

exit codes: 0 done, 1 failed or gave up, 2 bad usage or settings; babysit: those of jaxrlvr 0, 2, 3
END
}

fail() { echo "tpu.sh: $2" >&2; exit "$1"; }
say() { echo "$(date -u +%FT%TZ) $*" >&2; }

need() {
  local setting
  for setting; do
    [[ -n ${!setting:-} ]] || fail 2 "$setting is not set: $setting=... launch/tpu.sh $command (see --help)"
  done
}

# As one line that any shell reads back as the same words.
quote() {
  local word line="" single="'" escaped="'\\''"
  for word; do
    case $word in
      *[[:cntrl:]]*) printf -v word %q "$word" ;;
      "" | *[!A-Za-z0-9_./:=@%+,-]*) word="'${word//$single/$escaped}'" ;;
    esac
    line+="${line:+ }$word"
  done
  printf '%s\n' "$line"
}

step() { if [[ -n ${DRY_RUN:-} ]]; then quote "$@"; else "$@"; fi }

# By TYPE: the TPU software, and the number of hosts. Up to 8 chips of v5e and v6e are one host, larger slices have 4 a
# host; the number in the other names counts cores, two a chip and 8 a host.
describe_type() {
  local size=${TYPE##*-} version hosts
  case $TYPE in
    v5litepod-*) version=v2-alpha-tpuv5-lite ;;
    v6e-*) version=v2-alpha-tpuv6e ;;
    v5p-*) version=v2-alpha-tpuv5 ;;
    v2-* | v3-* | v4-*) version=tpu-ubuntu2204-base ;;
    *) fail 2 "unknown TYPE '$TYPE'; known are v5litepod-N, v6e-N, v5p-N, v4-N, v3-N, v2-N" ;;
  esac
  [[ $size =~ ^[1-9][0-9]*$ ]] || fail 2 "TYPE '$TYPE' does not end in a number"
  case $TYPE in
    v5litepod-* | v6e-*) hosts=$((size <= 8 ? 1 : (size + 3) / 4)) ;;
    *) hosts=$(((size + 7) / 8)) ;;
  esac
  VERSION=${VERSION:-$version}
  WORKERS=${WORKERS:-$hosts}
}

tpus() { # a gcloud command line in words, without what all have in common
  step gcloud compute tpus "$@" --zone="$ZONE" ${PROJECT:+--project="$PROJECT"} --quiet
}

remote() { # worker, command: run by the login shell of the worker
  # shellcheck disable=SC2086 # flags are words
  tpus tpu-vm ssh "$NAME" --worker="$1" --command="$2" \
    --ssh-flag=-oConnectTimeout=30 --ssh-flag=-oServerAliveInterval=30 ${SSH_FLAGS:-} </dev/null
}

worker() { # worker, words for worker.sh
  local who=$1
  shift
  remote "$who" "$(quote bash jaxrlvr/launch/worker.sh "$@")"
}

create() {
  need TYPE
  describe_type
  # shellcheck disable=SC2086 # flags are words
  if [[ -n ${QUEUED:-} ]]; then
    tpus queued-resources create "$NAME" --node-id="$NAME" --accelerator-type="$TYPE" --runtime-version="$VERSION" \
      ${SPOT:+--spot} ${VALID_UNTIL:+--valid-until-duration="$VALID_UNTIL"} ${CREATE_FLAGS:-}
  else
    tpus tpu-vm create "$NAME" --accelerator-type="$TYPE" --version="$VERSION" ${SPOT:+--spot} ${CREATE_FLAGS:-}
  fi
}

delete() {
  local answer
  if [[ ${1:-} != --yes && -z ${DRY_RUN:-} ]]; then
    read -r -p "delete the slice $NAME and all on its disks? [y/N] " answer || true
    [[ ${answer:-} == [yY]* ]] || fail 1 "not deleted"
  fi
  if [[ -n ${QUEUED:-} ]]; then
    tpus queued-resources delete "$NAME" --force
  else
    tpus tpu-vm delete "$NAME"
  fi
}

pack() {
  # shellcheck disable=SC2016 # for the inner bash
  local script='set -euo pipefail; mkdir -p build; git ls-files -z --cached --others --exclude-standard | \
while IFS= read -r -d "" path; do if [[ -e $path || -L $path ]]; then printf "%s\0" "$path"; fi; done | \
tar -czf "$1" --null --no-recursion -T -'
  step bash -c "${script//$'\\\n'/}" pack "build/$NAME.tgz"
}

# The archive that a worker keeps lists the files of the last sync: they go before the new ones come.
UNPACK='set -e; mkdir -p jaxrlvr jaxrlvr-run; cd jaxrlvr
flock --shared --nonblock ../jaxrlvr-run/lock true || { echo "a run is going on; first launch/tpu.sh stop" >&2; exit 1; }
if [ -e ../jaxrlvr.tgz ]; then tar -tzf ../jaxrlvr.tgz --quoting-style=literal | xargs -d "\n" rm -f --; fi
tar -xzf ../jaxrlvr.new.tgz; mv ../jaxrlvr.new.tgz ../jaxrlvr.tgz'

ship() {
  # shellcheck disable=SC2086 # flags are words
  tpus tpu-vm scp "build/$NAME.tgz" "$NAME:jaxrlvr.new.tgz" --worker=all ${SSH_FLAGS:-} &&
    remote all "${UNPACK//$'\n'/; }"
}

sync() { pack && ship; }

setup() { worker all setup ".[gcs${EXTRAS:+,$EXTRAS}]" 'jax[tpu]'; }

start() {
  local word
  [[ $# -gt 0 ]] || fail 2 "$command: which stage? launch/tpu.sh $command STAGE --config=... --workdir=gs://..."
  worker all run "$@" --distributed
}

tail_log() {
  local who=${1:-0} lines=${2:-20}
  [[ $who =~ ^(all|[0-9]+)$ && $lines =~ ^[0-9]+$ ]] || fail 2 "tail [N|all] [LINES], not 'tail $*'"
  if [[ $who == all ]]; then worker all tail "$lines"; else worker "$who" tail "$lines" follow; fi
}

# One word: what the API calls it, "missing" where there is none, "unknown" where the API gave no answer.
described() {
  local said
  if said=$(tpus "$@" 2>&1); then
    if [[ -n ${DRY_RUN:-} ]]; then echo "$said"; else grep -xE '[A-Z_]+' <<<"$said" || echo unknown; fi
  elif [[ $said == *NOT_FOUND* ]]; then
    echo missing
  else
    say "$said"
    echo unknown
  fi
}

slice() {
  local state
  if [[ -n ${QUEUED:-} ]]; then
    state=$(described queued-resources describe "$NAME" '--format=value(state.state)')
    if [[ -n ${DRY_RUN:-} ]]; then echo "$state"; elif [[ $state != ACTIVE ]]; then echo "$state"; return; fi
  fi
  state=$(described tpu-vm describe "$NAME" '--format=value(state)')
  # A request whose node is gone is as good as failed.
  if [[ -n ${QUEUED:-} && $state == missing ]]; then state=FAILED; fi
  echo "$state"
}

status() {
  local state
  state=$(slice)
  if [[ -n ${DRY_RUN:-} ]]; then echo "$state"; else echo "slice $NAME $state"; fi
  [[ $state != unknown ]] || fail 1 "gcloud did not answer; see its message"
  if [[ -n ${DRY_RUN:-} || $state == READY ]]; then worker all status; fi
}

# One word on all workers: idle, running, partial (some run, some failed or never started), foreign (running another
# command), unknown (not all could be asked), or an exit code. Of several codes the one that says most: a host that
# stopped itself takes others along, which then end by other codes.
state_of_all() { # checksum of the command
  local word how code sum seen=0 running=0 foreign=0 codes=() zeros=0
  while read -r word _ how code sum; do
    [[ $word == worker ]] || continue
    seen=$((seen + 1))
    case $how in
      running) if [[ $sum == "$1" ]]; then running=$((running + 1)); else foreign=1; fi ;;
      ended) if [[ $sum == "$1" ]]; then codes+=("$code"); fi ;;
    esac
  done < <(worker all status 2>/dev/null || true)
  for code in ${codes[@]+"${codes[@]}"}; do if [[ $code == 0 ]]; then zeros=$((zeros + 1)); fi; done
  if ((seen != WORKERS)); then echo unknown
  elif ((foreign)); then echo foreign
  elif ((running && running + zeros == WORKERS)); then echo running
  elif ((running)); then echo partial
  elif ((${#codes[@]} != WORKERS)); then echo idle
  else
    for word in 2 3 4 '[1-9]*' lost 0; do
      for code in "${codes[@]}"; do
        # shellcheck disable=SC2053 # a pattern
        if [[ $code == $word ]]; then echo "$code"; return; fi
      done
    done
  fi
}

# Waits before a retry, longer each time; gives up after LIMIT failures in a row that came quickly.
failed() { # what
  local wait=${BACKOFF:-30} n
  if ((SECONDS - began >= ${QUICK:-1800})); then failures=0; fi
  failures=$((failures + 1))
  if ((failures >= ${LIMIT:-5})); then
    [[ -z $prepared ]] || worker all tail 20 >&2 || true
    fail 1 "$1; gave up after $failures quick failures. The slice $NAME is left as it is"
  fi
  for ((n = 1; n < failures && wait < 900; n++)); do wait=$((wait * 2)); done
  say "$1; failure $failures of ${LIMIT:-5}, again in $wait s"
  sleep "$wait"
  began=$SECONDS
}

make() {
  local said
  say "creating $NAME ($TYPE)"
  if said=$(create 2>&1); then
    began=$SECONDS
  else
    say "$said"
    if [[ $said == *[cC]apacity* || $said == *tockout* ]]; then sleep "${POLL:-60}"; else failed "create failed"; fi
  fi
}

babysit() {
  local state now before="" began=$SECONDS failures=0 prepared="" sum
  need TYPE
  describe_type
  [[ $# -gt 0 ]] || fail 2 "babysit: which stage? launch/tpu.sh babysit STAGE --config=... --workdir=gs://..."
  case " $* " in
    *' --workdir=gs://'* | *' --workdir gs://'*) ;;
    *) fail 2 "babysit needs --workdir=gs://...: another one is lost with the slice" ;;
  esac
  pack
  if [[ -n ${DRY_RUN:-} ]]; then
    slice && create && ship && setup && start "$@" && worker all status
    return
  fi
  sum=$(printf '%s\0' "$@" --distributed | cksum | cut -d ' ' -f 1)
  while true; do
    state=$(slice)
    case $state in
      READY) ;;
      missing) prepared="" && make && continue ;;
      PREEMPTED | TERMINATED | FAILED | SUSPENDED)
        say "$NAME is $state: deleting it"
        prepared=""
        if ! delete --yes; then
          failed "delete failed"
        elif [[ $state == FAILED ]]; then
          failed "the slice was refused or broke"
        else
          sleep "${POLL:-60}"
        fi
        continue
        ;;
      STOPPED) fail 1 "$NAME was stopped by hand: start it, or launch/tpu.sh delete" ;;
      *)
        [[ $state == "$before" ]] || say "$NAME is $state: waiting"
        before=$state
        sleep "${POLL:-60}"
        continue
        ;;
    esac
    now=$(state_of_all "$sum")
    [[ $now == "$before" ]] || say "$NAME is READY, the run: $now"
    case $now in
      0) say "done; the slice $NAME is left, and costs until launch/tpu.sh delete" && return ;;
      foreign) fail 1 "another command is running on $NAME: launch/tpu.sh stop" ;;
      running) before=$now && prepared=1 && sleep "${POLL:-60}" && continue ;;
      unknown) [[ -z $prepared ]] || { before=$now && sleep "${POLL:-60}" && continue; } ;;
      partial)
        # Once may be a start or an end in progress.
        if [[ $before == partial ]]; then worker all stop "${GRACE:-600}" || true; else sleep "${POLL:-60}"; fi
        before=partial
        continue
        ;;
    esac
    before=$now
    if [[ -n $prepared ]]; then
      case $now in
        2 | 3) worker all tail 20 >&2 || true; say "the run ended with $now, which a retry can't cure"; exit "$now" ;;
        143) sleep "${POLL:-60}" ;;
        *) failed "the run: $now" ;;
      esac
    else
      { ship && setup; } >&2 || { failed "sync or setup failed" && continue; }
      prepared=1
    fi
    began=$SECONDS
    start "$@" >&2 || failed "start failed"
  done
}

command=${1:-}
shift || true
case $command in
  create | delete | sync | setup | run | status | stop | tail | babysit) need NAME ZONE ;;
  -h | --help | help) usage && exit ;;
  "") usage >&2 && exit 2 ;;
  *) fail 2 "unknown command '$command'; create, sync, setup, run, status, tail, stop, delete, babysit (see --help)" ;;
esac
[[ -n ${DRY_RUN:-} ]] || command -v gcloud >/dev/null || fail 1 "no gcloud on PATH: install the Google Cloud CLI"
case $command in
  run) start "$@" ;;
  stop) worker all stop "${GRACE:-600}" ;;
  tail) tail_log "$@" ;;
  *) "$command" "$@" ;;
esac
