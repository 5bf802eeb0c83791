#!/usr/bin/env bash
# Makes a virtual environment and installs the package into it, once; the other scripts call this.
# Usage: tools/setup.sh [VENV] [EXTRAS]     VENV: .venv by default; EXTRAS: dev, cuda13, tpu, or several with commas
# INSTALL=wheel installs what a user gets instead of a link to this checkout.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:-.venv}
extras=${2:-}

find_python() {
  for name in "${PYTHON:-}" python3 python3.12 python3.11 python3.13 python; do
    if [ -n "$name" ] && "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$name"
      return
    fi
  done
  echo "No Python 3.11 or newer was found. Install one (Debian/Ubuntu: sudo apt install python3 python3-venv)," >&2
  echo "or name it: PYTHON=/path/to/python3.12 $0" >&2
  return 1
}

if [ ! -x "$venv/bin/python" ]; then
  python=$(find_python)
  if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    echo "$python has no venv module. Debian/Ubuntu: sudo apt install python$version-venv" >&2
    exit 1
  fi
  echo "Making $venv with $("$python" --version) ..."
  "$python" -m venv "$venv"
fi

extras_suffix=${extras:+[$extras]}
if [ "${INSTALL:-editable}" = wheel ]; then
  echo "Building the wheel and installing it with what it needs (about 1.2 GiB on disk; minutes) ..."
  rm -rf build # setuptools would pack files of an earlier build that are gone from the sources
  "$venv/bin/python" -m pip install --quiet ".$extras_suffix"
  exit
fi

# Installed again only when what it depends on changed.
stamp="$venv/.installed-${extras:-plain}"
if [ ! -f "$stamp" ] || [ pyproject.toml -nt "$stamp" ] || [ setup.py -nt "$stamp" ]; then
  echo "Installing the package and what it needs (about 1.2 GiB on disk; minutes, once) ..."
  "$venv/bin/python" -m pip install --quiet --editable ".$extras_suffix"
  touch "$stamp"
fi
