import CLinux
import Foundation
import Glibc
import Platform

/// Notices a `virsh suspend` that falls inside an epoch, when the guest stands still already, and libvirt's asynchronous jobs.
///
/// Such a suspend stops nothing, and the epoch's end starts the guest again. QEMU says nothing about it, libvirt's events neither.
/// But libvirt saves the domain's status file, `/run/libvirt/qemu/NAME.xml`, by rename, at each change of state
/// (`qemuProcessHandleStop`):
///
///     epoch alone                     paused (unknown)                      running
///     suspend before libvirt noticed  paused (user)                         running
///     suspend after it did            paused (unknown), once more the same  running
///
/// Only the second row proves anything. The third looks like a guest's reset in that moment, so such a suspend is lost: a suspend
/// that did not hold is seen, a guest that stands still for no reason is down.
///
/// The file tells of libvirt's asynchronous jobs as well, when they begin: `virsh dump` stops the guest and lets it go again before
/// it finds that it must not dump, and epochs have to stay clear of that.
final class SuspendWatch: @unchecked Sendable {
    private struct Save {
        var byUser: Bool
        /// An asynchronous job of libvirt's: dump, save, migration, snapshot.
        var hasJob: Bool
    }

    private let folder: String
    private let file: String
    private let notify: Descriptor
    private let wake: WakeUp
    private let onSuspend: @Sendable (Evidence) -> Void
    private let onJob: @Sendable (Bool) -> Void
    private var hadJob = false
    private var lastJob: MonotonicTime?
    /// Saves this close to a job of libvirt's prove nothing: it stops, saves and starts for reasons of its own.
    private static let jobShadowMilliseconds = 500.0
    private let saveCount = Guarded(0)
    /// libvirt's status files have 10 to 40 KiB; what is larger is not looked at.
    private static let largestFile = 1 << 20

    /// Nil when libvirt's status file cannot be watched, as on a session daemon.
    init?(domain: String, folder: String = "/run/libvirt/qemu", onSuspend: @escaping @Sendable (Evidence) -> Void,
          onJob: @escaping @Sendable (Bool) -> Void) {
        self.folder = folder
        file = "\(domain).xml"
        self.onSuspend = onSuspend
        self.onJob = onJob
        guard let wake = try? WakeUp(),
              let notify = try? Descriptor(checking: inotify_init1(Int32(IN_CLOEXEC | IN_NONBLOCK)), "inotify_init1") else { return nil }
        self.wake = wake
        self.notify = notify
        guard inotify_add_watch(self.notify.raw, folder, UInt32(IN_MOVED_TO)) >= 0 else { return nil }
        startThread("suspend-watch") { [weak self] in
            while let self, self.waitAndLook() {}
        }
    }

    /// At which save a user's suspend was seen.
    struct Evidence: Sendable {
        var save: Int
    }

    /// Saves of the status file so far.
    var saves: Int { saveCount.read { $0 } }

    func stop() { wake.signal() }

    /// False when told to stop.
    private func waitAndLook() -> Bool {
        guard let ready = try? waitOrWake(notify.raw, for: .readable, wake: wake.raw, until: MonotonicTime.now.adding(milliseconds: 60_000)) else { return false }
        guard !ready.isEmpty else { return true }
        let renames = takeEvents()
        guard renames > 0 else { return true }
        let number = saveCount.change { count in
            count += renames
            return count
        }
        guard let save = readFile() else { return true }
        if save.hasJob || hadJob { lastJob = .now }
        if save.hasJob != hadJob {
            hadJob = save.hasJob
            onJob(hadJob)
        }
        if let lastJob, MonotonicTime.now.milliseconds(since: lastJob) < Self.jobShadowMilliseconds { return true }
        if save.byUser { onSuspend(Evidence(save: number)) }
        return true
    }

    /// How many of the waiting events are about our file.
    private func takeEvents() -> Int {
        var count = 0
        withUnsafeTemporaryAllocation(byteCount: 16 << 10, alignment: 8) { buffer in
            while true {
                let n = read(notify.raw, buffer.baseAddress, buffer.count)
                guard n > 0, let base = buffer.baseAddress else { return }
                var offset = 0
                while offset + 16 <= n {
                    let length = Int((base + offset + 12).load(as: UInt32.self))
                    guard offset + 16 + length <= n else { break }
                    let name = UnsafeRawBufferPointer(start: base + offset + 16, count: length).prefix { $0 != 0 }
                    if name.elementsEqual(file.utf8) { count += 1 }
                    offset += 16 + length
                }
            }
        }
        return count
    }

    private static func hasJob(_ content: [UInt8]) -> Bool {
        Data(content).range(of: Data("<job type=".utf8)) != nil
    }

    private func readFile() -> Save? {
        guard let descriptor = try? Descriptor(checking: open("\(folder)/\(file)", O_RDONLY | O_CLOEXEC), "open") else { return nil }
        var info = stat()
        guard fstat(descriptor.raw, &info) == 0, info.st_size > 0, Int(info.st_size) < Self.largestFile else { return nil }
        var content = [UInt8](repeating: 0, count: Int(info.st_size))
        guard read(descriptor.raw, &content, content.count) == content.count else { return nil }
        // <domstatus state='paused' reason='user' pid='...'>
        let head = String(decoding: content.prefix(1024), as: UTF8.self)
        guard let tag = head.range(of: "<domstatus "), let end = head[tag.upperBound...].firstIndex(of: ">") else { return nil }
        let attributes = head[tag.upperBound..<end]
        return Save(byUser: attributes.contains("state='paused'") && attributes.contains("reason='user'"), hasJob: Self.hasJob(content))
    }
}
