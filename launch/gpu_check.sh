#!/usr/bin/env bash
# Checks and measures this checkout on a machine with an NVIDIA GPU, in at most 8 minutes.
#
#   bash launch/gpu_check.sh                                       makes the environment from a package index
#   WHEELS=DIR bash launch/gpu_check.sh --python=/opt/venv/bin/python3    no index: that Python, and wheels from DIR
#   bash launch/gpu_check.sh --output=DIR -- --parts=benchmark --size=large --lengths=16384
#
# The benchmark beside the PyTorch peer, parity with the released code's arrays, tests, resume and a short training. DIR
# (default runs/gpu_check) gets gpu_check.json, gpu_check.md and gpu_check.log, after each part.
#   --python=PYTHON   has jax for CUDA, torch and whatever is not in WHEELS; without it the environment gets [cuda12] or
#                     [cuda13]
#   --output=DIR      where the results go
# WHEELS is a folder of wheels that PYTHON lacks, one version of each; they are unpacked beside it, not into it.
# Arguments after -- go to python -m jax_simcas.benchmark.gpu_check; its --help names them.
# exit codes: 0 everything holds, 1 something does not, 2 wrong flags
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
. "$here/environment.sh"
. "$here/common.sh"

python="" output="" train=()
read_arguments "check" "--python --output" "" check "$@" || exit
case "${output:=$root/runs/gpu_check}" in /*) ;; *) output="$PWD/$output" ;; esac

if [ -z "$python" ]; then
  if [ -n "${WHEELS:-}" ]; then
    export PIP_FIND_LINKS="$WHEELS"
  fi
  make_environment "test,torch,$(cuda_extra)" || exit
  python="$venv/bin/python"
elif ! "$python" -c '' 2>/dev/null; then
  fail 2 "--python=$python cannot be run" || exit
elif [ -n "${WHEELS:-}" ]; then
  site="$(mktemp -d)"
  trap 'rm -rf "$site"' EXIT
  "$python" -m pip install --quiet --disable-pip-version-check --no-index --no-deps --no-compile --no-cache-dir \
    --target "$site" "$WHEELS"/*.whl || fail 1 "the wheels of $WHEELS cannot be installed" || exit
  export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
fi
cd "$root"
"$python" -m jax_simcas.benchmark.gpu_check "--output=$output" "${train[@]}"
