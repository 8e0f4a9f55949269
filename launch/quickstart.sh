#!/usr/bin/env bash
# Makes the environment, trains on the embedded task, evaluates, summarises a document it has never seen.
#
#   bash launch/quickstart.sh [FOLDER]     FOLDER (default runs/quickstart) gets everything
#
# Needs Python 3.11 or newer and, the first time, a package index. Safe to repeat: finished parts are not redone.
set -euo pipefail

case "${1:-}" in
  -h | --help)
    sed -n '2,6s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    exit 0
    ;;
esac
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
make_environment ""
out="${1:-$root/runs/quickstart}"
mkdir -p "$out"
out="$(cd "$out" && pwd)"
cd "$root"
export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"

simcas() { # simcas PROGRAM ARGS...
  local name="$1"
  shift
  "$venv/bin/python" -m "jax_simcas.$name" "$@"
}
say() { printf '\n== %s\n' "$*"; }

say "1/4 training: SimCAS, the same model on one chunk, and without alignment"
simcas train --config=configs/embedded.py --workdir="$out/simcas"
simcas train --config=configs/embedded.py --workdir="$out/one-chunk" --config.simcas.max_input_len=16
simcas train --config=configs/embedded.py --workdir="$out/no-align" --config.simcas.align=none

say "2/4 evaluating on 500 documents that were not trained on"
for name in simcas one-chunk no-align; do
  simcas evaluate --workdir="$out/$name" --split=test --batch-size=50 >"$out/$name/evaluation.txt"
done
simcas evaluate --workdir="$out/simcas" --split=test --batch-size=50 --policy=random >"$out/simcas/random.txt"

say "3/4 summarising a document it has never seen"
"$venv/bin/python" - "$out/simcas/config.json" >"$out/document.txt" <<'PYTHON'
import dataclasses
import sys
from pathlib import Path

from jax_simcas.data.synthetic import SyntheticSource
from jax_simcas.run.config import read_json

config = dataclasses.replace(read_json(Path(sys.argv[1])).data.embedded, seed=2_024)
print(SyntheticSource("test", config)[0].document)
PYTHON
echo "$out/document.txt asks and says: $(grep -oE '(ask|fact)-[0-9-]+' "$out/document.txt" | sort | tr '\n' ' ')"
simcas summarize --model="$out/simcas" "$out/document.txt"

say "4/4 the table"
simcas compare "SimCAS=$out/simcas/evaluation/test" "one chunk only=$out/one-chunk/evaluation/test" \
  "without alignment=$out/no-align/evaluation/test" \
  "random selection, same size=$out/simcas/evaluation/test-random" --plot="$out/comparison.png"
echo "curves: $out/simcas/curves.png"
