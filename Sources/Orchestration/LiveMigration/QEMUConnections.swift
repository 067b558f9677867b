import Glibc
import Platform

/// The TCP connections that a guest's QEMU makes to another host for a migration, and how long they may be silent.
///
/// When the network breaks, libvirt notices after 25 to 30 s and ends the copies of the disks, and QEMU (7.2 tried) then waits in its main loop for
/// the other host's answer: the guest stands still, until the network is back or the kernel gives the connection up after a quarter of an
/// hour. So the kernel is told to give up earlier than libvirt does: QEMU then sees an error, the migration fails, the guest runs on.
final class QEMUConnections {
    /// Less than libvirt's patience (qemu.conf: keepalive_interval x keepalive_count = 25 s).
    static let silenceSeconds: Int32 = 15

    private let pid: pid_t
    private let addresses: Set<String>
    /// Sockets that QEMU had before: those of the guest's own storage are left alone.
    private let before: Set<String>
    private var limited: Set<String> = []

    /// Before the migration begins.
    init(pid: pid_t, peer: String) {
        self.pid = pid
        addresses = TCP.addresses(of: peer)
        before = Set(Self.sockets(pid).map(\.name))
    }

    /// Sets the limit on connections that are new. Cheap: to be called now and then, as QEMU makes them one after the other.
    func limitSilence() {
        each { name, fd in
            guard !limited.contains(name) else { return }
            TCP.limitSilence(fd, seconds: Self.silenceSeconds)
            limited.insert(name)
        }
    }

    /// Takes the limit back.
    func lift() {
        each { _, fd in TCP.limitSilence(fd, seconds: nil) }
        limited = []
    }

    /// Lends each connection to the peer that was made since the start.
    private func each(_ body: (String, Int32) -> Void) {
        let fresh = Self.sockets(pid).filter { !before.contains($0.name) }
        guard !fresh.isEmpty, let process = processDescriptor(pid) else { return }
        for (name, number) in fresh {
            guard let socket = try? copyDescriptor(number, of: process) else { continue }
            let address = TCP.peerName(socket.raw)
            guard addresses.contains(address.hasPrefix("::ffff:") ? String(address.dropFirst(7)) : address) else { continue }
            body(name, socket.raw)
        }
    }

    /// By `socket:[inode]`, which names a socket for its life.
    private static func sockets(_ pid: pid_t) -> [(name: String, number: Int32)] {
        openDescriptors(of: pid).filter { $0.target.hasPrefix("socket:") }.map { ($0.target, $0.number) }
    }
}
