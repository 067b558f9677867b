#!/bin/bash
# shadow-virt in three minutes: libvirt's hook gives a batch job its shadow, for as long as it runs. Then a running guest with a disk gets a
# shadow on another host, loses its own host's QEMU, goes on over there, gets a shadow again and moves back. Then a Linux guest does the
# same, with a ping running all the time. Both hosts are made on this machine and are gone afterwards.
#
#   sudo examples/quickstart.sh [--degrade] [--json FILE] [--keep] [--install-swift] [--work DIR]
#
#   --degrade         shows something else: hostA loses most of its CPU time, and the guest leaves it by itself (four minutes; needs /dev/kvm)
#   --json FILE       writes the figures of the table to FILE as well
#   --keep            leaves the two hosts and the guest up, and prints commands to play with them
#   --install-swift   when neither PATH nor apt has Swift 6: fetches it from swift.org, without asking
#   --work DIR        folder for everything that is made (default: one of its own below /tmp, gone afterwards unless
#                     something failed); it must be empty or not exist
#
# Needs root and Debian 12 or 13 (or Ubuntu 24.04). Installs from apt what is missing, and says so. The first guest needs /dev/kvm; a
# machine without it sees the Linux guest alone, emulated.
# The last line is `quickstart: ok` or `quickstart: FAILED: why`; exit status 0 and 1, 64 for wrong options.

set -Eeuo pipefail
export LC_ALL=C

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
readonly repository
readonly hosts=$repository/Tests/Support/hosts.sh program=$repository/.build/release/shadow-virt guests=$repository/.build/guests
readonly interval_ms=20 run_seconds=10
# The ledger guest's, Tests/Guests/ledger.S: its disk is a ring of so many records, each looked at before it is replaced.
readonly tick_ms=4 disk_records=1024
readonly images=/var/lib/libvirt/images # on each host
# The Linux guest's; its own clock ticks ten times a second (Tests/Guests/records.c). Emulated, it is captured every few seconds.
readonly linux=$repository/.build/linux-guest linux_address=10.77.0.50 linux_tick_ms=100 linux_interval_ms=2000
readonly linux_probe_seconds=15

# shellcheck source=../Tests/Support/install.sh
source "$repository/Tests/Support/install.sh"
# shellcheck source=../Tests/Support/degrade.sh
source "$repository/Tests/Support/degrade.sh"
# shellcheck source=../Tests/Support/hook-job.sh
source "$repository/Tests/Support/hook-job.sh"

json='' keep='' degrade='' work='' swift_option=()
why='' finding='' finished='' job='' work_made='' hosts_up=''
services=() followers=() probes=() linux_probe=''
no_kvm='' no_linux='' # why a part is left out
# The figures; null: of a part that was left out.
epochs_per_second=null pause_ms_median=null pause_ms_p99=null dirtied=0 sent=0 disk_sent=null engine=null
failover_epochs_lost=null failover_outage_ms=null swap_epochs_lost=null swap_outage_ms=null activation_ms=null consistent=null disk_consistent=null
linux_engine=null linux_pause_ms=null linux_failover_outage_ms=null linux_swap_outage_ms=null pings_lost_in_swap=null pings_lost_in_failover=null

usage() { sed -n '2,/^$/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }

wrong() { echo "quickstart: $1 (try --help)" >&2; exit 64; }

while (($# > 0)); do
  case $1 in
  --json | --work)
    [[ -n ${2:-} ]] || wrong "$1 needs a value"
    if [[ $1 == --json ]]; then json=$(realpath -m "$2"); else work=$(realpath -m "$2"); fi
    shift ;;
  --keep) keep=yes ;;
  --degrade) degrade=yes ;;
  --install-swift) swift_option=(--from-swift-org) ;;
  --help | -h) usage; exit 0 ;;
  *) wrong "No such option: $1" ;;
  esac
  shift
done
readonly json keep degrade
[[ -z $json || -z $degrade ]] || wrong "--degrade has no figures for --json"

# --- how it ends ---------------------------------------------------------------------------------------------------

fail() { why=${why:-$1}; exit 1; }

on_exit() {
  local status=$?
  trap - EXIT ERR
  trap '' INT TERM HUP
  set +e
  [[ -z $job ]] || end_job
  [[ -z $linux_probe ]] || kill "$linux_probe" 2>/dev/null
  [[ -z $degrade ]] || full_speed
  if [[ -n $finished ]]; then
    status=0
  else
    ((status != 0)) || status=1
    why=${why:-exit status $status}
  fi
  if [[ -n $hosts_up ]]; then
    if [[ -n $keep && $status -lt 128 ]]; then print_playground; else remove_hosts "$status"; fi
  elif [[ -n $work_made ]]; then
    remove_work "$status"
  fi
  if [[ -n $finished ]]; then
    echo "quickstart: ok"
  else
    [[ $why != *$'\n'* ]] || echo "$why" >&2 # the last line is to be one line
    echo "quickstart: FAILED: ${why%%$'\n'*}"
  fi
  exit "$status"
}

end_job() { # and all that it started, before their files are removed
  local turn
  kill -TERM -- "-$job" 2>/dev/null
  for turn in {1..100}; do
    kill -0 -- "-$job" 2>/dev/null || return
    ((turn != 60)) || kill -KILL -- "-$job" 2>/dev/null
    sleep 0.05
  done
}

interrupted() { why="interrupted by SIG$1"; exit $((128 + $2)); } # also while something runs in the foreground

remove_hosts() { # STATUS
  local pid problem
  for pid in "${followers[@]}" "${services[@]}"; do kill "$pid" 2>/dev/null; done
  if ! problem=$(setsid --wait "$hosts" down "$work" 2>&1); then
    echo "Could not remove the hosts: $problem" >&2
    why=${why:-the hosts could not be removed: $problem} finished=''
    ((status != 0)) || status=1
    return
  fi
  [[ $1 != 1 ]] || explain
  remove_work "$1"
}

# After a failure the folder stays, for its logs; one that was asked for stays in any case.
remove_work() { # STATUS
  rm -rf --one-file-system "$work"/[AB]/var/lib "$work"/[AB]/var/cache "$work"/[AB]/etc/shadow-virt/secret
  if [[ $1 == 1 && -n $(find "$work" -name '*.log' -size +0 2>/dev/null) ]]; then
    echo "Logs: $work"
  elif [[ $work_made == temporary ]]; then
    rm -rf --one-file-system "$work"
  fi
}

explain() { # the end of what the services said
  local host
  for host in A B; do
    [[ -s $work/service$host.log ]] || continue
    echo "--- the service on host$host said last:"
    tail -n 8 "$work/service$host.log"
  done
}

print_playground() {
  local pid guest=ledger tells='counts its ticks'
  for pid in "${followers[@]}"; do kill "$pid" 2>/dev/null; done
  if [[ -n $no_kvm ]]; then guest=linux tells='tells what it does'; else on A virsh -q resume ledger >/dev/null 2>&1; fi
  cat <<END

The two hosts are still up. To play with them, as root:
  cd $repository; work=$work
  on() { Tests/Support/hosts.sh exec \$work "\$@"; }
  shadow=\$PWD/.build/release/shadow-virt
  on A virsh list --all                                          # A and B are the hosts
  on A \$shadow protect $guest --to hostB                         # likewise on B, to hostA
  on A \$shadow status $guest
  on A \$shadow swap $guest
  kill -9 \$(cat \$work/A/run/libvirt/qemu/$guest.pid)             # what happens when QEMU dies
  Tests/Support/hosts.sh cut \$work                               # pulls the cable; join plugs it in again
  tail -f \$work/{A,B}/var/log/libvirt/$guest.serial              # the guest $tells
  tail -f \$work/service{A,B}.log                                 # what the services say
To remove them:
  Tests/Support/hosts.sh down \$work && rm -rf \$work
END
}

trap on_exit EXIT
trap 'why=${why:-"\"$BASH_COMMAND\" failed (line $LINENO)"}' ERR
trap 'interrupted INT 2' INT
trap 'interrupted TERM 15' TERM
trap 'interrupted HUP 1' HUP

# --- helpers -------------------------------------------------------------------------------------------------------

readonly start=${EPOCHREALTIME/./}

event() { # TEXT; a line of the timeline
  local elapsed=$((${EPOCHREALTIME/./} - start))
  printf '%7d.%02d s  %s\n' $((elapsed / 1000000)) $((elapsed / 10000 % 100)) "$1"
}

logged() { # LOG COMMAND...; interruptible, in a session of its own
  local log=$1 status=0
  shift
  setsid "$@" </dev/null >>"$log" 2>&1 &
  job=$!
  wait "$job" || status=$?
  job=''
  return $status
}

on() { "$hosts" exec "$work" "$@"; } # HOST COMMAND...

wait_for() { # SECONDS WHAT COMMAND...: until COMMAND succeeds
  local end=$((SECONDS + $1)) what=$2
  shift 2
  until "$@" 2>/dev/null; do
    ((SECONDS < end)) || fail "$what did not happen"
    sleep 0.1
  done
}

value() { # FILE KEY; of JSON with a key a line, the first of that name; 0 when it is null or absent
  local found
  found=$(sed -n "s/^ *\"$2\" *: *\"\{0,1\}\([^\",]*\)\"\{0,1\},\{0,1\} *\$/\1/p" "$1" | head -n 1)
  [[ -n $found && $found != null ]] && echo "$found" || echo 0
}

calculate() { awk "BEGIN { printf \"$1\", $2 }"; } # FORMAT EXPRESSION

serial() { echo "$work/$1/var/log/libvirt/${2:-ledger}.serial"; } # HOST [DOMAIN]

image() { echo "$work/$1$images/${2:-ledger}.img"; } # HOST [DOMAIN]

size() { stat -c %s "$1" 2>/dev/null || echo 0; }

# A failure that the table and the JSON are to tell of as well.
found() { finding=${finding:-$1}; event "NOT AS IT SHOULD BE: $1"; }

ticks_since() { tail -c "+$(($2 + 1))" "$1" 2>/dev/null | grep -q '^T [0-9]*$'; } # FILE BYTES

shadow_virt() { # HOST WORD...; a failure's own words become the reason
  local host=$1 said
  shift
  if ! said=$(on "$host" "$program" "$@" 2>&1 >"$work/answer"); then
    fail "\`shadow-virt $*\` on host$host: $(tail -n 3 <<<"$said" | tr '\n' ' ')"
  fi
}

follow() { "$guests/ledger-tool" follow "$@" & followers+=($!); disown; } # FILE OUT ...

# --- the machine ---------------------------------------------------------------------------------------------------

((EUID == 0)) || fail "needs root, for namespaces, libvirtd and /dev/kvm: run it with sudo"
kvm_obstacle() { # prints why there is no KVM
  if [[ $(stat -Lc %t:%T /dev/kvm 2>/dev/null) != a:e8 ]]; then
    echo "no /dev/kvm: KVM is not available here (switch virtualization on in the firmware, or nested virtualization for this virtual machine," \
      "and load kvm_intel or kvm_amd)"
  elif ! { : <>/dev/kvm; } 2>/dev/null; then
    echo "/dev/kvm cannot be opened: this container or machine has no right to use it"
  fi
}
[[ $(uname -m) == x86_64 ]] || fail "the example's guest runs on x86_64 only; this machine is $(uname -m)"
no_kvm=$(kvm_obstacle)
readonly no_kvm

if [[ -n $work ]]; then
  if [[ -e $work && (! -d $work || -n $(ls -A "$work")) ]]; then fail "--work: $work is not an empty folder"; fi
  work_made=named
  mkdir -p "$work"
else
  work_made=temporary
  work=$(mktemp -d /tmp/shadow-virt-quickstart.XXXXXX)
fi
readonly work
chmod 755 "$work"

echo "shadow-virt quickstart; everything it makes is in $work"
[[ -z $no_kvm ]] || echo "No ledger guest: $no_kvm. The Linux guest does all of it, emulated, with the engine periodic"
need_packages "${build_packages[@]}" "${host_packages[@]}" || echo "$install_problem" >&2
for tool in virsh libvirtd qemu-system-x86_64 ip nsenter as ld; do
  PATH=$PATH:/usr/sbin command -v "$tool" >/dev/null || fail "$tool is missing and could not be installed"
done
[[ -z $degrade || -z $no_kvm ]] || fail "--degrade needs the ledger guest: $no_kvm"
if [[ -n $degrade ]]; then no_linux='--degrade shows the ledger guest'; else need_packages "${linux_packages[@]}" || no_linux=$install_problem; fi
# Caches, lock files and whatever else Swift leaves in the home and in /tmp go into the work folder.
readonly caches=$work/caches
mkdir -p "$caches"
TMPDIR=$caches need_swift "${swift_option[@]}" || fail "$install_problem"

# --- what is built -------------------------------------------------------------------------------------------------

build_linux() { logged "$work/linux.log" "$repository/Tests/Guests/linux.sh" "$linux"; }

# Whether the machine's KVM runs Linux: some nested ones only run code without paging. It is asked while shadow-virt is built.
begin_probe() {
  timeout --kill-after=2 $linux_probe_seconds qemu-system-x86_64 -accel kvm -m 256 -display none -no-reboot -kernel "$linux/vmlinuz" -initrd "$linux/initrd" \
    -append "console=ttyS0 loglevel=1 panic=1 PROBE=1" -serial "file:$work/linux-probe" </dev/null >/dev/null 2>&1 &
  linux_probe=$!
}

kvm_runs_linux() {
  [[ -n $linux_probe ]] || return 1
  wait "$linux_probe" || true
  linux_probe=''
  grep -q BOOT "$work/linux-probe" 2>/dev/null
}

if [[ -z $no_linux ]]; then
  # A second time with fresh lists of packages.
  if build_linux || { update_apt && build_linux; }; then
    [[ -n $no_kvm ]] || begin_probe
  else
    no_linux=$(tail -n 1 "$work/linux.log")
  fi
fi
readonly no_linux
[[ -z $no_linux ]] || echo "No Linux guest: $no_linux"
[[ -z $no_kvm || -z $no_linux ]] || fail "nothing to show: $no_kvm; and no Linux guest, which could do without: $no_linux"

event "building shadow-virt in release mode, with $(TMPDIR=$caches swift --version 2>/dev/null | sed -n 's/.*\(Swift version [0-9.]*\).*/\1/p')"
build() {
  logged "$work/build.log" env HOME="$caches" TMPDIR="$caches" swift build --package-path "$repository" \
    --cache-path "$caches" --config-path "$caches" --security-path "$caches" "$@"
}
if ! build -c release --product shadow-virt || ! build -c release --product shadow-virt-hook; then
  grep -E 'error:' "$work/build.log" >&2 || tail -n 20 "$work/build.log" >&2
  fail "the build failed ($work/build.log)"
fi
if [[ -z $no_kvm ]]; then
  logged "$work/build.log" env HOME="$caches" TMPDIR="$caches" "$repository/Tests/Guests/build.sh" "$guests" ||
    fail "the guest could not be built: $(tail -n 3 "$work/build.log")"
fi
rm -rf "$caches"
# Built by root in somebody's clone: leave it to them.
[[ $(stat -c %u "$repository") == 0 ]] || chown -R --reference="$repository" "$repository/.build"
event "built $("$program" --version)"
linux_type=qemu
! kvm_runs_linux || linux_type=kvm
readonly linux_type

# --- two hosts -----------------------------------------------------------------------------------------------------

hosts_up=yes
# In a session of its own, so that Ctrl-C meets hosts that are up, not half of one.
problem=$(setsid --wait "$hosts" up "$work" quickstart 2>&1) ||
  fail "the hosts could not be started: $(head -n 3 <<<"$problem" | tr '\n' ' ')"
event "two hosts with a libvirtd each: hostA 10.77.0.1, hostB 10.77.0.2"
# What a libvirtd asks QEMU once, for minutes to come; both at the same time.
for host in A B; do on "$host" virsh -q domcapabilities --virttype "$([[ -n $no_kvm ]] && echo qemu || echo kvm)" >/dev/null 2>&1 & probes+=($!); done

secret=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
configure() { # HOST ADDRESS PEER PEER-ADDRESS
  local folder=$work/$1/etc/shadow-virt
  (umask 077; echo "$secret" >"$folder/secret")
  cat >"$folder/shadow-virt.conf" <<END
host_name = "host$1"
libvirt_uri = "qemu:///system"
listen = "$2:16520"
peers = [ "host$3 $4:16520 qemu+tcp://$4/system" ]
log_level = "debug"
END
  [[ -z $degrade ]] || degrade_configuration >>"$folder/shadow-virt.conf"
}
configure A 10.77.0.1 B 10.77.0.2
configure B 10.77.0.2 A 10.77.0.1
install_hook

start_service() { # HOST
  setsid "$hosts" exec "$work" "$1" "$program" serve </dev/null >>"$work/service$1.log" 2>&1 &
  services+=($!)
  disown # so that bash has nothing to say about its end
}
answers() { # HOST PID
  kill -0 "$2" || fail "the service on host$1 has ended: $(tail -n 2 "$work/service$1.log" | tr '\n' ' ')"
  on "$1" "$program" status --quiet >/dev/null
}
start_service A
start_service B
wait_for 20 "an answer of the service on hostA" answers A "${services[0]}"
wait_for 20 "an answer of the service on hostB" answers B "${services[1]}"
event "shadow-virt serves on both"

# --- for each guest ------------------------------------------------------------------------------------------------

wait "${probes[@]}" || true
versions=$(on A virsh -q version --daemon)
libvirt_version=$(sed -n 's/^Running against daemon: //p' <<<"$versions")
qemu_version=$(sed -n 's/^Running hypervisor: QEMU //p' <<<"$versions")

# As every libvirt host has them; hostB has no image of the guest.
for host in A B; do
  problem=$(on "$host" virsh -q pool-define-as default dir --target "$images" 2>&1 && on "$host" virsh -q pool-start default 2>&1) ||
    fail "libvirt on host$host refused the storage pool: $(tr '\n' ' ' <<<"$problem")"
done
protect() { # DOMAIN HOST PEER MILLISECONDS
  shadow_virt "$2" protect "$1" --to "host$3" --interval "$4ms" --no-policy --quiet
}
without_disks() { sed '/^ *"disks" *: *\[$/,/^ *\],\{0,1\}$/d'; } # JSON of a status without the list of disks, which have states of their own
status() { # DOMAIN HOST FILE
  shadow_virt "$2" status "$1" --format json --quiet
  without_disks <"$work/answer" >"$3"
}
run_for() { # SECONDS; a shell that only sleeps would answer Ctrl-C at its end
  local turn
  for ((turn = 0; turn < $1 * 10; turn++)); do sleep 0.1; done
}
check_runs() { # DOMAIN HOST
  [[ $(on "$2" virsh -q domstate "$1") == running* ]] || fail "libvirt on host$2 says that $1 is $(on "$2" virsh -q domstate "$1")"
}
kill_qemu() { # DOMAIN; on hostA
  local pid
  pid=$(<"$work/A/run/libvirt/qemu/$1.pid")
  grep -q "guest=$1" "/proc/$pid/cmdline" || fail "process $pid is not the QEMU of $1"
  kill -KILL "$pid"
  event "kill -9 $pid: QEMU on hostA is dead"
}

# --- the ledger guest ----------------------------------------------------------------------------------------------

since_before() { echo $(($(value "$work/after.json" "$1") - $(value "$work/before.json" "$1"))); } # KEY
ledger() { # FILE WORD...; ledger-tool's finding, 0 when fine
  local file=$1
  shift
  "$guests/ledger-tool" "$@" >"$file"
}

check_books() { # FILE WORD...; what the guest itself says: of its memory, and of its disk compared with its memory
  ledger "$@" && return
  found "the guest's ledger: $(value "$1" problem)"
  ! grep -Eq '"(CORRUPT (disk|queue)|DISKERROR)' "$1" || disk_consistent=false
  ledger "$1.memory" check --ignore-disk "${@:3}" || consistent=false
}

check_disk() { # HOST; the image, as others find it while the guest stands still, against the tick that the guest printed last
  local problem word number tick=0
  problem=$(on "$1" virsh -q suspend ledger 2>&1) || fail "libvirt on host$1 did not suspend the guest: $problem"
  # The guest may stand in the middle of a line, which `read` does not count.
  while read -r word number; do [[ $word != T ]] || tick=$number; done < <(tail -c 4096 "$(serial "$1")")
  ledger "$work/disk$1.json" disk --tick "$tick" "$(image "$1")" || {
    disk_consistent=false
    found "the disk on host$1 is not of the guest's moment: $(sed -n '/"problems"/{n;s/^ *"\(.*\)",\{0,1\}$/\1/p}' "$work/disk$1.json")"
  }
  problem=$(on "$1" virsh -q resume ledger 2>&1) || fail "libvirt on host$1 did not resume the guest: $problem"
}

disk_turned() { # FILE BYTES; since then the guest has replaced, and before that compared, each record of its disk
  tail -c "+$(($2 + 1))" "$1" | awk -v records=$disk_records '$1 == "D" { last = $2; if (!n++) first = $2 } END { exit !(last - first >= records) }'
}

boot_ledger() {
  cp "$guests/ledger-disk.img" "$(image A)"
  "$repository/Tests/Guests/domain.sh" ledger >"$work/ledger.xml"
  follow "$(serial A)" "$work/A1.times" "$(serial B)" "$work/B.times"
  problem=$(on A virsh -q define "$work/ledger.xml" 2>&1 && on A virsh -q start ledger 2>&1) ||
    fail "libvirt on hostA refused the guest: $(tr '\n' ' ' <<<"$problem")"
  wait_for 180 "the guest's first tick" ticks_since "$(serial A)" 0
  event "the guest runs on hostA (QEMU $qemu_version, libvirt $libvirt_version)"
}

protect_ledger() {
  protect ledger A B $interval_ms
  event "protected: hostB holds a shadow and a replica of the disk, an epoch every $interval_ms ms"
  status ledger A "$work/before.json"
  before=${EPOCHREALTIME/./}
  run_for $run_seconds
  status ledger A "$work/after.json"
  seconds=$(calculate %.6f "($((${EPOCHREALTIME/./} - before))) / 1e6")
  [[ $(value "$work/after.json" state) == protected ]] ||
    fail "after $run_seconds s the guest is $(value "$work/after.json" state): $(value "$work/after.json" reason)"
  engine=$(value "$work/after.json" engine)
  epochs_per_second=$(calculate %.1f "$(since_before epoch) / $seconds")
  pause_ms_median=$(value "$work/after.json" pause_ms_median)
  pause_ms_p99=$(value "$work/after.json" pause_ms_p99)
  dirtied=$(since_before bytes_dirtied) sent=$(since_before bytes_sent)
  disk_sent=$(value "$work/after.json" disk_bytes_sent)
  event "ran $run_seconds s: $(since_before epoch) epochs with $(since_before disk_writes) disk writes"
}

fail_ledger_over() {
  kill_qemu ledger
  wait_for 20 "the guest's going on at hostB" ticks_since "$(serial B)" 0
  event "the guest goes on at hostB"
  sleep 2
  left_A=$(size "$(serial A)")
  status ledger B "$work/failed-over.json"
  check_runs ledger B

  wait_for 60 "the guest's turn through its disk on hostB" disk_turned "$(serial B)" 0
  consistent=true disk_consistent=true
  check_books "$work/failover-check.json" check "$(serial A)@0-$left_A" "$(serial B)"
  check_disk B
  ledger "$work/failover-outage.json" outage "$work/A1.times" "$work/B.times" || fail "the guest ran on both hosts at once"
  rolled_back=$(value "$work/failover-check.json" repeated_ticks)
  failover_outage_ms=$(value "$work/failover-outage.json" outage_ms)
  # An epoch's worth of ticks is what the guest does from one capture to the next. Less than that was in no epoch yet; every
  # full one is an epoch that was captured and did not arrive.
  failover_epochs_lost=$(calculate %d "int($rolled_back / (1000 / $tick_ms / $epochs_per_second))")
  event "it went back $rolled_back ticks ($((rolled_back * tick_ms)) ms) and stood still for $failover_outage_ms ms"
  [[ -n $finding ]] || event "its memory is whole, and its disk is of the same moment"
  ((failover_epochs_lost <= 1)) || found "$failover_epochs_lost epochs were lost in the failover, not 0 or 1"
}

swap_ledger_back() {
  protect ledger B A $interval_ms
  event "protected again, the other way round: hostA holds the shadow, and its old disk is the replica"
  follow "$(serial A)" "$work/A2.times"
  sleep 3
  status ledger B "$work/before-swap.json"
  disk_sent=$((disk_sent + $(value "$work/before-swap.json" disk_bytes_sent)))
  shadow_virt B swap ledger --format json --quiet
  cp "$work/answer" "$work/swap.json"
  event "swapped"
  wait_for 20 "the guest's going on at hostA" ticks_since "$(serial A)" "$left_A"
  event "the guest goes on at hostA"
  sleep 2
  wait_for 60 "the guest's turn through its disk on hostA" disk_turned "$(serial A)" "$left_A"
  check_books "$work/swap-check.json" check --swap "$(serial B)" "$(serial A)@$left_A"
  check_disk A
  ledger "$work/swap-outage.json" outage "$work/B.times" "$work/A2.times" || fail "the guest ran on both hosts at once"
  swap_outage_ms=$(value "$work/swap-outage.json" outage_ms)
  activation_ms=$(calculate %.3f "$(value "$work/swap.json" activation_ms)")
  swap_epochs_lost=$(value "$work/swap.json" epochs_lost)
  ((swap_epochs_lost == 0)) || found "the swap lost $swap_epochs_lost epochs"
  [[ -n $finding ]] || event "not a tick and not a disk write lost or repeated"
  event "it stood still for $swap_outage_ms ms"
  check_runs ledger A
}

# --- the Linux guest -----------------------------------------------------------------------------------------------

linux_said() { tail -c "+$(($2 + 1))" "$(serial "$1" linux)" 2>/dev/null | grep -q "^$3 [0-9]"; } # HOST BYTES KIND; in whole lines, since then

linux_boots() { # it mounts its disk, looks at what is there, and begins to write
  local problem disk
  disk=$(image A linux)
  truncate -s 64M "$disk"
  PATH=$PATH:/usr/sbin:/sbin mkfs.ext4 -q -F -E lazy_itable_init=1 "$disk" || fail "mkfs.ext4 could not make the Linux guest's disk"
  "$repository/Tests/Guests/linux-domain.sh" linux FOLDER="$linux" TYPE="$linux_type" RECORDS=1 BRIDGE=br0 ADDRESS=$linux_address/24 >"$work/linux.xml"
  problem=$(on A virsh -q define "$work/linux.xml" 2>&1 && on A virsh -q start linux 2>&1) ||
    fail "libvirt on hostA refused the Linux guest: $(tr '\n' ' ' <<<"$problem")"
  wait_for 120 "the Linux guest's first record on its disk" linux_said A 0 W
  setsid "$hosts" exec "$work" A ping -D -n -i 0.01 $linux_address </dev/null >"$work/ping" 2>"$work/ping.log" &
  followers+=($!)
  disown
  wait_for 20 "the Linux guest's answer to a ping" answered_since "${EPOCHREALTIME}"
  event "a Linux guest runs on hostA, $([[ $linux_type == kvm ]] && echo "under KVM" || echo "emulated (TCG)${no_kvm:+: no KVM}"), writes to ext4 \
and answers a ping every 10 ms"
}

answers_of() { awk -v begin="$1" '/^\[.*icmp_seq=/ && !/DUP/ { at = substr($1, 2) + 0; if (at >= begin) print }' "$work/ping"; } # SECONDS

answered_since() { [[ -n $(answers_of "$1") ]]; } # SECONDS

# Since then: the longest time without an answer in milliseconds, and how many requests were never answered.
silence_since() { # SECONDS
  answers_of "$1" | awk '
    {
      at = substr($1, 2) + 0; match($0, /icmp_seq=[0-9]+/); number = substr($0, RSTART + 9, RLENGTH - 9) + 0
      if (last && at - last > longest) longest = at - last
      last = at; count++
      if (!least || number < least) least = number
      if (number > most) most = number
    }
    END { printf "%.1f %d\n", longest * 1000, count ? most - least + 1 - count : 0 }'
}

# It has read all of its disk again, compared it with what its memory says, and has nothing to complain of.
check_linux() { # HOST BYTES
  local said
  wait_for 90 "the Linux guest's look at all of its disk on host$1" linux_said "$1" "$2" C
  said=$(grep -hE '^CORRUPT|Kernel panic' "$(serial A linux)" "$(serial B linux)" 2>/dev/null | head -n 1) || true
  [[ -z $said ]] || found "the Linux guest says: $said"
}

# The first line may be the rest of one that began on the other host, the last one the beginning of one that ends there.
ticks() { tail -c "+$(($2 + 1))" "$1" | sed -n '1d; $d; s/^T \([0-9]*\)\r\{0,1\}$/\1/p'; } # FILE BYTES

# What both hosts wrote down of a guest that was swapped is one text, cut anywhere; prints the first tick or record that is not the next one.
gap_in() { # FILE FILE BYTES
  { cat "$1"; tail -c "+$(($3 + 1))" "$2"; } | awk '
    { sub(/\r$/, "") }
    NR > 1 && /^[TW] [0-9]+$/ {
      if (($1 in last) && $2 != last[$1] + 1) { print $0, "after", $1, last[$1]; exit }
      last[$1] = $2
    }'
}

linux_fails_over() {
  local killed first last
  protect linux A B "$linux_interval"
  event "protected: hostB follows, an epoch every $linux_interval ms"
  run_for 8
  status linux A "$work/linux.json"
  [[ $(value "$work/linux.json" state) == protected ]] ||
    fail "the Linux guest is $(value "$work/linux.json" state): $(value "$work/linux.json" reason)"
  linux_engine=$(value "$work/linux.json" engine)
  linux_pause_ms=$(value "$work/linux.json" pause_ms_median)
  event "ran 8 s with the engine $linux_engine: $(sed -n 's/^ *"engine_reason" *: *"\(.*\)",\{0,1\}$/\1/p' "$work/linux.json")"
  killed=$EPOCHREALTIME
  kill_qemu linux
  wait_for 30 "the Linux guest's going on at hostB" linux_said B 0 T
  event "the Linux guest goes on at hostB"
  wait_for 20 "the Linux guest's answer to a ping" answered_since "$(calculate %.3f "$killed + 2")"
  # The last answer before may be a moment old.
  read -r linux_failover_outage_ms pings_lost_in_failover < <(silence_since "$(calculate %.3f "$killed - 0.5")")
  check_runs linux B
  check_linux B 0
  left_A=$(size "$(serial A linux)")
  last=$(ticks "$(serial A linux)" 0 | tail -n 1) first=$(ticks "$(serial B linux)" 0 | head -n 1)
  event "it went back $(((last + 1 - first) * linux_tick_ms)) ms, and its address was silent for $linux_failover_outage_ms ms"
  [[ -n $finding ]] || event "its files are whole and as its memory has them"
}

linux_swaps_back() {
  local begin gap
  protect linux B A "$linux_interval"
  event "protected again, the other way round"
  run_for 3
  begin=$EPOCHREALTIME
  shadow_virt B swap linux --format json --quiet
  event "swapped"
  wait_for 30 "the Linux guest's going on at hostA" linux_said A "$left_A" T
  wait_for 20 "the Linux guest's answer to a ping" answered_since "$(calculate %.3f "$EPOCHREALTIME + 0.5")"
  read -r linux_swap_outage_ms pings_lost_in_swap < <(silence_since "$begin")
  check_runs linux A
  check_linux A "$left_A"
  gap=$(gap_in "$(serial B linux)" "$(serial A linux)" "$left_A")
  [[ -z $gap ]] || found "the swap lost or repeated something: $gap"
  [[ -n $finding ]] || event "not a tick and not a record lost or repeated"
  event "its address was silent for $linux_swap_outage_ms ms, $pings_lost_in_swap pings had no answer"
}

linux_guest() {
  local linux_interval=$linux_interval_ms
  [[ $linux_type == qemu ]] || linux_interval=$interval_ms
  linux_boots
  linux_fails_over
  linux_swaps_back
}

# --- all of it -----------------------------------------------------------------------------------------------------

if [[ -n $degrade ]]; then
  degrade_host
  finished=yes
  exit 0
fi
if [[ -z $no_kvm ]]; then
  batch_job
  boot_ledger
  protect_ledger
  fail_ledger_over
  swap_ledger_back
  # The Linux guest has the machine to itself.
  problem=$(on A virsh -q suspend ledger 2>&1) || fail "libvirt on hostA did not suspend the guest: $problem"
fi
[[ -n $no_linux ]] || linux_guest

# --- what came out -------------------------------------------------------------------------------------------------

mib() { calculate '%.1f MiB' "$1 / 1048576"; }
verdict() { [[ $1 == true ]] && echo "consistent throughout" || echo "NOT CONSISTENT"; }
row() { printf '  %-34s %s\n' "$1" "$2"; }
echo
if [[ -z $no_kvm ]]; then
  row "shadow by libvirt's hook" "$hook_protected_ms ms after it told of the start"
  row "epochs a second, asked for every" "$epochs_per_second, $interval_ms ms"
  row "pause of the guest, median / p99" "$pause_ms_median / $pause_ms_p99 ms"
  row "bytes dirtied / sent" "$(mib "$dirtied") / $(mib "$sent")"
  row "disk bytes sent" "$(mib "$disk_sent")"
  row "failover: epochs lost" "$failover_epochs_lost"
  row "failover: outage" "$failover_outage_ms ms"
  row "swap: epochs lost" "$swap_epochs_lost"
  row "swap: outage" "$swap_outage_ms ms, of which activation $activation_ms ms"
  row "guest's memory" "$(verdict "$consistent")"
  row "guest's disk" "$(verdict "$disk_consistent")"
else
  row "ledger guest" "left out: see above"
fi
if [[ -z $no_linux ]]; then
  row "Linux guest: engine" "$linux_engine$([[ $linux_type == kvm ]] || echo ", emulated (TCG)")"
  row "Linux guest: pause, median" "$linux_pause_ms ms"
  row "Linux guest: failover outage" "$linux_failover_outage_ms ms as ping saw it, $pings_lost_in_failover pings lost"
  row "Linux guest: swap outage" "$linux_swap_outage_ms ms as ping saw it, $pings_lost_in_swap pings lost"
else
  row "Linux guest" "left out: see above"
fi
echo

quoted() { [[ $1 == null ]] && echo null || echo "\"$1\""; } # a JSON string, or null
if [[ -n $json ]]; then
  cat >"$json.new" <<END
{
  "hook_protected_ms": $hook_protected_ms,
  "epochs_per_second": $epochs_per_second,
  "pause_ms_median": $pause_ms_median,
  "pause_ms_p99": $pause_ms_p99,
  "failover_outage_ms": $failover_outage_ms,
  "failover_epochs_lost": $failover_epochs_lost,
  "swap_outage_ms": $swap_outage_ms,
  "swap_epochs_lost": $swap_epochs_lost,
  "activation_ms": $activation_ms,
  "guest_consistent": $consistent,
  "disk_bytes_sent": $disk_sent,
  "disk_consistent": $disk_consistent,
  "engine": $(quoted "$engine"),
  "qemu_version": "$qemu_version",
  "libvirt_version": "$libvirt_version",
  "linux_guest_engine": $(quoted "$linux_engine"),
  "linux_guest_pause_ms": $linux_pause_ms,
  "linux_guest_failover_outage_ms": $linux_failover_outage_ms,
  "linux_guest_swap_outage_ms": $linux_swap_outage_ms,
  "pings_lost_in_swap": $pings_lost_in_swap
}
END
  mv "$json.new" "$json"
fi
[[ -z $finding ]] || fail "$finding"
# Bash leaves a function when a sum makes no sense, and goes on.
if [[ -z $no_kvm && $swap_epochs_lost == null || -z $no_linux && $pings_lost_in_swap == null ]]; then fail "a part was not carried out to its end"; fi
finished=yes
