# shellcheck shell=bash
# examples/quickstart.sh --degrade: hostA loses most of its CPU time, and the guest leaves it by itself. Sourced there, whose functions and variables it uses.
# shellcheck disable=SC2154,SC2034

# What hostA keeps of one core, which a process beside its own wants as well.
readonly degrade_percent=20 degrade_interval_ms=100
# With that quota a sleep of 20 ms takes 25 to 40 on the average. Where the machine's own load makes it so long on both hosts, one can hardly tell them apart.
readonly degrade_busy_ms=25
readonly faults=$repository/Tests/Support/faults.sh
degraded=''

# A minute of samples is what the baseline takes; as shipped that is twenty minutes, at one look every five seconds.
degrade_configuration() {
  cat <<'END'
telemetry_interval = 1
probe_directories = [ "/var/lib/libvirt/images" ]
on_drift = "swap"
drift_swap_after = 5
END
}

# At the end, however that comes: nobody stays slow.
full_speed() {
  [[ -n $degraded ]] || return 0
  degraded=''
  "$faults" end "$work" A
}

mean_of() { # COLUMN; of the last half minute, 0 when there is none
  on A "$program" kpi ledger --since 30s --format csv --quiet 2>/dev/null |
    awk -F, -v name="$1" 'NR == 1 { for (n = 1; n <= NF; n++) if ($n == name) column = n }
      NR > 1 && column && $column != "" { sum += $column; count++ } END { printf "%.1f", count ? sum / count : 0 }'
}

# Why an alarm does not come, as far as can be seen from here.
explain_silence() {
  on A "$program" drift ledger 2>/dev/null || true
  echo "A sleep of 20 ms takes: hostA $(mean_of p_host_wakeup_ms) ms, hostB $(mean_of s_host_wakeup_ms) ms; load of this machine: $(cut -d' ' -f1-3 /proc/loadavg)"
}
alarmed() { noted A drift began; }
noted() { # HOST KIND [TEXT]
  on "$1" "$program" events --format json >"$work/events.json" 2>/dev/null || return 1
  grep "\"kind\":\"$2\"" "$work/events.json" | grep -c "${3:-}" >/dev/null
}
watched() { on A "$program" drift ledger --format json --quiet >"$work/drift.json" 2>/dev/null || [[ $? == 2 ]]; }
judged() { watched && grep -q '"learning" : false' "$work/drift.json"; }
since() { calculate %.1f "(${EPOCHREALTIME/./} - $1) / 1e6"; } # MICROSECONDS

wait_until() { # SECONDS COMMAND...; false when it did not come about
  local end=$((SECONDS + $1))
  shift
  until "$@" 2>/dev/null; do ((SECONDS < end)) || return 1; sleep 0.1; done
}

degrade_host() {
  local begin waits
  "$faults" possible "$work" cpu >"$work/fault" || fail "$(<"$work/fault")"
  boot_ledger
  protect ledger A B $degrade_interval_ms
  event "protected: hostB holds a shadow, an epoch every $degrade_interval_ms ms; what is normal is being learned"
  wait_for 150 "the end of learning" judged
  run_for 30
  watched || fail "nothing is known of the guest's drift"
  ! noted A drift began || fail "drift was reported before anything was done to hostA"
  event "learned, and 30 s of calm: drift score $(value "$work/drift.json" score)"
  waits=$(mean_of s_host_wakeup_ms)
  (($(calculate %d "($waits >= $degrade_busy_ms)") == 0)) ||
    event "this machine is so busy that a sleep of 20 ms takes $waits ms on hostB: what follows may take longer, or not be told from that"

  begin=${EPOCHREALTIME/./} degraded=yes
  "$faults" begin "$work" A cpu $degrade_percent || fail "hostA could not be slowed down"
  event "hostA gets $degrade_percent % of a core from now on: its service, its libvirtd, its guest, and a process that never sleeps"
  wait_for 180 "a shorter interval" noted A interval shortened
  event "in doubt after $(since "$begin") s: epochs come more often"
  wait_until 180 alarmed || {
    explain_silence
    fail "no alarm within three minutes: beside what else this machine does hostA's trouble cannot be told from hostB's (try again when it is quiet)"
  }
  event "an alarm after $(since "$begin") s"
  wait_for 180 "the guest's leaving hostA" ticks_since "$(serial B)" 0
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
