#!/usr/bin/env bash
# What launch/tpu.sh has each host of a slice do, in the synced checkout. One run at a time: whoever holds
# ~/jaxrlvr-run/lock is running; log, pid and exit code lie beside it.
#   bash launch/worker.sh setup WHAT... | run STAGE [ARGUMENT...] | tail LINES [follow] | status | stop GRACE_SECONDS
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
state=$HOME/jaxrlvr-run
host=${HOSTNAME:-$(hostname)}
mkdir -p "$state"

idle() { flock --shared --nonblock "$state/lock" true; }

# A Python that jaxrlvr takes and that can make a venv; TPU images of Ubuntu 22.04 come with 3.10 and get one from uv.
find_python() {
  local python
  for python in python3 python3.13 python3.12 python3.11; do
    if "$python" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$python"
      return
    fi
  done
  PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv >&2
  python3 -m uv python install --quiet 3.12 >&2
  python3 -m uv python find --no-project 3.12
}

setup() {
  PYTHON=${PYTHON:-$(find_python)}
  . launch/venv.sh
  install_jaxrlvr "$@"
  .venv/bin/python -c 'import sys, jax, jaxrlvr; print(sys.argv[1], "ready: jax", jax.__version__)' "$host"
}

wait_for_pid() {
  local n
  for ((n = 0; n < 200; n++)); do
    [[ ! -s $state/pid ]] || return 0
    sleep 0.05
  done
  return 1
}

# Outlives the ssh connection that started it, and keeps the lock until the exit code is written.
supervise() {
  local code=0
  .venv/bin/jaxrlvr "$@" &
  echo $! >"$state/pid"
  wait $! || code=$?
  echo "== $(date -u +%FT%TZ) exit $code"
  echo "$code" >"$state/exit.new"
  mv "$state/exit.new" "$state/exit"
}

run() {
  [[ -x .venv/bin/jaxrlvr ]] || { echo "$host: nothing installed; first launch/tpu.sh setup" >&2; exit 1; }
  exec 9>>"$state/lock"
  flock --timeout 1 9 || { echo "$host: a run is going on; nothing started" >&2; exit 1; }
  rm -f "$state/pid" "$state/exit"
  printf '%s\0' "$@" | cksum | cut -d ' ' -f 1 >"$state/command"
  { printf '== %s jaxrlvr' "$(date -u +%FT%TZ)" && printf ' %q' "$@" && echo; } >>"$state/log"
  setsid bash launch/worker.sh supervise "$@" </dev/null >>"$state/log" 2>&1 &
  wait_for_pid || { echo "$host: did not start; see $state/log" >&2; exit 1; }
  echo "$host: started as process $(cat "$state/pid")"
}

tail_log() {
  [[ -e $state/log ]] || { echo "$host: no log yet"; return; }
  tail -n "$1" ${2:+-F} "$state/log" | sed -u "s|^|$host: |"
}

# One line: worker HOST idle | running PID COMMAND | ended EXIT_CODE COMMAND, COMMAND a checksum. A run that left no
# exit code, as its machine went down, ended with "lost".
status() {
  local command=-
  [[ ! -s $state/command ]] || command=$(cat "$state/command")
  if ! idle; then
    echo "worker $host running $(cat "$state/pid" 2>/dev/null || echo -) $command"
  elif [[ -e $state/command ]]; then
    echo "worker $host ended $(cat "$state/exit" 2>/dev/null || echo lost) $command"
  else
    echo "worker $host idle"
  fi
}

# One SIGTERM only: a second would end the run before it has saved.
stop() {
  local pid
  if idle; then status; return; fi
  wait_for_pid || { echo "$host: no process to stop" >&2; exit 1; }
  pid=$(cat "$state/pid")
  kill -TERM "$pid" 2>/dev/null || true
  flock --timeout "$1" "$state/lock" true || { echo "$host: killed after $1 seconds"; kill -KILL "$pid" || true; }
  flock --timeout 30 "$state/lock" true || true
  status
}

command=${1:-}
shift || true
case $command in
  setup | run | status | stop | supervise) "$command" "$@" ;;
  tail) tail_log "$@" ;;
  *) echo "worker.sh: unknown command '$command'" >&2; exit 2 ;;
esac
