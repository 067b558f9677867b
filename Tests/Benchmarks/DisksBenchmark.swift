import Foundation
import Glibc
import Libvirt

/// What it costs to have a guest's disks in its epochs: its writes, its pause, processor time; and what comes over the wire when a replica has
/// only fallen behind.
enum DisksBenchmark {
    static func run(_ bench: Bench) throws {
        try DiskWritesBenchmark.run(bench)
        bench.cleanUp()
        try DiskPauseBenchmark.run(bench)
        bench.cleanUp()
        try DiskResyncBenchmark.run(bench)
    }
}

/// The guest's pause with its disk in the epochs and without, the same guest writing to its disk in the same way, in turn.
enum DiskPauseBenchmark {
    static func run(_ bench: Bench) throws {
        let seconds = bench.quick ? 3.0 : 6.0
        let hosts = try TwoHosts(bench)
        try hosts.boot("pauses", image: "ledger-disk")
        let events = try StopsAndResumes(hosts.connection("A"))
        defer { events.end() }
        var pauses: [String: [Double]] = [:]
        var rates: [String: [Double]] = [:]
        let kinds = [20, 100].flatMap { delay in [true, false].map { (delay, $0) } }
        func name(_ delay: Int, _ withDisk: Bool) -> String { "\(delay) ms, \(withDisk ? "with" : "without") its disk" }
        for round in 0..<(bench.quick ? 1 : 4) {
            for turn in kinds.indices {
                let (delay, withDisk) = kinds[(turn + round) % kinds.count]
                try hosts.protect("pauses", intervalMs: delay, withDisks: withDisk)
                let found = events.listen(seconds: seconds)
                pauses[name(delay, withDisk), default: []] += found
                rates[name(delay, withDisk), default: []].append(Double(found.count) / seconds)
                try hosts.shadowVirt("A", ["unprotect", "pauses"])
            }
        }
        var rows: [[String]] = []
        var json: [String: Any] = [:]
        for (delay, withDisk) in kinds {
            let name = name(delay, withDisk)
            let (all, without) = (Distribution(pauses[name] ?? []), Distribution(pauses[self.without(delay)] ?? []))
            let rate = Distribution(rates[name] ?? []).median
            rows.append([name, format(rate, 1), format(all.median), format(all.p99), format(all.median / without.median)])
            json[name] = ["epochs_per_second": rate, "pause_ms_median": all.median, "pause_ms_p99": all.p99, "to_without": all.median / without.median]
        }
        printTable("Guest pause with its disk in the epochs and without (the guest writes to it either way)",
                   ["interval", "epochs/s", "pause median ms", "p99 ms", "to without"], rows)
        bench.results["disks_pause"] = json
    }

    private static func without(_ delay: Int) -> String { "\(delay) ms, without its disk" }
}

/// One full copy of a 4 GiB disk, a quarter of it filled, and then, 1 % of its chunks having changed meanwhile, what protecting again takes.
enum DiskResyncBenchmark {
    private static let gibibytes = 4
    private static let filledGibibytes = 1
    private static let chunkBytes = 64 << 10

    static func run(_ bench: Bench) throws {
        let hosts = try TwoHosts(bench)
        let disk = hosts.image("A", "resync-data")
        try runProgram("/usr/bin/truncate", ["-s", "\(gibibytes)G", disk])
        // In four places: the copy meets holes and data in turn.
        let part = (filledGibibytes << 10) / 4
        for index in 0..<4 {
            try runProgram("/bin/dd", ["if=/dev/urandom", "of=\(disk)", "bs=1M", "count=\(part)", "seek=\(index * (gibibytes << 10) / 4)",
                                       "conv=notrunc,fsync", "status=none"])
        }
        let keys = ["DATA=/var/lib/libvirt/images/resync-data.img"]
        var rows: [[String]] = []
        var json: [String: Any] = [:]
        func protect(_ name: String) throws -> (bytes: Double, seconds: Double) {
            let begin = MonotonicSeconds.now
            try hosts.protect("resync", intervalMs: 100, withDisks: true)
            let seconds = MonotonicSeconds.now - begin
            let bytes = try hosts.status("resync")["disk_bytes_sent"] as? Double ?? .nan
            try hosts.shadowVirt("A", ["unprotect", "resync"])
            rows.append([name, format(bytes / 1048576, 1), format(seconds, 1)])
            json[name] = ["disk_bytes_sent": bytes, "seconds": seconds]
            return (bytes, seconds)
        }
        try hosts.boot("resync", image: "ledger", keys: keys)
        let full = try protect("full copy")
        try hosts.on("A", ["virsh", "-q", "destroy", "resync"])
        let changed = try changeChunks(of: disk)
        try hosts.create("resync", keys: keys)
        let again = try protect("1 % changed")
        let nothing = try protect("nothing changed")
        printTable("Protecting a guest with a \(gibibytes) GiB disk, \(filledGibibytes) GiB of it filled (\(format(Double(changed) / 1048576, 1)) MiB changed)",
                   ["", "MiB of disks sent", "seconds until protected"], rows)
        let ratio = full.bytes / again.bytes
        json["changed_bytes"] = changed
        json["full_to_changed_bytes"] = ratio
        json["full_to_changed_seconds"] = full.seconds / again.seconds
        json["full_to_nothing_seconds"] = full.seconds / nothing.seconds
        bench.results["disks_resync"] = json
        bench.target("disk bytes sent, full copy to resync of 1 %", format(ratio, 1), ">= 10", met: ratio >= 10)
    }

    /// Writes new content into 1 % of the disk's chunks, at random; returns how many bytes that are.
    private static func changeChunks(of path: String) throws -> Int {
        let fd = open(path, O_RDWR)
        guard fd >= 0 else { throw BenchFailure("Cannot write to \(path)") }
        defer { close(fd) }
        let all = (gibibytes << 30) / chunkBytes
        let chosen = Set((0..<all).shuffled().prefix(all / 100))
        for chunk in chosen {
            let bytes = (0..<chunkBytes / 8).map { _ in UInt64.random(in: .min ... .max) }
            guard pwrite(fd, bytes, chunkBytes, off_t(chunk * chunkBytes)) == chunkBytes else { throw BenchFailure("Cannot write to \(path)") }
        }
        fsync(fd)
        return chosen.count * chunkBytes
    }
}
