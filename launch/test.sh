#!/usr/bin/env bash
# Makes .venv, installs the test extra, checks style, imports and types, and runs the tests:
# bash launch/test.sh [pytest arguments]
# JAXRLVR_WORKERS processes share the tests (default 3: one more than the cores of a small machine, as some tests wait).
# JAX_COMPILATION_CACHE_DIR=FOLDER keeps their compiled programs there: the next run takes little more than half as long.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/venv.sh
help_if_asked "$@"
install_jaxrlvr '.[test]'
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/lint-imports --no-cache
.venv/bin/mypy
exec .venv/bin/python -m pytest -n "${JAXRLVR_WORKERS:-3}" --dist=loadscope --no-loadscope-reorder "$@"
