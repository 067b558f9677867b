#!/bin/bash
# Builds a Debian package of shadow-virt.
#
#   examples/packaging/build-deb.sh [--program FILE] [--output DIR] [--version VERSION] [--quick]
#
#   --program FILE     package this program, and FILE-hook for libvirt's hook, instead of building them. By default a release build
#                      with Swift's runtime linked in is made (some minutes), so that hosts need no Swift
#   --output DIR       where the package goes (default: the current folder)
#   --version VERSION  the package's version (default: what the program says, and -1)
#   --quick            for trials: compressed little, and libraries that no package brings (Swift's runtime) are no error
#
# DEBFULLNAME and DEBEMAIL name the maintainer.
#
# Everything in the package but control files is what `shadow-virt install --root` writes. Needs dpkg-dev (dpkg-shlibdeps), binutils
# and, without --program, Swift 6 and the headers of libvirt, GnuTLS, LZ4 and xxHash. No root. Prints the package's path.

set -euo pipefail

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
readonly repository
program='' output=$PWD version='' quick=''
maintainer="${DEBFULLNAME:-shadow-virt} <${DEBEMAIL:-packages@shadow-virt.org}>"

fail() { echo "${0##*/}: $*" >&2; exit 1; }
usage() { sed -n '2,/^$/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }

while (($# > 0)); do
  case $1 in
  --program | --output | --version)
    [[ -n ${2:-} ]] || { echo "${0##*/}: $1 needs a value" >&2; exit 64; }
    declare "${1#--}=$2"
    shift ;;
  --quick) quick=yes ;;
  --help | -h) usage; exit 0 ;;
  *) echo "${0##*/}: No such option: $1 (try --help)" >&2; exit 64 ;;
  esac
  shift
done
for tool in dpkg-deb dpkg-shlibdeps strip; do
  command -v "$tool" >/dev/null || fail "There is no $tool: apt install dpkg-dev binutils"
done

if [[ -z $program ]]; then
  # A folder of its own: with another linkage everything is compiled anew.
  build=(swift build --package-path "$repository" --scratch-path "$repository/.build/package" -c release --static-swift-stdlib --disable-local-rpath)
  for product in shadow-virt shadow-virt-hook; do "${build[@]}" --product $product >&2; done
  program=$("${build[@]}" --show-bin-path)/shadow-virt
fi
for file in "$program" "$program-hook"; do [[ -x $file ]] || fail "There is no program $file"; done
[[ -d $output ]] || fail "There is no folder $output"

work=$(mktemp -d)
readonly work tree=$work/debian/shadow-virt
trap 'rm -rf "$work"' EXIT
umask 022
mkdir -p "$tree/DEBIAN"

# --- files ---------------------------------------------------------------------------------------------------------

# AppArmor's lines go into a file of the administrator's, so that is done by postinst.
"$program" install --root "$tree" --prefix /usr --only program,hook,unit,completion,manual,configuration --quiet >/dev/null
# dpkg keeps the list of files.
rm -rf "${tree:?}/var"
for file in bin/shadow-virt libexec/shadow-virt-hook; do
  strip --strip-unneeded -o "$work/stripped" "$tree/usr/$file"
  install -m 755 "$work/stripped" "$tree/usr/$file"
done
gzip -9n "$tree"/usr/share/man/man*/*
# Where Debian's own packages have their units.
if [[ ! -d /usr/lib/systemd/system || /lib -ef /usr/lib ]] && dpkg --compare-versions "$(dpkg-query -W -f '${Version}' systemd 2>/dev/null || echo 255)" lt 255; then
  mkdir -p "$tree/lib/systemd"
  mv "$tree/usr/lib/systemd/system" "$tree/lib/systemd/system"
  rmdir "$tree/usr/lib/systemd" "$tree/usr/lib"
fi

[[ -n $version ]] || version=$("$program" --version | sed 's/.* //')-1
documents=$tree/usr/share/doc/shadow-virt
mkdir -p "$documents"
cp "$repository/README.md" "$documents/README.md"
gzip -9n "$documents/README.md"
# What is for some hosts only.
install -D -m 644 -t "$documents/examples" "$repository"/examples/{shadow-virt-smart.service,shadow-virt-smart.timer,ipmi-ports.conf}
# libvirt waits for the hook's program, most of whose time would be the loading of libraries (Package.swift).
mkdir -p "$tree/usr/share/lintian/overrides"
echo "shadow-virt: statically-linked-binary [usr/libexec/shadow-virt-hook]" >"$tree/usr/share/lintian/overrides/shadow-virt"
{
  echo "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/"
  echo "Upstream-Name: shadow-virt"
  echo
  echo "Files: *"
  echo "Copyright: $(date -u +%Y) the authors of shadow-virt"
  echo "License: Apache-2.0"
  echo " The text of the license is in /usr/share/common-licenses/Apache-2.0."
} >"$documents/copyright"
{
  printf 'shadow-virt (%s) unstable; urgency=medium\n\n' "$version"
  printf '  * This release; what is new in it stands in README.md.\n\n'
  printf ' -- %s  %s\n' "$maintainer" "$(date -R -u -d "@${SOURCE_DATE_EPOCH:-$(stat -c %Y "$program")}")"
} | gzip -9n >"$documents/changelog.Debian.gz"

# --- control -------------------------------------------------------------------------------------------------------

control() { # DEPENDS
  cat <<END
Package: shadow-virt
Version: $version
Architecture: $(dpkg --print-architecture)
Maintainer: $maintainer
Section: admin
Priority: optional
Depends: $1, init-system-helpers (>= 1.54)
Recommends: libvirt-daemon-system, qemu-system-x86 | qemu-system
Suggests: apparmor, bash-completion
Installed-Size: $(du -k -s --apparent-size "$tree" | cut -f 1)
Description: live shadows of KVM guests on other hosts
 Keeps a copy of running KVM guests, memory, devices and disks, on another
 host, a few milliseconds to seconds behind. A guest moves to its shadow in
 milliseconds and loses nothing; after a crash of its host it goes on from
 there.
 .
 Works with the distribution's own libvirt and QEMU.
END
}

# dpkg-shlibdeps wants a source package's control file.
printf 'Source: shadow-virt\nMaintainer: %s\n\nPackage: shadow-virt\nArchitecture: any\nDescription: x\n' "$maintainer" >"$work/debian/control"
missing=()
[[ -z $quick ]] || missing=(--ignore-missing-info)
if ! depends=$(cd "$work" && dpkg-shlibdeps "${missing[@]}" -O -e "$tree/usr/bin/shadow-virt" -e "$tree/usr/libexec/shadow-virt-hook" 2>"$work/log"); then
  cat "$work/log" >&2
  fail "Some libraries belong to no package (see above). Link Swift's runtime into the program: swift build -c release --static-swift-stdlib"
fi
control "${depends#shlibs:Depends=}" >"$tree/DEBIAN/control"

(cd "$tree" && find etc -type f -printf '/%p\n' | sort) >"$tree/DEBIAN/conffiles"
(cd "$tree" && find . -path ./DEBIAN -prune -o -type f -printf '%P\0' | sort -z | xargs -0 md5sum) >"$tree/DEBIAN/md5sums"
for script in postinst prerm postrm; do install -m 755 "$repository/examples/packaging/$script" "$tree/DEBIAN/$script"; done

# --- package -------------------------------------------------------------------------------------------------------

compression=(-Zxz)
[[ -z $quick ]] || compression=(-Zgzip -z1)
package=$output/shadow-virt_${version}_$(dpkg --print-architecture).deb
dpkg-deb --root-owner-group "${compression[@]}" --build "$tree" "$package" >&2
echo "$package"
