#!/bin/bash
# Scores the drift analyzers, as shipped, on recorded data and prints the scorers' tables.
#
#   drift.sh DIR
#
# DIR holds pairs60/, pairs300/ and nab/ (.csv files), their labels pairs60_events.csv, pairs300_events.csv and nab_windows.csv, and the scorers
# scripts/score_pairs.py and score_anomaly.py (python3 with numpy). What DIR lacks is skipped, and said. Needs a Swift toolchain, no root.

set -euo pipefail

readonly root=$(cd "$(dirname "$0")/../.." && pwd)
(($# == 1)) || { echo "Usage: ${0##*/} DIR" >&2; exit 64; }
readonly data=$(realpath -- "$1")
[[ -d $data/scripts ]] || { echo "${0##*/}: No folder '$data/scripts' with the scorers" >&2; exit 1; }

build_options=(-c release --package-path "$root" ${SHADOW_VIRT_BUILD_OPTIONS:-})
swift build "${build_options[@]}" --product shadow-virt >&2
tool=$(swift build "${build_options[@]}" --show-bin-path)/shadow-virt
work=$(mktemp -d /tmp/shadow-virt-drift.XXXXXX)
trap 'rm -rf "$work"' EXIT

has() {
  [[ -d $data/$1 && -f $data/$2 ]] && return
  echo "$1: skipped, there is no $1/ with $2 in $data"
  return 1
}

pairs() { # NAME STEP OPTION...
  local name=$1 step=$2
  shift 2
  has "$name" "${name}_events.csv" || return 0
  "$tool" analyze pairs "$data/$name" --step "$step" --out "$work/$name.csv" --quiet
  echo "$name"
  python3 "$data/scripts/score_pairs.py" --data "$data/$name" --events "$data/${name}_events.csv" --scores "$work/$name.csv" \
    --step "$step" --threshold 1 --per-kind "$@"
}

pairs pairs60 60 --warmup 21600
pairs pairs300 300 --warmup 172800 --join 1800 --grace 900
if has nab nab_windows.csv; then
  "$tool" analyze series "$data/nab" --out "$work/nab.csv" --quiet
  echo nab
  python3 "$data/scripts/score_anomaly.py" --data "$data/nab" --windows "$data/nab_windows.csv" --scores "$work/nab.csv" --threshold 0.5
fi
