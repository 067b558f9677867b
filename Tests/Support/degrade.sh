# shellcheck shell=bash
# examples/quickstart.sh --degrade: hostA loses most of its CPU time, and the guest leaves it by itself. Sourced there, whose functions and variables it uses.
# shellcheck disable=SC2154,SC2034

# What hostA keeps of one core: so many microseconds of each period.
readonly degrade_period=50000 degrade_quota=10000 degrade_interval_ms=100
throttle='' # the control group of hostA's processes

# A minute of samples is what the baseline takes; as shipped that is five minutes, at one look every five seconds.
degrade_configuration() {
  cat <<'END'
telemetry_interval = 1
probe_directories = [ "/var/lib/libvirt/images" ]
on_drift = "swap"
drift_swap_after = 5
END
}

processes_of() { # HOST; those in its network
  local network process
  read -r process _ <"$work/$1/libvirtd.pid"
  network=$(readlink "/proc/$process/ns/net")
  for process in /proc/[0-9]*; do [[ $(readlink "$process/ns/net" 2>/dev/null) != "$network" ]] || echo "${process#/proc/}"; done
}

limit_cpu() { # makes the group; prints why that cannot be done here
  local folder
  if [[ -w /sys/fs/cgroup/cgroup.subtree_control ]]; then
    echo +cpu >/sys/fs/cgroup/cgroup.subtree_control 2>/dev/null || true
    folder=/sys/fs/cgroup
  else
    folder=/sys/fs/cgroup/cpu
  fi
  throttle=$folder/shadow-virt-quickstart-$$
  mkdir "$throttle" 2>/dev/null || { throttle=''; echo "no control group can be made below $folder"; return 1; }
  if [[ -e $throttle/cpu.max ]]; then
    echo "$degrade_quota $degrade_period" >"$throttle/cpu.max"
  elif [[ -e $throttle/cpu.cfs_quota_us ]]; then
    echo $degrade_period >"$throttle/cpu.cfs_period_us" && echo $degrade_quota >"$throttle/cpu.cfs_quota_us"
  else
    echo "the kernel's control groups do not limit CPU time here"
    return 1
  fi
}

# At the end, however that comes: nobody stays slow.
full_speed() {
  local process
  [[ -n $throttle ]] || return 0
  for process in $(<"$throttle/cgroup.procs"); do echo "$process" >"${throttle%/*}/cgroup.procs" 2>/dev/null || true; done
  rmdir "$throttle" 2>/dev/null || true
  throttle=''
}

noted() { # HOST KIND [TEXT]
  on "$1" "$program" events --format json >"$work/events.json" 2>/dev/null || return 1
  grep "\"kind\":\"$2\"" "$work/events.json" | grep -c "${3:-}" >/dev/null
}
watched() { on A "$program" drift ledger --format json --quiet >"$work/drift.json" 2>/dev/null || [[ $? == 2 ]]; }
judged() { watched && grep -q '"learning" : false' "$work/drift.json"; }
since() { calculate %.1f "(${EPOCHREALTIME/./} - $1) / 1e6"; } # MICROSECONDS

degrade_host() {
  local begin
  boot_ledger
  protect ledger A B $degrade_interval_ms
  event "protected: hostB holds a shadow, an epoch every $degrade_interval_ms ms; what is normal is being learned"
  wait_for 150 "the end of learning" judged
  run_for 30
  watched || fail "nothing is known of the guest's drift"
  ! noted A drift began || fail "drift was reported before anything was done to hostA"
  event "learned, and 30 s of calm: drift score $(value "$work/drift.json" score)"

  limit_cpu >"$work/limit" || fail "$(<"$work/limit")"
  begin=${EPOCHREALTIME/./}
  limit_cpu_of_A
  event "hostA gets $((degrade_quota * 100 / degrade_period)) % of a core from now on: its service, its libvirtd, its guest"
  wait_for 120 "a shorter interval" noted A interval shortened
  event "in doubt after $(since "$begin") s: epochs come more often"
  wait_for 120 "an alarm" noted A drift began
  event "an alarm after $(since "$begin") s"
  wait_for 120 "the guest's leaving hostA" ticks_since "$(serial B)" 0
  event "the guest goes on at hostB, $(since "$begin") s after hostA became slow, and nobody asked it to"
  left_A=$(size "$(serial A)")
  wait_for 60 "the bundle" noted A diagnosed
  full_speed
  sleep 2
  wait_for 60 "the guest's turn through its disk on hostB" disk_turned "$(serial B)" 0
  consistent=true disk_consistent=true
  check_books "$work/swap-check.json" check --swap "$(serial A)@0-$left_A" "$(serial B)"
  check_disk B
  ledger "$work/swap-outage.json" outage "$work/A1.times" "$work/B.times" || fail "the guest ran on both hosts at once"
  event "it stood still for $(value "$work/swap-outage.json" outage_ms) ms; $([[ -n $finding ]] || echo "not a tick and not a disk write lost or repeated")"
  echo
  on A "$program" events 2>/dev/null | grep -E ' (drift|interval|warm_swap|warm_swap_began|host_suspect|diagnosed) ' | cut -c1-200
  echo
  on B "$program" hosts 2>/dev/null || [[ $? == 2 ]]
  echo
  [[ -z $finding ]] || fail "$finding"
}

limit_cpu_of_A() {
  local process
  for process in $(processes_of A); do echo "$process" >"$throttle/cgroup.procs" 2>/dev/null || true; done
  [[ $(wc -l <"$throttle/cgroup.procs") -ge 3 ]] || fail "the processes of hostA could not be slowed down"
}
