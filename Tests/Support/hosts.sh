#!/bin/bash
# Two libvirt hosts (with HOSTS=3 in the environment of `up` three) on one machine, for tests and for trying things out.
#
#   hosts.sh up DIR [PREFIX]                   both hosts; PREFIX names their processes in `ps` (default: random)
#   hosts.sh down DIR                          everything gone but DIR; may be repeated
#   hosts.sh status DIR                        exit status 0: both hosts up, both daemons answer
#   hosts.sh exec DIR A|B|C COMMAND [ARG...]   run COMMAND on a host, in the current folder
#   hosts.sh cut DIR | join DIR                pull the cable between the hosts | plug it in again
#   hosts.sh crash DIR A|B | boot DIR A|B      a host loses power, with all that ran there | starts again
#   hosts.sh slow DIR C [RATE]                 the line to host C takes RATE (as tc has it: 2mbit) | is as fast as before
#   hosts.sh libvirtd-stop DIR A|B             SIGTERM, wait until it is gone (guests run on)
#   hosts.sh libvirtd-kill DIR A|B             SIGKILL, likewise
#   hosts.sh libvirtd-start DIR A|B            start it again, wait until it answers
#
# A host is a network, a mount and a UTS namespace, kept alive by one `sleep` (the holder). Nothing is entered in
# /run/netns and addresses live inside the namespaces only, so any number of pairs run side by side.
#
#   hostA                                             hostB
#   br0 10.77.0.1/24 -- cable  <----- veth ----->  cable -- br0 10.77.0.2/24 -- line <----- veth -----> cable -- br0 10.77.0.3/24 (hostC)
#
# Each host has folders of its own under the paths in `private_paths`: they are DIR/A/PATH and DIR/B/PATH.
# All other paths are the machine's, so a file in a work folder has the same name on both hosts.

set -euo pipefail

readonly program=${0##*/}
readonly private_paths=(
  /etc/libvirt /run/libvirt /var/lib/libvirt /var/cache/libvirt /var/log/libvirt
  /etc/shadow-virt /run/shadow-virt /var/lib/shadow-virt
)
# Who uses the mount points made by us, and which these are: the last pair of hosts to go removes them.
readonly registry=/run/shadow-virt-hosts
# Runs a command, writes its pid to a file, and reaps whatever is left to it (prctl 36: PR_SET_CHILD_SUBREAPER) until nothing is.
readonly reaper='
  syscall(157, 36, 1, 0, 0, 0); my ($file, @command) = @ARGV; my $pid = fork() // die; if (!$pid) { exec @command; exit 127 }
  open(my $out, ">", $file) or die; print $out "$pid\n"; close $out; 1 while wait() > 0;'
readonly start_limit_seconds=${HOSTS_START_LIMIT:-30}

fail() { echo "$program: $*" >&2; exit 1; }
usage() { sed -n '2,/^$/s/^# \{0,1\}//p' "$0" >&2; exit 64; }

# --- processes -----------------------------------------------------------------------------------------------------
# A process is remembered as "PID START-TIME", so that a recycled pid is never taken for ours.

start_time() { # PID; nothing for a process that is gone or a zombie
  local stat fields
  { stat=$(<"/proc/$1/stat"); } 2>/dev/null || return 0
  read -ra fields <<<"${stat##*) }"
  [[ ${fields[0]} == [ZX] ]] || echo "${fields[19]}"
}

remember() { echo "$2 $(start_time "$2")" >"$1"; } # FILE PID

alive() { # FILE; prints the pid when that very process still runs
  local pid start
  [[ -s $1 ]] && read -r pid start <"$1" && [[ -n $start && $(start_time "$pid") == "$start" ]] && echo "$pid"
}

wait_gone() { # SECONDS FILE
  local turns=$(($1 * 20))
  while alive "$2" >/dev/null; do ((turns-- > 0)) || return 1; sleep 0.05; done
}

holder() { alive "$dir/$1/holder" || fail "host$1 in $dir is not up (start it with '$program up $dir')"; }

enter() { # HOST COMMAND...: replaces this shell
  local pid
  pid=$(holder "$1")
  exec nsenter --target "$pid" --net --mount --uts -- env --chdir="$PWD" "${@:2}"
}

residents() { # HOST; pids of all that runs there but the holder
  local keep=0 network mounts entry pid
  [[ -s $dir/$1/namespaces ]] || return 0
  read -r network mounts <"$dir/$1/namespaces"
  keep=$(alive "$dir/$1/holder") || keep=0
  # One find for all: processes that go away meanwhile are no error.
  for entry in $(find /proc/[0-9]*/ns/net -maxdepth 0 -lname "net:\\[${network//[^0-9]/}\\]" 2>/dev/null || true); do
    pid=${entry//[^0-9]/}
    [[ $pid != "$keep" && $pid != "$$" && $pid != "$BASHPID" ]] || continue
    # Without its holder a namespace is known by its number alone, which the kernel could have given out again.
    [[ $keep != 0 || $(readlink "/proc/$pid/ns/mnt" 2>/dev/null) == "$mounts" ]] || continue
    [[ -z $(start_time "$pid") ]] || echo "$pid"
  done
}

kill_residents() { # HOST SIGNAL SECONDS; true when none is left
  local turns=$(($3 * 10)) pids
  while :; do
    pids=$(residents "$1")
    [[ -n $pids ]] || return 0
    # shellcheck disable=SC2086
    kill "-$2" $pids 2>/dev/null || true
    ((turns-- > 0)) || return 1
    sleep 0.1
  done
}

# --- one host ------------------------------------------------------------------------------------------------------

number() { case $1 in A) echo 1 ;; B) echo 2 ;; C) echo 3 ;; esac; } # HOST
address() { echo "10.77.0.$(number "$1")"; }

write_configuration() { # HOST
  local root=$dir/$1 path
  for path in "${private_paths[@]}"; do mkdir -p "$root$path"; done
  mkdir -p "$root/var/lib/libvirt/images" "$root/nothing"
  clear_volatile "$1"
  rm -f "$root/libvirtd.out" "$root/var/log/libvirt/libvirtd.log"
  printf '%s\n' '127.0.0.1 localhost' '10.77.0.1 hostA' '10.77.0.2 hostB' '10.77.0.3 hostC' >"$root/hosts"
  [[ -s $root/uuid ]] || cat /proc/sys/kernel/random/uuid >"$root/uuid"
  cat >"$root/etc/libvirt/libvirtd.conf" <<END
listen_tls = 0
listen_tcp = 1
auth_tcp = "none"
unix_sock_group = "root"
auth_unix_ro = "none"
auth_unix_rw = "none"
host_uuid = "$(<"$root/uuid")"
log_level = 3
log_outputs = "3:file:/var/log/libvirt/libvirtd.log"
END
  cat >"$root/etc/libvirt/qemu.conf" <<'END'
user = "root"
group = "root"
security_driver = "none"
namespaces = []
cgroup_controllers = []
stdio_handler = "file"
END
}

clear_volatile() { find "$dir/$1/run" -mindepth 2 -delete 2>/dev/null || true; } # HOST; what a real /run loses

start_holder() { # HOST NAME
  local root=$dir/$1 pid turns=100
  rm -f "$root/ready"
  # One process from unshare to sleep: what it writes as $$ is the holder's pid.
  setsid unshare --net --mount --uts --propagation private bash -euc '
    root=$1; name=$2; hostname=$3; shift 3
    for path; do mount --bind "$root$path" "$path"; done
    mount --bind "$root/hosts" /etc/hosts
    umount -l /sys 2>/dev/null || true
    mount -t sysfs sysfs /sys          # /sys/class/net of this host, not of the machine
    # The system bus would lead to systemd-machined, where both hosts would register the same machine names.
    [[ ! -d /run/dbus ]] || mount --bind "$root/nothing" /run/dbus
    hostname "$hostname"
    echo $$ >"$root/ready"
    exec -a "$name" sleep infinity' \
    holder "$root" "$2" "host$1" "${private_paths[@]}" </dev/null >"$root/holder.log" 2>&1 9>&- &
  disown
  while [[ ! -s $root/ready ]]; do
    ((turns-- > 0)) || { cat "$root/holder.log" >&2; fail "Namespaces for host$1 could not be made (see above)"; }
    sleep 0.05
  done
  pid=$(<"$root/ready")
  remember "$root/holder" "$pid"
  echo "$(readlink "/proc/$pid/ns/net") $(readlink "/proc/$pid/ns/mnt")" >"$root/namespaces"
}

on() { (enter "$@"); } # HOST COMMAND...

connect_hosts() {
  local a b host
  a=$(holder A) b=$(holder B)
  ip link add cable netns "$a" type veth peer name cable netns "$b"
  [[ ${members[*]} != *C* ]] || ip link add line netns "$b" type veth peer name cable netns "$(holder C)"
  for host in "${members[@]}"; do
    # A fixed address: a bridge otherwise takes over the lowest of its ports', which changes with every guest.
    on "$host" ip link add br0 address "52:54:00:77:00:0$(number "$host")" type bridge
    on "$host" ip link set cable master br0
    on "$host" ip addr add "$(address "$host")/24" dev br0
    on "$host" ip link set lo up
    on "$host" ip link set br0 up
  done
  if [[ ${members[*]} == *C* ]]; then
    on B ip link set line master br0
    on B ip link set line up
    on C ip link set cable up
  fi
  on B ip link set cable up
  plug_in A
}

plug_in() { # HOST; its end of the cable, until traffic flows (at once, but the kernel says so up to a second later)
  local host turns=50
  on "$1" ip link set cable up
  for host in A B; do
    until [[ $(on "$host" cat /sys/class/net/{cable,br0}/operstate) == $'up\nup' ]]; do
      ((turns-- > 0)) || fail "The cable between the hosts does not come up"
      sleep 0.05
    done
  done
}

libvirtd_start() { # HOST
  local root=$dir/$1 binary
  ! alive "$root/libvirtd.pid" >/dev/null || fail "libvirtd on host$1 runs already"
  binary=$(PATH=$PATH:/usr/sbin command -v libvirtd) || fail "libvirtd not found (Debian: apt install libvirt-daemon)"
  rm -f "$root/libvirtd.started"
  # Under a reaper: libvirt waits for a QEMU that it ended until somebody has reaped it, and not every container's process 1
  # is quick at that.
  # What it starts as other users (swtpm_setup) must not look for a folder that is ours alone.
  enter "$1" env -u TMPDIR setsid perl -e "$reaper" "$root/libvirtd.started" "$binary" --listen --pid-file /run/libvirt/libvirtd.pid \
    </dev/null >>"$root/libvirtd.out" 2>&1 9>&- &
  disown
  for _ in {1..100}; do [[ ! -s $root/libvirtd.started ]] || break; sleep 0.02; done
  [[ -s $root/libvirtd.started ]] || fail "libvirtd on host$1 was not started: $(tail -n 3 "$root/libvirtd.out")"
  remember "$root/libvirtd.pid" "$(<"$root/libvirtd.started")"
}

answers() { on "$1" timeout 5 virsh -q -c "qemu+tcp://$(address "$1")/system" list >/dev/null 2>"$dir/$1/virsh.err"; }

libvirtd_wait() { # HOST
  local end=$((SECONDS + start_limit_seconds))
  until answers "$1"; do
    if ! alive "$dir/$1/libvirtd.pid" >/dev/null; then explain "$1"; fail "libvirtd on host$1 has ended"; fi
    if ((SECONDS >= end)); then
      explain "$1"
      fail "libvirtd on host$1 gave no answer for $start_limit_seconds s: $(tail -n 1 "$dir/$1/virsh.err")"
    fi
    sleep 0.1
  done
}

explain() { # HOST; the end of what its libvirtd said
  local file
  for file in "$dir/$1/libvirtd.out" "$dir/$1/var/log/libvirt/libvirtd.log"; do
    [[ ! -s $file ]] || { echo "--- end of $file"; tail -n 15 "$file"; } >&2
  done
}

libvirtd_end() { # HOST SIGNAL
  local pid
  pid=$(alive "$dir/$1/libvirtd.pid") || fail "libvirtd on host$1 does not run"
  kill "-$2" "$pid"
  wait_gone 15 "$dir/$1/libvirtd.pid" || fail "libvirtd on host$1 (pid $pid) is still there 15 s after SIG$2"
}

# --- mount points shared by all pairs of hosts ---------------------------------------------------------------------

locked() { # COMMAND...: under the registry's lock
  local turns=100
  while ((turns-- > 0)); do
    mkdir -p "$registry"
    exec 9<"$registry"
    flock --timeout 30 9 || fail "Another '$program' has held $registry for 30 s"
    # The one that held the lock before may have removed the folder, and the lock with it.
    if [[ $(stat -c %i "$registry" 2>/dev/null) == "$(stat -Lc %i /proc/self/fd/9)" ]]; then
      "$@"
      exec 9<&-
      return
    fi
    exec 9<&-
  done
  fail "No lock on $registry"
}

take_mount_points() {
  local path
  for path in "${private_paths[@]}"; do
    [[ -d $path ]] || { mkdir -p "$path"; echo "$path" >>"$registry/made"; }
  done
  echo "$dir" >"$registry/$(registry_entry)"
}

registry_entry() { echo "user-$(stat -c %d-%i "$dir")"; }

release_mount_points() {
  local entry used path host
  rm -f "$registry/$(registry_entry)"
  for entry in "$registry"/user-*; do
    [[ -f $entry ]] || continue
    used=$(<"$entry")
    for host in A B C; do ! alive "$used/$host/holder" >/dev/null || return 0; done
    rm -f "$entry"
  done
  if [[ -f $registry/made ]]; then
    while read -r path; do rmdir "$path" 2>/dev/null || true; done <"$registry/made"
  fi
  rm -f "$registry/made"
  rmdir "$registry" 2>/dev/null || true
}

# --- commands ------------------------------------------------------------------------------------------------------

up() { # [PREFIX]
  local name=${1:-hosts-$(od -An -N3 -tx1 /dev/urandom | tr -d ' ')} tool host
  for tool in ip nsenter unshare setsid virsh flock; do
    PATH=$PATH:/usr/sbin command -v "$tool" >/dev/null || fail "$tool not found (needs iproute2, util-linux, libvirt-clients)"
  done
  for host in "${members[@]}"; do
    ! alive "$dir/$host/holder" >/dev/null || fail "host$host in $dir is up already (stop it with '$program down $dir')"
    [[ -z $(residents "$host") ]] || fail "Processes of an earlier host$host in $dir still run ('$program down $dir')"
  done
  trap 'echo "$program: starting failed, taking both hosts down" >&2; down' EXIT
  echo "${members[@]}" >"$dir/members"
  for host in "${members[@]}"; do write_configuration "$host"; done
  locked bring_up_namespaces "$name"
  connect_hosts
  for host in "${members[@]}"; do libvirtd_start "$host"; done
  for host in "${members[@]}"; do libvirtd_wait "$host"; done
  trap - EXIT
}

bring_up_namespaces() { # NAME; under the lock, so that no mount point goes away meanwhile
  take_mount_points
  local host
  for host in "${members[@]}"; do start_holder "$host" "$1-$host"; done
}

down() {
  local host pid
  trap - EXIT
  for host in A B C; do
    [[ -d $dir/$host ]] || continue
    # libvirtd first: it would report and clean up after every guest that dies under it.
    if pid=$(alive "$dir/$host/libvirtd.pid"); then kill -KILL "$pid"; fi
    kill_residents "$host" TERM 2 || kill_residents "$host" KILL 5 ||
      fail "Processes of host$host outlive SIGKILL: $(residents "$host" | tr '\n' ' ')"
    if pid=$(alive "$dir/$host/holder"); then
      kill -KILL "$pid"
      wait_gone 5 "$dir/$host/holder" || fail "The holder of host$host (pid $pid) outlives SIGKILL"
    fi
    rm -f "$dir/$host"/{holder,namespaces,ready,libvirtd.pid,libvirtd.started,virsh.err}
  done
  [[ ! -d $registry ]] || locked release_mount_points
}

crash() { # HOST
  on "$1" ip link set cable down
  kill_residents "$1" KILL 5 || fail "Processes of host$1 outlive SIGKILL"
}

boot() { # HOST
  [[ -z $(residents "$1") ]] || fail "host$1 is running (stop it with '$program crash $dir $1')"
  clear_volatile "$1"
  plug_in "$1"
  libvirtd_start "$1"
  libvirtd_wait "$1"
}

status() {
  local host pid state=0 daemon
  for host in "${members[@]}"; do
    if ! pid=$(alive "$dir/$host/holder"); then echo "host$host down"; state=1; continue; fi
    daemon=$(alive "$dir/$host/libvirtd.pid") || daemon=-
    if answers "$host"; then echo -n "host$host up"; else echo -n "host$host silent"; state=1; fi
    echo " address=$(address "$host") holder=$pid name=$(tr '\0' '\n' <"/proc/$pid/cmdline" | head -n 1)" \
      "libvirtd=$daemon cable=$(on "$host" cat /sys/class/net/cable/operstate) processes=$(residents "$host" | wc -l)"
  done
  return $state
}

(($# >= 2)) || usage
command=$1 dir=$2
shift 2
case $command in
exec | libvirtd-*)
  (($# >= 1)) && [[ $1 == [ABC] ]] || usage ;;
crash | boot) (($# >= 1)) && [[ $1 == [AB] ]] || usage ;;
slow) (($# >= 1 && $# <= 2)) && [[ $1 == C ]] || usage ;;
up) (($# <= 1)) || usage ;;
down | status | cut | join) (($# == 0)) || usage ;;
*) usage ;;
esac
((EUID == 0)) || fail "Needs root: namespaces, mounts and libvirtd cannot be made without"
[[ $command != up ]] || mkdir -p "$dir"
if [[ ! -d $dir ]]; then
  [[ $command == down ]] && exit 0
  fail "No such folder: $dir"
fi
dir=$(realpath "$dir")
members=(A B)
[[ $command != up || ${HOSTS:-2} != 3 ]] || members=(A B C)
[[ $command == up || ! -s $dir/members ]] || read -ra members <"$dir/members"

case $command in
up) up "$@" ;;
down) down ;;
status) status ;;
exec) (($# >= 2)) || usage; enter "$@" ;;
slow) if (($# == 2)); then on B tc qdisc replace dev line root tbf rate "$2" burst 32kbit latency 200ms; else on B tc qdisc del dev line root; fi ;;
cut) on A ip link set cable down ;;
join) plug_in A ;;
crash) crash "$1" ;;
boot) boot "$1" ;;
libvirtd-stop) libvirtd_end "$1" TERM ;;
libvirtd-kill) libvirtd_end "$1" KILL ;;
libvirtd-start) libvirtd_start "$1"; libvirtd_wait "$1" ;;
esac
