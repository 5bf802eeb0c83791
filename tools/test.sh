#!/usr/bin/env bash
# Sets everything up and runs the tests. Usage: tools/test.sh [more words for pytest, such as --slow or tests/core]
# VENV names another environment than .venv.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}
tools/setup.sh "$venv" dev
exec "$venv/bin/python" -m pytest "$@"
