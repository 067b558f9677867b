import ControlProtocol
import Foundation
import Glibc
import Libvirt
import Platform

/// One domain of this host, as the protections see it: through libvirt, looked up anew for each call so that a restarted
/// libvirtd makes no difference.
public struct LocalDomain: Sendable {
    public let uuid: String
    public let name: String
    let connect: @Sendable () throws -> Connection

    public init(uuid: String, name: String, connect: @escaping @Sendable () throws -> Connection) {
        self.uuid = uuid
        self.name = name
        self.connect = connect
    }

    func handle() throws -> Domain { try connect().lookup(uuid: uuid) }

    @discardableResult
    func monitor<C: MonitorCommand>(_ command: C) throws -> C.Answer { try handle().monitor(command) }

    /// Bytes a second: more than any local socket takes.
    static let unlimitedBandwidth: UInt64 = 10_000_000_000

    /// Has QEMU send its state to a local socket. The capability makes a later `virsh save` something else, so it is off again when this
    /// fails.
    func startStream(to path: String, capability: String, _ parameters: MigrateSetParameters) throws {
        try monitor(MigrateSetCapabilities([capability: true]))
        do {
            try monitor(parameters)
            try monitor(Migrate(uri: "unix:\(path)"))
        } catch {
            _ = try? monitor(MigrateSetCapabilities([capability: false]))
            throw error
        }
    }

    /// QEMU's process id, from the file that libvirt keeps beside its state.
    func processID() throws -> pid_t {
        let path = "/run/libvirt/qemu/\(name).pid"
        guard let text = try? String(contentsOfFile: path, encoding: .utf8), let pid = pid_t(text.trimmingCharacters(in: .whitespacesAndNewlines)),
              // Behind the memory of all its NUMA cells.
              let command = try? kernelText("/proc/\(pid)/cmdline"), command.contains(uuid) else {
            throw ControlFailure("Cannot find QEMU's process of domain \(name) through \(path)", advice: "shadow-virt has to run on the host of the guest, as root")
        }
        return pid
    }

    /// User and group that QEMU runs as.
    static func owner(of pid: pid_t) throws -> (user: uid_t, group: gid_t) {
        var info = stat()
        guard stat("/proc/\(pid)", &info) == 0 else { throw SystemError("stat", "/proc/\(pid)") }
        return (info.st_uid, info.st_gid)
    }
}

/// QEMU up to at least 7.2 locks itself up for good when its guest is resumed from outside in a short moment of an epoch: the
/// migration thread then waits for a virtual CPU without holding the global lock (`cpu_synchronize_all_states` in
/// `qemu_savevm_state_complete_precopy`) and comes back holding it unknowingly. It goes on to wait for that lock itself, or, when its
/// stream has ended, for `x-colo-lost-heartbeat`; the main loop and the virtual CPUs wait behind it.
enum QEMUDeadlock {
    /// Looked at for this long, a tenth of a second apart, without a single context switch in between.
    private static let looks = 20

    static func isPresent(in pid: pid_t) -> Bool {
        guard let first = signature(pid) else { return false }
        for _ in 0..<looks {
            usleep(100_000)
            guard signature(pid) == first else { return false }
        }
        return true
    }

    /// The context switches of all threads when main loop and virtual CPUs wait for one lock and the migration thread for anything;
    /// nil when that is not so. A virtual CPU that does something else may hold the lock in earnest (slow storage).
    private static func signature(_ pid: pid_t) -> [String]? {
        let tasks = "/proc/\(pid)/task"
        guard let main = futex("\(tasks)/\(pid)"), let threads = try? FileManager.default.contentsOfDirectory(atPath: tasks) else { return nil }
        var hasMigration = false
        var seen = [main.address, main.switches]
        for thread in threads.sorted() where thread != String(pid) {
            guard let name = try? String(contentsOfFile: "\(tasks)/\(thread)/comm", encoding: .utf8) else { return nil }
            let waits = futex("\(tasks)/\(thread)")
            if name.hasPrefix("live_migration") {
                guard let waits else { return nil }
                hasMigration = true
                seen.append(waits.switches)
            } else if name.hasPrefix("CPU ") {
                // In KVM_RUN (ioctl, 16) it does not hold the lock.
                guard waits?.address == main.address || systemCall("\(tasks)/\(thread)")?.first == "16" else { return nil }
            }
        }
        return hasMigration ? seen : nil
    }

    /// "202 0x55a1c927db40 0x80 ...": the number of the system call (x86_64) and its arguments.
    private static func systemCall(_ task: String) -> [Substring]? {
        (try? String(contentsOfFile: "\(task)/syscall", encoding: .utf8)).map { Array($0.split(separator: " ")).map { Substring($0) } }
    }

    /// The lock that a thread waits for in futex(2), and its context switches so far.
    private static func futex(_ task: String) -> (address: String, switches: String)? {
        guard let call = systemCall(task), call.count > 2, call[0] == "202",
              let status = try? String(contentsOfFile: "\(task)/status", encoding: .utf8) else { return nil }
        let switches = status.split(separator: "\n").filter { $0.contains("ctxt_switches") }.joined()
        return (String(call[1]), switches)
    }
}

/// COLO on one QEMU: switched on for a protection, and off without a trace afterwards.
struct COLOControl {
    let domain: LocalDomain

    /// Parameters that we change, to be put back.
    static let changed = ["max-bandwidth", "downtime-limit", "x-checkpoint-delay"]

    func currentParameters() throws -> [String: UInt64] {
        let all = try domain.monitor(QueryMigrateParameters())
        return Dictionary(uniqueKeysWithValues: Self.changed.compactMap { key in all[key]?.integer.map { (key, UInt64(clamping: $0)) } })
    }

    /// Starts the stream to `path`. The first copy begins at once.
    func start(path: String, intervalMs: Double) throws {
        // No bandwidth limit: the worker's ceiling is the limit. 100 ms: the guest's pause at the end of the first copy.
        try domain.startStream(to: path, capability: "x-colo", MigrateSetParameters(
            checkpointDelayMilliseconds: UInt32(intervalMs), maxBandwidth: LocalDomain.unlimitedBandwidth, downtimeLimitMilliseconds: 100))
    }

    /// What `thaw` says of a guest that its user suspended, and that it left alone.
    static let suspended = "suspended"

    /// Gets a guest going that stands still because the other end of its stream is gone, and takes COLO off it. Does nothing to a
    /// guest without COLO. Returns what QEMU's status was.
    @discardableResult
    func thaw() throws -> String {
        let before = try domain.monitor(QueryMigrate()).status ?? "none"
        switch before {
        case "colo":
            // Lost-heartbeat would start a guest that its user suspended. An epoch's own stop shows as `colo`.
            if try domain.monitor(QueryStatus()).status == "paused" { return Self.suspended }
            try domain.monitor(ColoLostHeartbeat())
        case "setup", "active", "device", "pre-switchover", "postcopy-active", "cancelling":
            if before != "cancelling" { try domain.monitor(MigrateCancel()) }
        default:
            break
        }
        return before
    }

    /// Waits until the migration is over, then removes our capability and parameters. While the capability is on, a later
    /// `virsh save` would start COLO into a file and hang.
    func clean(restoring parameters: [String: UInt64], limitMs: Double = 3000) throws {
        let deadline = MonotonicTime.now.adding(milliseconds: limitMs)
        while true {
            do {
                try domain.monitor(MigrateSetCapabilities(["x-colo": false]))
                break
            } catch {
                guard deadline > .now else { throw error }
                usleep(10_000)
            }
        }
        // Broken 10.0 and 10.1 releases end up here with the guest stopped in `postmigrate`.
        if try domain.monitor(QueryStatus()).status == "postmigrate" { try domain.monitor(Cont()) }
        guard !parameters.isEmpty else { return }
        try domain.monitor(MigrateSetParameters(checkpointDelayMilliseconds: parameters["x-checkpoint-delay"].map { UInt32(clamping: $0) },
                                                maxBandwidth: parameters["max-bandwidth"],
                                                downtimeLimitMilliseconds: parameters["downtime-limit"]))
    }
}

/// The block job that makes libvirt refuse `save`, `dump`, `migrate` and snapshots of a protected guest before QEMU hears of them:
/// QEMU 7.2 would lose its migration state for good.
struct ForeignMigrationGuard {
    let domain: LocalDomain
    let directory: String

    /// Starts copying a disk into a throw-away sparse file at 1 byte a second: the job stays, and costs neither space nor time.
    /// Returns the disk and the file; nil when the guest has no disk to do it with.
    func raise(_ definition: DomainDefinition) throws -> (disk: String, file: String)? {
        let candidates = definition.disks.filter { !$0.isEmpty && $0.device == "disk" }
        if let busy = candidates.first(where: \.hasBlockJob) {
            throw ControlFailure("Disk \(busy.target) of domain \(domain.name) has a block job already",
                                 advice: "Wait for it or end it with `virsh blockjob \(domain.name) \(busy.target) --abort`")
        }
        guard let disk = candidates.first else { return nil }
        let file = "\(directory)/\(domain.uuid).guard"
        lower(disk: nil, file: file)
        let bytes = try domain.handle().blockInfo(disk: disk.target).capacity
        let created = open(file, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0o600)
        guard created >= 0 else { throw SystemError("open", file) }
        defer { close(created) }
        guard ftruncate(created, off_t(bytes)) == 0 else { throw SystemError("ftruncate", file) }
        let owner = try LocalDomain.owner(of: domain.processID())
        guard fchown(created, owner.user, owner.group) == 0 else { throw SystemError("chown", file) }
        do {
            try domain.handle().blockCopy(disk: disk.target, destinationXML: "<disk type='file'><source file='\(file)'/><driver type='raw'/></disk>",
                                          parameters: ["bandwidth": .ulong(1)],
                                          flags: [.transientJob, .reuseExternal])
        } catch {
            unlink(file)
            throw error
        }
        return (disk.target, file)
    }

    /// Ends the job, when there is one, and removes the file.
    func lower(disk: String?, file: String?) {
        if let disk {
            do {
                try domain.handle().blockJobAbort(disk: disk, flags: [])
            } catch {
                Log.debug("Guard job of \(domain.name): \(error)")
            }
        }
        if let file { unlink(file) }
    }
}
