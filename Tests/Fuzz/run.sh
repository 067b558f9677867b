#!/bin/sh
# Fuzzes a parser: Tests/Fuzz/run.sh [stream|nbd] [libFuzzer options], e.g. Tests/Fuzz/run.sh nbd -max_total_time=600
# stream (the default) is QEMU's migration stream, nbd the NBD server. Builds into .build/fuzz, keeps the corpora there.
set -eu
cd "$(dirname "$0")/../.."
target=stream
case ${1:-} in stream | nbd) target=$1; shift ;; esac
out=.build/fuzz
common="-O -g -swift-version 6 -parse-as-library -sanitize=fuzzer,address -I $out -I Modulemaps/CLinux"
build() { # module, sources...
    module=$1; shift
    swiftc $common -module-name "$module" -emit-module -emit-module-path $out/"$module".swiftmodule \
        -wmo -emit-object -o $out/"$module".o "$@"
}
fuzz() { # module
    build "$1" Sources/"$1"/*.swift
    swiftc $common -module-name Fuzz Tests/Fuzz/"$1"Fuzz.swift $out/SystemCalls.o $out/Platform.o $out/"$1".o -o $out/$target
}
# The stream's corpus stays where it has always been.
case $target in stream) corpus=$out/corpus ;; nbd) corpus=$out/corpus-nbd ;; esac
mkdir -p $corpus
build SystemCalls Sources/SystemCalls/*.swift
build Platform Sources/Platform/*.swift
case $target in stream) fuzz MigrationStream ;; nbd) fuzz NBDServer ;; esac
exec $out/$target -max_len=65536 "$@" $corpus
