import Foundation
import Glibc
import NBDServer
import Platform

/// Takes the bytes of writes into a ring and forgets them: what the server itself costs.
private final class RingExport: NBDExport, @unchecked Sendable {
    static let ringBytes = 64 << 20
    let name = "disk"
    let description = ""
    let byteCount: UInt64
    let isReadOnly = false, allowsSeveralConnections = false, canRead = false
    private let ring: MappedMemory
    private var place = 0

    init(byteCount: UInt64) throws {
        self.byteCount = byteCount
        ring = try MappedMemory.anonymous(Self.ringBytes)
        // Page faults are the memory's price, not the server's.
        memset(ring.base, 1, Self.ringBytes)
    }

    func prepareWrite(length: Int, connection: NBDConnectionID) throws(NBDError) -> UnsafeMutableRawPointer {
        if place + length > Self.ringBytes { place = 0 }
        return ring.base + place
    }
    func takesWriteAtOnce(length: Int, connection: NBDConnectionID) -> Bool { true }
    func write(offset: UInt64, bytes: UnsafeRawBufferPointer, forceUnitAccess: Bool, connection: NBDConnectionID) throws(NBDError) {
        place += bytes.count
    }
    func abandonWrite(connection: NBDConnectionID) {}
    func read(offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) throws(NBDError) {}
    func writeZeroes(offset: UInt64, length: UInt64, mayTrim: Bool, forceUnitAccess: Bool) throws(NBDError) {}
    func trim(offset: UInt64, length: UInt64, forceUnitAccess: Bool) throws(NBDError) {}
    func flush() throws(NBDError) {}
    func blockStatus(offset: UInt64, length: UInt64, firstOnly: Bool, _ extent: (UInt64, NBDExtentState) -> Void) throws(NBDError) {}
}

/// Writes into our server against writes into nbdkit and qemu-nbd, which throw the bytes away or keep them in memory; libnbd's and
/// QEMU's clients, all servers in turn, in a changing order.
enum NBDBenchmark {
    private struct Server {
        let name: String
        let arguments: [String]
    }
    private struct Load {
        let name: String
        let bytes: Int
        let arguments: [String]
    }

    static func run(_ bench: Bench) throws {
        let bytes = bench.quick ? 256 << 20 : 512 << 20
        let rounds = bench.quick ? 3 : 7
        let socket = "\(bench.work)/nbd"
        let source = "/dev/shm/shadow-virt-benchmark.\(getpid())"
        try runProgram("/bin/dd", ["if=/dev/urandom", "of=\(source)", "bs=1M", "count=\(bytes >> 20)", "status=none"])
        bench.atEnd { unlink(source) }
        let peers = [
            Server(name: "nbdkit null", arguments: ["/usr/bin/nbdkit", "-f", "-U", socket, "null", "1G"]),
            Server(name: "nbdkit memory", arguments: ["/usr/bin/nbdkit", "-f", "-U", socket, "memory", "1G"]),
            Server(name: "qemu-nbd null", arguments: ["/usr/bin/qemu-nbd", "-t", "-k", socket, "-x", "disk", "--image-opts",
                                                      "driver=null-co,size=1G"]),
        ].filter { access($0.arguments[0], X_OK) == 0 }
        let loads = copies(source, socket, bytes) + pipelines(socket, bench.quick)
        var json: [String: Any] = [:]
        for load in loads where access(load.arguments[0], X_OK) == 0 {
            var rates: [String: [Double]] = [:]
            var costs: [String: [Double]] = [:]
            for round in 0..<rounds {
                let names = [nil] + peers.map { Optional($0) }
                for turn in names.indices {
                    let server = names[(turn + round) % names.count]
                    let result = try measure(server, load, socket)
                    rates[server?.name ?? "ours", default: []].append(result.rate)
                    costs[server?.name ?? "ours", default: []].append(result.cost)
                }
            }
            json[load.name] = report(load, peers.map(\.name), rates, costs, bench)
        }
        bench.results["nbd"] = json
    }

    private static func copies(_ source: String, _ socket: String, _ bytes: Int) -> [Load] {
        [64 << 10, 256 << 10, 1 << 20].map { size in
            Load(name: "nbdcopy, \(size >> 10) KiB", bytes: bytes,
                 arguments: ["/usr/bin/nbdcopy", "--connections=1", "--sparse=0", "--request-size=\(size)", "--requests=16", source,
                             "nbd+unix:///disk?socket=\(socket)"])
        }
    }

    private static func pipelines(_ socket: String, _ quick: Bool) -> [Load] {
        [(4096, 1, 40_000), (4096, 16, 100_000), (64 << 10, 16, 10_000)].map { size, depth, count in
            let count = quick ? count / 2 : count
            return Load(name: "qemu-img bench, \(size >> 10) KiB, depth \(depth)", bytes: size * count,
                        arguments: ["/usr/bin/qemu-img", "bench", "-w", "-f", "raw", "-t", "none", "-c", "\(count)", "-d", "\(depth)",
                                    "-s", "\(size)", "nbd+unix:///disk?socket=\(socket)"])
        }
    }

    /// GiB/s, and the server's processor time in seconds a GiB. No server: ours, in this process, which does nothing else meanwhile.
    private static func measure(_ server: Server?, _ load: Load, _ socket: String) throws -> (rate: Double, cost: Double) {
        unlink(socket)
        let gib = Double(load.bytes) / Double(1 << 30)
        func timed(_ pid: pid_t) throws -> (rate: Double, cost: Double) {
            let processor = processorSeconds(pid)
            let begin = MonotonicTime.now
            try runProgram(load.arguments[0], Array(load.arguments.dropFirst()))
            let seconds = MonotonicTime.now.milliseconds(since: begin) / 1000
            return (gib / seconds, (processorSeconds(pid) - processor) / gib)
        }
        guard let server else {
            let ours = try NBDServer(path: socket, mode: 0o600, exports: [try RingExport(byteCount: 1 << 30)])
            ours.start()
            defer { ours.stop() }
            return try timed(getpid())
        }
        let process = try Subprocess.spawn(server.arguments[0], arguments: Array(server.arguments.dropFirst()), descriptors: [])
        defer {
            process.signal(SIGTERM)
            _ = process.wait(until: MonotonicTime.now.adding(milliseconds: 5000))
        }
        try waitFor("the socket of \(server.name)", seconds: 5) { access(socket, F_OK) == 0 }
        return try timed(process.pid)
    }

    private static func report(_ load: Load, _ peers: [String], _ rates: [String: [Double]], _ costs: [String: [Double]],
                               _ bench: Bench) -> [String: Any] {
        func median(_ values: [String: [Double]], _ name: String) -> Double { Distribution(values[name] ?? []).median }
        var json: [String: Any] = [:]
        var rows: [[String]] = []
        for name in ["ours"] + peers {
            let (rate, cost) = (median(rates, name), median(costs, name))
            let ratio = median(rates, "ours") / rate
            rows.append([name, format(rate), format(ratio), format(cost)])
            json[name] = ["gib_per_second": rate, "ratio": ratio, "server_cpu_seconds_per_gib": cost]
        }
        printTable("Writes to an NBD server: \(load.name)", ["server", "GiB/s", "ours to it", "server CPU s/GiB"], rows)
        let best = peers.map { median(rates, $0) }.max() ?? .nan
        let ratio = median(rates, "ours") / best
        bench.target("NBD writes, \(load.name), to the best peer", format(ratio), ">= 1", met: ratio >= 1)
        return json
    }
}
