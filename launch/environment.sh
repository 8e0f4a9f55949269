# shellcheck shell=bash
# Sourced by the other scripts: makes or reuses the virtual environment that they run in.
#
#   make_environment EXTRAS     e.g. "" or "test,data"
#   make_test_environment       with what the tests need
#
# The environment is .venv beside setup.py, or $JAX_SIMCAS_VENV. It is only touched when setup.py,
# constraints.txt or the extras changed, so a second run needs no network; it keeps the Python that it has.
# PYTHON names the interpreter to start from (3.11 or newer); by default the newest of python3.13 .. python3.11.

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="${JAX_SIMCAS_VENV:-$root/.venv}"

find_python() {
  local candidate candidates=(python3.13 python3.12 python3.11 python3)
  [ -z "${PYTHON:-}" ] || candidates=("$PYTHON")
  # Each is tried: a pyenv shim may stand for a version that is not active, and Debian splits ensurepip off.
  for candidate in "${candidates[@]}"; do
    if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
      printf '%s\n' "$candidate"
      return 0
    fi
  done
  if [ -n "${PYTHON:-}" ]; then
    echo "error: PYTHON=$PYTHON is not a Python 3.11 or newer with venv" >&2
  else
    echo "error: no Python 3.11 or newer with venv found; install one, or set PYTHON=/path/to/python3" >&2
  fi
  return 1
}

python_version() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])'; }

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
  elif [ -n "${PYTHON:-}" ] && [ "$(python_version "$venv/bin/python")" != "$(python_version "$PYTHON" 2>/dev/null)" ]; then
    echo "the environment $venv keeps its Python $(python_version "$venv/bin/python"); remove it to change to $PYTHON"
  fi
  echo "installing into $venv (once; about a minute)"
  # Modules are compiled when they are first imported, which most are not: that halves the time.
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile \
    --constraint "$root/constraints.txt" --editable "$root${extras:+[$extras]}" || {
    echo "error: the installation failed (is a package index reachable?); run the same command again" >&2
    return 1
  }
  printf '%s\n' "$wanted" >"$stamp"
}

# Torch is the oracle of many tests. constraints.txt pins it for Python 3.11 only, where our runs have a CPU build; on
# newer ones it would come with gigabytes of CUDA. There the tests use a torch that is installed already, or are skipped.
make_test_environment() {
  local python="$venv/bin/python"
  [ -x "$python" ] || python="$(find_python)" || return 1
  if [ "$(python_version "$python")" = 3.11 ]; then
    make_environment "test,torch,data"
  else
    make_environment "test,data"
  fi
}
