#!/usr/bin/env bash
# Learns a stream on all GPUs of one host, in one process. Usage: tools/launch/gpu_host.sh CONFIG OUT [more words of
# `hidecmoe run`]. Calling it again goes on where it stopped.
set -euo pipefail
if [ $# -lt 2 ]; then
  sed -n '2,3p' "$0"
  exit 2
fi
config=$1
out=$2
shift 2
# Arrays of one run need most of the memory; the rest is for the driver and the communication between GPUs.
export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.9}
# Sums over the GPUs of a host are made in their switch, where it can do that.
export NCCL_NVLS_ENABLE=${NCCL_NVLS_ENABLE:-1}
if [ -e "$out/run.json" ]; then
  set -- --resume "$@"
fi
exec hidecmoe run "$config" --out "$out" "$@"
