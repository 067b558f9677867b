import Foundation
import Glibc

/// What the two workers occupy beyond the guest's RAM.
enum MemoryBenchmark {
    /// Measures the workers of the one guest that is protected, from host A to B, and adds a row a side.
    static func measure(_ bench: Bench, _ hosts: TwoHosts, memoryMiB: Int, _ rows: inout [[String]], _ json: inout [String: Any]) throws {
        for (role, host) in [("source", "A"), ("shadow", "B")] {
            let mib = try ownMiB(hosts.worker(host))
            let share = 100 * mib.total / Double(memoryMiB)
            rows.append(["\(memoryMiB) MiB", role, format(mib.total, 1), format(mib.anonymous, 1), format(mib.files, 1), format(share, 1)])
            json["\(memoryMiB)_mib_\(role)"] = ["own_mib": mib.total, "anonymous_mib": mib.anonymous, "memory_files_mib": mib.files]
            // The ceiling is what a lagging peer may cost; 256 MiB in the shipped configuration.
            let limit = Double(memoryMiB) * 0.02 + 256
            bench.target("\(role) worker's memory, \(memoryMiB) MiB guest, MiB", format(mib.total, 1), "<= \(format(limit, 0))", met: mib.total <= limit)
        }
    }

    static func report(_ bench: Bench, _ rows: [[String]], _ json: [String: Any]) {
        printTable("Memory of the workers beyond the guest's RAM", ["guest", "worker", "MiB", "anonymous", "memory files", "% of guest"], rows)
        bench.results["memory"] = json
    }

    /// Anonymous memory, libraries' relocated data included, and resident memory files but the shadow's RAM (QEMU's file).
    private static func ownMiB(_ pid: pid_t) throws -> (total: Double, anonymous: Double, files: Double) {
        var anonymous = 0.0
        var files = 0.0
        var mapping = ""
        // Not by Foundation: it takes the first kilobytes of a file in /proc for the whole.
        for line in try runProgram("/bin/cat", ["/proc/\(pid)/smaps"]).split(separator: "\n") {
            let words = line.split(separator: " ", omittingEmptySubsequences: true)
            guard words.count > 1 else { continue }
            switch words[0] {
            case "Anonymous:": anonymous += (Double(words[1]) ?? 0) / 1024
            case "Rss:" where mapping.hasPrefix("/memfd:") && !mapping.hasPrefix("/memfd:memory-backend-memfd"):
                files += (Double(words[1]) ?? 0) / 1024
            case let first where first.contains("-"): mapping = words.count > 5 ? String(words[5]) : ""
            default: break
            }
        }
        return (anonymous + files, anonymous, files)
    }
}
