#!/bin/bash
# Adds QEMU's guest agent to the Linux guest.
#
#   agent.sh OUTDIR     where linux.sh has been: makes OUTDIR/agent/vmlinuz and OUTDIR/agent/initrd, for `rdinit=/agent/init`
#
# The agent's package comes from apt and is not installed; its libraries are this machine's. Exit status 2: one of these cannot be had.

set -euo pipefail

unavailable() { echo "agent.sh: $*" >&2; exit 2; }

(($# == 1)) || { sed -n '2,/^$/s/^# \{0,1\}//p' "$0" >&2; exit 64; }
out=$(cd "$1" && pwd)
exec {lock}<"$out"
flock "$lock"
if [[ -e $out/agent/initrd && $out/agent/initrd -nt $out/initrd && $out/agent/initrd -nt $0 ]]; then exit 0; fi

work=$(mktemp -d "$out/agent.XXXXXX")
trap 'rm -rf "$work"' EXIT
command -v apt-get >/dev/null || unavailable "no apt here: the agent is taken from Debian's package"
# Not as the user _apt, who may not write here.
(cd "$work" && apt-get -o APT::Sandbox::User=root -q download qemu-guest-agent) >"$work/log" 2>&1 ||
  unavailable "qemu-guest-agent cannot be fetched: $(tail -n 1 "$work/log") (is this machine online, and are its lists fresh? apt-get update)"
dpkg-deb -x "$work"/*.deb "$work/package"
mkdir -p "$work/root/agent"
cp "$(find "$work/package" -path '*sbin/qemu-ga')" "$work/root/agent/"
while read -r name arrow path _; do
  if [[ $arrow == '=>' ]]; then
    [[ $path == /* ]] || unavailable "$name, which the agent needs, is not installed (Debian: apt install qemu-system-x86 has it)"
    cp -L "$path" "$work/root/agent/$name"
  elif [[ $name == /* ]]; then
    cp -L "$name" "$work/root/agent/loader"
  fi
done < <(ldd "$work/root/agent/qemu-ga")
# The port has a name of its own only where udev runs.
cat >"$work/root/agent/init" <<'END'
#!/bin/busybox sh
# A job in the background wants /dev/null.
/bin/busybox mount -t devtmpfs dev /dev
(
  until set -- /dev/vport*p1 && [ -e "$1" ]; do /bin/busybox sleep 0.2; done
  exec /agent/loader --library-path /agent /agent/qemu-ga -m virtio-serial -p "$1" -t / -f /agent/pid >/agent/log 2>&1
) &
exec /init
END
chmod +x "$work/root/agent/init"
mkdir -p "$out/agent"
ln -f "$out/vmlinuz" "$out/agent/vmlinuz"
# The kernel unpacks one archive after the other.
{
  cat "$out/initrd"
  (cd "$work/root" && find . | "$out/parts/root/bin/busybox" cpio -o -H newc -R 0:0 2>/dev/null) | gzip -1
} >"$work/initrd"
mv "$work/initrd" "$out/agent/initrd"
