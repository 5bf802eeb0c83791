#!/usr/bin/env bash
# Runs the tests that compare with torch and peft (extra `oracle`), which tools/test.sh leaves out; none may be skipped.
# Usage: tools/test_oracle.sh [more words for pytest]. VENV names another environment than .venv. A CPU build of torch
# is enough; PIP_CONSTRAINT may name a file with its version.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}
tools/setup.sh "$venv" dev,oracle
# Files of these tests skip themselves where torch is missing, which would hide a broken installation here.
"$venv/bin/python" -c "import peft, torch"
# As users compile: tests/conftest.py saves time of compilation otherwise.
export XLA_FLAGS="${XLA_FLAGS:-} --xla_backend_optimization_level=3 --xla_cpu_use_fusion_emitters=true"
exec "$venv/bin/pytest" -m oracle "$@"
