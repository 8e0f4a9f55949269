# shellcheck shell=bash
# Sourced by the other scripts: makes or reuses the virtual environment that they run in.
#
#   make_environment EXTRAS     e.g. "" or "test,torch,data"
#
# The environment is .venv beside setup.py, or $JAX_SIMCAS_VENV. It is only touched when setup.py,
# constraints.txt or the extras changed, so a second run needs no network.
# PYTHON names the interpreter to start from (3.11 or newer); by default the newest of python3.13 .. python3.11.

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="${JAX_SIMCAS_VENV:-$root/.venv}"

find_python() {
  local candidate
  for candidate in ${PYTHON:-python3.11 python3.12 python3.13 python3}; do
    if command -v "$candidate" >/dev/null 2>&1 &&
      "$candidate" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      printf '%s\n' "$candidate"
      return 0
    fi
  done
  echo "error: no Python 3.11 or newer with venv found; install one, or set PYTHON=/path/to/python3" >&2
  return 1
}

make_environment() {
  local extras="$1" python stamp wanted
  stamp="$venv/.jax_simcas-${extras:-base}"
  wanted="$(cat "$root/setup.py" "$root/constraints.txt" | cksum)"
  if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
    return 0
  fi
  if [ ! -x "$venv/bin/python" ]; then
    python="$(find_python)" || return 1
    echo "making the environment $venv with $python"
    "$python" -m venv "$venv" || return 1
  fi
  echo "installing into $venv (once; about two minutes)"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    --constraint "$root/constraints.txt" --editable "$root${extras:+[$extras]}" || {
    echo "error: the installation failed (is a package index reachable?); run the same command again" >&2
    return 1
  }
  printf '%s\n' "$wanted" >"$stamp"
}
