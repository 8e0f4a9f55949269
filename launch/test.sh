#!/usr/bin/env bash
# Makes the environment and runs the tests.
#
#   bash launch/test.sh            the fast tests
#   bash launch/test.sh --all      the slow ones too
#   bash launch/test.sh ARGS...    further arguments go to pytest (e.g. tests/test_select.py -k greedy)
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

case "${1:-}" in -h | --help) show_help "${BASH_SOURCE[0]}" && exit 0 ;; esac
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
make_test_environment

slow=(-m "not slow")
if [ "${1:-}" = "--all" ]; then
  slow=()
  shift
fi
cd "$root"
export JAX_PLATFORMS=cpu
exec "$venv/bin/python" -m pytest -n "${JAX_SIMCAS_TEST_WORKERS:-2}" --dist loadfile "${slow[@]}" "$@"
