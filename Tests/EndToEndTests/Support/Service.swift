import Foundation
import Glibc

/// `shadow-virt serve` on one host, with somebody who restarts it when it is killed, as systemd would.
final class Service: @unchecked Sendable {
    private static let restartAfter: UInt32 = 100_000

    let log: String
    private let command: [String]
    private let lock = NSLock()
    private var child: ChildProcess?
    private var wanted = false
    private(set) var restarts = 0

    init(command: [String], log: String) {
        self.command = command
        self.log = log
    }

    var pid: pid_t? { lock.withLock { child.flatMap { $0.poll() == nil ? $0.pid : nil } } }

    /// Starts it under supervision.
    func start() throws {
        try lock.withLock {
            guard child == nil || child?.poll() != nil else { throw TestFailure("The service runs already") }
            wanted = true
            child = try ChildProcess(command, out: log, err: log)
        }
        Thread.detachNewThread { [self] in supervise() }
    }

    private func supervise() {
        while true {
            guard let current = lock.withLock({ wanted ? child : nil }) else { return }
            guard current.poll() != nil else {
                usleep(5000)
                continue
            }
            usleep(Self.restartAfter)
            lock.withLock {
                guard wanted, child === current else { return }
                restarts += 1
                child = (try? ChildProcess(command, out: log, err: log)) ?? child
            }
        }
    }

    /// Kills it; the supervisor starts it again.
    func kill() { lock.withLock { child?.signal(SIGKILL) } }

    /// It is not restarted any more; what ends it comes next.
    func unplug() { lock.withLock { wanted = false } }

    /// Ends it for good, politely unless told otherwise.
    func stop(signal: Int32 = SIGTERM) throws {
        let current = lock.withLock {
            wanted = false
            return child
        }
        current?.signal(signal)
        guard let current, current.wait(limit: 15) == nil else { return }
        current.signal(SIGKILL)
        _ = current.wait(limit: 5)
        throw TestFailure("The service did not end within 15 s of signal \(signal)")
    }

    /// Its workers: children with the argument `worker`.
    var workers: [pid_t] {
        guard let pid else { return [] }
        return Processes.children(of: pid).filter { Processes.arguments(of: $0).dropFirst().first == "worker" }
    }

    var logText: String { FileManager.default.contents(atPath: log).map { String(decoding: $0, as: UTF8.self) } ?? "" }
    /// A place in the log, for `logText(since:)`.
    var logMark: Int { (try? FileManager.default.attributesOfItem(atPath: log)[.size] as? Int) ?? 0 }
    func logText(since mark: Int) -> String {
        FileManager.default.contents(atPath: log).map { String(decoding: $0.dropFirst(mark), as: UTF8.self) } ?? ""
    }
}

enum Processes {
    static var all: [pid_t] { ((try? FileManager.default.contentsOfDirectory(atPath: "/proc")) ?? []).compactMap { pid_t($0) } }

    /// State letter and parent.
    static func stat(_ pid: pid_t) -> (state: Character, parent: pid_t)? {
        guard let data = FileManager.default.contents(atPath: "/proc/\(pid)/stat") else { return nil }
        let text = String(decoding: data, as: UTF8.self)
        guard let end = text.lastIndex(of: ")") else { return nil }
        let fields = text[text.index(after: end)...].split(separator: " ")
        guard fields.count > 1, let state = fields[0].first, let parent = pid_t(fields[1]) else { return nil }
        return (state, parent)
    }

    static func children(of parent: pid_t) -> [pid_t] {
        all.filter { pid in stat(pid).map { $0.parent == parent && $0.state != "Z" } ?? false }
    }

    static func arguments(of pid: pid_t) -> [String] {
        FileManager.default.contents(atPath: "/proc/\(pid)/cmdline").map { $0.split(separator: 0).map { String(decoding: $0, as: UTF8.self) } } ?? []
    }

    /// Names of its threads.
    static func threads(of pid: pid_t) -> [String] {
        ((try? FileManager.default.contentsOfDirectory(atPath: "/proc/\(pid)/task")) ?? []).compactMap {
            FileManager.default.contents(atPath: "/proc/\(pid)/task/\($0)/comm").map { String(decoding: $0, as: UTF8.self).trimmed }
        }
    }

    static func isAlive(_ pid: pid_t) -> Bool { stat(pid).map { $0.state != "Z" && $0.state != "X" } ?? false }

    /// Resident memory in MiB.
    static func residentMiB(_ pid: pid_t) -> Double {
        guard let data = FileManager.default.contents(atPath: "/proc/\(pid)/status") else { return 0 }
        let line = String(decoding: data, as: UTF8.self).split(separator: "\n").first { $0.hasPrefix("VmRSS:") }
        return (line?.split(whereSeparator: { $0 == " " || $0 == "\t" }).dropFirst().first.flatMap { Double($0) } ?? 0) / 1024
    }
}
