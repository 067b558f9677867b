import Foundation
import Glibc
import XCTest

/// A program on one host that talks to the guest all the time and writes down what it hears, each line with its moment.
class NetworkClient {
    let host: Host
    private let log: String
    private let process: ChildProcess

    fileprivate init(_ hosts: TwoHosts, _ host: Host, _ command: [String]) throws {
        self.host = host
        log = hosts.folder + "/client-\(UUID().uuidString.prefix(8))"
        process = try ChildProcess([TwoHosts.script, "exec", hosts.folder, host.rawValue] + command, out: log, err: log)
    }

    deinit { stop() }

    func stop() {
        process.signal(SIGKILL)
        _ = process.wait(limit: 5)
    }

    var isRunning: Bool { process.poll() == nil }
    var text: String { FileManager.default.contents(atPath: log).map { String(decoding: $0, as: UTF8.self) } ?? "" }
    /// Whole lines.
    fileprivate var lines: [Substring] { Array(text.split(separator: "\n", omittingEmptySubsequences: false).dropLast()) }

    /// Seconds of the clock that the clients use.
    static var now: Double { Date().timeIntervalSince1970 }
}

/// Pings the guest every 10 ms.
final class PingClient: NetworkClient {
    struct Answer {
        var sequence: Int
        var at: Double
    }
    struct Silence {
        var seconds: Double
        /// Requests that were never answered, in all of the time.
        var lost: Int
    }

    init(_ hosts: TwoHosts, on host: Host) throws { try super.init(hosts, host, ["ping", "-D", "-n", "-i", "0.01", LinuxGuest.address]) }

    /// "[1700000000.123456] 64 bytes from 10.77.0.50: icmp_seq=17 ttl=64 time=0.312 ms"; ends in "(DUP!)" when it is not the first one.
    var answers: [Answer] {
        lines.compactMap { line in
            guard line.hasPrefix("["), !line.hasSuffix("(DUP!)"), let end = line.firstIndex(of: "]"), let at = Double(line[line.index(after: line.startIndex)..<end]),
                  let mark = line.range(of: "icmp_seq="), let sequence = Int(line[mark.upperBound...].prefix { $0.isNumber }) else { return nil }
            return Answer(sequence: sequence, at: at)
        }
    }

    func waitForAnswer(limit: Double) throws {
        let begin = Self.now
        try waitUntil("\(host.name) gets an answer from the guest (\(text.suffix(300)))", limit: limit) { (answers.last?.at ?? 0) > begin }
    }

    /// The longest time without an answer since `begin`.
    func longestSilence(since begin: Double) throws -> Silence {
        let answers = answers.filter { $0.at >= begin }
        let longest = try XCTUnwrap(zip(answers, answers.dropFirst()).map { $1.at - $0.at }.max(), "\(host.name) got no answers: \(text.suffix(300))")
        // An answer to an earlier request may come behind that to a later one.
        let sequences = Set(answers.map(\.sequence))
        return Silence(seconds: longest, lost: sequences.max()! - sequences.min()! + 1 - sequences.count)
    }
}

/// Reads the guest's numbers over one connection.
final class StreamClient: NetworkClient {
    init(_ hosts: TwoHosts, on host: Host) throws {
        let script = #"exec 3<>"/dev/tcp/$1/7000" && while read -r -u 3 number; do echo "$EPOCHREALTIME $number"; done"#
        try super.init(hosts, host, ["bash", "-c", script, "stream", LinuxGuest.address])
    }

    /// The numbers so far, which are to be 1, 2, 3 and so on.
    func numbers() throws -> [(number: Int, at: Double)] {
        let lines = lines
        let numbers = lines.compactMap { line -> (number: Int, at: Double)? in
            let words = line.split(separator: " ")
            guard words.count == 2, let at = Double(words[0]), let number = Int(words[1]) else { return nil }
            return (number, at)
        }
        try require(numbers.count == lines.count || !isRunning, "\(host.name) read: \(text.suffix(300))")
        for (index, entry) in numbers.enumerated() where entry.number != index + 1 {
            throw TestFailure("\(host.name) read \(entry.number) where \(index + 1) is due")
        }
        return numbers
    }

    func waitForNumbers(_ count: Int, limit: Double) throws {
        let before = try numbers().count
        try waitUntil("\(host.name) reads \(count) numbers more than \(before) (\(text.suffix(300)); \(isRunning ? "running" : "ended"))", limit: limit) {
            try numbers().count >= before + count
        }
    }

    /// The longest time without a number since `begin`.
    func longestSilence(since begin: Double) throws -> Double {
        let moments = try numbers().map(\.at).filter { $0 >= begin }
        return zip(moments, moments.dropFirst()).map { $1 - $0 }.max() ?? .nan
    }
}
