import Foundation
import Glibc

enum Host: String {
    case a = "A", b = "B", c = "C", d = "D"

    /// The pair that most tests get along with; `TwoHosts.members` are those that there are.
    static let allCases: [Host] = [.a, .b]
    /// In the order of their addresses.
    static let possible: [Host] = [.a, .b, .c, .d]

    /// The other one of the pair.
    var other: Host { self == .a ? .b : .a }
    /// As the configuration calls it.
    var name: String { "host\(rawValue)" }
    var address: String { "10.77.0.\((Host.possible.firstIndex(of: self) ?? 0) + 1)" }
}

/// One `T` line of the ledger guest.
struct Tick {
    /// When it was read: seconds on the monotonic clock, half a millisecond late at best.
    var time: Double
    var host: Host
    var tick: Int
}

/// Reads a guest's serial logs on both hosts as they grow, all the time: that is how outages are measured, and two running copies noticed.
final class SerialWatcher: @unchecked Sendable {
    private struct File {
        var host: Host
        var path: String
        var descriptor: Int32 = -1
        var partial: [UInt8] = []
    }

    private let lock = NSLock()
    private var ticks: [Tick] = []
    private var boots: [Host: Int] = [:]
    private var byes: [Host: Int] = [:]
    private var ended = false
    private let done = DispatchSemaphore(value: 0)

    init(paths: [Host: String]) {
        Thread.detachNewThread { [self] in
            var files = paths.map { File(host: $0, path: $1) }
            while !lock.withLock({ ended }) {
                for index in files.indices { read(&files[index]) }
                usleep(500)
            }
            for file in files where file.descriptor >= 0 { close(file.descriptor) }
            done.signal()
        }
    }

    func stop() {
        lock.withLock { ended = true }
        done.wait()
    }

    private func read(_ file: inout File) {
        if file.descriptor < 0 { file.descriptor = open(file.path, O_RDONLY | O_CLOEXEC) }
        guard file.descriptor >= 0 else { return }
        var buffer = [UInt8](repeating: 0, count: 16384)
        let count = Glibc.read(file.descriptor, &buffer, buffer.count)
        guard count > 0 else { return }
        let now = Clock.seconds
        for byte in buffer[..<count] {
            guard byte == UInt8(ascii: "\n") else {
                file.partial.append(byte)
                continue
            }
            take(file.partial, now, file.host)
            file.partial.removeAll(keepingCapacity: true)
        }
    }

    private func take(_ line: [UInt8], _ now: Double, _ host: Host) {
        if line.starts(with: Array("T ".utf8)) {
            var value = 0
            for byte in line.dropFirst(2) {
                guard (0x30...0x39).contains(byte) else { break }
                value = value * 10 + Int(byte - 0x30)
            }
            lock.withLock { ticks.append(Tick(time: now, host: host, tick: value)) }
        } else if line == Array("BOOT".utf8) {
            lock.withLock { boots[host, default: 0] += 1 }
        } else if line == Array("BYE".utf8) || line == Array("REBOOT".utf8) {
            lock.withLock { byes[host, default: 0] += 1 }
        }
    }

    /// A place in the record, for `since`.
    var mark: Int { lock.withLock { ticks.count } }
    func boots(_ host: Host) -> Int { lock.withLock { boots[host] ?? 0 } }
    func farewells(_ host: Host) -> Int { lock.withLock { byes[host] ?? 0 } }
    var last: Tick? { lock.withLock { ticks.last } }
    func last(on host: Host) -> Tick? { lock.withLock { ticks.last { $0.host == host } } }
    func ticks(since mark: Int) -> [Tick] { lock.withLock { Array(ticks[mark...]) } }

    /// Seconds since the guest was last heard on `host`.
    func silence(_ host: Host) -> Double { last(on: host).map { Clock.seconds - $0.time } ?? .infinity }

    /// The longest time without a line, from the one before `mark` to now.
    func largestGap(since mark: Int) -> Double {
        let now = Clock.seconds
        let some = ticks(since: max(0, mark - 1))
        let gaps = zip(some.dropFirst(), some).map { $0.time - $1.time }
        return max(gaps.max() ?? 0, now - (some.last?.time ?? now))
    }

    /// Changes of host since `mark`: from where, and the seconds without a line. Two copies that run at one time show up as many changes.
    func changes(since mark: Int) -> [(from: Host, outage: Double)] {
        let some = ticks(since: max(0, mark - 1))
        return zip(some.dropFirst(), some).compactMap { now, before in now.host != before.host ? (before.host, now.time - before.time) : nil }
    }
}
