#!/bin/busybox sh
# The Linux guest's first process. What it prints on the serial port (nothing else does, the kernel is told to be quiet):
#
#   BOOT                 it runs
#   T <n>                ten times a second
#   MOUNTED              the disk is there, its journal replayed
#   V, W, C, CORRUPT     what it writes to the disk, see records.c
#   BYE                  it was switched off, the disk is unmounted
#
# Words of the kernel's command line that reach it as variables: RECORDS=DEVICE (an ext4 disk to write to), ADDRESS=IP/BITS (for the
# network card; it answers ping and sends numbers to who connects to port 7000, see records.c), DIRTY_MIB and DIRTY_RATE (memory to write
# to all the time, MiB of pages a second; DIRTY_NOISE: see records.c), PROBE=1 (be switched off as soon as it runs).

/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev 2>/dev/null
echo BOOT
[ -z "$PROBE" ] || poweroff -f

for file in $(find /lib/modules -name '*.ko'); do
  module=${file##*/}
  modprobe "${module%.ko}" 2>/dev/null
done
ip link set lo up
if [ -n "$ADDRESS" ]; then
  ip addr add "$ADDRESS" dev eth0
  ip link set eth0 up
  records stream 7000 &
fi

[ -z "$DIRTY_MIB" ] || records dirty "$DIRTY_MIB" "$DIRTY_RATE" &

writer=''
if [ -n "$RECORDS" ]; then
  # discard: what is deleted is given back, so that a copy of the disk sees that as well. errors=panic: not to be overlooked.
  if mount -t ext4 -o discard,errors=panic "$RECORDS" /disk; then
    echo MOUNTED
    records write /disk &
    writer=$!
  else
    echo "CORRUPT $RECORDS cannot be mounted"
  fi
fi

# Until somebody presses the power button.
records tick
if [ -n "$writer" ]; then
  kill "$writer"
  wait "$writer"
  umount /disk
fi
echo BYE
poweroff -f
