#!/usr/bin/env bash
# Sets everything up, teaches the pocket model a stream of tasks with HiDe-LLaVA and with sequential LoRA, and writes
# the report that compares them. Usage: tools/demo.sh [more words for `hidecmoe compare`, such as --resume]
set -euo pipefail
cd "$(dirname "$0")/.."
tools/setup.sh .venv
# Large pages for the arrays of a training step: a quarter less time on a CPU under Linux, nothing elsewhere.
export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}
out=runs/demo
if [ $# -eq 0 ] && [ -e "$out" ]; then
  set -- --resume
fi
.venv/bin/hidecmoe compare configs/pocket/quick/hide.yaml configs/pocket/quick/sequential.yaml --out "$out" "$@"
echo "Open $out/report.html in a browser."
