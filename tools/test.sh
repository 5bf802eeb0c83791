#!/usr/bin/env bash
# Sets everything up and runs the tests, two files at a time. Usage: tools/test.sh [more words for pytest, such as
# -m slow, tests/core, or -n 0 for one file after the other]. VENV names another environment than .venv.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}
tools/setup.sh "$venv" dev
# The program, not `python -m pytest`: that would put this folder on the path, before the package that was installed.
# Files in the order of tests/conftest.py: by their time, not by their number of tests.
exec "$venv/bin/pytest" -n 2 --dist loadfile --no-loadscope-reorder "$@"
