import Foundation
import Glibc

/// How a command ended and what it printed.
struct CommandResult {
    /// Exit status; 128 + signal as shells have it; nil when it was killed at its time limit.
    var status: Int32?
    var out: String
    var err: String
    var seconds: Double

    var succeeded: Bool { status == 0 }
    var summary: String {
        let ending = status.map { "status \($0)" } ?? "killed at its time limit"
        return "\(ending) after \(String(format: "%.1f", seconds)) s\(out.isEmpty ? "" : "; out: \(out.trimmed)")\(err.isEmpty ? "" : "; err: \(err.trimmed)")"
    }
}

extension String {
    var trimmed: String { trimmingCharacters(in: .whitespacesAndNewlines) }
}

/// A process that we started. Known to be ours until it is reaped, so a signal never meets another's pid.
final class ChildProcess: @unchecked Sendable {
    let pid: pid_t
    private let lock = NSLock()
    private var ended: Int32?

    /// `words[0]` is searched in PATH. `out` and `err` are opened for appending; without one, /dev/null.
    /// `input`: a descriptor to be its standard input. All others of ours are O_CLOEXEC.
    init(_ words: [String], out: String? = nil, err: String? = nil, input: Int32? = nil) throws {
        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        defer { posix_spawn_file_actions_destroy(&actions) }
        if let input { posix_spawn_file_actions_adddup2(&actions, input, 0) } else { posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0) }
        posix_spawn_file_actions_addopen(&actions, 1, out ?? "/dev/null", O_WRONLY | O_CREAT | O_APPEND, 0o644)
        if let err, err == out {
            posix_spawn_file_actions_adddup2(&actions, 1, 2)
        } else {
            posix_spawn_file_actions_addopen(&actions, 2, err ?? "/dev/null", O_WRONLY | O_CREAT | O_APPEND, 0o644)
        }
        var argv: [UnsafeMutablePointer<CChar>?] = words.map { strdup($0) } + [nil]
        defer { argv.forEach { free($0) } }
        var pid: pid_t = 0
        let status = posix_spawnp(&pid, words[0], &actions, nil, &argv, Glibc.environ)
        guard status == 0 else { throw TestFailure("Cannot start \(words[0]): \(String(cString: strerror(status)))") }
        self.pid = pid
    }

    /// Its status if it has ended.
    func poll() -> Int32? {
        lock.withLock {
            if let ended { return ended }
            var status: Int32 = 0
            guard waitpid(pid, &status, WNOHANG) == pid else { return nil }
            ended = status & 0x7f == 0 ? (status >> 8) & 0xff : 128 + (status & 0x7f)
            return ended
        }
    }

    func signal(_ number: Int32) {
        lock.withLock { if ended == nil { kill(pid, number) } }
    }

    func wait(limit seconds: Double) -> Int32? {
        let end = Clock.seconds + seconds
        while true {
            if let status = poll() { return status }
            guard Clock.seconds < end else { return nil }
            usleep(1000)
        }
    }
}

enum Clock {
    /// Seconds on the monotonic clock.
    static var seconds: Double {
        var now = timespec()
        clock_gettime(CLOCK_MONOTONIC, &now)
        return Double(now.tv_sec) + Double(now.tv_nsec) / 1e9
    }
}

/// Something is not as it must be; ends the test.
struct TestFailure: Error, CustomStringConvertible {
    var description: String
    init(_ description: String) { self.description = description }
}

func require(_ condition: @autoclosure () throws -> Bool, _ message: @autoclosure () -> String) throws {
    guard try condition() else { throw TestFailure(message()) }
}

/// How many times as long as usual to wait for anything: $E2E_PATIENCE, for a machine that is busy with other things.
let patience = max(1, ProcessInfo.processInfo.environment["E2E_PATIENCE"].flatMap { Double($0) } ?? 1)

/// Runs a command to its end, at most `limit` seconds.
func runCommand(_ words: [String], limit: Double) throws -> CommandResult {
    let limit = limit * patience
    let base = NSTemporaryDirectory() + "/e2e-command-\(UUID().uuidString)"
    let (out, err) = (base + ".out", base + ".err")
    defer { unlink(out); unlink(err) }
    let begin = Clock.seconds
    let child = try ChildProcess(words, out: out, err: err)
    var status = child.wait(limit: limit)
    if status == nil {
        child.signal(SIGKILL)
        _ = child.wait(limit: 5)
        status = nil
    }
    func text(_ path: String) -> String { FileManager.default.contents(atPath: path).map { String(decoding: $0, as: UTF8.self) } ?? "" }
    return CommandResult(status: status, out: text(out), err: text(err), seconds: Clock.seconds - begin)
}

/// Waits until `condition` holds; asks every `every` seconds.
@discardableResult
func waitUntil(_ what: @autoclosure () -> String, limit seconds: Double, every: Double = 0.05, _ condition: () throws -> Bool) throws -> Double {
    let begin = Clock.seconds
    let seconds = seconds * patience
    while try !condition() {
        guard Clock.seconds - begin < seconds else { throw TestFailure("\(what()): not within \(seconds) s") }
        usleep(UInt32(every * 1e6))
    }
    return Clock.seconds - begin
}
