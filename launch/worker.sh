#!/usr/bin/env bash
# Runs on a TPU worker, called by tpu.sh: prepares the machine for training.
#
#   bash launch/worker.sh install             Python 3.11 or newer, and the environment ../venv with [tpu]
#   bash launch/worker.sh mount BUCKETS...    each at ../buckets/BUCKET, with gcsfuse; skipped if mounted
#
# Data are read as plain files, so their buckets are mounted read-only. The workdir is not mounted: training writes to
# its bucket directly.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
base="$(dirname "$root")"

packages() { # packages NAMES...: fresh machines hold apt's lock for their own updates
  sudo apt-get -qq -o DPkg::Lock::Timeout=600 update >&2 || true
  sudo DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=600 install -y "$@" >&2
}

install_all() {
  find_python >/dev/null 2>&1 || packages python3.11 python3.11-venv || true
  find_python >/dev/null || return 1
  export JAX_SIMCAS_VENV="$base/venv"
  venv="$JAX_SIMCAS_VENV"
  make_environment tpu
}

mount_all() {
  local bucket
  for bucket; do
    mountpoint -q "$base/buckets/$bucket" && continue
    command -v gcsfuse >/dev/null || packages gcsfuse ||
      fail 1 "no gcsfuse, and apt-get finds none: add its package source with --prepare='COMMAND'" || return 1
    mkdir -p "$base/buckets/$bucket"
    gcsfuse -o ro --implicit-dirs "$bucket" "$base/buckets/$bucket" >&2 ||
      fail 1 "gs://$bucket cannot be mounted: does it exist, and may this TPU's service account use it?" || return 1
  done
}

case "${1:-}" in
  install) install_all ;;
  mount) mount_all "${@:2}" ;;
  *) show_help "${BASH_SOURCE[0]}" ;;
esac
