#!/usr/bin/env bash
# Learns a stream on a Cloud TPU slice: asks for the slice as a queued resource, installs this checkout on every host,
# and runs the same command on all of them. Usage:
#   tools/launch/tpu_pod.sh NAME ZONE TYPE CONFIG OUT [more words of `hidecmoe run`]
#   tools/launch/tpu_pod.sh my-slice us-west4-a v5litepod-16 ucit/hide /net/disk/runs/ucit
# OUT, the base and the tasks must lie on a disk that all hosts mount at one place, on which renaming a folder is atomic
# (Filestore, NFS; a bucket is not enough). Calling it again goes on where it stopped. The slice costs money until
# `gcloud compute tpus queued-resources delete NAME --zone ZONE --force` gives it back.
set -euo pipefail
if [ $# -lt 5 ]; then
  sed -n '2,8p' "$0"
  exit 2
fi
name=$1
zone=$2
type=$3
config=$4
out=$5
shift 5
runtime=${RUNTIME:-v2-alpha-tpuv5-lite}

on_all_hosts() {
  gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --worker=all --command "$1"
}

if ! gcloud compute tpus queued-resources describe "$name" --zone "$zone" > /dev/null 2>&1; then
  gcloud compute tpus queued-resources create "$name" --node-id "$name" --zone "$zone" \
    --accelerator-type "$type" --runtime-version "$runtime"
fi
until [ "$(gcloud compute tpus queued-resources describe "$name" --zone "$zone" --format='value(state.state)')" = ACTIVE ]; do
  echo "waiting for the slice $name ..."
  sleep 60
done

# The hosts get the files of the last commit, and an environment with the accelerator's packages.
archive=$(mktemp --suffix .tar.gz)
trap 'rm -f "$archive"' EXIT
git -C "$(dirname "$0")/../.." archive --format tar.gz --output "$archive" HEAD
gcloud compute tpus tpu-vm scp "$archive" "$name":hidecmoe.tar.gz --zone "$zone" --worker=all
on_all_hosts 'mkdir -p hidecmoe && tar -xzf hidecmoe.tar.gz -C hidecmoe && python3 -m venv .venv && .venv/bin/pip install -q "./hidecmoe[tpu]"'

words=$(printf ' %q' "$config" --out "$out" "$@")
# --resume is for a run that exists; the folder is looked at where it lies.
on_all_hosts "resume=; [ -e $(printf '%q' "$out")/run.json ] && resume=--resume; .venv/bin/hidecmoe run$words \$resume"
