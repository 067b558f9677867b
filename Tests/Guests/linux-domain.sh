#!/bin/bash
# Prints the libvirt XML of a Linux guest.
#
#   linux-domain.sh NAME FOLDER=DIR [KEY=VALUE...]
#
# FOLDER is where linux.sh has put the kernel. Keys: DISK (ext4, no partitions; default /var/lib/libvirt/images/NAME.img; empty: no disk), RECORDS (1: it
# writes to it; 0, the default: it leaves it alone), SERIAL (default /var/log/libvirt/NAME.serial), BRIDGE (of the network
# card; default: none), ADDRESS (the card's, as 10.77.0.50/24; port 7000 sends numbers), UUID and MAC (default: made from NAME, so that they are the same on both
# hosts), MEMORY_MIB (256), VCPUS (1), MACHINE (pc), TYPE (kvm; qemu for TCG), WORDS (more for the kernel's command line).

set -euo pipefail

(($# >= 1)) || { sed -n '2,/^$/s/^# \{0,1\}//p' "$0" >&2; exit 64; }
name=$1
shift
digest=$(echo -n "linux guest $name" | sha256sum)
declare -A value=(
  [NAME]=$name [FOLDER]='' [DISK]=/var/lib/libvirt/images/$name.img [RECORDS]=0 [SERIAL]=/var/log/libvirt/$name.serial [BRIDGE]='' [ADDRESS]=''
  [UUID]=${digest:0:8}-${digest:8:4}-4${digest:13:3}-8${digest:17:3}-${digest:20:12} [MAC]=52:54:00:${digest:32:2}:${digest:34:2}:${digest:36:2}
  [MEMORY_MIB]=256 [VCPUS]=1 [MACHINE]=pc [TYPE]=kvm [WORDS]=''
)
for setting; do
  [[ -v value[${setting%%=*}] ]] || { echo "${0##*/}: no such key: ${setting%%=*}" >&2; exit 64; }
  value[${setting%%=*}]=${setting#*=}
done
[[ -e ${value[FOLDER]}/vmlinuz ]] || { echo "${0##*/}: FOLDER: no vmlinuz in '${value[FOLDER]}' (linux.sh builds it)" >&2; exit 64; }

edits=()
for optional in DISK BRIDGE; do [[ -n ${value[$optional]} ]] || edits+=(-e "/@$optional@/d"); done
[[ ${value[RECORDS]} == 0 || -z ${value[DISK]} ]] || value[WORDS]+=' RECORDS=/dev/vda'
[[ -z ${value[ADDRESS]} ]] || value[WORDS]+=" ADDRESS=${value[ADDRESS]}"
for key in "${!value[@]}"; do edits+=(-e "s|@$key@|${value[$key]//[&|\\]/\\&}|"); done
sed "${edits[@]}" "$(dirname "$0")/linux.xml.in"
