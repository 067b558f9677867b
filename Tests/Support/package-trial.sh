#!/bin/bash
# Installs a Debian package of shadow-virt in a copy of this machine that nobody sees (an overlay in a mount namespace, with a network of its
# own), runs it there, removes it, purges it. Needs root. Exit status 77: this machine cannot do that; the reason is printed.
#
#   package-trial.sh PACKAGE

set -Eeuo pipefail

exec 3>&1 # for the reason, wherever that is found
fail() { echo "FAILED: $*" >&3; exit 1; }
cannot() { echo "$*"; exit 77; }
trap 'echo "FAILED: \"$BASH_COMMAND\" (line $LINENO)" >&3' ERR # what has no message of its own

if [[ ${1:-} != --inside ]]; then
  ((EUID == 0)) || cannot "not root: an overlay of this machine needs it"
  package=$(realpath "$1")
  problem=$(unshare --mount --net --pid --fork --propagation private true 2>&1) || cannot "no namespaces: $problem"
  exec unshare --mount --net --pid --fork --kill-child --propagation private "$0" --inside "$package"
fi

package=$2
work=$(mktemp -d)
mount -t tmpfs -o size=512m tmpfs "$work"
mkdir "$work/upper" "$work/work" "$work/root"
problem=$(mount -t overlay overlay -o "lowerdir=/,upperdir=$work/upper,workdir=$work/work" "$work/root" 2>&1) || cannot "no overlay: $problem"
root=$work/root
mount -t proc proc "$root/proc"
mount --bind /dev "$root/dev"
mount -t tmpfs tmpfs "$root/run"
mount -t tmpfs tmpfs "$root/tmp"
ip link set lo up
cp "$package" "$root/tmp/shadow-virt.deb"

readonly chrooted=(chroot "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive)
inside() { "${chrooted[@]}" "$@"; }
wait_for() { # SECONDS WHAT COMMAND...
  local turns=$(($1 * 20)) what=$2
  shift 2
  until "$@" >/dev/null 2>&1; do ((turns-- > 0)) || fail "$what"; sleep 0.05; done
}

# --- installed -----------------------------------------------------------------------------------------------------

inside dpkg --no-triggers --install /tmp/shadow-virt.deb >"$work/log" 2>&1 || { cat "$work/log"; fail "dpkg --install"; }
inside dpkg --status shadow-virt | grep -qx 'Status: install ok installed' || fail "dpkg does not call it installed"
inside dpkg --verify shadow-virt | grep . && fail "dpkg --verify has complaints"
[[ -x $root/etc/libvirt/hooks/qemu.d/50-shadow-virt ]] || fail "libvirt's hook is not there"
[[ -x $root/usr/libexec/shadow-virt-hook ]] || fail "libvirt's hook has no program"
[[ $(inside shadow-virt --version) == "shadow-virt "* ]] || fail "it does not run"
if [[ -e $root/etc/apparmor.d/abstractions/libvirt-qemu ]]; then
  grep -q '/run/shadow-virt/\*/\*.sock rw,' "$root/etc/apparmor.d/local/abstractions/libvirt-qemu" || fail "no lines for AppArmor"
fi
if [[ -e $root/etc/apparmor.d/usr.sbin.libvirtd ]]; then
  grep -q '/usr/libexec/shadow-virt-hook PUx,' "$root/etc/apparmor.d/local/usr.sbin.libvirtd" || fail "no line for the hook's program in libvirtd's profile"
fi
if inside sh -c 'command -v man' >/dev/null; then
  inside man -w shadow-virt shadow-virt.conf >/dev/null || fail "man does not find the manual pages"
fi
enabled=$(cd "$root" && find etc/systemd/system -name shadow-virt.service)
[[ -n $enabled ]] || fail "the unit is not enabled"
echo "installed: $(inside dpkg-query -L shadow-virt | while read -r path; do [[ -d $root$path ]] || echo x; done | wc -l) files"

# --- run -----------------------------------------------------------------------------------------------------------

sed -i 's|^#libvirt_uri = .*|libvirt_uri = "test:///default"|; s|^#log_level = .*|log_level = "debug"|' "$root/etc/shadow-virt/shadow-virt.conf"
mkdir -m 755 "$root/run/shadow-virt"
mkdir -p "$root/var/lib/shadow-virt"
# Not by the function: that would be a shell with the service below it, which would live on when the shell is told to end.
"${chrooted[@]}" shadow-virt serve >"$work/service.log" 2>&1 &
service=$!
said() { tail -n 3 "$work/service.log" | tr '\n' ' '; }
answers() { kill -0 "$service" || fail "the service has ended: $(said)"; inside shadow-virt status; }
wait_for 30 "the service does not answer" answers
# A call may be lost where many want the processors: the hook waits for nobody.
told() {
  inside sh -c 'echo "<domain/>" | /etc/libvirt/hooks/qemu.d/50-shadow-virt web1 started begin -' >"$work/printed"
  [[ ! -s $work/printed ]] || fail "the hook prints something: $(<"$work/printed")"
  sleep 0.2
  grep -q "libvirt's hook: web1 started begin" "$work/service.log"
}
wait_for 10 "the service did not get the hook's call" told
# Taking the program away under a running service is refused.
inside shadow-virt uninstall >"$work/refused" 2>&1 && fail "uninstall while the service runs"
grep -q "The service runs" "$work/refused" || fail "uninstall says: $(cat "$work/refused")"
kill -TERM "$service"
wait "$service" || fail "the service ended with status $?: $(said)"
echo "run: status, hook, end"

# --- removed, purged -----------------------------------------------------------------------------------------------

touch "$root/var/lib/shadow-virt/state"
install -m 600 /dev/null "$root/etc/shadow-virt/secret"
inside dpkg --no-triggers --remove shadow-virt >"$work/log" 2>&1 || { cat "$work/log"; fail "dpkg --remove"; }
[[ ! -e $root/usr/bin/shadow-virt && ! -e $root/usr/libexec/shadow-virt-hook ]] || fail "a program is still there"
[[ -e $root/etc/shadow-virt/shadow-virt.conf && -e $root/var/lib/shadow-virt/state && -e $root/etc/shadow-virt/secret ]] || fail "configuration or state went with a mere removal"
! grep -qs shadow-virt "$root"/etc/apparmor.d/local/{abstractions/libvirt-qemu,usr.sbin.libvirtd,usr.sbin.virtqemud} || fail "AppArmor's lines are still there"
# The hook is a configuration file and stays until the purge: without the program it must do nothing.
if [[ -e $root/etc/libvirt/hooks/qemu.d/50-shadow-virt ]]; then
  inside /etc/libvirt/hooks/qemu.d/50-shadow-virt web1 reconnect begin - </dev/null || fail "the hook fails without the program"
fi
inside dpkg --no-triggers --purge shadow-virt >"$work/log" 2>&1 || { cat "$work/log"; fail "dpkg --purge"; }
left=$(find "$root"/{etc/shadow-virt,usr/bin/shadow-virt,usr/share/doc/shadow-virt,var/lib/shadow-virt,run/shadow-virt} 2>/dev/null || true)
[[ -z $left ]] || fail "left behind: $left"
left=$(find "$root"/{etc/libvirt/hooks,etc/systemd,lib/systemd,usr/lib/systemd,var/lib/systemd,usr/share/man,usr/share/bash-completion} -name '*shadow-virt*' 2>/dev/null || true)
[[ -z $left ]] || fail "left behind: $left"
! inside dpkg --status shadow-virt >/dev/null 2>&1 || fail "dpkg still knows it"
echo "removed and purged: nothing left"
