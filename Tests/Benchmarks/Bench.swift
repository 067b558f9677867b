import Foundation
import Glibc
import Platform

struct BenchFailure: Error, CustomStringConvertible {
    let description: String
    init(_ description: String) { self.description = description }
}

/// What all benchmarks share: folders, results, and what has to be ended at the end.
final class Bench {
    let root: String
    let work: String
    let binaries: String
    let quick: Bool
    var results: [String: Any] = [:]
    private var targets: [[String]] = []
    private var cleanups: [() -> Void] = []

    init(root: String, work: String, binaries: String, quick: Bool) {
        self.root = root
        self.work = work
        self.binaries = binaries
        self.quick = quick
        try? FileManager.default.createDirectory(atPath: work, withIntermediateDirectories: true)
    }

    /// Another build of ours to measure beside this one: before and after in the same run.
    let otherBuild = ProcessInfo.processInfo.environment["SHADOW_VIRT_OTHER"]
    var shadowVirt: String { "\(binaries)/shadow-virt" }
    func guest(_ name: String) -> String { "\(work)/guests/\(name).img" }

    /// Runs at the end of the benchmark, last one first.
    func atEnd(_ body: @escaping () -> Void) { cleanups.append(body) }

    func cleanUp() {
        while let body = cleanups.popLast() { body() }
    }

    /// A promise and what became of it.
    func target(_ what: String, _ value: String, _ limit: String, met: Bool) {
        targets.append([what, value, limit, met ? "met" : "MISSED"])
    }

    func printTargets() {
        guard !targets.isEmpty else { return }
        printTable("Targets", ["", "measured", "target", ""], targets)
    }
}

/// A table with its title; the first column to the left, the others to the right.
func printTable(_ title: String, _ header: [String], _ rows: [[String]]) {
    let all = [header] + rows
    let widths = header.indices.map { column in all.map { $0[column].count }.max() ?? 0 }
    print("\n\(title)")
    for row in all {
        let cells = row.enumerated().map { index, cell in
            let pad = String(repeating: " ", count: widths[index] - cell.count)
            return index == 0 ? cell + pad : pad + cell
        }
        print("  " + cells.joined(separator: "  "))
    }
    fflush(nil)
}

func format(_ value: Double, _ digits: Int = 2) -> String { String(format: "%.\(digits)f", value) }

/// JSON knows neither infinity nor what is no number: null stands for both.
func finite(_ value: Any) -> Any {
    switch value {
    case let number as Double: number.isFinite ? number : NSNull()
    case let list as [Any]: list.map(finite)
    case let table as [String: Any]: table.mapValues(finite)
    default: value
    }
}

/// Sorted once, asked often.
struct Distribution {
    private let sorted: [Double]
    init(_ values: [Double]) { sorted = values.sorted() }
    var count: Int { sorted.count }
    func at(_ quantile: Double) -> Double {
        sorted.isEmpty ? .nan : sorted[min(sorted.count - 1, Int(Double(sorted.count) * quantile))]
    }
    var median: Double { at(0.5) }
    var p99: Double { at(0.99) }
}

/// Seconds of a clock that nobody sets.
enum MonotonicSeconds {
    static var now: Double { Double(MonotonicTime.now.nanoseconds) / 1e9 }
}

/// Waits for a condition, looking every 5 ms.
func waitFor(_ what: String, seconds: Double, _ condition: () throws -> Bool) throws {
    let deadline = MonotonicTime.now.adding(milliseconds: seconds * 1000)
    while try !condition() {
        guard deadline > .now else { throw BenchFailure("Waited \(Int(seconds)) s for \(what)") }
        usleep(5000)
    }
}

/// Runs a program and returns what it printed on stdout; anything but exit status 0 is an error.
///
/// Not Foundation's `Process`: that one waits until daemons which the program leaves behind have ended, too.
@discardableResult
func runProgram(_ program: String, _ arguments: [String], seconds: Double = 120) throws -> String {
    // In the run's own folder, which run.sh removes also when it is cut off here.
    let path = "\(ProcessInfo.processInfo.environment["TMPDIR"] ?? "/tmp")/shadow-virt-benchmark-output.\(getpid())"
    defer { unlink(path) }
    let process = try Subprocess.spawn("/bin/bash", arguments: ["-c", "out=$1; shift; exec \"$@\" >\"$out\"", "run", path, program] + arguments,
                                       descriptors: [])
    let status = process.wait(until: MonotonicTime.now.adding(milliseconds: seconds * 1000))
    if status == nil { process.signal(SIGKILL) }
    let text = (try? String(contentsOfFile: path, encoding: .utf8)) ?? ""
    guard status == "exit 0" else {
        throw BenchFailure("\(([program] + arguments).joined(separator: " ")): \(status ?? "no end after \(Int(seconds)) s")")
    }
    return text
}

/// Processor time of a process so far, seconds (user and system).
func processorSeconds(_ pid: pid_t) -> Double {
    guard let text = try? String(contentsOfFile: "/proc/\(pid)/stat", encoding: .utf8),
          let end = text.lastIndex(of: ")") else { return .nan }
    let fields = text[text.index(after: end)...].split(separator: " ")
    guard fields.count > 12, let user = Double(fields[11]), let system = Double(fields[12]) else { return .nan }
    return (user + system) / Double(sysconf(Int32(_SC_CLK_TCK)))
}
