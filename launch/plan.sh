#!/usr/bin/env bash
# Plans a run for a TPU slice on a machine without a TPU: makes .venv-tpu with libtpu, compiles there, rents nothing.
#   bash launch/plan.sh --config=section3_rl:llama3.2-3b-instruct,v5e-8 --workdir=runs/plan [--config.key=value ...]
# Where jaxrlvr is installed, `jaxrlvr plan --help` explains the keys.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
here=$PWD
cd "$root"
. launch/venv.sh
help_if_asked "$@"
VENV=.venv-tpu install_jaxrlvr '.[tpu]'
cd "$here"
export JAX_PLATFORMS=cpu
exec "$root/.venv-tpu/bin/jaxrlvr" plan "$@"
