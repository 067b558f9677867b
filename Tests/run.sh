#!/bin/bash
# All tests of shadow-virt: installs what they need, builds, runs them, counts them.
#
#   Tests/run.sh [--unit | --end-to-end] [--filter REGEX] [--time-limit SECONDS] [--install-swift]
#
#   --unit          unit tests only: no root, no KVM
#   --end-to-end    only what runs guests on two libvirt hosts: root, and most of them /dev/kvm
#   --filter REGEX  only tests whose name (Module.Class/test) matches
#   --time-limit N  give up after N seconds of testing (default 4200; on an idle machine of two cores it takes about 2700)
#   --install-swift when neither PATH nor apt has Swift 6: fetches it from swift.org
#
# Installs missing packages from apt when it may (root); asks nothing. What this machine cannot do is skipped, and the
# reason is printed. The last line is "N passed, N failed, N skipped"; exit status 0 when none failed and some passed.

set -Eeuo pipefail

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
readonly repository
# shellcheck source=Support/install.sh
source "$repository/Tests/Support/install.sh"
export HOME=${HOME:-/tmp}
unit=yes end_to_end=yes filter='' time_limit=4200 swift_option=()

usage() { sed -n '2,/^$/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }
wrong() { echo "run.sh: $1 (try --help)" >&2; exit 64; }
give_up() { echo "run.sh: $1" >&2; echo "0 passed, 1 failed, 0 skipped"; exit 1; }

while (($# > 0)); do
  case $1 in
  --unit) end_to_end='' ;;
  --end-to-end) unit='' ;;
  --install-swift) swift_option=(--from-swift-org) ;;
  --filter | --time-limit)
    [[ -n ${2:-} ]] || wrong "$1 needs a value"
    if [[ $1 == --filter ]]; then filter=$2; else time_limit=$2; fi
    shift ;;
  --help | -h) usage; exit 0 ;;
  *) wrong "No such option: $1" ;;
  esac
  shift
done
[[ -n $unit$end_to_end ]] || wrong "--unit and --end-to-end exclude each other"
[[ $time_limit =~ ^[1-9][0-9]*$ ]] || wrong "--time-limit needs a number of seconds"

# --- what is needed ------------------------------------------------------------------------------------------------

need_packages "${build_packages[@]}" || echo "$install_problem" >&2 # the build may find them elsewhere
# libvirt's own tests run on a qemu driver too, so these are wanted by both kinds.
need_packages "${host_packages[@]}" "${test_packages[@]}" || echo "$install_problem (tests that need them are skipped)" >&2

need_promtool "$repository/.build/promtool" || echo "No promtool from apt (the tests of examples/monitoring are skipped)" >&2
need_agent "$repository/.build/qemu-ga" || echo "No qemu-ga from apt (tests with a real guest agent are skipped)" >&2

if [[ -n $end_to_end ]]; then
  ((EUID == 0)) || echo "Not root: the end-to-end tests are going to be skipped"
  [[ -c /dev/kvm ]] || echo "No /dev/kvm: tests with KVM guests are going to be skipped"
fi

# --- build ---------------------------------------------------------------------------------------------------------

# For the tests and for what Swift leaves lying around. Short, because paths of sockets have 107 bytes at most.
work=$(mktemp -d /tmp/svt.XXXXXX)
readonly work output=$work/output
export TMPDIR=$work
runner=''

remove_leftovers() { # of tests that were cut off: processes, hosts; and the folder
  local holder
  trap '' INT TERM
  # timeout passes it on to all that it started.
  if [[ -n $runner ]]; then kill -INT "$runner" 2>/dev/null || true; wait "$runner" || true; fi
  while read -r holder; do
    "$repository/Tests/Support/hosts.sh" down "${holder%/A/holder}" || true
  done < <(find "$work" -maxdepth 4 -path '*/A/holder' 2>/dev/null)
  rm -rf --one-file-system "$work"
}
trap remove_leftovers EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

need_swift "${swift_option[@]}" || give_up "$install_problem"

# Tests written for swift-testing would not be counted below.
if grep -rqE '^(@testable )?import Testing\b' "$repository/Tests" --include='*.swift'; then
  give_up "Tests are written with XCTest here: $(grep -rlE '^import Testing\b' "$repository/Tests" | tr '\n' ' ')"
fi

echo "Building with $(swift --version 2>/dev/null | sed -n 's/.*\(Swift version [0-9.]*\).*/\1/p')"
if ! swift build --package-path "$repository" --build-tests </dev/null >"$output" 2>&1; then
  grep -E 'error:' "$output" || tail -n 30 "$output"
  give_up "The build failed"
fi
grep -E 'warning:' "$output" | sort -u || true

# --- run -----------------------------------------------------------------------------------------------------------

# Several filters add up, skips take away.
selection=(--disable-swift-testing)
[[ -z $filter ]] || selection+=(--filter "$filter")
[[ -n $unit ]] || selection+=(--skip '^(?!EndToEndTests\.)')
[[ -n $end_to_end ]] || selection+=(--skip '^EndToEndTests\.')

# Into a file: a process that a test leaves behind would hold a pipe open for good.
status=0
: >"$output"
# XCTest prints by blocks otherwise: nothing to see for minutes, and the last ones lost when it is cut off.
timeout --signal=INT --kill-after=20 "$time_limit" stdbuf -oL \
  swift test --package-path "$repository" --skip-build "${selection[@]}" </dev/null >"$output" 2>&1 &
runner=$!
tail -n +1 -s 0.3 -f --pid="$runner" "$output" |
  grep -a --line-buffered -vE "^Test Case '.*' (started at|passed \()|^Test Suite .* started|^Build complete|^\[[0-9]+/[0-9]+\]" &
display=$!
wait "$runner" || status=$?
wait "$display" || true
runner=''

# --- count ---------------------------------------------------------------------------------------------------------

tests() { grep -aoE "Test Case '[^']+' $1" "$2" | sed -E "s/Test Case '([^']+)'.*/\1/" | sort -u || true; } # HOW OUTPUT
count() { grep -c . <<<"$1" || true; }

passed=$(tests 'passed \(' "$output") failed=$(tests 'failed \(' "$output") skipped=$(tests 'skipped \(' "$output")
# A test that neither passed nor failed took the process down with it, or was running when the time was over.
unfinished=$(comm -23 <(tests 'started' "$output") <(sort -u <<<"$passed"$'\n'"$failed"$'\n'"$skipped"))

# Guests, daemons and time limits on a machine that may be busy with other things: what failed gets one more try, alone, and is
# named even when that passes. Not a whole suite in ruins, and not when the time is over.
unsteady=''
left=$((time_limit - SECONDS))
if [[ -n $failed ]] && (($(count "$failed") <= 10 && status != 124 && status != 137 && left > 300)); then
  echo "Once more: $(tr '\n' ' ' <<<"$failed")"
  again=()
  for name in $failed; do again+=(--filter "\\.${name/./\\/}\$"); done
  timeout --signal=INT --kill-after=20 "$left" swift test --package-path "$repository" --skip-build --disable-swift-testing \
    "${again[@]}" </dev/null >"$output.again" 2>&1 &
  runner=$!
  if wait "$runner"; then retried=0; else retried=$?; fi
  runner=''
  grep -aE 'error:|MEASURED' "$output.again" || true
  unsteady=$(comm -12 <(tests 'passed \(' "$output.again") <(sort -u <<<"$failed"))
  if [[ -n $unsteady ]]; then
    failed=$(comm -23 <(sort -u <<<"$failed") <(sort -u <<<"$unsteady"))
    passed=$(sort -u <<<"$passed"$'\n'"$unsteady" | grep . || true)
    if ((retried == 0)) && [[ -z $failed$unfinished ]]; then status=0; fi
  fi
fi

slowest() { # of the first run, with their seconds
  grep -aoE "Test Case '[^']+' (passed|failed) \([0-9.]+ seconds\)" "$output" | sed -E "s/Test Case '([^']+)' [a-z]+ \(([0-9.]+) .*/\2 \1/" |
    sort -rn | sed -n '1,15p' || true
}

echo
if (($(count "$passed") > 15)); then
  echo "The slowest:"
  slowest | while read -r seconds name; do printf '  %7.1f s  %s\n' "$seconds" "$name"; done
fi
if [[ -n $skipped ]]; then
  echo "Skipped, and why:"
  grep -aoE '[A-Za-z0-9_]+\.test[A-Za-z0-9_]* : Test skipped.*' "$output" | sed -E 's/^[^ ]+ : Test skipped[-: ]*//' |
    sort | uniq -c | sort -rn | sed -E 's/^ *([0-9]+) (.*)/  \1 x  \2/'
fi
if [[ -n $unsteady ]]; then
  echo "Passed at the second try only:"
  for name in $unsteady; do echo "  $name"; done
fi
if [[ -n $failed$unfinished ]]; then
  echo "Failed:"
  for name in $failed; do echo "  $name"; done
  for name in $unfinished; do echo "  $name (did not finish)"; done
fi
failures=$(($(count "$failed") + $(count "$unfinished")))
if ((status == 124 || status == 137)); then
  echo "Time was over after $time_limit s"
  ((failures > 0)) || failures=1
elif ((status != 0 && failures == 0)); then
  echo "\`swift test\` ended with status $status"
  failures=1
elif [[ -z $passed$skipped ]]; then
  echo "No test matches"
fi
echo "$(count "$passed") passed, $failures failed, $(count "$skipped") skipped"
((failures == 0)) && [[ -n $passed$skipped ]]
