#!/usr/bin/env bash
# The regression test of a detector, as CI runs it: train, evaluate, hold the figures to gates and to the last accepted
# run. Exit status: that of cvad (1: a gate failed).
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: scripts/regression.sh [options] CONFIG...

  --gates FILE      gates (default: configs/gates.yaml)
  --baseline DIR    the accepted runs, DIR/<name>/evaluation; not compared while DIR is missing (default: baseline)
  --output DIR      results, junit.xml and summary.md (default: runs/regression)
  --accept          where all gates pass, make these runs the baseline: metrics.json and per_image.csv of each
  --set KEY=VALUE   override a setting of every config; may be given several times

CVAD is the command to run (default: cvad).
TEXT
}

gates=configs/gates.yaml baseline=baseline output=runs/regression accept=no
configs=() overrides=()
while (($#)); do
    case "$1" in
        -h | --help) usage; exit 0 ;;
        --accept) accept=yes; shift; continue ;;
        --gates | --baseline | --output | --set)
            if (($# < 2)); then echo "regression.sh: $1 wants a value" >&2; exit 2; fi ;;&
        --gates) gates=$2; shift 2 ;;
        --baseline) baseline=$2; shift 2 ;;
        --output) output=$2; shift 2 ;;
        --set) overrides+=(--set "$2"); shift 2 ;;
        -*) echo "regression.sh: no option $1" >&2; usage >&2; exit 2 ;;
        *) configs+=(--config "$1"); shift ;;
    esac
done
if ((${#configs[@]} == 0)); then usage >&2; exit 2; fi

read -r -a cvad <<<"${CVAD:-cvad}"
common=("${configs[@]}" ${overrides[@]+"${overrides[@]}"} --set "output.root=$output/runs" --quiet)
comparison=()
if [[ -d "$baseline" ]]; then
    comparison=(--baseline "$baseline")
else
    echo "no baseline at $baseline yet: gates only (--accept makes one)"
fi

mkdir -p "$output"
rm -f "$output/junit.xml" "$output/summary.md" # an old verdict must not be taken for this one
touch "$output/.started"
"${cvad[@]}" train "${common[@]}"
status=0
"${cvad[@]}" evaluate "${common[@]}" --gate "$gates" ${comparison[@]+"${comparison[@]}"} \
    --junit "$output/junit.xml" --summary "$output/summary.md" || status=$?

if [[ -f "$output/summary.md" ]]; then cat "$output/summary.md"; fi
echo "to upload: $output/junit.xml (test report), $output/summary.md (comment), $output/runs/*/evaluation (artifact)"
if ((status == 0)) && [[ "$accept" == yes ]]; then
    for evaluation in "$output"/runs/*/evaluation; do
        if [[ ! "$evaluation/metrics.json" -nt "$output/.started" ]]; then continue; fi # of an earlier call
        kept="$baseline/$(basename "$(dirname "$evaluation")")/evaluation"
        mkdir -p "$kept"
        cp "$evaluation/metrics.json" "$evaluation/per_image.csv" "$kept/"
    done
    echo "accepted: $baseline is the baseline from now on; commit it or keep it with the artifacts"
fi
exit "$status"
