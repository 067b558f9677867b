import Foundation
import Glibc
import Libvirt
import Platform

/// The engine `periodic` against what libvirt has: a swap with a warm shadow against `virsh migrate --live`, a pass against `virsh save`, the
/// same Linux guest under TCG, idle and writing to its memory. Its outage is what a client sees that pings it from outside.
enum PassesBenchmark {
    private static let name = "linux", address = "10.77.0.60"
    private static let memoryMiB = 512
    private static let pingSeconds = 0.005

    private struct Load {
        let title: String
        let words: String
    }

    private static let loads = [
        Load(title: "idle", words: ""),
        Load(title: "writing to 20 MiB/s of pages in 64 MiB of zeros", words: "DIRTY_MIB=64 DIRTY_RATE=20"),
        Load(title: "writing to 20 MiB/s of pages in 64 MiB of noise", words: "DIRTY_MIB=64 DIRTY_RATE=20 DIRTY_NOISE=1"),
    ]

    private struct Move {
        var seconds = 0.0
        var outageMs = 0.0
        var mebibytes = 0.0
    }

    static func run(_ bench: Bench) throws {
        let parts = "\(bench.work)/linux"
        try runProgram("\(bench.root)/Tests/Guests/linux.sh", [parts], seconds: 300)
        let hosts = try TwoHosts(bench)
        var json: [String: Any] = [:]
        for load in loads {
            try boot(bench, hosts, parts, load)
            defer { for host in ["A", "B"] { _ = try? hosts.on(host, ["virsh", "-q", "destroy", name]) } }
            json[load.title] = try measure(bench, hosts, load)
        }
        bench.results["passes"] = json
    }

    private static func boot(_ bench: Bench, _ hosts: TwoHosts, _ parts: String, _ load: Load) throws {
        let xml = try runProgram("\(bench.root)/Tests/Guests/linux-domain.sh", [
            name, "FOLDER=\(parts)", "TYPE=qemu", "DISK=", "BRIDGE=br0", "ADDRESS=\(address)/24", "MEMORY_MIB=\(memoryMiB)", "WORDS=\(load.words)"])
        let file = "\(bench.work)/\(name).xml"
        try xml.write(toFile: file, atomically: true, encoding: .utf8)
        try hosts.on("A", ["virsh", "-q", "create", file])
        try waitFor("an answer of the guest", seconds: 120) {
            (try? hosts.on("A", ["ping", "-c", "1", "-W", "1", address])) != nil
        }
        // Its boot is over, and its load runs.
        sleep(5)
    }

    private static func measure(_ bench: Bench, _ hosts: TwoHosts, _ load: Load) throws -> [String: Any] {
        let rounds = bench.quick ? 2 : 5
        var live: [Move] = [], delta: [Move] = []
        var pauses: [Double] = []
        for round in 0..<rounds {
            // Each there and back, in turn.
            for (from, to) in [("A", "B"), ("B", "A")] {
                let target = to == "A" ? "10.77.0.1" : "10.77.0.2"
                if round % 2 == 0 {
                    live.append(try move(bench, hosts, from) { try hosts.on(from, ["virsh", "-q", "migrate", "--live", name, "qemu+tcp://\(target)/system"]) })
                } else {
                    try hosts.shadowVirt(from, ["protect", name, "--to", to, "--engine", "periodic", "--interval", "2s", "--without-disks", "--no-policy"])
                    // A warm pass or two.
                    sleep(6)
                    pauses.append(try hosts.status(name, at: from)["pause_ms_median"] as? Double ?? .nan)
                    delta.append(try move(bench, hosts, from) { try hosts.shadowVirt(from, ["swap", name]) })
                }
            }
        }
        let saved = try save(bench, hosts)
        return report(bench, load, live, delta, pauses, saved)
    }

    // MARK: Moving

    private static func move(_ bench: Bench, _ hosts: TwoHosts, _ host: String, _ body: () throws -> Void) throws -> Move {
        let client = try Pings(bench, hosts, host)
        defer { client.stop() }
        sleep(1)
        let before = try sent(hosts, host)
        let begin = MonotonicSeconds.now
        try body()
        var move = Move(seconds: MonotonicSeconds.now - begin)
        sleep(2)
        move.mebibytes = Double(try sent(hosts, host) - before) / 1048576
        client.stop()
        move.outageMs = try client.largestGapMs()
        return move
    }

    /// Bytes that a host has sent to the other so far; pings and their like are a few KiB of that.
    private static func sent(_ hosts: TwoHosts, _ host: String) throws -> Int {
        let text = try hosts.on(host, ["cat", "/proc/self/net/dev"])
        let all = text.split(separator: "\n").compactMap { line -> Int? in
            let parts = line.split(separator: ":")
            guard parts.count == 2, parts[0].trimmingCharacters(in: .whitespaces) == "cable" else { return nil }
            return parts[1].split(separator: " ").dropFirst(8).first.flatMap { Int($0) }
        }
        guard let bytes = all.first else { throw BenchFailure("No cable on host\(host): \(text)") }
        return bytes
    }

    /// What the guest sees of a full copy on disk: it stands still from the beginning of `save` to the end of `restore`.
    private static func save(_ bench: Bench, _ hosts: TwoHosts) throws -> Move {
        let image = "/var/lib/libvirt/images/\(name).state"
        let client = try Pings(bench, hosts, "A")
        defer { client.stop() }
        sleep(1)
        let begin = MonotonicSeconds.now
        try hosts.on("A", ["virsh", "-q", "save", name, image])
        try hosts.on("A", ["cp", image, image + ".copy"])
        var move = Move(seconds: MonotonicSeconds.now - begin)
        try hosts.on("A", ["virsh", "-q", "restore", image])
        sleep(2)
        client.stop()
        move.outageMs = try client.largestGapMs()
        for file in [image, image + ".copy"] { try hosts.on("A", ["rm", "-f", file]) }
        return move
    }

    // MARK: Telling

    private static func report(_ bench: Bench, _ load: Load, _ live: [Move], _ delta: [Move], _ pauses: [Double], _ saved: Move) -> [String: Any] {
        func median(_ moves: [Move], _ value: (Move) -> Double) -> Double { Distribution(moves.map(value)).median }
        var rows: [[String]] = []
        var json: [String: Any] = [:]
        for (title, moves) in [("virsh migrate --live", live), ("swap, warm shadow", delta)] {
            let (seconds, outage, bytes) = (median(moves) { $0.seconds }, median(moves) { $0.outageMs }, median(moves) { $0.mebibytes })
            rows.append([title, format(seconds), format(outage, 0), format(moves.map(\.outageMs).max() ?? .nan, 0), format(bytes, 1)])
            json[title] = ["seconds": seconds, "outage_ms": outage, "mebibytes": bytes]
        }
        rows.append(["virsh save and a copy", format(saved.seconds), format(saved.outageMs, 0), "", ""])
        rows.append(["pass, by QEMU's events", "", format(Distribution(pauses).median, 1), format(pauses.max() ?? .nan, 1), ""])
        json["virsh save and a copy"] = ["seconds": saved.seconds, "outage_ms": saved.outageMs]
        json["pass"] = ["pause_ms": Distribution(pauses).median]
        printTable("A Linux guest of \(memoryMiB) MiB under TCG, \(load.title)", ["", "seconds", "outage ms", "at most", "MiB on the wire"], rows)
        let ratio = median(delta) { $0.mebibytes } / median(live) { $0.mebibytes }
        bench.target("bytes on the wire, \(load.title), delta swap to virsh migrate", format(ratio, 3), "<= 0.2", met: ratio <= 0.2)
        return json
    }

    /// Somebody outside who asks the guest every few milliseconds.
    private final class Pings {
        private let process: Subprocess
        private let log: String
        private var isStopped = false

        init(_ bench: Bench, _ hosts: TwoHosts, _ host: String) throws {
            log = "\(bench.work)/pings"
            process = try Subprocess.spawn("/bin/bash", arguments: [
                "-c", "exec \"$0\" exec \"$1\" \"$2\" ping -D -i \(pingSeconds) \(address) >\"$3\"",
                "\(bench.root)/Tests/Support/hosts.sh", "\(bench.work)/hosts", host, log], descriptors: [])
        }

        func stop() {
            guard !isStopped else { return }
            isStopped = true
            process.signal(SIGINT)
            if process.wait(until: MonotonicTime.now.adding(milliseconds: 3000)) == nil { process.signal(SIGKILL) }
        }

        /// Between two answers, less the interval.
        func largestGapMs() throws -> Double {
            // [1795268949.239895] 64 bytes from 10.77.0.60: icmp_seq=88 ttl=64 time=0.5 ms
            let times = try String(contentsOfFile: log, encoding: .utf8).split(separator: "\n").filter { $0.contains("icmp_seq=") }
                .compactMap { Double($0.dropFirst().prefix { $0 != "]" }) }
            guard times.count > 100 else { throw BenchFailure("Only \(times.count) answers to pings") }
            return ((zip(times, times.dropFirst()).map { $1 - $0 }.max() ?? .nan) - pingSeconds) * 1000
        }
    }
}
