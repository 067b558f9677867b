import Foundation
import Glibc

/// Processor time of all who take part in protecting one guest at 20 ms, and of QEMU with and without protection.
enum CPUBenchmark {
    static func run(_ bench: Bench) throws {
        let seconds = bench.quick ? 5.0 : 15.0
        let hosts = try TwoHosts(bench)
        try hosts.boot("ledger", image: "ledger")
        guard let qemu = hosts.qemu("A", "ledger") else { throw BenchFailure("No QEMU of ledger") }
        func measure(_ processes: [(String, pid_t?)]) -> [(name: String, share: Double)] {
            let before = processes.map { processorSeconds($0.1 ?? 0) }
            usleep(UInt32(seconds * 1e6))
            return zip(processes, before).map { ($0.0.0, (processorSeconds($0.0.1 ?? 0) - $0.1) / seconds) }
        }
        let idle = measure([("QEMU, unprotected", qemu)])
        try hosts.protect("ledger", intervalMs: 20)
        usleep(1_000_000)
        let busy = measure([
            ("source worker", try hosts.worker("A")), ("shadow worker", try hosts.worker("B")),
            ("service A", try hosts.service("A")), ("service B", try hosts.service("B")),
            ("libvirtd A", hosts.libvirtd("A")), ("libvirtd B", hosts.libvirtd("B")), ("QEMU, protected", qemu),
        ])
        try hosts.shadowVirt("A", ["unprotect", "ledger"])
        let ours = busy.prefix(4).reduce(0) { $0 + $1.share }
        let all = [("all of ours (workers and services)", ours)] + busy.map { ($0.name, $0.share) } + idle.map { ($0.name, $0.share) }
        printTable("Processor time a second of protection at 20 ms (64 MiB ledger guest)", ["process", "% of a core"],
                   all.map { [$0.0, format($0.1 * 100, 1)] })
        bench.results["cpu"] = Dictionary(uniqueKeysWithValues: all.map { ($0.0, $0.1) })
    }
}
