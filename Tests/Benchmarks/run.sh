#!/bin/bash
# Measures shadow-virt against its peers, on the same guest in the same run.
#
#   run.sh [--json FILE] [--quick] [NAME...]
#
# Names: pause, ingest, libvirt, cpu, activation (with the memory of the workers), nbd, disks, passes, telemetry; default: all.
# Needs root, /dev/kvm, QEMU, libvirt, binutils and a Swift toolchain. --quick: shorter slices, fewer repetitions.
# SHADOW_VIRT_BENCHMARK_WORK keeps the work folder (default: a temporary one that is removed).

set -euo pipefail

readonly root=$(cd "$(dirname "$0")/../.." && pwd)
build_options=(-c release --package-path "$root" ${SHADOW_VIRT_BUILD_OPTIONS:-})

((EUID == 0)) || { echo "${0##*/}: Needs root: guests, namespaces and libvirtd cannot be started without" >&2; exit 1; }
for product in shadow-virt shadow-virt-benchmark; do swift build "${build_options[@]}" --product "$product" >&2; done
binaries=$(swift build "${build_options[@]}" --show-bin-path)

work=${SHADOW_VIRT_BENCHMARK_WORK:-}
clean() {
  [[ ! -d $work/hosts ]] || "$root/Tests/Support/hosts.sh" down "$work/hosts" || true
  [[ -n ${SHADOW_VIRT_BENCHMARK_WORK:-} ]] || rm -rf "$work"
}
trap clean EXIT
[[ -n $work ]] || work=$(mktemp -d /tmp/shadow-virt-benchmark.XXXXXX)
mkdir -p "$work"
export TMPDIR=$work
"$root/Tests/Guests/build.sh" "$work/guests"
for mib in 48 1000; do "$root/Tests/Guests/build.sh" "$work/guests" "filled-$mib" "FILL_MIB=$mib"; done
writer=(WRITES=1 PAGES=16 RECORDS=100000 LINE_EVERY=25)
"$root/Tests/Guests/build.sh" "$work/guests" disk-records "${writer[@]}"
"$root/Tests/Guests/build.sh" "$work/guests" disk-bulk "${writer[@]}" BULK_KIB=256 BULK_MIB=128 SIZE_MIB=256
"$binaries/shadow-virt-benchmark" --root "$root" --binaries "$binaries" --work "$work" "$@"
