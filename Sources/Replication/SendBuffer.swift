import CLinux
import Foundation
import Glibc
import Platform

/// Enough for an epoch of some 800 pages; the kernel's default, 208 KiB, is less than the 112 pages of a nearly idle guest.
private let sendBufferBytes: Int32 = 4 << 20

/// Gives QEMU's end of the stream a send buffer that takes a usual epoch whole, so that the guest's pause does not contain the time
/// until we run and read: on a unix socket the sender's buffer alone counts, and QEMU does not set it.
///
/// Needs the right to take a copy of QEMU's descriptor (root has it). Where that is missing the pause is a little longer, nothing else.
func enlargeSendBuffer(ofPeerOf connection: Int32, path: String) {
    let pid = clinux_peer_pid(connection)
    guard pid > 0 else { return }
    let process = Descriptor(owning: clinux_pidfd_open(pid))
    guard process.raw >= 0, let names = try? FileManager.default.contentsOfDirectory(atPath: "/proc/\(pid)/fd") else { return }
    // The newest descriptors first: QEMU has just connected.
    for number in names.compactMap({ Int32($0) }).sorted(by: >) {
        guard let link = try? FileManager.default.destinationOfSymbolicLink(atPath: "/proc/\(pid)/fd/\(number)"),
              link.hasPrefix("socket:") else { continue }
        let copy = Descriptor(owning: clinux_pidfd_getfd(process.raw, number))
        guard copy.raw >= 0 else { return Log.debug("No access to QEMU's socket: errno \(errno)") }
        guard peerPath(copy.raw) == path else { continue }
        var bytes = sendBufferBytes
        if setsockopt(copy.raw, SOL_SOCKET, 32 /* SO_SNDBUFFORCE */, &bytes, 4) != 0 {
            setsockopt(copy.raw, SOL_SOCKET, SO_SNDBUF, &bytes, 4)
        }
        return
    }
}

/// The path that the other end of a unix socket is bound to; empty when it has none or the socket is of another kind.
private func peerPath(_ fd: Int32) -> String {
    var address = sockaddr_un()
    var length = socklen_t(MemoryLayout<sockaddr_un>.size)
    let status = withUnsafeMutablePointer(to: &address) { pointer in
        pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { getpeername(fd, $0, &length) }
    }
    guard status == 0, address.sun_family == sa_family_t(AF_UNIX) else { return "" }
    return withUnsafeBytes(of: &address.sun_path) { String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self) }
}
