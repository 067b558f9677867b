import Foundation
import Telemetry
import XCTest
@testable import Drift
@testable import Orchestration

/// Time-compressed: what a healthy pair of hosts measured of itself on a machine that was busy with other things, through the code that judges it live, on to
/// the interval and the decision to swap.
///
/// Fixtures/healthy-pair.csv: about one row a second of a protected guest that nothing was done to, both hosts on one machine of two cores on which compilers and
/// other tests ran (load 20 to 40); of each KPI that both sides have, to three digits; `host_wakeup_ms` of sleeps of 5 ms. Replayed as looks five
/// seconds apart, as shipped, they are an hour and a half, of which the first twenty minutes are learned.
final class ReplayTests: XCTestCase {
    private struct Row {
        var primary: [String: Double] = [:], shadow: [String: Double] = [:]
    }

    private struct Outcome {
        /// Of the score, from the end of learning.
        var worst = 0.0
        /// Seconds from the first row.
        var alarmAt: Double?
        var swapAt: Double?
        var shortest = Double.infinity
        var judged = 0
        var explanation: [String] = []
    }

    private static let rows: Result<[Row], any Error> = Result {
        let path = URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent().path + "/Fixtures/healthy-pair.csv"
        let lines = try String(contentsOfFile: path, encoding: .utf8).split(separator: "\n").map { $0.split(separator: ",", omittingEmptySubsequences: false) }
        guard let header = lines.first else { throw CocoaError(.fileReadCorruptFile) }
        return lines.dropFirst().map { fields in
            var row = Row()
            for (name, field) in zip(header, fields) {
                guard let value = Double(field) else { continue }
                if name.hasPrefix("p_") { row.primary[String(name.dropFirst(2))] = value } else { row.shadow[String(name.dropFirst(2))] = value }
            }
            return row
        }
    }

    /// `change` makes of each row what it is to be.
    private func replay(stepSeconds: Int, change: (Int, inout Row) -> Void = { _, _ in }) throws -> Outcome {
        var watch = DriftWatch(domain: "ledger", DriftWatch.fresh(uuid: "u", peer: "b", stepSeconds: stepSeconds, shape: nil, now: 0))
        var law = IntervalLaw(.init(configuredMs: 100, isPeriodic: false, least: 0)), swap = WarmSwapLaw(), outcome = Outcome()
        for (index, recorded) in try Self.rows.get().enumerated() {
            var row = recorded
            change(index, &row)
            let time = UInt64(1_700_000_000_000 + index * stepSeconds * 1000), seconds = Double(index * stepSeconds)
            watch.take(PairSample(uuid: "u", domain: "ledger", peer: "b", primary: Sample(time: time, values: row.primary), shadow: Sample(time: time, values: row.shadow)))
            guard let score = watch.score else { continue }
            outcome.judged += 1
            if score > outcome.worst { (outcome.worst, outcome.explanation) = (score, watch.verdict?.explanation ?? []) }
            let isShadow = watch.verdict?.side == .shadow
            let interval = law.step(.init(now: seconds, pressure: isShadow ? 0 : score, cause: "drift", pauseShare: 0.05, isLagging: false))
            watch.law = law
            outcome.shortest = min(outcome.shortest, interval)
            var look = WarmSwapLaw.Look(now: seconds, score: score)
            (look.onDrift, look.commitAgeMs, look.isShadowAccused) = (.swap, 50, isShadow && score >= IntervalLaw.enter)
            if case .swap = swap.decide(look) { outcome.swapAt = outcome.swapAt ?? seconds }
            if score >= 1 { outcome.alarmAt = outcome.alarmAt ?? seconds }
        }
        return outcome
    }

    func testHealthyNoiseIsNoAlarm() throws {
        let outcome = try replay(stepSeconds: 5)
        XCTAssertGreaterThan(Double(outcome.judged * 5), 3600, "an hour after learning")
        XCTAssertGreaterThan(outcome.worst, 0)
        XCTAssertLessThan(outcome.worst, 1, "\(outcome.explanation)")
        XCTAssertNil(outcome.swapAt)
    }

    /// Compilers begin on both hosts, three times for five minutes: everything takes longer there, by the same measure.
    func testSurgesOnBothSidesAreNoAlarm() throws {
        let busy: Set = ["host_storage_write_ms", "host_storage_read_ms", "host_wakeup_ms", "peer_round_trip_ms", "host_memory_latency_ns", "host_load_1m"]
        let outcome = try replay(stepSeconds: 5) { index, row in
            guard [400..<460, 560..<620, 760..<820].contains(where: { $0.contains(index) }) else { return }
            for name in busy {
                row.primary[name]? *= 4
                row.shadow[name]? *= 4
            }
        }
        XCTAssertLessThan(outcome.worst, 1, "\(outcome.explanation)")
        XCTAssertNil(outcome.swapAt)
    }

    /// The same noise, and from the 60th minute on a disk that takes ten times as long: found in it within the time that three blocks and the policy's minute take, and some.
    func testAFaultInTheSameNoiseIsFound() throws {
        let begin = 720
        let outcome = try replay(stepSeconds: 5) { index, row in if index >= begin { row.primary["host_storage_write_ms"]? *= 10 } }
        let alarm = try XCTUnwrap(outcome.alarmAt, "worst \(outcome.worst): \(outcome.explanation)") - Double(begin * 5)
        XCTAssertTrue((0...600).contains(alarm), "\(alarm) s")
        XCTAssertLessThan(outcome.shortest, 50, "and epochs came more often")
        let swap = try XCTUnwrap(outcome.swapAt) - Double(begin * 5)
        XCTAssertTrue((alarm + 55...alarm + 130).contains(swap), "alarm after \(alarm) s, swap after \(swap) s")
        print("MEASURED replayed fault: alarm after \(alarm) s, swap after \(swap) s")
    }
}
