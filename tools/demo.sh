#!/usr/bin/env bash
# Sets everything up, teaches the pocket model a stream of tasks with HiDe-LLaVA and with sequential LoRA, and writes
# the report that compares them. Usage: tools/demo.sh [more words for `hidecmoe compare`, such as --resume]
set -euo pipefail
cd "$(dirname "$0")/.."
tools/setup.sh .venv
out=runs/demo
if [ $# -eq 0 ] && [ -e "$out" ]; then
  set -- --resume
fi
.venv/bin/hidecmoe compare configs/pocket/quick/hide.yaml configs/pocket/quick/sequential.yaml --out "$out" "$@"
echo "Open $out/report.html in a browser."
