#!/bin/bash
# Builds the ledger guests and the tool that reads what they print.
#
#   build.sh OUTDIR                          ledger.img, ledger-heavy.img, ledger-busy.img, ledger-disk.img and ledger-tool
#   build.sh OUTDIR NAME SYMBOL=VALUE...     one guest, OUTDIR/NAME.img; symbols: PAGES HZ LINE_EVERY BUSY FILL_MIB RECORDS
#                                            FLUSH_EVERY PATIENCE BULK_KIB BULK_MIB, see ledger.S, SIZE_MIB (of the disk,
#                                            default 4) and WRITES (1: marked, so that the guest writes to it when it is a virtio disk; default 0)

set -euo pipefail

readonly here=$(cd "$(dirname "$0")" && pwd)

guest() { # NAME SYMBOL=VALUE...
  local image=$out/$1.img object size_mib=4 writes=0 symbols=() setting
  for setting in "${@:2}"; do
    case $setting in
    SIZE_MIB=*) size_mib=${setting#*=} ;;
    WRITES=*) writes=${setting#*=} ;;
    *) symbols+=(--defsym "$setting") ;;
    esac
  done
  object=$(mktemp "$out/$1.XXXXXX")
  as --32 "${symbols[@]}" -o "$object" "$here/ledger.S"
  # 0xffe00: the program behind the boot sector runs at 1 MiB.
  ld -m elf_i386 -Ttext 0xffe00 --oformat binary -o "$image.new" "$object"
  rm -f "$object"
  truncate -s "${size_mib}M" "$image.new"
  ((writes == 0)) || printf LDGW | dd of="$image.new" bs=512 seek=62 conv=notrunc status=none
  chmod 644 "$image.new"
  mv "$image.new" "$image"
}

tool() {
  local source=$here/../Support/LedgerTool.swift
  [[ ! $out/ledger-tool -nt $source ]] || return 0
  swiftc -O -parse-as-library "$source" -o "$out/ledger-tool.new"
  mv "$out/ledger-tool.new" "$out/ledger-tool"
}

(($# >= 1)) || { sed -n '2,/^$/s/^# \{0,1\}//p' "$0" >&2; exit 64; }
out=$(mkdir -p "$1" && cd "$1" && pwd)
shift
if (($# > 0)); then
  guest "$@"
else
  guest ledger
  guest ledger-heavy PAGES=2000 HZ=50
  guest ledger-busy BUSY=1
  guest ledger-disk WRITES=1
  tool
fi
