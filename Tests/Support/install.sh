# shellcheck shell=bash
# What building, testing and trying out shadow-virt needs on Debian and its kin, and how to get it. To be sourced.
#
#   have_packages PACKAGE...       true when all are installed; those that are not stand in `missing_packages`
#   need_packages PACKAGE...       installs what is missing and says so; false, with the reason in `install_problem`
#   need_promtool FOLDER           unpacks Prometheus' promtool into FOLDER unless it is on PATH or there; prints nothing
#   need_agent FOLDER              the same for QEMU's guest agent, qemu-ga
#   find_swift                     true when `swift` 6 or later is on PATH, which may be extended to /opt/swift/usr/bin
#   need_swift [--from-swift-org]  finds it, or installs it: from apt where the release has it, else from swift.org
#                                  when told to or when somebody at the terminal says yes

# For `swift build`: headers of libvirt, xxHash, LZ4, GnuTLS and FreeIPMI.
build_packages=(libvirt-dev libxxhash-dev liblz4-dev libgnutls28-dev libipmimonitoring-dev libc6-dev)
# For hosts with guests. libvirt-daemon-system makes the user that Debian 12's libvirt insists on; where systemd runs it also
# starts the machine's own libvirtd, which nothing here touches.
host_packages=(
  libvirt-daemon-system libvirt-daemon-driver-qemu libvirt-clients qemu-system-x86 qemu-utils iproute2 util-linux binutils
)
# What a Linux guest and its disk are made and looked at with, and what asks for it over the network.
linux_packages=(gcc xz-utils e2fsprogs iputils-ping)
# For tests that kill a process at each of its system calls, foreign clients for those of the NBD server, beside the ones in qemu-utils
# and qemu-system-x86, a TPM, certificates for encrypted migrations, and a simulated BMC.
test_packages=(
  strace libnbd-bin "${linux_packages[@]}" swtpm swtpm-tools gnutls-bin openipmi freeipmi-tools
  # What is installed, judged by its readers: manual pages, AppArmor's lines, scripts, the package.
  man-db mandoc apparmor shellcheck dpkg-dev lintian
)

# What --from-swift-org installs, and where. The key is the one that signs all releases of Swift 6.
swift_release=6.3.1
swift_folder=/opt/swift
swift_key=52BB7E3DE28A71BE22EC05FFEF80A866B47A981F

missing_packages=()
install_problem=''
apt_updated=''

have_packages() { # PACKAGE...
  local package
  missing_packages=()
  for package; do
    [[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] || missing_packages+=("$package")
  done
  ((${#missing_packages[@]} == 0))
}

need_packages() { # PACKAGE...
  if ! command -v apt-get >/dev/null; then
    # Another distribution: whoever calls finds out by itself which programs are missing.
    install_problem="This is no Debian or Ubuntu (no apt-get). Install what corresponds to: $*"
    return 1
  fi
  ! have_packages "$@" || return 0
  if ((EUID != 0)); then
    install_problem="Missing packages. Run: sudo apt-get install --no-install-recommends ${missing_packages[*]}"
    return 1
  fi
  echo "Installing from apt: ${missing_packages[*]}"
  apt_get install "${missing_packages[@]}" && return 0
  install_problem="apt-get could not install: ${missing_packages[*]}"
  return 1
}

apt_get() { # install PACKAGE...
  local log
  log=$(mktemp)
  update_apt
  if DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=120 \
    --no-install-recommends "$@" </dev/null >"$log" 2>&1; then
    rm -f "$log"
  else
    tail -n 20 "$log" >&2
    rm -f "$log"
    return 1
  fi
}

update_apt() { # the lists of packages, once
  [[ -z $apt_updated ]] || return 0
  apt_updated=yes
  apt-get -qq -o DPkg::Lock::Timeout=120 update </dev/null || echo "apt-get update failed; going on with the lists that are there" >&2
}

# Out of their packages rather than with them: that would start a Prometheus which listens on all addresses, or a service for guests.
need_promtool() { need_unpacked "$1" prometheus usr/bin/promtool; }
need_agent() { need_unpacked "$1" qemu-guest-agent usr/sbin/qemu-ga; }

need_unpacked() { # FOLDER PACKAGE PATH
  local folder=$1 package=$2 path=$3 scratch status=0
  ! command -v "${path##*/}" >/dev/null && [[ ! -x $folder/$path ]] || return 0
  command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || return 1
  ((EUID != 0)) || update_apt
  scratch=$(mktemp -d)
  (cd "$scratch" && apt-get -qq download "$package" && dpkg-deb -x "$package"_*.deb unpacked) >/dev/null 2>&1 || status=1
  if ((status == 0)); then install -D -m 755 "$scratch/unpacked/$path" "$folder/$path" || status=1; fi
  rm -rf "$scratch"
  return $status
}

swift_version() { # SWIFT; 6.0.3, nothing when it does not work
  "$1" --version 2>/dev/null </dev/null | sed -n 's/.*Swift version \([0-9][0-9.]*\).*/\1/p' | head -n 1
}

is_swift_6() { # VERSION
  [[ ${1%%.*} =~ ^[0-9]+$ ]] && ((${1%%.*} >= 6))
}

find_swift() {
  local found
  if found=$(command -v swift) && is_swift_6 "$(swift_version "$found")"; then return 0; fi
  is_swift_6 "$(swift_version "$swift_folder/usr/bin/swift")" || return 1
  PATH=$swift_folder/usr/bin:$PATH
  hash -r
}

need_swift() { # [--from-swift-org]
  local candidate old=''
  ! find_swift || return 0
  if command -v swift >/dev/null; then old="; the one on PATH is $(swift_version swift || echo broken)"; fi
  if command -v apt-get >/dev/null; then
    ((EUID != 0)) || update_apt
    candidate=$(apt-cache policy swiftlang 2>/dev/null | sed -n 's/^ *Candidate: //p')
  fi
  if is_swift_6 "${candidate:-}"; then
    need_packages swiftlang && find_swift
    return
  fi
  if [[ ${1:-} == --from-swift-org ]] || ask_for_swift "$old"; then
    install_swift && find_swift
    return
  fi
  install_problem="Swift 6 or later is needed${old}; this release's apt does not have it: run again with --install-swift, or install it so that it is on PATH
  --install-swift fetches Swift $swift_release from swift.org (1 GB), checks its signature and puts it in $swift_folder
  to install it yourself: https://www.swift.org/install/linux
  if it is on your own PATH but not on root's: sudo env \"PATH=\$PATH\" $0"
  return 1
}

ask_for_swift() { # REMARK
  local answer
  [[ -t 0 && -t 1 && $EUID == 0 ]] || return 1
  read -r -p "Swift 6 or later is needed$1. Fetch Swift $swift_release from swift.org (1 GB) into $swift_folder? [y/N] " answer
  [[ $answer == [yY]* ]]
}

install_swift() {
  local url folder status
  if ((EUID != 0)); then install_problem="Installing Swift into $swift_folder needs root"; return 1; fi
  if [[ -e $swift_folder ]]; then install_problem="$swift_folder exists and holds no Swift 6: move it away"; return 1; fi
  swift_platform || return 1
  # As swift.org lists them for Debian and Ubuntu.
  need_packages ca-certificates curl gnupg binutils git libc6-dev libcurl4-openssl-dev libedit2 libsqlite3-0 \
    g++ libxml2-dev libncurses-dev libz3-dev pkg-config tzdata zlib1g-dev || return 1
  url=https://download.swift.org/swift-$swift_release-release/${platform//./}/swift-$swift_release-RELEASE
  url=$url/swift-$swift_release-RELEASE-$platform.tar.gz
  folder=$(mktemp -d /var/tmp/swift.XXXXXX) # 4 GB, too much for a /tmp in memory
  status=0
  fetch_swift "$url" "$folder" || status=1
  rm -rf "$folder"
  return $status
}

swift_platform() { # sets `platform`, as in swift.org's file names
  local id version suffix=''
  id=$(. /etc/os-release && echo "$ID")
  version=$(. /etc/os-release && echo "${VERSION_ID:-}")
  [[ $(uname -m) != aarch64 ]] || suffix=-aarch64
  case $id$version in
  debian12 | ubuntu22.04 | ubuntu24.04) platform=$id$version$suffix ;;
  *) install_problem="swift.org has no Swift for $id $version that this script knows: https://www.swift.org/install/linux"; return 1 ;;
  esac
}

fetch_swift() { # URL FOLDER
  local url=$1 folder=$2
  echo "Fetching $url"
  if ! curl -fsSL --retry 3 -o "$folder/swift.tar.gz" "$url" || ! curl -fsSL --retry 3 -o "$folder/swift.tar.gz.sig" "$url.sig" ||
    ! curl -fsSL --retry 3 -o "$folder/keys.asc" https://www.swift.org/keys/all-keys.asc; then
    install_problem="Cannot fetch Swift from swift.org; is this machine online?"
    return 1
  fi
  if ! signed_by_swift "$folder"; then
    install_problem="The signature of $url is not that of Swift's release key $swift_key: nothing was installed"
    return 1
  fi
  echo "Its signature is good; unpacking it into $swift_folder"
  mkdir "$folder/swift"
  tar -xzf "$folder/swift.tar.gz" -C "$folder/swift" --strip-components=1 --no-same-owner
  # Complete or not at all.
  mkdir -p "${swift_folder%/*}"
  mv "$folder/swift" "$swift_folder.new" && mv "$swift_folder.new" "$swift_folder"
}

signed_by_swift() { # FOLDER
  local home=$1/gnupg
  (umask 077; mkdir "$home")
  gpg --homedir "$home" --batch --quiet --no-autostart --import "$1/keys.asc" 2>/dev/null || true
  gpg --homedir "$home" --batch --no-autostart --status-fd 1 --verify "$1/swift.tar.gz.sig" "$1/swift.tar.gz" 2>/dev/null |
    grep -Eq "^\[GNUPG:\] VALIDSIG .*\b$swift_key( |\$)"
}
