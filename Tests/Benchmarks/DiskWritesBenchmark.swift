import Foundation
import Glibc
import Libvirt
import Platform

/// A guest's writes to its disk: plain, mirrored by libvirt to qemu-nbd, and protected with the disk in the epochs, in turn, while one and the
/// same guest writes as fast as it gets answers.
enum DiskWritesBenchmark {
    private enum Kind: Hashable {
        case plain, blockcopy
        /// Memory alone: what the epochs cost a guest whose disk has nothing to do with them.
        case memoryOnly(Int)
        case ours(Int)

        var name: String {
            switch self {
            case .plain: "plain"
            case .blockcopy: "blockcopy to qemu-nbd"
            case .memoryOnly(let delay): "ours, \(delay) ms, without its disk"
            case .ours(let delay): "ours, \(delay) ms"
            }
        }
    }

    /// What the guest does, and how many bytes of it are a record.
    private struct Load {
        let image: String
        let title: String
        let bytes: Double
    }

    private struct Figures {
        var perSecond = 0.0
        var writeMicroseconds = 0.0
        var flushMicroseconds = 0.0
        /// Shares of a core: QEMU, who takes the writes beside it, who takes them at the other end.
        var qemu = 0.0, taker = 0.0, shadow = 0.0
        var pauseMs = Double.nan
        /// Longer than ordered while the shadow lags.
        var intervalMs = Double.nan
        var held = true
    }

    private static let kinds: [Kind] = [.plain, .blockcopy, .memoryOnly(20), .ours(20), .ours(100)]
    private static let loads = [
        Load(image: "disk-records", title: "512 bytes, read back, a flush every 64th", bytes: 512),
        Load(image: "disk-bulk", title: "256 KiB with each record, a flush every 64th", bytes: Double(256 << 10)),
    ]

    static func run(_ bench: Bench) throws {
        for inMemory in [true, false] {
            try run(bench, inMemory)
            bench.cleanUp()
        }
    }

    private static func run(_ bench: Bench, _ inMemory: Bool) throws {
        let hosts = try TwoHosts(bench, memoryOnB: inMemory)
        let place = inMemory ? "copy in memory" : "copy on the same disk"
        var json: [String: Any] = [:]
        for load in loads {
            try hosts.boot("writer", image: load.image)
            defer { _ = try? hosts.on("A", ["virsh", "-q", "destroy", "writer"]) }
            var found: [Kind: [Figures]] = [:]
            for round in 0..<(bench.quick ? 2 : 3) {
                for turn in kinds.indices {
                    let kind = kinds[(turn + round) % kinds.count]
                    found[kind, default: []].append(try measure(kind, bench, hosts))
                }
            }
            json[load.image] = report(load, place, found, bench)
        }
        bench.results["disks_writes, \(place)"] = json
    }

    // MARK: Measuring

    private static func measure(_ kind: Kind, _ bench: Bench, _ hosts: TwoHosts) throws -> Figures {
        switch kind {
        case .plain: return try watch(bench, hosts, [])
        case .blockcopy: return try withBlockCopy(bench, hosts) { try watch(bench, hosts, [$0]) }
        case .memoryOnly(let delay), .ours(let delay):
            var withDisks = false
            if case .ours = kind { withDisks = true }
            try hosts.protect("writer", intervalMs: delay, withDisks: withDisks, discardStale: withDisks)
            defer { _ = try? hosts.shadowVirt("A", ["unprotect", "writer"]) }
            let workers = try [hosts.worker("A"), hosts.worker("B")]
            var figures = try watch(bench, hosts, workers)
            let status = try hosts.status("writer")
            figures.pauseMs = status["pause_ms_median"] as? Double ?? .nan
            figures.intervalMs = status["interval_ms"] as? Double ?? .nan
            // A broken protection captures nothing, and a new session has another worker.
            figures.held = status["state"] as? String == "protected" && (try? hosts.worker("A")) == workers[0]
            if !figures.held { print("  \(kind.name): \(status["state"] ?? ""): \(status["reason"] ?? "")") }
            return figures
        }
    }

    private static func watch(_ bench: Bench, _ hosts: TwoHosts, _ takers: [pid_t]) throws -> Figures {
        guard let qemu = hosts.qemu("A", "writer") else { throw BenchFailure("No QEMU of writer") }
        let seconds = bench.quick ? 3.0 : 5.0
        usleep(700_000)
        let before = try Counters(hosts)
        let processors = ([qemu] + takers).map(processorSeconds)
        let first = try nextCount(hosts)
        usleep(UInt32(seconds * 1e6))
        let last = try nextCount(hosts)
        let shares = zip([qemu] + takers, processors).map { (processorSeconds($0) - $1) / (last.at - first.at) }
        let after = try Counters(hosts)
        return Figures(perSecond: Double(last.records - first.records) / (last.at - first.at),
                       writeMicroseconds: after.mean("wr", since: before), flushMicroseconds: after.mean("flush", since: before),
                       qemu: shares[0], taker: shares.count > 1 ? shares[1] : 0, shadow: shares.count > 2 ? shares[2] : 0)
    }

    /// The guest says after every 64 ticks how many records it has written: the next such line and when it came.
    private static func nextCount(_ hosts: TwoHosts) throws -> (records: Int, at: Double) {
        let old = hosts.lastRecords("writer")
        var new = old
        try waitFor("the guest's next count of records", seconds: 30) {
            new = hosts.lastRecords("writer")
            return new != old
        }
        return (new, MonotonicSeconds.now)
    }

    /// QEMU's own figures of the disk's requests, from the guest's doorbell to the answer.
    private struct Counters {
        private var values: [String: Double] = [:]

        init(_ hosts: TwoHosts) throws {
            for line in try hosts.on("A", ["virsh", "-q", "domblkstat", "writer", "vda"]).split(separator: "\n") {
                let fields = line.split(separator: " ")
                if fields.count == 3 { values[String(fields[1])] = Double(fields[2]) }
            }
        }

        /// Microseconds.
        func mean(_ operation: String, since before: Counters) -> Double {
            let requests = operation == "flush" ? "flush_operations" : "\(operation)_req"
            let times = operation == "flush" ? "flush_total_times" : "\(operation)_total_times"
            func grown(_ key: String) -> Double { (values[key] ?? .nan) - (before.values[key] ?? .nan) }
            return grown(times) / grown(requests) / 1000
        }
    }

    /// Libvirt's own mirror, with the same flags as ours, to QEMU's own server, which writes into a file next to the other host's.
    private static func withBlockCopy(_ bench: Bench, _ hosts: TwoHosts, _ body: (pid_t) throws -> Figures) throws -> Figures {
        let socket = "\(bench.work)/blockcopy"
        let file = hosts.image("B", "blockcopy")
        defer { unlink(file) }
        let domain = try hosts.connection("A").lookup(name: "writer")
        try runProgram("/usr/bin/truncate", ["-s", "\(try domain.blockInfo(disk: "vda").capacity)", file])
        unlink(socket)
        let server = try Subprocess.spawn("/usr/bin/qemu-nbd", arguments: ["-t", "-f", "raw", "-x", "vda", "-k", socket, file], descriptors: [])
        defer {
            server.signal(SIGTERM)
            _ = server.wait(until: MonotonicTime.now.adding(milliseconds: 5000))
        }
        try waitFor("the socket of qemu-nbd", seconds: 5) { access(socket, F_OK) == 0 }
        let xml = "<disk type='network'><driver name='qemu' type='raw' discard='unmap'/>"
            + "<source protocol='nbd' name='vda'><host transport='unix' socket='\(socket)'/></source></disk>"
        try domain.blockCopy(disk: "vda", destinationXML: xml, parameters: [:], flags: [.synchronousWrites, .transientJob, .reuseExternal])
        defer { try? domain.blockJobAbort(disk: "vda") }
        try waitFor("the copy", seconds: 60) {
            guard let info = try domain.blockJobInfo(disk: "vda") else { throw BenchFailure("The copy to qemu-nbd has ended") }
            return info.end > 0 && info.current == info.end
        }
        return try body(server.pid)
    }

    // MARK: Telling

    private static func report(_ load: Load, _ place: String, _ found: [Kind: [Figures]], _ bench: Bench) -> [String: Any] {
        func median(_ kind: Kind, _ value: (Figures) -> Double) -> Double { Distribution((found[kind] ?? []).map(value)).median }
        let plain = median(.plain) { $0.perSecond }
        let peer = (rate: median(.blockcopy) { $0.perSecond }, write: median(.blockcopy) { $0.writeMicroseconds })
        var rows: [[String]] = []
        var cpuRows: [[String]] = []
        var json: [String: Any] = [:]
        for kind in kinds {
            let (rate, write) = (median(kind) { $0.perSecond }, median(kind) { $0.writeMicroseconds })
            let flush = median(kind) { $0.flushMicroseconds }
            let mebibytes = rate * load.bytes / 1048576
            let cpu = (qemu: median(kind) { $0.qemu }, taker: median(kind) { $0.taker }, shadow: median(kind) { $0.shadow })
            let kept = (found[kind] ?? []).filter(\.held).count
            rows.append([kind.name, format(rate, 0), format(mebibytes, 1), format(rate / plain), format(rate / peer.rate), format(write, 0),
                         format(peer.write / write), format(flush, 0), kept == found[kind]?.count ? "" : "\(kept) of \(found[kind]?.count ?? 0) held"])
            cpuRows.append([kind.name, format(cpu.qemu * 100, 0), format(cpu.taker * 100, 1), format(cpu.shadow * 100, 1),
                            format(cpu.taker * 1e6 / rate, 0), format(median(kind) { $0.pauseMs }), format(median(kind) { $0.intervalMs }, 0)])
            json[kind.name] = [
                "records_per_second": rate, "mib_per_second": mebibytes, "to_plain": rate / plain, "to_blockcopy": rate / peer.rate,
                "write_us": write, "blockcopy_write_to_this": peer.write / write, "flush_us": flush, "runs_held": kept,
                "qemu_cpu_cores": cpu.qemu, "taker_cpu_cores": cpu.taker, "shadow_cpu_cores": cpu.shadow, "pause_ms": median(kind) { $0.pauseMs },
                "interval_used_ms": median(kind) { $0.intervalMs },
            ]
        }
        printTable("A guest's writes: \(load.title); \(place)",
                   ["", "records/s", "MiB/s", "to plain", "to blockcopy", "write us", "blockcopy's to it", "flush us", ""], rows)
        printTable("Processor time meanwhile (% of a core; the taker is qemu-nbd or our source worker) and the epochs",
                   ["", "QEMU", "taker", "shadow worker", "taker us a record", "pause ms", "interval used ms"], cpuRows)
        for case .ours(let delay) in kinds {
            let ratio = peer.write / median(.ours(delay)) { $0.writeMicroseconds }
            bench.target("write latency, \(load.image), \(place), blockcopy to qemu-nbd to ours at \(delay) ms", format(ratio), ">= 1", met: ratio >= 1)
            let rates = median(.ours(delay)) { $0.perSecond } / peer.rate
            bench.target("records a second, \(load.image), \(place), ours at \(delay) ms to blockcopy", format(rates), ">= 1", met: rates >= 1)
        }
        return json
    }
}
