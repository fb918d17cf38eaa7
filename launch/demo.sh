#!/usr/bin/env bash
# From nothing to a trained policy and a report, on a CPU: makes .venv, installs, runs the built-in default.
#   bash launch/demo.sh [WORKDIR] [--config.key=value ...]
# Needs Python >= 3.11 (PYTHON names another than python3) and access to a package index. The same command goes on
# with an interrupted run; for another one name another directory. Default: runs/demo.
set -euo pipefail
here=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/venv.sh
help_if_asked "$@"
workdir=$PWD/runs/demo
if [[ $# -gt 0 && $1 != --* ]]; then
  case $1 in /*) workdir=$1 ;; *) workdir=$here/$1 ;; esac
  shift
fi
install_jaxrlvr .
export JAX_PLATFORMS=cpu
exec .venv/bin/jaxrlvr chain --config=demo --workdir="$workdir" "$@"
