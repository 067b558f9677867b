#!/bin/sh
# Fuzzes the stream parser: Tests/Fuzz/run.sh [libFuzzer options], e.g. Tests/Fuzz/run.sh -max_total_time=600
# Builds into .build/fuzz, keeps the corpus there.
set -eu
cd "$(dirname "$0")/../.."
out=.build/fuzz
mkdir -p $out/corpus
common="-O -g -swift-version 6 -parse-as-library -sanitize=fuzzer,address -I $out -I Modulemaps/CLinux"
build() { # module, sources...
    module=$1; shift
    swiftc $common -module-name "$module" -emit-module -emit-module-path $out/"$module".swiftmodule \
        -wmo -emit-object -o $out/"$module".o "$@"
}
build Platform Sources/Platform/*.swift
build MigrationStream Sources/MigrationStream/*.swift
swiftc $common -module-name Fuzz Tests/Fuzz/MigrationStreamFuzz.swift $out/Platform.o $out/MigrationStream.o -o $out/stream
exec $out/stream -max_len=65536 "$@" $out/corpus
