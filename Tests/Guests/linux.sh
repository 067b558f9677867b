#!/bin/bash
# Builds a Linux guest: Debian's cloud kernel, busybox, and an init of our own (linux-init.sh, records.c).
#
#   linux.sh OUTDIR     OUTDIR/vmlinuz, OUTDIR/initrd and OUTDIR/records, the last for looking at what the guest wrote
#
# The packages come from apt and are not installed; what is needed of them stays in OUTDIR/parts, so that a second run fetches
# nothing. Needs a C compiler (cc or clang) with a static C library, dpkg and, on Debian 13, xz. Exit status 2: a package cannot be had.

set -euo pipefail

readonly here=$(cd "$(dirname "$0")" && pwd)
# What the guest's hardware asks for. Some are built into the kernel in one release and modules in another.
readonly modules=(virtio_pci virtio_blk virtio_net virtio_console virtio_balloon virtio_rng ext4 crc32c_generic crc32c-intel button evdev)

unavailable() { echo "linux.sh: $*" >&2; exit 2; }

fetch() { # PACKAGE FOLDER; unpacks it there
  local folder=$2.deb log=$2.log
  mkdir -p "$folder"
  # Not as the user _apt, who may not write here.
  (cd "$folder" && apt-get -o APT::Sandbox::User=root -q download "$1") >"$log" 2>&1 ||
    unavailable "$1 cannot be fetched: $(tail -n 1 "$log") (is this machine online, and are its lists fresh? apt-get update)"
  dpkg-deb -x "$folder"/*.deb "$2"
}

find_kernel() { # prints the package that the newest cloud kernel is in
  local package
  command -v apt-cache >/dev/null || unavailable "no apt here: the kernel is taken from Debian's packages"
  package=$(apt-cache depends "linux-image-cloud-$(dpkg --print-architecture)" 2>/dev/null | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1)
  [[ -n $package ]] || unavailable "apt knows no linux-image-cloud-$(dpkg --print-architecture): Debian 12 or 13 is needed"
  echo "$package"
}

take_parts() { # what we need of the packages, into OUTDIR/parts, complete or not at all
  local work=$1 parts=$1/parts package kernel version module source
  package=$(find_kernel)
  fetch "$package" "$work/kernel"
  fetch busybox-static "$work/busybox"
  mkdir -p "$parts/root/bin"
  cp "$(find "$work/busybox" -path '*bin/busybox')" "$parts/root/bin/busybox"
  version=${package#linux-image-}
  # A path below /usr where that is merged in the package, too.
  kernel=$(dirname "$(find "$work/kernel" -path "*lib/modules/$version/kernel" -type d)")
  cp "$work/kernel/boot/vmlinuz-$version" "$parts/vmlinuz"
  mkdir -p "$work/tree/lib/modules"
  mv "$kernel" "$work/tree/lib/modules/$version"
  find "$work/tree" -name '*.ko.xz' -exec xz -d {} +
  "$parts/root/bin/busybox" depmod -b "$work/tree" "$version"
  for module in "${modules[@]}"; do
    # Its line: the file itself, a colon, and all that it needs.
    for source in $(grep -E "/${module//[_-]/[_-]}\.ko:" "$work/tree/lib/modules/$version/modules.dep" | tr -d :); do
      mkdir -p "$parts/root/lib/modules/$version/${source%/*}"
      cp "$work/tree/lib/modules/$version/$source" "$parts/root/lib/modules/$version/$source"
    done
  done
  "$parts/root/bin/busybox" depmod -b "$parts/root" "$version"
  mv "$parts" "$out/parts"
}

compile() { # TARGET
  local compiler
  compiler=$(command -v cc || command -v clang) || unavailable "no C compiler (Debian: apt install gcc)"
  "$compiler" -std=gnu11 -Wall -Wextra -Werror -O2 -static -o "$1" "$here/records.c"
}

pack() { # FOLDER ARCHIVE; in the kernel's format, with busybox's cpio since the machine may have none
  (cd "$1" && find . | "$out/parts/root/bin/busybox" cpio -o -H newc -R 0:0 2>/dev/null) | gzip -1 >"$2"
}

(($# == 1)) || { sed -n '2,/^$/s/^# \{0,1\}//p' "$0" >&2; exit 64; }
out=$(mkdir -p "$1" && cd "$1" && pwd)
exec {lock}<"$out"
flock "$lock"

# Newer than all that it is made of: nothing to do.
if [[ -e $out/initrd && $out/initrd -nt $here/linux.sh && $out/initrd -nt $here/linux-init.sh && $out/initrd -nt $here/records.c ]]; then exit 0; fi
work=$(mktemp -d "$out/work.XXXXXX")
trap 'rm -rf "$work"' EXIT
[[ -d $out/parts && $out/parts -nt $here/linux.sh ]] || { rm -rf "$out/parts"; take_parts "$work"; }
compile "$work/records"
cp -r "$out/parts/root" "$work/root"
mkdir -p "$work/root"/{dev,proc,sys,disk}
cp "$here/linux-init.sh" "$work/root/init"
cp "$work/records" "$work/root/bin/records"
chmod 755 "$work/root/init"
pack "$work/root" "$work/initrd"
cp "$out/parts/vmlinuz" "$out/vmlinuz.new"
mv "$out/vmlinuz.new" "$out/vmlinuz"
mv "$work/records" "$out/records"
mv "$work/initrd" "$out/initrd"
chmod 644 "$out"/{vmlinuz,initrd}
