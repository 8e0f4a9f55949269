#!/usr/bin/env bash
# Makes the environment, trains on the synthetic task, evaluates, and answers one new document.
#
#   bash launch/quickstart.sh [FOLDER]     FOLDER (default runs/quickstart) gets everything
#
# Needs Python 3.11 or newer and, the first time, a package index. Takes about 5 minutes on 2 CPU cores. Safe to repeat:
# finished parts are skipped.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

case "${1:-}" in
  -h | --help) show_help "${BASH_SOURCE[0]}" && exit 0 ;;
  -*) fail 2 "unknown flag $1: give a folder, or nothing; see --help" || exit ;;
esac
[ $# -le 1 ] || fail 2 "unexpected argument '$2': give one folder; see --help" || exit
start="$PWD"
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
evaluate() { # evaluate NAME SPLIT[-POLICY] LOG FLAGS...: unless that was done since the last step of training
  local run="$out/$1" scores="$out/$1/evaluation/$2/scores.json" log="$out/$1/$3"
  shift 3
  if [ "$scores" -nt "$run/metrics.jsonl" ]; then
    echo "done before: $scores"
  else
    simcas evaluate --workdir="$run" --split=test --batch-size=50 "$@" >"$log"
  fi
}
heading() { printf '\n== %s\n' "$*"; }

cat <<'TASK'

The task needs no data. A generated document asks a question in its first chunk, such as "Where was Anna born, where
does she live and where does she work?". The sentences that answer it are scattered among others over seven more chunks.
The model reads each chunk alone, keeps a few states of them all, and writes the answer. Three models are trained.
TASK

heading "1/4 training: SimCAS, the same model on the first chunk only, and SimCAS without alignment"
simcas train --config=configs/quickstart.py --workdir="$out/simcas"
simcas train --config=configs/quickstart.py --workdir="$out/one-chunk" --config.simcas.max_input_len=22
simcas train --config=configs/quickstart.py --workdir="$out/no-align" --config.simcas.align=none

heading "2/4 evaluating on 500 new documents"
for name in simcas one-chunk no-align; do
  evaluate "$name" test evaluation.txt
done
evaluate simcas test-random random.txt --policy=random

heading "3/4 answering a new document, $out/document.txt"
"$venv/bin/python" launch/answer.py "$out/simcas" "$out/document.txt"
simcas summarize --model="$out/simcas" --html="$out/document.html" "$out/document.txt" >"$out/answer.txt" 2>"$out/answer.log"
echo "the same to look at: $out/document.html"

heading "4/4 the scores in percent (exact match: the whole answer is right), with 95 % intervals"
simcas compare "SimCAS=$out/simcas/evaluation/test" "first chunk only=$out/one-chunk/evaluation/test" \
  "without alignment=$out/no-align/evaluation/test" \
  "random selection of the same size=$out/simcas/evaluation/test-random" --plot="$out/comparison.png"
echo "training curves: $out/simcas/curves.png"
printf '\nTo run the programs yourself, first activate the environment:\n. %s/bin/activate\n' "${venv#"$start"/}"
