import Foundation

/// The swap's activation time, and the workers' memory, with little and with much guest memory, 48 and 1000 MiB of it filled. Some nested KVMs run
/// the guest in an emulator: filling 4 GiB would take ten minutes.
enum ActivationBenchmark {
    static let sizes: [(memoryMiB: Int, image: String)] = [(64, "filled-48"), (4096, "filled-1000")]

    static func run(_ bench: Bench) throws {
        let rounds = bench.quick ? 3 : 8
        let hosts = try TwoHosts(bench)
        var rows: [[String]] = []
        var medians: [Double] = []
        var json: [String: Any] = [:]
        // Both guests are up at the same time and are swapped in turn, so that what else the machine does meets both.
        for (memoryMiB, image) in sizes { try hosts.boot("guest\(memoryMiB)", image: image, memoryMiB: memoryMiB, bootSeconds: 600) }
        var memoryRows: [[String]] = []
        var memory: [String: Any] = [:]
        var activations: [Int: [Double]] = [:]
        var outages: [Int: [Double]] = [:]
        rounds: for round in 0..<rounds {
            let (from, to) = round.isMultiple(of: 2) ? ("A", "B") : ("B", "A")
            for (memoryMiB, _) in sizes {
                let name = "guest\(memoryMiB)"
                do {
                    try hosts.protect(name, at: from, to: to, intervalMs: 20)
                } catch where round > 0 {
                    print("activation: round \(round + 1) ended early: \(error)")
                    break rounds
                }
                usleep(500_000)
                if round == 0 {
                    usleep(2_000_000)
                    try MemoryBenchmark.measure(bench, hosts, memoryMiB: memoryMiB, &memoryRows, &memory)
                }
                let text = try hosts.shadowVirt(from, ["swap", name, "--format", "json"])
                guard let report = try JSONSerialization.jsonObject(with: Data(text.utf8)) as? [String: Any],
                      let activation = report["activation_ms"] as? Double, let outage = report["outage_ms"] as? Double else {
                    throw BenchFailure("What swap printed is not what it should: \(text)")
                }
                activations[memoryMiB, default: []].append(activation)
                outages[memoryMiB, default: []].append(outage)
            }
        }
        for (memoryMiB, _) in sizes {
            let activation = Distribution(activations[memoryMiB] ?? [])
            let outage = Distribution(outages[memoryMiB] ?? [])
            medians.append(activation.median)
            rows.append(["\(memoryMiB) MiB", "\(activation.count)", format(activation.median, 1), format(activation.at(1), 1),
                         format(outage.median, 1), format(outage.at(1), 1)])
            json["\(memoryMiB)_mib"] = ["activation_ms_median": activation.median, "activation_ms_most": activation.at(1),
                                        "outage_ms_median": outage.median, "outage_ms_most": outage.at(1)]
        }
        printTable("Swap by size of guest memory", ["memory", "swaps", "activation median ms", "most", "outage median ms", "most"], rows)
        bench.results["activation"] = json
        MemoryBenchmark.report(bench, memoryRows, memory)
        bench.target("activation, 4 GiB guest, ms", format(medians[1], 1), "<= 60", met: medians[1] <= 60)
        bench.target("activation, 4 GiB to 64 MiB", format(medians[1] / medians[0]), "<= 1.5", met: medians[1] / medians[0] <= 1.5)
    }
}
