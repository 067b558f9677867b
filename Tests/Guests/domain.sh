#!/bin/bash
# Prints the libvirt XML of a ledger guest.
#
#   domain.sh NAME [KEY=VALUE...]
#
# Keys: DISK (default /var/lib/libvirt/images/NAME.img; empty: no disk), KERNEL (image to boot without a disk), SERIAL
# (default /var/log/libvirt/NAME.serial), BUS and TARGET (virtio and vda; ide and hda), DATA (a second disk, vdb; default: none),
# UUID (default: made from NAME, so that it is the same on both hosts), MEMORY_MIB (64), VCPUS (1, up to 4), MACHINE (pc), TYPE
# (kvm; qemu for TCG).
#
# The guest writes to virtio disks whose image bears the mark (ledger-disk.img, ledger-tool mark) and leaves others alone; when none
# bears it, to an IDE disk.

set -euo pipefail

(($# >= 1)) || { sed -n '2,/^$/s/^# \{0,1\}//p' "$0" >&2; exit 64; }
name=$1
shift
digest=$(echo -n "ledger guest $name" | sha256sum)
declare -A value=(
  [NAME]=$name [DISK]=/var/lib/libvirt/images/$name.img [BUS]=virtio [TARGET]=vda [DATA]='' [KERNEL]='' [SERIAL]=/var/log/libvirt/$name.serial
  [UUID]=${digest:0:8}-${digest:8:4}-4${digest:13:3}-8${digest:17:3}-${digest:20:12}
  [MEMORY_MIB]=64 [VCPUS]=1 [MACHINE]=pc [TYPE]=kvm
)
for setting; do
  [[ -v value[${setting%%=*}] ]] || { echo "${0##*/}: no such key: ${setting%%=*}" >&2; exit 64; }
  value[${setting%%=*}]=${setting#*=}
done

edits=()
for disk in DISK DATA; do [[ -n ${value[$disk]} ]] || edits+=(-e "/@$disk@/d"); done
for key in "${!value[@]}"; do edits+=(-e "s|@$key@|${value[$key]//[&|\\]/\\&}|"); done
if [[ -n ${value[KERNEL]} ]]; then edits+=(-e '/<boot /d'); else edits+=(-e '/<kernel>/d'); fi
sed "${edits[@]}" "$(dirname "$0")/ledger.xml.in"
