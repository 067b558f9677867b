import CLinux
import Foundation
import Glibc

/// A child process of ours, known by its pid and a pidfd so that nothing else is ever signalled in its place.
public final class Subprocess: @unchecked Sendable {
    public let pid: pid_t
    private let pidfd: Descriptor
    /// Readable once the process has ended.
    public var endedDescriptor: Int32 { pidfd.raw }

    private init(pid: pid_t, pidfd: consuming Descriptor) {
        self.pid = pid
        self.pidfd = pidfd
    }

    /// Starts `path` with standard input from /dev/null, standard error shared, and `descriptors` as 3, 4, … .
    public static func spawn(_ path: String, arguments: [String], descriptors: [Int32]) throws(SystemError) -> Subprocess {
        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        defer { posix_spawn_file_actions_destroy(&actions) }
        posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0)
        posix_spawn_file_actions_adddup2(&actions, 2, 1)
        try addDescriptors(descriptors, &actions)

        var attributes = posix_spawnattr_t()
        posix_spawnattr_init(&attributes)
        defer { posix_spawnattr_destroy(&attributes) }
        // A group of its own: Ctrl-C at the service's terminal is the service's to handle, a worker ends its epoch first.
        var everything = sigset_t()
        sigemptyset(&everything)
        posix_spawnattr_setsigmask(&attributes, &everything)
        posix_spawnattr_setpgroup(&attributes, 0)
        posix_spawnattr_setflags(&attributes, Int16(POSIX_SPAWN_SETPGROUP) | Int16(POSIX_SPAWN_SETSIGMASK))

        var argv: [UnsafeMutablePointer<CChar>?] = ([path] + arguments).map { strdup($0) }
        argv.append(nil)
        defer { argv.forEach { free($0) } }
        var pid: pid_t = 0
        let status = posix_spawn(&pid, path, &actions, &attributes, argv, Glibc.environ)
        guard status == 0 else { throw SystemError("posix_spawn", path, code: status) }
        let pidfd = clinux_pidfd_open(pid)
        guard pidfd >= 0 else {
            let error = SystemError("pidfd_open", path)
            kill(pid, SIGKILL)
            waitpid(pid, nil, 0)
            throw error
        }
        return Subprocess(pid: pid, pidfd: Descriptor(owning: pidfd))
    }

    /// Two steps, through numbers above all of them, so that no source is overwritten before its turn, be it 3, 4, … or, in a
    /// service with many domains, in the hundreds. The numbers in between are closed again.
    private static func addDescriptors(_ descriptors: [Int32], _ actions: inout posix_spawn_file_actions_t) throws(SystemError) {
        let high = max(descriptors.max() ?? 0, 3 + Int32(descriptors.count)) + 1
        var status: Int32 = 0
        for (index, fd) in descriptors.enumerated() where status == 0 {
            status = posix_spawn_file_actions_adddup2(&actions, fd, high + Int32(index))
        }
        for index in descriptors.indices where status == 0 {
            status = posix_spawn_file_actions_adddup2(&actions, high + Int32(index), 3 + Int32(index))
            if status == 0 { status = posix_spawn_file_actions_addclose(&actions, high + Int32(index)) }
        }
        guard status == 0 else { throw SystemError("posix_spawn_file_actions_adddup2", "descriptors \(descriptors)", code: status) }
    }

    /// Sends a signal; nothing happens when the process has ended.
    public func signal(_ number: Int32) {
        // The child stays a zombie, and its pid ours, until `wait` reaps it; after that the pidfd says so.
        _ = clinux_pidfd_signal(pidfd.raw, number)
    }

    /// Waits until it ends or the deadline passes; returns its status as text ("exit 1", "signal 9"), nil when it still runs.
    public func wait(until deadline: MonotonicTime) -> String? {
        guard let ready = try? Platform.wait(pidfd.raw, for: .readable, until: deadline), !ready.isEmpty else { return nil }
        var status: Int32 = 0
        guard waitpid(pid, &status, 0) == pid else { return "ended" }
        let signal = status & 0x7f
        return signal == 0 ? "exit \((status >> 8) & 0xff)" : "signal \(signal)"
    }
}

/// Closes every descriptor from `first` on: what a library opened without O_CLOEXEC before it started us.
public func closeDescriptors(from first: Int32) {
    _ = clinux_close_range(UInt32(first), UInt32.max)
}

/// Whether a process has begun to exit, from which nothing brings it back. Its files close early on that way, and it may take seconds more
/// until it is gone: a guest's memory is large, and KVM waits for its grace periods.
public func isProcessExiting(_ pid: pid_t) -> Bool {
    guard let text = try? kernelText("/proc/\(pid)/stat") else { return true }
    // The name may contain anything but comes in parentheses; then state, parent, group, session, terminal, its group, flags.
    let fields = text.split(separator: ")").last?.split(separator: " ") ?? []
    guard fields.count > 6, let flags = UInt64(fields[6]) else { return false }
    // PF_EXITING (Linux include/linux/sched.h).
    return flags & 4 != 0
}

/// The descriptors of a process, with what they are open on as /proc has it (`socket:[1234]`, `anon_inode:[eventfd]`, a path); none when it is gone.
public func openDescriptors(of pid: pid_t) -> [(number: Int32, target: String)] {
    let folder = "/proc/\(pid)/fd"
    return ((try? FileManager.default.contentsOfDirectory(atPath: folder)) ?? []).compactMap { entry in
        guard let number = Int32(entry), let target = try? FileManager.default.destinationOfSymbolicLink(atPath: "\(folder)/\(entry)") else { return nil }
        return (number, target)
    }
}

/// A copy of another process's descriptor: the same open file, so what is set on it holds there as well. `process`: see `processDescriptor`.
public func copyDescriptor(_ number: Int32, of process: borrowing Descriptor) throws(SystemError) -> Descriptor {
    try Descriptor(checking: clinux_pidfd_getfd(process.raw, number), "pidfd_getfd", "descriptor \(number)")
}

/// Watches a process that is not our child (QEMU is libvirt's). Readable once it has ended; nil when it is gone already.
public func processDescriptor(_ pid: pid_t) -> Descriptor? {
    let fd = clinux_pidfd_open(pid)
    return fd >= 0 ? Descriptor(owning: fd) : nil
}

/// Ends a process at once, and waits until it is gone. False: it was not gone by then; nothing of its own code runs any more all the same, if the
/// kernel has taken the signal.
public func endProcess(_ pid: pid_t, waitMs: Double) -> Bool {
    let watch = processDescriptor(pid)
    guard kill(pid, SIGKILL) == 0 else { return errno == ESRCH }
    guard let watch else { return false }
    let ready = try? wait(watch.raw, for: .readable, until: MonotonicTime.now.adding(milliseconds: waitMs))
    return ready?.isEmpty == false
}
