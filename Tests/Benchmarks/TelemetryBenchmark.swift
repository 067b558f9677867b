import Foundation
import Glibc
import Platform

/// What telemetry costs as shipped: phases with and without it in turn, in one run, so that what else changes on the machine cancels.
enum TelemetryBenchmark {
    private static let settleSeconds: UInt32 = 4
    private static let interval = 5

    /// One phase.
    private struct Phase {
        var pauses: [Double]
        /// Of a core, of both services together.
        var percent: Double
        var median: Double { Distribution(pauses).median }
        var p99: Double { Distribution(pauses).p99 }
    }

    static func run(_ bench: Bench) throws {
        var json: [String: Any] = [:]
        for (name, image) in [("idle", "ledger"), ("busy", "ledger-busy")] { json[name] = try measure(bench, name, image) }
        bench.results["telemetry"] = json
    }

    private static func measure(_ bench: Bench, _ name: String, _ image: String) throws -> [String: Any] {
        let seconds = bench.quick ? 10.0 : 20.0, pairs = bench.quick ? 4 : 12
        let hosts = try TwoHosts(bench)
        try hosts.boot(image, image: image)
        try hosts.protect(image, intervalMs: 20)
        let events = try StopsAndResumes(hosts.connection("A"))
        defer { events.end() }
        var on: [Phase] = [], off: [Phase] = [], own: [Double] = []
        for pair in 0..<pairs {
            for isOn in pair % 2 == 0 ? [false, true] : [true, false] {
                let phase = try phase(hosts, image, isOn, events, seconds)
                if isOn { on.append(phase) } else { off.append(phase) }
                if isOn, let percent = try hosts.telemetryPercent() { own.append(percent) }
            }
        }
        let result = tell(bench, name, on, off, own)
        bench.cleanUp()
        return result
    }

    private static func phase(_ hosts: TwoHosts, _ guest: String, _ isOn: Bool, _ events: StopsAndResumes, _ seconds: Double) throws -> Phase {
        // A machine that is busy with other things may take the guest's protection down in the middle: that phase says nothing.
        for _ in 0..<3 { if let phase = try attempt(hosts, guest, isOn, events, seconds) { return phase } }
        throw BenchFailure("\(guest) had no epochs in three phases of \(Int(seconds)) s")
    }

    private static func attempt(_ hosts: TwoHosts, _ guest: String, _ isOn: Bool, _ events: StopsAndResumes, _ seconds: Double) throws -> Phase? {
        // Anew before each phase, whether it changes or not: both kinds have a young service.
        try hosts.restart("telemetry_interval", isOn ? "\(interval)" : "0")
        try waitFor("\(guest) to be protected", seconds: 30) { try hosts.status(guest)["state"] as? String == "protected" }
        sleep(settleSeconds)
        let services = try ["A", "B"].map { try hosts.service($0) }
        let begin = MonotonicTime.now, before = try services.map(processorNanoseconds)
        let pauses = events.listen(seconds: seconds)
        let used = zip(try services.map(processorNanoseconds), before).reduce(0.0) { $0 + Double($1.0 - $1.1) }
        let percent = used / 1e6 / MonotonicTime.now.milliseconds(since: begin) * 100
        guard pauses.count > 10 else { return nil }
        return Phase(pauses: pauses, percent: percent)
    }

    private static func tell(_ bench: Bench, _ name: String, _ on: [Phase], _ off: [Phase], _ own: [Double]) -> [String: Any] {
        let kinds: [(String, (Phase) -> Double)] = [("pause median ms", \.median), ("pause p99 ms", \.p99), ("services, % of a core", \.percent)]
        var rows: [[String]] = [], json: [String: Any] = ["own_percent_of_core": Distribution(own).median, "pairs": on.count]
        for (title, value) in kinds {
            let differences = zip(on, off).map { value($0) - value($1) }, all = Distribution(differences)
            let error = standardError(differences), without = Distribution(off.map(value)).median
            let isBeyond = abs(all.median) > 2 * error
            rows.append([title, format(without), format(Distribution(on.map(value)).median), format(all.median, 3),
                         "\(format(all.at(0.25), 3)) ... \(format(all.at(0.75), 3))", isBeyond ? "yes" : "no"])
            json[title] = ["without": without, "with": Distribution(on.map(value)).median, "difference_median": all.median, "standard_error": error,
                           "differences": differences]
            if title.hasPrefix("pause median") {
                bench.target("\(name) guest: median pause with telemetry", "\(format(all.median, 3)) ms more", "within noise", met: !isBeyond || all.median < 0)
            }
        }
        printTable("Telemetry every \(interval) s with an \(name) guest at 20 ms, \(on.count) pairs of phases",
                   ["", "without", "with", "difference", "middle half", "beyond noise"], rows)
        print("  by its own meter \(format(Distribution(own).median)) % of a core")
        // Two services: one of each is what a host has.
        let perHost = Distribution(zip(on, off).map { $0.percent - $1.percent }).median / 2
        bench.target("\(name) guest: telemetry on one host", "\(format(perHost)) % of a core", "<= 0.5 %", met: perHost <= 0.5)
        return json
    }

    /// Of the median, from the median deviation: 1.2533 sigma / sqrt(n), sigma = 1.4826 times the median deviation.
    private static func standardError(_ values: [Double]) -> Double {
        let median = Distribution(values).median
        return 1.2533 * 1.4826 * Distribution(values.map { abs($0 - median) }).median / Double(max(values.count, 1)).squareRoot()
    }

    /// A process' CPU time so far: to the nanosecond, as what is measured is a few milliseconds a phase.
    private static func processorNanoseconds(_ pid: pid_t) throws -> UInt64 {
        var clock = clockid_t(), time = timespec()
        guard clock_getcpuclockid(pid, &clock) == 0, clock_gettime(clock, &time) == 0 else { throw BenchFailure("No CPU time of process \(pid)") }
        return UInt64(time.tv_sec) * 1_000_000_000 + UInt64(time.tv_nsec)
    }
}
