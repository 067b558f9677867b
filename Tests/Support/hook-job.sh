# shellcheck shell=bash
# examples/quickstart.sh: libvirt's hook, and a batch job that has its shadow through it. Sourced there, whose functions and variables it uses.
# shellcheck disable=SC2154,SC2034

hook_protected_ms=null

# As on any host, but for the program: the one that was just built. A daemon that had no hook until now looks for one at a reload.
install_hook() {
  local host
  for host in A B; do
    shadow_virt "$host" install --only hook --program "$program" --quiet
    kill -HUP "$(<"$work/$host/run/libvirt/libvirtd.pid")" || fail "libvirt's daemon on host$host is gone"
  done
  event "libvirt's hook is installed on both"
}

job_is_protected() {
  on A "$program" status job --format json --quiet | without_disks >"$work/job.json"
  [[ $(value "$work/job.json" state) == protected ]]
}

job_left_nothing() { # but its own disk
  ! on A "$program" status job --quiet >/dev/null && ! on B virsh -q dominfo job >/dev/null && [[ ! -e $(image B job) ]]
}

milliseconds() { date -d "$1" +%s%3N; } # TIME

# A transient guest with a policy in its definition: nobody but libvirt is told to do anything.
batch_job() {
  local problem called
  cp "$guests/ledger-disk.img" "$(image A job)"
  "$repository/Tests/Guests/domain.sh" job |
    sed "s|<memory |<metadata><s:policy xmlns:s='https://shadow-virt.org/domain/1' lifetime='ghost'/></metadata>&|" >"$work/job.xml"
  problem=$(on A virsh -q create "$work/job.xml" 2>&1) || fail "libvirt on hostA refused the batch job: $(tr '\n' ' ' <<<"$problem")"
  wait_for 30 "a shadow of the batch job" job_is_protected
  called=$(sed -n "s/^\([^ ]*\) debug: libvirt's hook: job started begin.*/\1/p" "$work/serviceA.log" | head -n 1)
  [[ -n $called ]] || fail "libvirt's hook did not tell the service on hostA of the batch job"
  hook_protected_ms=$(($(milliseconds "$(value "$work/job.json" since)") - $(milliseconds "$called")))
  event "a batch job with a policy: libvirt's hook told of its start, and $hook_protected_ms ms later it had its shadow on hostB"
  problem=$(on A virsh -q destroy job 2>&1) || fail "libvirt on hostA did not end the batch job: $(tr '\n' ' ' <<<"$problem")"
  wait_for 20 "the end of the batch job's shadow" job_left_nothing
  event "the job is over, and hostB has nothing of it"
}
