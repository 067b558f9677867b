import Foundation
import Glibc

/// The guest's pause in an epoch and epochs a second, by QEMU's own STOP and RESUME times: one QEMU, no libvirt, and three kinds of
/// other ends, in turn.
enum PauseBenchmark {
    static let delays = [20, 5, 10, 100]
    private static let kinds: [(name: String, make: @Sendable (Bench) throws -> any Receiver)] = [
        ("QEMU's secondary", { try QEMUSecondary($0) }),
        ("shadow-virt workers", { try Workers($0) }),
        ("acknowledging only", { try AcknowledgeOnly($0) }),
    ]

    static func run(_ bench: Bench) throws {
        var kinds = kinds
        if let other = bench.otherBuild {
            kinds.insert(("other build's workers", { try Workers($0, program: other) }), at: 2)
        }
        let rounds = bench.quick ? 1 : 3
        let seconds = bench.quick ? 2.0 : 3.0
        var pausesOf: [String: [Int: [Double]]] = [:]
        var durations: [String: [Int: Double]] = [:]
        let primary = try QEMU(bench, name: "primary")
        bench.atEnd { primary.end() }
        for round in 0..<rounds {
            // Another order each round, so that none always comes after the same neighbour.
            for kind in kinds[round % kinds.count ..< kinds.count] + kinds[..<(round % kinds.count)] {
                let receiver = try kind.make(bench)
                do {
                    try measure(primary, receiver, seconds) { delay, pauses in
                        pausesOf[kind.name, default: [:]][delay, default: []] += pauses
                        durations[kind.name, default: [:]][delay, default: 0] += seconds
                    }
                } catch {
                    receiver.end()
                    throw error
                }
                receiver.end()
                try primary.endCOLO()
            }
        }
        report(bench, kinds.map(\.name), pausesOf, durations)
    }

    private static func measure(_ primary: QEMU, _ receiver: any Receiver, _ seconds: Double,
                                _ add: (Int, [Double]) -> Void) throws {
        try primary.startCOLO(receiver.uri, delayMs: delays[0])
        try waitFor("the first epochs", seconds: 20) {
            usleep(100_000)
            return pauses(try primary.takeEvents()).count >= 2
        }
        for delay in delays {
            try primary.setDelay(delay)
            receiver.setInterval(Double(delay))
            usleep(400_000)
            _ = try primary.takeEvents()
            // Events stay in the socket meanwhile: nobody wakes up for them during a pause.
            usleep(UInt32(seconds * 1e6))
            add(delay, pauses(try primary.takeEvents()))
        }
    }

    private static func report(_ bench: Bench, _ names: [String], _ pausesOf: [String: [Int: [Double]]], _ durations: [String: [Int: Double]]) {
        var rows: [[String]] = []
        var json: [String: Any] = [:]
        let peer = names[0]
        for delay in delays.sorted() {
            let reference = Distribution(pausesOf[peer]?[delay] ?? []).median
            for name in names {
                let distribution = Distribution(pausesOf[name]?[delay] ?? [])
                let rate = Double(distribution.count) / (durations[name]?[delay] ?? 1)
                let ratio = distribution.median / reference
                rows.append(["\(delay) ms", name, format(rate, 1), format(distribution.median), format(distribution.p99), format(ratio)])
                json["\(delay)_ms \(name)"] = ["epochs_per_second": rate, "pause_ms_median": distribution.median,
                                               "pause_ms_p99": distribution.p99, "ratio_to_qemu_secondary": ratio]
                if delay == 20, name == names[1] {
                    bench.target("pause at 20 ms: ours to QEMU's secondary", format(ratio), "<= 0.33", met: ratio <= 1.0 / 3)
                }
            }
        }
        bench.results["pause"] = json
        printTable("Guest pause and epochs a second, plain QEMU (64 MiB ledger guest; ratio to QEMU's secondary)",
                   ["interval", "other end", "epochs/s", "pause median ms", "p99 ms", "ratio"], rows)
    }
}
