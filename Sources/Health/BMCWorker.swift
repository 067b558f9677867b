import ControlProtocol
import Foundation
import Glibc
import Platform

/// The process that `shadow-virt worker bmc` is: makes one reading of a BMC and ends. FreeIPMI waits for the BMC, and the kernel's driver
/// may wait for ever; so that happens here and not in the service, which ends this process when its time is over.
public enum BMCWorker {
    /// The words after `worker` that start it.
    public static let arguments = ["bmc"]
    /// Where it finds its socket.
    static let descriptor: Int32 = 3
    /// A reply line of this many records is below 512 KiB; a log may have 65535.
    static let mostRecords = 1000
    /// The largest servers have some hundred sensors.
    static let mostSensors = 2000

    public static func run() -> Int32 {
        signal(SIGPIPE, SIG_IGN)
        // A core would hold the password.
        var none = rlimit(rlim_cur: 0, rlim_max: 0)
        setrlimit(__rlimit_resource_t(RLIMIT_CORE.rawValue), &none)
        var info = stat()
        guard fstat(descriptor, &info) == 0, info.st_mode & S_IFMT == S_IFSOCK else {
            Log.error("`shadow-virt worker bmc` is started by the service, not by hand")
            return 64
        }
        closeDescriptors(from: descriptor + 1)
        let channel = LineChannel(Descriptor(owning: descriptor))
        do {
            guard let line = try channel.readLine(deadline: .now.adding(milliseconds: 10_000)) else { return 0 }
            let request = try ControlCodec.decode(BMCRequest.self, from: line)
            // Whoever started it may be gone by then.
            alarm(UInt32(clamping: request.totalLimitMs / 1000 + 5))
            try channel.writeLine(ControlCodec.encode(reply(to: request)), deadline: .now.adding(milliseconds: 5000))
            return 0
        } catch {
            Log.debug("The BMC helper: \(error)")
            return 1
        }
    }

    static func reply(to request: BMCRequest) -> BMCReply {
        var reply = BMCReply()
        do throws(BMCFailure) {
            let lock = try lockCache(request)
            defer { withExtendedLifetime(lock) {} }
            reply.sensors = Array(try IPMIMonitor(request).sensors().prefix(mostSensors))
            do throws(BMCFailure) {
                reply.setLog(try newLog(request))
            } catch {
                reply.logFailure = error
            }
        } catch {
            reply.failure = error
        }
        return reply
    }

    /// Nil when the log ends as is known. That is one question; all of a log of a thousand records takes some BMCs ten seconds.
    private static func newLog(_ request: BMCRequest) throws(BMCFailure) -> [LogRecord]? {
        // A BMC that cannot say what its last record is may be able to list them all.
        if let known = request.known, let end = try? LogMark(last: IPMIMonitor(request).logEnd()), end == known { return nil }
        return try IPMIMonitor(request).log()
    }

    /// One reading at a time: two that fetch the descriptions of the sensors at once would spoil each other's file.
    private static func lockCache(_ request: BMCRequest) throws(BMCFailure) -> CacheLock {
        do {
            return try CacheLock(folder: request.cacheDirectory)
        } catch {
            throw BMCFailure(.other, "What is known of the BMC's sensors cannot be kept: \(error)", advice: "Check state_dir")
        }
    }
}

extension BMCReply {
    fileprivate mutating func setLog(_ records: [LogRecord]?) {
        log = records.map { Array($0.suffix(BMCWorker.mostRecords)) }
        olderRecords = max(0, (records?.count ?? 0) - BMCWorker.mostRecords)
    }
}

/// Held as long as it lives. Waiting for it is part of the reading's time.
private final class CacheLock {
    private let file: Descriptor

    init(folder: String) throws {
        try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true, attributes: [.posixPermissions: 0o700])
        let path = "\(folder)/lock"
        file = try Descriptor(checking: open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0o600), "open", path)
        guard retryingInterrupts({ flock(file.raw, LOCK_EX) }) == 0 else { throw SystemError("flock", path) }
    }
}
