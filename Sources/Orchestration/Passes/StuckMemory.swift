import CLinux
import Foundation
import Glibc
import Platform

/// A QEMU (7.2 seen) whose stream breaks in the middle of a background snapshot never takes the write protection off the guest's memory: the guest,
/// and QEMU's main loop with it, stand still at the next write, for good. `ram_write_tracking_stop` has one caller,
/// `bg_migration_completion`, which a broken stream never reaches.
///
/// The protection hangs on a userfaultfd of QEMU's. A copy of that descriptor takes it off from outside.
enum StuckMemory {
    /// Releases all memory of the process that a userfaultfd write-protects. Only when nobody reads its stream any more.
    /// Returns whether there was any.
    static func release(_ pid: pid_t) throws -> Bool {
        let watchers = openDescriptors(of: pid).filter { $0.target == "anon_inode:[userfaultfd]" }
        guard !watchers.isEmpty else { return false }
        let ranges = try protectedRanges(pid)
        guard !ranges.isEmpty else { return false }
        guard let process = processDescriptor(pid) else { throw SystemError("pidfd_open", "QEMU's process \(pid)") }
        var released = false
        for (number, _) in watchers {
            let copy = try copyDescriptor(number, of: process)
            // A range of another of its userfaultfds is refused, and stays as it is.
            for range in ranges where clinux_userfaultfd_release(copy.raw, range.lowerBound, range.upperBound - range.lowerBound) == 0 { released = true }
        }
        return released
    }

    /// Mappings with the flag `uw`: write-protected through a userfaultfd (proc(5), smaps).
    private static func protectedRanges(_ pid: pid_t) throws -> [Range<UInt64>] {
        let text = try kernelText("/proc/\(pid)/smaps")
        var current: Range<UInt64>?
        var found: [Range<UInt64>] = []
        for line in text.split(separator: "\n") {
            if line.hasPrefix("VmFlags:") {
                if let current, line.split(separator: " ").contains("uw") { found.append(current) }
                continue
            }
            // "7f0000000000-7f0020000000 rw-p 00000000 00:00 0"
            guard let dash = line.firstIndex(of: "-"), let space = line.firstIndex(of: " "), dash < space,
                  let start = UInt64(line[..<dash], radix: 16), let end = UInt64(line[line.index(after: dash)..<space], radix: 16), start < end else { continue }
            current = start..<end
        }
        return found
    }
}

/// Keeps a QEMU's memory free of a pass whose stream nobody reads: from now until `stop`, because the pass may be at its beginning still, and
/// nothing can be asked of a QEMU whose main loop waits for that memory.
///
/// Harmless to a pass that goes on: what it brings is not used.
final class MemoryReleaser: Sendable {
    private let isOver = Guarded(false)
    private static let pauseMilliseconds = 50.0

    init(_ domain: LocalDomain) {
        startThread("memory-release") { [isOver] in
            var told = false
            repeat {
                guard let pid = try? domain.processID() else { return }
                do {
                    if try StuckMemory.release(pid), !told {
                        told = true
                        Log.warning("\(domain.name): QEMU's stream had broken in the middle of a pass, and its memory was write-protected still; released")
                    }
                } catch {
                    Log.error("\(domain.name): the write protection of a broken pass could not be taken off: \(error). The guest may stand still; "
                        + "`virsh destroy` is the last way out")
                }
            } while isOver.wait(until: MonotonicTime.now.adding(milliseconds: Self.pauseMilliseconds), { $0 ? true : nil }) == nil
        }
    }

    func stop() { isOver.change { $0 = true } }
}
