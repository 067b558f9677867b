import Foundation
import Glibc

/// What the two workers occupy beyond the guest's RAM.
enum MemoryBenchmark {
    static func run(_ bench: Bench) throws {
        let hosts = try TwoHosts(bench)
        var rows: [[String]] = []
        var json: [String: Any] = [:]
        for (memoryMiB, image) in ActivationBenchmark.sizes {
            let name = "guest\(memoryMiB)"
            try hosts.boot(name, image: image, memoryMiB: memoryMiB, bootSeconds: 300)
            try hosts.protect(name, intervalMs: 20)
            usleep(3_000_000)
            var sum = 0.0
            for (role, host) in [("source", "A"), ("shadow", "B")] {
                let mib = try ownMiB(hosts.worker(host), name)
                sum += mib.total
                rows.append(["\(memoryMiB) MiB", role, format(mib.total, 1), format(mib.anonymous, 1), format(mib.files, 1),
                             format(100 * mib.total / Double(memoryMiB), 1)])
                json["\(memoryMiB)_mib_\(role)"] = ["own_mib": mib.total, "anonymous_mib": mib.anonymous, "memory_files_mib": mib.files]
                // The ceiling is what a lagging peer may cost; 256 MiB in the shipped configuration.
                let limit = Double(memoryMiB) * 0.02 + 256
                bench.target("\(role) worker's memory, \(memoryMiB) MiB guest, MiB", format(mib.total, 1), "<= \(format(limit, 0))", met: mib.total <= limit)
            }
            try hosts.shadowVirt("A", ["unprotect", name])
            _ = try hosts.on("A", ["virsh", "-q", "destroy", name])
        }
        printTable("Memory of the workers beyond the guest's RAM", ["guest", "worker", "MiB", "anonymous", "memory files", "% of guest"], rows)
        bench.results["memory"] = json
    }

    /// Resident memory by mapping, without the shadow's RAM (QEMU's memory file) and the program itself.
    private static func ownMiB(_ pid: pid_t, _ name: String) throws -> (total: Double, anonymous: Double, files: Double) {
        var anonymous = 0.0
        var files = 0.0
        var mapping = ""
        for line in try String(contentsOfFile: "/proc/\(pid)/smaps", encoding: .utf8).split(separator: "\n") {
            let words = line.split(separator: " ", omittingEmptySubsequences: true)
            if words[0].contains("-") {
                mapping = words.count > 5 ? words[5...].joined(separator: " ") : ""
            } else if words[0] == "Rss:", let kilobytes = Double(words[1]) {
                if mapping.hasPrefix("/memfd:memory-backend-memfd") { continue }
                if mapping.hasPrefix("/memfd:") { files += kilobytes / 1024 } else if !mapping.hasPrefix("/") { anonymous += kilobytes / 1024 }
            }
        }
        return (anonymous + files, anonymous, files)
    }
}
