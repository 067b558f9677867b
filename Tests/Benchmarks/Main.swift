import Foundation
import Glibc

/// `shadow-virt-benchmark`, started by run.sh, which builds what it needs.
@main
enum Main {
    /// In the order in which they run.
    static let benchmarks: [(name: String, run: @Sendable (Bench) throws -> Void)] = [
        ("pause", PauseBenchmark.run), ("ingest", IngestBenchmark.run), ("libvirt", LibvirtPauseBenchmark.run),
        ("cpu", CPUBenchmark.run), ("activation", ActivationBenchmark.run), ("nbd", NBDBenchmark.run),
        ("disks", DisksBenchmark.run), ("passes", PassesBenchmark.run),
        ("telemetry", TelemetryBenchmark.run),
    ]

    static func main() {
        signal(SIGPIPE, SIG_IGN)
        var names: [String] = []
        var values: [String: String] = [:]
        var quick = false
        var arguments = CommandLine.arguments.dropFirst()
        while let argument = arguments.popFirst() {
            switch argument {
            case "--quick": quick = true
            case "--json", "--root", "--work", "--binaries": values[argument] = arguments.popFirst()
            default: names.append(argument)
            }
        }
        let known = benchmarks.map(\.name)
        guard let root = values["--root"], let work = values["--work"], let binaries = values["--binaries"],
              names.allSatisfy(known.contains) else {
            print("Usage: run.sh [--json FILE] [--quick] [\(known.joined(separator: "|"))...]")
            exit(64)
        }
        let bench = Bench(root: root, work: work, binaries: binaries, quick: quick)
        var failed = false
        for (name, run) in benchmarks where names.isEmpty || names.contains(name) {
            do {
                try run(bench)
            } catch {
                failed = true
                bench.results[name] = ["error": "\(error)"]
                print("\(name): FAILED: \(error)")
            }
            bench.cleanUp()
        }
        bench.printTargets()
        if let path = values["--json"] {
            do {
                let data = try JSONSerialization.data(withJSONObject: finite(bench.results), options: [.prettyPrinted, .sortedKeys])
                try data.write(to: URL(fileURLWithPath: path))
            } catch {
                print("Cannot write \(path): \(error)")
                failed = true
            }
        }
        exit(failed ? 1 : 0)
    }
}
