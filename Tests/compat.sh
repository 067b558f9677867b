#!/bin/bash
# README.md's two commands on a fresh Debian or Ubuntu, whatever this machine runs: quickstart.sh and Tests/run.sh with that
# release's own libvirt, QEMU and, where its apt has version 6, Swift. The kernel is this machine's.
#
#   sudo Tests/compat.sh [--root DIR] [--release NAME] [--mirror URL] [--swift DIR] [--only quickstart|tests] [-- OPTION...]
#
#   --root DIR      where the system goes (4 GB), kept and used again by the next run; it must be empty, not exist, or come
#                   from here (default: a folder of its own below /var/tmp, gone afterwards)
#   --release NAME  code name of a Debian (default trixie) or of an Ubuntu (jammy, noble, ...)
#   --mirror URL    default http://deb.debian.org/debian or http://archive.ubuntu.com/ubuntu
#   --swift DIR     a toolchain of this machine to use in there (seen as /opt/swift) where apt has no Swift 6; without it, one
#                   is fetched from swift.org
#   --only WHICH    one of the two
#   -- OPTION...    for Tests/run.sh, such as --unit or --filter REGEX
#
# Tested is what is committed, from a clone. Needs root and a Debian or Ubuntu; installs debootstrap when missing. Without /dev/kvm
# only what needs no KVM is tested, which the tests say themselves.
# All of it runs in mount and process namespaces: however this ends, no process and no mount is left. The last line is
# `compat: ok` or `compat: FAILED: why`; exit status 0 and 1, 64 for wrong options.

set -Eeuo pipefail
export LC_ALL=C

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
readonly repository
# shellcheck source=Support/install.sh
source "$repository/Tests/Support/install.sh"

root='' release=trixie mirror='' swift='' only='' options=()
why='' temporary='' job=''

usage() { sed -n '2,/^$/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }
wrong() { echo "compat.sh: $1 (try --help)" >&2; exit 64; }

while (($# > 0)); do
  case $1 in
  --root | --release | --mirror | --swift | --only)
    [[ -n ${2:-} ]] || wrong "$1 needs a value"
    case $1 in
    --root) root=$(realpath -m "$2") ;;
    --release) release=$2 ;;
    --mirror) mirror=${2%/} ;;
    --swift) swift=$(realpath "$2") && [[ -x $swift/usr/bin/swift ]] || wrong "--swift: there is no usr/bin/swift below $2" ;;
    --only) only=$2 ;;
    esac
    shift ;;
  --help | -h) usage; exit 0 ;;
  --) shift; options=("$@"); break ;;
  *) wrong "No such option: $1" ;;
  esac
  shift
done
[[ $only == '' || $only == quickstart || $only == tests ]] || wrong "--only takes quickstart or tests"
[[ $release =~ ^[a-z]+$ ]] || wrong "--release takes a code name, such as trixie"
[[ $root != / ]] || wrong "--root / is this machine itself"
case $release in
jammy | noble | oracular | plucky | questing) distribution=ubuntu mirror=${mirror:-http://archive.ubuntu.com/ubuntu} ;;
*) distribution=debian mirror=${mirror:-http://deb.debian.org/debian} ;;
esac
readonly release distribution mirror swift only options

# --- how it ends ---------------------------------------------------------------------------------------------------

fail() { why=${why:-$1}; exit 1; }

on_exit() {
  local status=$?
  trap - EXIT ERR
  trap '' INT TERM HUP
  set +e
  # With the first process of the namespaces goes all that is in them, the test hosts too.
  if [[ -n $job ]]; then kill -KILL "$job" 2>/dev/null; wait "$job" 2>/dev/null; fi
  if [[ -n $temporary ]]; then rm -rf --one-file-system "$root"; fi
  if ((status == 0)); then echo "compat: ok"; else echo "compat: FAILED: ${why:-exit status $status}"; fi
  exit "$status"
}

interrupted() { why="interrupted by SIG$1"; exit $((128 + $2)); }

trap on_exit EXIT
trap 'why=${why:-"\"$BASH_COMMAND\" failed (line $LINENO)"}' ERR
trap 'interrupted INT 2' INT
trap 'interrupted TERM 15' TERM
trap 'interrupted HUP 1' HUP

# --- helpers -------------------------------------------------------------------------------------------------------

# In mount and process namespaces of its own, and in a process group of its own: Ctrl-C is for this script, which ends it.
isolated() { # COMMAND...
  local status=0
  set -m
  unshare --mount --propagation private --pid --fork --kill-child=KILL "$@" </dev/null &
  job=$!
  set +m
  wait "$job" || status=$?
  job=''
  return $status
}

# shellcheck disable=SC2016 # expanded in there
# pivot_root, not chroot: whoever enters a mount namespace made in there (as nsenter does) is put into its root.
readonly enter='
  root=$1 swift=${swift:-}; shift
  mount --bind "$root" "$root"
  cd "$root"
  mount -t proc proc proc
  mount -t sysfs sysfs sys
  mount -t tmpfs -o mode=755 tmpfs run
  mkdir run/lock
  mount -t tmpfs -o mode=755 tmpfs dev
  mkdir dev/net dev/pts dev/shm
  for node in null zero full random urandom tty kvm net/tun; do
    [[ -e /dev/$node ]] || continue
    : >"dev/$node"
    mount --bind "/dev/$node" "dev/$node"
  done
  mount -t devpts -o newinstance,ptmxmode=666,mode=620,gid=5 devpts dev/pts
  mount -t tmpfs -o mode=1777 tmpfs dev/shm
  ln -s pts/ptmx dev/ptmx
  ln -s /proc/self/fd dev/fd
  for number in 0:stdin 1:stdout 2:stderr; do ln -s "fd/${number%:*}" "dev/${number#*:}"; done
  if [[ -n $swift ]]; then
    mkdir -p opt/swift
    mount --bind -o ro "$swift" opt/swift
  fi
  mkdir -p mnt/machine
  pivot_root . mnt/machine
  umount -l /mnt/machine
  rmdir /mnt/machine
  cd /root/shadow-virt
  # Not exec: this shell, process 1 in here, reaps what others leave behind.
  "$@"'

inside() { # COMMAND...: in the other system, as root, in the clone
  isolated env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb LC_ALL=C.UTF-8 \
    DEBIAN_FRONTEND=noninteractive ${http_proxy:+"http_proxy=$http_proxy"} ${swift:+"swift=$swift"} bash -euc "$enter" enter "$root" "$@"
}

# --- the other system ----------------------------------------------------------------------------------------------

((EUID == 0)) || fail "needs root, for namespaces, debootstrap and /dev/kvm: run it with sudo"
need_packages debootstrap debian-archive-keyring git || fail "$install_problem"

if [[ -z $root ]]; then
  root=$(mktemp -d /var/tmp/shadow-virt-compat.XXXXXX)
  temporary=yes
fi
# The key that signs Ubuntu's releases since 2018. Debian has no package of it, so it comes from the mirror itself and is
# taken for what its fingerprint says.
readonly ubuntu_key=F6ECB3762474EDA9D21B7022871920D1991BC93C
readonly ubuntu_keyring=pool/main/u/ubuntu-keyring/ubuntu-keyring_2023.11.28.1_all.deb

make_ubuntu_keyring() { # FILE: that key alone
  local folder status=0
  need_packages curl gnupg || fail "$install_problem"
  folder=$(mktemp -d)
  if ! curl -fsSL --max-time 60 -o "$folder/keyring.deb" "$mirror/$ubuntu_keyring" || ! dpkg-deb -x "$folder/keyring.deb" "$folder" ||
    ! gpg --homedir "$folder" --batch --quiet --no-default-keyring --keyring "$folder/usr/share/keyrings/ubuntu-archive-keyring.gpg" \
      --export "$ubuntu_key" >"$1" || [[ ! -s $1 ]]; then status=1; fi
  rm -rf "$folder"
  return $status
}

# Written last: a system without it is not complete.
readonly root made=$root/etc/shadow-virt-compat
if [[ -e $made ]]; then
  [[ $(<"$made") == "$release" ]] || fail "$root holds $(<"$made"), not $release"
else
  if [[ -e $root && (! -d $root || -n $(ls -A "$root")) ]]; then fail "--root: $root is neither empty nor complete; remove it"; fi
  echo "Making $release in $root"
  log=$root.log
  bootstrap=(--variant=minbase --include=ca-certificates,git)
  if [[ $distribution == ubuntu ]]; then
    make_ubuntu_keyring "$log.keyring" || fail "Cannot get Ubuntu's archive key from $mirror"
    bootstrap+=(--components=main,universe --keyring="$log.keyring" "$release" "$root" "$mirror")
    # Older debootstraps do not know newer Ubuntus, which are all made alike.
    [[ -e /usr/share/debootstrap/scripts/$release ]] || bootstrap+=(/usr/share/debootstrap/scripts/jammy)
  else
    bootstrap+=("$release" "$root" "$mirror")
  fi
  isolated debootstrap "${bootstrap[@]}" >"$log" 2>&1 || fail "debootstrap failed: $(tail -n 2 "$log" | tr '\n' ' ')($log)"
  rm -f "$log" "$log.keyring"
  case $distribution$release in
  ubuntu*) printf "deb $mirror %s main universe\n" "$release" "$release-updates" "$release-security" ;;
  debiansid) echo "deb $mirror $release main" ;;
  *) printf '%s\n' "deb $mirror $release main" "deb $mirror $release-updates main" "deb $mirror-security $release-security main" ;;
  esac >"$root/etc/apt/sources.list"
  # Packages must not start their daemons: nothing in there is to run but what the tests start.
  printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
  chmod 755 "$root/usr/sbin/policy-rc.d"
  git init -q "$root/root/shadow-virt"
  echo "$release" >"$made"
fi

exec {lock}<"$root"
flock --nonblock "$lock" || fail "another run uses $root"
# What an earlier run that was cut off left there.
find "$root/tmp" -xdev -mindepth 1 -delete
cp -L /etc/resolv.conf "$root/etc/resolv.conf"
[[ -z $(git -c safe.directory='*' -C "$repository" status --porcelain) ]] || echo "Changes that are not committed are not tested"
# The repository may be somebody else's, which git would not read for root, and a worktree.
git -c safe.directory='*' -C "$root/root/shadow-virt" fetch -q --upload-pack="git -c safe.directory='*' upload-pack" "$repository" HEAD
git -C "$root/root/shadow-virt" checkout -q --force --detach FETCH_HEAD
git -C "$root/root/shadow-virt" clean -q -f -d

# --- run -----------------------------------------------------------------------------------------------------------

failed=''
# Whatever is needed may be installed in there. It does nothing where Swift 6 is found.
from_swift_org=(--install-swift)
for step in update upgrade; do
  inside apt-get -qq -y -o Dpkg::Use-Pty=0 "$step" >"$root/var/log/compat.log" 2>&1 ||
    fail "apt-get $step failed in $root: $(tail -n 2 "$root/var/log/compat.log" | tr '\n' ' ')"
done
# What swift.org lists for its toolchains; a release with Swift 6 brings it by itself.
if [[ -n $swift ]]; then
  inside apt-get -qq -y -o Dpkg::Use-Pty=0 --no-install-recommends install binutils g++ libc6-dev libcurl4-openssl-dev libedit2 libsqlite3-0 libxml2-dev \
    libncurses-dev libz3-dev pkg-config tzdata zlib1g-dev >"$root/var/log/compat.log" 2>&1 || fail "apt-get could not install what Swift needs: $(tail -n 2 "$root/var/log/compat.log" | tr '\n' ' ')"
fi
if [[ $only != tests ]]; then
  inside examples/quickstart.sh "${from_swift_org[@]}" || failed=quickstart
fi
if [[ $only != quickstart ]]; then
  inside Tests/run.sh "${from_swift_org[@]}" ${options[@]+"${options[@]}"} || failed="${failed:+$failed and }tests"
fi

echo
echo "That was $(. "$root/etc/os-release" && echo "$PRETTY_NAME") with:"
# shellcheck disable=SC2016 # dpkg's own variables
inside dpkg-query -W -f '  ${Package} ${Version}\n' libvirt-daemon qemu-system-x86
inside bash -c 'PATH=$PATH:/opt/swift/usr/bin; swift --version 2>/dev/null' | sed -n 's/.*\(Swift version [0-9.]*\).*/  \1/p'
[[ -z $failed ]] || fail "$failed"
