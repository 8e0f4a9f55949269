# shellcheck shell=bash
# Sourced by the scripts of this folder.
#
#   packages NAME==VERSION...   installs them into a new environment in a temporary folder, which goes at the end
#   check                       runs the Python program on standard input there; it fails if what was seen has changed
#
# PYTHON names the interpreter to start from (default python3).
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
export HF_HUB_OFFLINE=1 HF_HOME="$folder/hub" JAX_PLATFORMS=cpu TRANSFORMERS_VERBOSITY=error TQDM_DISABLE=1

packages() {
  "${PYTHON:-python3}" -m venv "$folder/environment"
  "$folder/environment/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
  printf 'installed: %s\n' "$*"
}

check() {
  cat >"$folder/program.py"
  (cd "$folder" && "$folder/environment/bin/python" -W ignore program.py)
}
