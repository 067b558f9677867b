#!/bin/bash
# Two or more libvirt hosts on one machine, for tests and for trying things out.
#
#   hosts.sh up DIR [PREFIX [COUNT]]           hosts A, B, ...: COUNT of them, 2 to 8 (default: $HOSTS or 2);
#                                              PREFIX names their processes in `ps` (default: random)
#   hosts.sh down DIR                          everything gone but DIR; may be repeated
#   hosts.sh status DIR                        exit status 0: all hosts up, all daemons answer
#   hosts.sh exec DIR HOST COMMAND [ARG...]    run COMMAND on host A, B, ..., in the current folder
#   hosts.sh cut DIR [HOST] | join DIR [HOST]  pull a host's cable (default: A's) | plug it in again
#   hosts.sh slow DIR HOST [RATE]              the line to a host takes RATE (as tc has it: 2mbit) | is as fast as before
#   hosts.sh crash DIR HOST | boot DIR HOST    a host loses power, with all that ran there | starts again
#   hosts.sh libvirtd-stop DIR HOST            SIGTERM, wait until it is gone (guests run on)
#   hosts.sh libvirtd-kill DIR HOST            SIGKILL, likewise
#   hosts.sh libvirtd-start DIR HOST           start it again, wait until it answers
#
# With $HOSTS_CACHE, a folder, libvirt's answers to what it asks a QEMU once (1.5 s for each host on an idle machine) are kept there from one
# group of hosts to the next; libvirt itself sees whether they still hold.
#
# A host is a network, a mount and a UTS namespace, kept alive by one `sleep` (the holder); so is the switch between them.
# Nothing is entered in /run/netns and addresses live inside the namespaces only, so any number of groups run side by side.
#
#   hostA                                   switch                                  hostB
#   br0 10.77.0.1/24 -- cable  <-- veth -->  portA   portB  <-- veth -->  cable -- br0 10.77.0.2/24
#
# Each host has folders of its own under the paths in `private_paths`: they are DIR/A/PATH, DIR/B/PATH and so on.
# All other paths are the machine's, so a file in a work folder has the same name on all hosts.

set -euo pipefail

readonly program=${0##*/}
readonly private_paths=(
  /etc/libvirt /run/libvirt /var/lib/libvirt /var/cache/libvirt /var/log/libvirt
  /etc/shadow-virt /run/shadow-virt /var/lib/shadow-virt
)
readonly letters=(A B C D E F G H)
# Who uses the mount points made by us, and which these are: the last group of hosts to go removes them.
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

number() { local place; for place in "${!letters[@]}"; do [[ ${letters[place]} != "$1" ]] || echo $((place + 1)); done; } # HOST
address() { echo "10.77.0.$(number "$1")"; } # HOST
hosts_of() { if [[ -s $1/hosts ]]; then cat "$1/hosts"; else echo A B; fi; } # DIR; the hosts of a group, "A B"

write_configuration() { # HOST
  local root=$dir/$1 path
  for path in "${private_paths[@]}"; do mkdir -p "$root$path"; done
  mkdir -p "$root/var/lib/libvirt/images" "$root/nothing"
  clear_volatile "$1"
  rm -f "$root/libvirtd.out" "$root/var/log/libvirt/libvirtd.log"
  { echo '127.0.0.1 localhost'; for path in $hosts; do echo "$(address "$path") host$path"; done; } >"$root/hosts"
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

readonly capabilities=var/cache/libvirt/qemu/capabilities

take_cache() { # HOST
  [[ -d ${HOSTS_CACHE:-} ]] || return 0
  mkdir -p "$dir/$1/$capabilities"
  cp -R "$HOSTS_CACHE/." "$dir/$1/$capabilities/"
}

keep_cache() {
  local from=$dir/A/$capabilities new
  [[ -n ${HOSTS_CACHE:-} && -n $(ls -A "$from" 2>/dev/null) ]] || return 0
  ! diff -rq "$from" "$HOSTS_CACHE" >/dev/null 2>&1 || return 0
  new=$(mktemp -d "$HOSTS_CACHE.XXXXXX") || return 0
  # Whole or not at all; nobody fails for the want of it.
  if cp -R "$from/." "$new/" && rm -rf "$HOSTS_CACHE" && mv -T "$new" "$HOSTS_CACHE"; then return 0; fi
  rm -rf "$new"
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
    # The system bus would lead to systemd-machined, where all hosts would register the same machine names.
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
  local switch host
  switch=$(alive "$dir/switch/holder") || fail "The switch in $dir has ended"
  switched ip link add switch type bridge
  switched ip link set switch up
  for host in $hosts; do
    ip link add cable netns "$(holder "$host")" type veth peer name "port$host" netns "$switch"
    switched ip link set "port$host" master switch
    switched ip link set "port$host" up
    # A fixed address: a bridge otherwise takes over the lowest of its ports', which changes with every guest.
    on "$host" ip link add br0 address "52:54:00:77:00:0$(number "$host")" type bridge
    on "$host" ip link set cable master br0
    on "$host" ip addr add "$(address "$host")/24" dev br0
    on "$host" ip link set lo up
    on "$host" ip link set br0 up
    on "$host" ip link set cable up
  done
  for host in $hosts; do await_cable "$host"; done
}

switched() { nsenter --target "$(<"$dir/switch/ready")" --net -- "$@"; } # COMMAND...: where the switch is

await_cable() { # HOST; until traffic flows (at once, but the kernel says so up to a second later)
  local turns=50
  until [[ $(on "$1" cat /sys/class/net/{cable,br0}/operstate) == $'up\nup' ]]; do
    ((turns-- > 0)) || fail "The cable of host$1 does not come up"
    sleep 0.05
  done
}

plug_in() { # HOST
  on "$1" ip link set cable up
  await_cable "$1"
}

start_switch() { # NAME
  local turns=100
  mkdir -p "$dir/switch"
  rm -f "$dir/switch/ready"
  setsid unshare --net bash -euc 'echo $$ >"$1/ready"; exec -a "$2" sleep infinity' holder "$dir/switch" "$1" \
    </dev/null >"$dir/switch/holder.log" 2>&1 9>&- &
  disown
  while [[ ! -s $dir/switch/ready ]]; do
    ((turns-- > 0)) || { cat "$dir/switch/holder.log" >&2; fail "A namespace for the switch could not be made (see above)"; }
    sleep 0.05
  done
  remember "$dir/switch/holder" "$(<"$dir/switch/ready")"
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

# --- mount points shared by all groups of hosts --------------------------------------------------------------------

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
    for host in $(hosts_of "$used"); do ! alive "$used/$host/holder" >/dev/null || return 0; done
    rm -f "$entry"
  done
  if [[ -f $registry/made ]]; then
    while read -r path; do rmdir "$path" 2>/dev/null || true; done <"$registry/made"
  fi
  rm -f "$registry/made"
  rmdir "$registry" 2>/dev/null || true
}

# --- commands ------------------------------------------------------------------------------------------------------

up() { # [PREFIX [COUNT]]
  local name=${1:-hosts-$(od -An -N3 -tx1 /dev/urandom | tr -d ' ')} tool host
  for tool in ip nsenter unshare setsid virsh flock; do
    PATH=$PATH:/usr/sbin command -v "$tool" >/dev/null || fail "$tool not found (needs iproute2, util-linux, libvirt-clients)"
  done
  for host in $hosts; do
    ! alive "$dir/$host/holder" >/dev/null || fail "host$host in $dir is up already (stop it with '$program down $dir')"
    [[ -z $(residents "$host") ]] || fail "Processes of an earlier host$host in $dir still run ('$program down $dir')"
  done
  hosts=${letters[*]:0:${2:-${HOSTS:-2}}}
  echo "$hosts" >"$dir/hosts"
  trap 'echo "$program: starting failed, taking the hosts down" >&2; down' EXIT
  for host in $hosts; do write_configuration "$host"; take_cache "$host"; done
  locked bring_up_namespaces "$name"
  connect_hosts
  for host in $hosts; do libvirtd_start "$host"; done
  for host in $hosts; do libvirtd_wait "$host"; done
  trap - EXIT
}

bring_up_namespaces() { # NAME; under the lock, so that no mount point goes away meanwhile
  local host
  take_mount_points
  for host in $hosts; do start_holder "$host" "$1-$host"; done
  start_switch "$1-switch"
}

down() {
  local host pid
  trap - EXIT
  keep_cache
  for host in $hosts; do
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
  if pid=$(alive "$dir/switch/holder"); then kill -KILL "$pid"; fi
  rm -rf "$dir/switch"
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
  for host in $hosts; do
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
exec | crash | boot | libvirtd-*) (($# >= 1)) || usage ;;
up) if (($# > 2)) || [[ ${2:-${HOSTS:-2}} != [2-8] ]]; then usage; fi ;;
cut | join) (($# <= 1)) || usage ;;
slow) (($# >= 1 && $# <= 2)) || usage ;;
down | status) (($# == 0)) || usage ;;
*) usage ;;
esac
((EUID == 0)) || fail "Needs root: namespaces, mounts and libvirtd cannot be made without"
[[ $command != up ]] || mkdir -p "$dir"
if [[ ! -d $dir ]]; then
  [[ $command == down ]] && exit 0
  fail "No such folder: $dir"
fi
dir=$(realpath "$dir")
hosts=$(hosts_of "$dir")
if [[ $command != up && -n ${1:-} && " $hosts " != *" $1 "* ]]; then fail "There is no host$1 in $dir (hosts: $hosts)"; fi

case $command in
up) up "$@" ;;
down) down ;;
status) status ;;
exec) (($# >= 2)) || usage; enter "$@" ;;
cut) on "${1:-A}" ip link set cable down ;;
join) plug_in "${1:-A}" ;;
slow) if (($# == 2)); then switched tc qdisc replace dev "port$1" root tbf rate "$2" burst 32kbit latency 200ms; else switched tc qdisc del dev "port$1" root; fi ;;
crash) crash "$1" ;;
boot) boot "$1" ;;
libvirtd-stop) libvirtd_end "$1" TERM ;;
libvirtd-kill) libvirtd_end "$1" KILL ;;
libvirtd-start) libvirtd_start "$1"; libvirtd_wait "$1" ;;
esac
