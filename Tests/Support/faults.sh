#!/bin/bash
# Makes a host of hosts.sh fail slowly, for tests and for examples/quickstart.sh --degrade.
#
#   faults.sh possible DIR FAULT               exit status 0; or 1, and why this machine cannot do it
#   faults.sh begin DIR HOST FAULT [AMOUNT]    from now on, and for all that runs on that host
#   faults.sh end DIR HOST                     all its faults are over
#
# FAULT is one of
#   cpu PERCENT        its processes have so much of one core together (control group; default 20), and a process beside them that never sleeps
#   neighbour COUNT    so many processes beside its own write to its disk without a pause (default 8); `disk` says what that disk can do
#   disk REQUESTS      its processes have so many reads and as many writes a second of the disk that `own-disk` made (control group; default 20)
#   loss PERCENT       of its packets are lost, each way (iptables; default 10)
#   rate RATE          its line takes so much each way (as tc has it; default 20mbit)
#   delay 'MS JITTER'  its line takes MS milliseconds each way, JITTER more or less (tc with netem; where the kernel has none, delay.c; default '20 10')
#   nbd REQUESTS       the same of the storage behind the disk that `own-nbd` made (default 20)
#   own-disk           no fault: its guests' images are on a disk of its own (a loop device), before the first guest. On a file system that the hosts share, what
#                      one of them waits for holds up the others: they have one journal
#   own-nbd            the same, but the loop device lies on a file that nbdfuse serves from an NBD server (qemu-storage-daemon) with a throttle
#
# Several at a time add up, but for one control group of a kind. What runs on the host later is not limited before the next `begin`, except what
# processes that are limited start.

set -euo pipefail

readonly program=${0##*/} hosts=${BASH_SOURCE[0]%/*}/hosts.sh
# After so long a quota is given out anew. What is out of it waits until then: longer than where processors are merely busy.
readonly period_us=50000
readonly images=/var/lib/libvirt/images disk_mib=64

fail() { echo "$program: $*" >&2; exit 1; }
usage() { sed -n '2,/^$/s/^# \{0,1\}//p' "$0" >&2; exit 64; }

residents() { # pids of all that runs on the host, but the one that holds its namespaces
  local network holder entry pid
  read -r network _ <"$dir/$host/namespaces"
  read -r holder _ <"$dir/$host/holder"
  for entry in $(find /proc/[0-9]*/ns/net -maxdepth 0 -lname "net:\\[${network//[^0-9]/}\\]" 2>/dev/null || true); do
    pid=${entry//[^0-9]/}
    [[ $pid == "$holder" ]] || echo "$pid"
  done
}

# --- control groups: v2 where it has the controller, else v1 ---------------------------------------------------------

group_of() { # cpu|io; the folder of its control group, made or not
  local name
  name=shadow-virt-fault-$(stat -c %d-%i "$dir")-${host:-try}
  if grep -qw "$1" /sys/fs/cgroup/cgroup.controllers 2>/dev/null; then
    echo "/sys/fs/cgroup/$name"
  else
    echo "/sys/fs/cgroup/${1/#io/blkio}/$name"
  fi
}

make_group() { # cpu|io
  group=$(group_of "$1")
  [[ ! -w /sys/fs/cgroup/cgroup.subtree_control ]] || echo "+$1" >/sys/fs/cgroup/cgroup.subtree_control 2>/dev/null || true
  mkdir -p "$group" 2>/dev/null || { why="no control group can be made below ${group%/*}"; return 1; }
}

own_disk() { # [nbd]
  local file=$dir/$host/disk
  # Written in full: whatever is not yet allocated would be a matter of the journal below.
  dd if=/dev/zero of="$file" bs=1M count="$disk_mib" conv=fsync status=none
  if [[ ${1:-} == nbd ]]; then serve_over_nbd "$file"; fi
  on env "PATH=$PATH:/usr/sbin" mkfs.ext4 -q -F -O ^has_journal -E lazy_itable_init=0 "$file"
  # With its namespaces the mount goes, and with that the device.
  # shellcheck disable=SC2016
  on bash -euc 'mkdir -p "$2.new"; mount -o loop "$1" "$2.new"; cp --sparse=always "$2"/* "$2.new" 2>/dev/null || true; mount --move "$2.new" "$2"; rmdir "$2.new"' \
    own-disk "$file" $images
}

serve_over_nbd() { # FILE; $file is then what comes back through the server
  local folder=$dir/$host/nbd turns=100
  mkdir -p "$folder"
  : >"$folder/disk"
  # What runs there, so that it ends with the host.
  on qemu-storage-daemon --daemonize --object throttle-group,id=throttle --blockdev "file,filename=$1,node-name=file" \
    --blockdev throttle,throttle-group=throttle,file=file,node-name=disk --nbd-server "addr.type=unix,addr.path=$folder/nbd.sock" \
    --export nbd,id=disk,node-name=disk,name=disk,writable=on \
    --chardev "socket,path=$folder/qmp.sock,server=on,wait=off,id=qmp" --monitor chardev=qmp
  "$hosts" exec "$dir" "$host" setsid nbdfuse "$folder/disk" "nbd+unix:///disk?socket=$folder/nbd.sock" </dev/null >"$folder/nbdfuse.out" 2>&1 &
  disown
  until [[ $(on stat -f -c %T "$folder/disk" 2>/dev/null) == fuse* ]]; do
    ((turns-- > 0)) || fail "The file of host$host's disk is not served: $(<"$folder/nbdfuse.out")"
    sleep 0.05
  done
  file=$folder/disk
}

limit_nbd() { # REQUESTS; 0: none
  local socket=$dir/$host/nbd/qmp.sock
  [[ -S $socket ]] || { why="host$host has no disk behind an NBD server"; return 1; }
  perl -MIO::Socket::UNIX -e '
    alarm 10; my $qmp = IO::Socket::UNIX->new(shift) or die "No QMP: $!\n"; $qmp->autoflush; my $answer = <$qmp>;
    for (@ARGV) { print $qmp "$_\n"; $answer = <$qmp>; $answer =~ /"return"/ or die $answer }' "$socket" '{"execute": "qmp_capabilities"}' \
    "{\"execute\": \"qom-set\", \"arguments\": {\"path\": \"/objects/throttle\", \"property\": \"limits\",
      \"value\": {\"iops-read\": $1, \"iops-write\": $1}}}" || { why="The NBD server of host$host's disk takes no limit"; return 1; }
}

device() { # MAJOR:MINOR of the host's own disk
  on stat -c '%Hd:%Ld' $images
}

limit_cpu() { # PERCENT
  make_group cpu || return 1
  if [[ -e $group/cpu.max ]]; then
    echo "$((period_us * $1 / 100)) $period_us" >"$group/cpu.max"
  elif [[ -e $group/cpu.cfs_quota_us ]]; then
    echo $period_us >"$group/cpu.cfs_period_us" && echo $((period_us * $1 / 100)) >"$group/cpu.cfs_quota_us"
  else
    why="the kernel's control groups do not limit CPU time here"
    return 1
  fi
}

limit_disk() { # REQUESTS
  local device direction
  device=$(device) || device=''
  [[ ${device%:*} == 7 ]] || { why="host$host has no disk of its own"; return 1; }
  make_group io || return 1
  if [[ -e $group/io.max ]]; then
    echo "$device riops=$1 wiops=$1" >"$group/io.max"
  elif [[ -e $group/blkio.throttle.write_iops_device ]]; then
    for direction in read write; do echo "$device $1" >"$group/blkio.throttle.${direction}_iops_device"; done
  else
    why="the kernel's control groups do not limit a disk here"
    return 1
  fi
}

join_group() { local pid; for pid in $(residents); do echo "$pid" >"$group/cgroup.procs" 2>/dev/null || true; done; }

leave_group() { # cpu|io
  local pid
  group=$(group_of "$1")
  [[ -d $group ]] || return 0
  for pid in $(<"$group/cgroup.procs"); do echo "$pid" >"${group%/*}/cgroup.procs" 2>/dev/null || true; done
  for _ in {1..20}; do ! rmdir "$group" 2>/dev/null || return 0; sleep 0.05; done
  # Somebody does not want to go: without a limit at least.
  [[ ! -e $group/cpu.max ]] || echo max >"$group/cpu.max"
  [[ ! -e $group/cpu.cfs_quota_us ]] || echo -1 >"$group/cpu.cfs_quota_us"
}

# --- processes beside it --------------------------------------------------------------------------------------------

hog() {
  # shellcheck disable=SC2016
  "$hosts" exec "$dir" "$host" setsid perl -e '$0 = "shadow-virt-neighbour"; 1 while 1' </dev/null >/dev/null 2>&1 &
  wait_for_crowd 1
}

writers() { # COUNT
  local number
  for ((number = 0; number < $1; number++)); do
    # shellcheck disable=SC2016
    "$hosts" exec "$dir" "$host" setsid bash -c 'while dd if=/dev/zero of="$1" bs=4k count=500 oflag=direct conv=notrunc status=none; do :; done' \
      writer "$images/.shadow-virt-neighbour-$number" </dev/null >/dev/null 2>&1 &
  done
  wait_for_crowd "$1"
}

crowd_of() { local pid; for pid in $(residents); do [[ $(tr -d '\0' <"/proc/$pid/cmdline" 2>/dev/null) != *shadow-virt-neighbour* ]] || echo "$pid"; done; }

wait_for_crowd() { # COUNT
  local turns=50
  until (($(crowd_of | wc -l) >= $1)); do ((turns-- > 0)) || fail "The processes beside host$host do not start"; sleep 0.05; done
}

# --- its line -------------------------------------------------------------------------------------------------------

on() { "$hosts" exec "$dir" "$host" "$@"; }

lose() { # PERCENT
  local chain share
  share=$(awk "BEGIN { print $1 / 100 }")
  for chain in 'INPUT -i' 'OUTPUT -o'; do
    # shellcheck disable=SC2086
    on iptables -w 5 -A $chain br0 -m statistic --mode random --probability "$share" -j DROP
  done
}

slow_line() { # RATE
  on tc qdisc replace dev cable root tbf rate "$1" burst 32kbit latency 400ms
  "$hosts" slow "$dir" "$host" "$1"
}

delay_line() { # 'MS JITTER'
  local switch time jitter
  read -r time jitter <<<"$1"
  switch=$(<"$dir/switch/ready")
  if has_netem; then
    on tc qdisc replace dev cable root netem delay "${time}ms" "${jitter:-0}ms"
    nsenter --target "$switch" --net -- tc qdisc replace dev "port$host" root netem delay "${time}ms" "${jitter:-0}ms"
    return
  fi
  build_relay "$dir/delay" || fail "$why"
  ! relay_runs || fail "The line of host$host takes its time already"
  # Away from the switch first: for as long as both ways are there, frames go round in circles.
  in_switch ip link set "port$host" nomaster
  # No function: its pid would be that of a shell around it.
  nsenter --target "$switch" --net -- "$dir/delay" "port$host" "late$host" "$time" "${jitter:-0}" "$switch" </dev/null >"$dir/$host/delay.out" 2>&1 &
  echo $! >"$dir/$host/delay.pid"
  disown
  for _ in {1..100}; do [[ ! -s $dir/$host/delay.out ]] || break; sleep 0.02; done
  [[ $(<"$dir/$host/delay.out") == ready ]] || relay_failed
  in_switch ip link set "late$host" master switch up || relay_failed
}

relay_failed() {
  local said
  said=$(<"$dir/$host/delay.out")
  prompt_line
  fail "The relay for host$host's line does not run: $said"
}

prompt_line() { # ends what delay_line began
  local pid turns=100
  [[ -s $dir/switch/ready ]] || return 0
  if pid=$(relay_runs); then
    kill -TERM "$pid"
    while relay_runs >/dev/null; do ((turns-- > 0)) || fail "The relay of host$host's line (pid $pid) outlives SIGTERM"; sleep 0.02; done
  fi
  rm -f "$dir/$host"/delay.{pid,out}
  in_switch ip link set "port$host" master switch
}

relay_runs() { # prints its pid
  local pid
  [[ -s $dir/$host/delay.pid ]] && read -r pid <"$dir/$host/delay.pid" && [[ $(readlink "/proc/$pid/exe") == "$dir/delay" ]] && echo "$pid"
}

in_switch() { nsenter --target "$(<"$dir/switch/ready")" --net -- "$@"; }

has_netem() { PATH=$PATH:/usr/sbin unshare -n tc qdisc replace dev lo root netem delay 1ms 1ms 2>/dev/null; }

build_relay() { # FILE
  command -v gcc >/dev/null || { why="the kernel has no netem, and gcc is not there to build delay.c"; return 1; }
  [[ -c /dev/net/tun ]] || { why="the kernel has neither netem nor tap devices"; return 1; }
  [[ -x $1 ]] || gcc -std=gnu11 -Wall -Wextra -Werror -O2 -o "$1" "${BASH_SOURCE[0]%/*}/delay.c" 2>/dev/null || { why="delay.c does not compile"; return 1; }
}

# --- commands -------------------------------------------------------------------------------------------------------

possible() { # FAULT; tried where it does no harm
  local tool
  why=''
  case $1 in
  cpu) limit_cpu 50 || true; leave_group cpu ;;
  disk | neighbour)
    if make_group io; then [[ -e $group/io.max || -e $group/blkio.throttle.write_iops_device ]] || why="the kernel limits no disk by control group here"; fi
    leave_group io
    [[ -e /dev/loop-control ]] || why="no loop devices" ;;
  nbd) for tool in qemu-storage-daemon nbdfuse; do command -v "$tool" >/dev/null || why="no $tool (Debian: apt install qemu-system-common libnbd-bin)"; done
    [[ -c /dev/fuse && -e /dev/loop-control ]] || why="no FUSE or no loop devices" ;;
  loss) PATH=$PATH:/usr/sbin unshare -n iptables -w 5 -A INPUT -m statistic --mode random --probability 0.5 -j DROP 2>/dev/null ||
    why="iptables with the match \`statistic\` is needed to lose packets (Debian: apt install iptables)" ;;
  rate) PATH=$PATH:/usr/sbin unshare -n tc qdisc replace dev lo root tbf rate 1mbit burst 32kbit latency 400ms 2>/dev/null || why="tc with tbf is needed" ;;
  delay) has_netem || build_relay "$dir/delay" || true ;;
  *) usage ;;
  esac
  [[ -z $why ]] || { echo "$why"; exit 1; }
}

begin() { # FAULT [AMOUNT]
  case $1 in
  cpu) limit_cpu "${2:-20}" || fail "$why"; hog; join_group ;;
  own-disk) own_disk ;;
  own-nbd) own_disk nbd ;;
  nbd) limit_nbd "${2:-20}" || fail "$why" ;;
  disk) limit_disk "${2:-20}" || fail "$why"; join_group ;;
  neighbour) writers "${2:-8}"; group=$(group_of io); join_group ;;
  loss) lose "${2:-10}" ;;
  rate) slow_line "${2:-20mbit}" ;;
  delay) delay_line "${2:-20 10}" ;;
  *) usage ;;
  esac
}

end() {
  local pid
  for pid in $(crowd_of); do kill -KILL "$pid" 2>/dev/null || true; done
  leave_group cpu
  leave_group io
  [[ ! -S $dir/$host/nbd/qmp.sock ]] || limit_nbd 0 2>/dev/null || true
  # Only those of this host's namespace: nobody else has rules there.
  on iptables -w 5 -F 2>/dev/null || true
  on tc qdisc del dev cable root 2>/dev/null || true
  "$hosts" slow "$dir" "$host" 2>/dev/null || true
  prompt_line
}

(($# >= 3)) || usage
command=$1 dir=$2
shift 2
[[ -d $dir ]] || fail "No such folder: $dir"
dir=$(realpath "$dir")
group='' why='' host=''
case $command in
possible) possible "$1" ;;
begin | end)
  host=$1
  shift
  [[ -s $dir/$host/namespaces ]] || fail "There is no host$host in $dir"
  if [[ $command == end ]]; then end; else (($# >= 1)) || usage; begin "$@"; fi ;;
*) usage ;;
esac
