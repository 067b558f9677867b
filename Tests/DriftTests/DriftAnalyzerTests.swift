import XCTest
@testable import Drift

final class DriftAnalyzerTests: XCTestCase {
    func testHealthyNoiseRaisesNoAlarm() {
        for seed in 1...5 {
            let all = verdicts(pair(rows: 1440, seed: UInt64(seed)))
            XCTAssertNil(all.firstAlarm, "seed \(seed): \(all.first(where: \.isAlarm)?.explanation ?? [])")
            XCTAssertTrue(all[20].isLearning)
            XCTAssertFalse(all[300].isLearning)
        }
    }

    func testRampOfLatencyIsFoundAndAccusesThePrimary() throws {
        let all = verdicts(pair(rows: 900) { index, primary, _ in
            scale(&primary, "disk_latency_ms", by: 1 + 0.5 * min(1, max(0, Double(index - 600)) / 60))
        })
        let first = try XCTUnwrap(all.firstAlarm)
        XCTAssertTrue((600..<660).contains(first), "\(first)")
        let verdict = all[first]
        XCTAssertEqual(verdict.side, .primary)
        XCTAssertTrue(verdict.accusesPrimary)
        XCTAssertEqual(verdict.contributions.first?.kpi, "disk_latency_ms")
        XCTAssertEqual(verdict.contributions.first?.direction, .primaryWorse)
        let strongest = try XCTUnwrap(verdict.contributions.first)
        XCTAssertGreaterThan(strongest.confidence, 0.99)
        XCTAssertGreaterThanOrEqual(strongest.since, 595 * 60)
        XCTAssertLessThanOrEqual(strongest.since, verdict.time)
        XCTAssertTrue(verdict.explanation.contains { $0.contains("disk_latency_ms") && $0.contains("primary worse") }, "\(verdict.explanation)")
    }

    func testIntermittentSpikesAreFound() throws {
        let all = verdicts(pair(rows: 900) { index, primary, _ in
            if index >= 600, index % 6 == 0 { scale(&primary, "disk_latency_ms", by: 5) }
        })
        let first = try XCTUnwrap(all.firstAlarm)
        XCTAssertTrue((600..<660).contains(first), "\(first)")
        XCTAssertEqual(all[first].contributions.first?.pattern, .spikes)
    }

    func testSurgeOnBothSidesRaisesNoAlarm() {
        for lag in [0, 2] {
            let all = verdicts(pair(rows: 1200, lag: lag, work: Work { index in
                (1 + 0.4 * sin(Double(index) / 150)) * ((700..<760).contains(index) || (900..<905).contains(index) ? 2.5 : 1)
            }))
            XCTAssertNil(all.firstAlarm, "lag \(lag): \(all.first(where: \.isAlarm)?.explanation ?? [])")
        }
    }

    func testFaultDuringASurgeIsStillFound() throws {
        let all = verdicts(pair(rows: 1200, work: Work { (700..<790).contains($0) ? 1.5 : 1 }) { index, primary, _ in
            if index >= 720 { scale(&primary, "disk_latency_ms", by: 3) }
        })
        XCTAssertTrue((720..<760).contains(try XCTUnwrap(all.firstAlarm)))
    }

    func testGlitchesRaiseNoAlarm() {
        let all = verdicts(pair(rows: 900) { index, primary, shadow in
            if [500, 501, 700].contains(index) { for name in primary.keys { scale(&primary, name, by: 5) } }
            if [600, 601].contains(index) { for name in shadow.keys { scale(&shadow, name, by: 0.1) } }
        })
        XCTAssertNil(all.firstAlarm)
    }

    func testLagIsFoundAndHarmless() {
        let all = verdicts(pair(rows: 900, lag: 3, work: Work { 1 + 0.5 * sin(Double($0) / 4) }))
        XCTAssertEqual(all.last?.lag, 3)
        XCTAssertNil(all.firstAlarm)
    }

    func testTroubleOfTheShadowAccusesTheShadow() throws {
        let all = verdicts(pair(rows: 800) { index, _, shadow in
            if index >= 600 { scale(&shadow, "cpu", by: 1.5) }
        })
        let first = try XCTUnwrap(all.firstAlarm)
        XCTAssertEqual(all[first + 5].side, .shadow, "\(all[first + 5].explanation)")
        XCTAssertFalse(all[first + 5].accusesPrimary)
    }

    func testCPUOfThePrimaryAccusesThePrimary() throws {
        for factor in [0.7, 1.4] {
            let all = verdicts(pair(rows: 800) { index, primary, _ in
                if index >= 600 { scale(&primary, "cpu", by: factor) }
            })
            let first = try XCTUnwrap(all.firstAlarm)
            XCTAssertEqual(all[first + 5].side, .primary, "factor \(factor): \(all[first + 5].explanation)")
        }
    }

    func testAlarmEndsAfterTheTrouble() throws {
        let all = verdicts(pair(rows: 900) { index, primary, _ in
            if (600..<640).contains(index) { scale(&primary, "net_rate", by: 0.5) }
        })
        XCTAssertTrue(all[630].isAlarm)
        XCTAssertFalse(all[670].isAlarm)
    }

    func testLostSamplesNeitherAlarmNorBlind() throws {
        var noise = Noise(9)
        let all = verdicts(pair(rows: 1000) { index, primary, shadow in
            for name in ["cpu", "disk_latency_ms", "net_rate"] {
                if noise.uniform() < 0.1 { primary[name] = .some(nil) }
                if noise.uniform() < 0.1 { shadow.removeValue(forKey: name) }
            }
            if index >= 800 { scale(&primary, "disk_latency_ms", by: 2) }
        })
        XCTAssertTrue((800..<830).contains(try XCTUnwrap(all.firstAlarm)))
    }

    func testGapOfWholeSamplesIsHarmless() {
        let samples = pair(rows: 900, lag: 2, work: Work { 1 + 0.5 * sin(Double($0) / 4) }).filter { !(600..<613).contains(Int($0.time / 60)) }
        XCTAssertNil(verdicts(samples).firstAlarm)
    }

    func testAHardwareEventLowersTheEvidenceNeeded() throws {
        let samples = pair(rows: 800) { index, primary, _ in
            scale(&primary, "disk_latency_ms", by: 1 + 0.4 * min(1, max(0, Double(index - 600)) / 100))
        }
        var analyzer = DriftAnalyzer(step: 60), other = DriftAnalyzer(step: 60)
        var first: Int?, firstOther: Int?
        for (index, sample) in samples.enumerated() {
            if index == 601 {
                analyzer.note(hardwareEvent: HardwareEvent(time: sample.time, side: .primary, sensor: "Drive 3 predictive failure"))
                other.note(hardwareEvent: HardwareEvent(time: sample.time, side: .shadow, sensor: "Fan 1"))
            }
            let verdict = analyzer.add(time: sample.time, primary: sample.primary, shadow: sample.shadow)
            if verdict.isAlarm, first == nil {
                first = index
                XCTAssertTrue(verdict.explanation.contains { $0.contains("Drive 3 predictive failure") })
            }
            if other.add(time: sample.time, primary: sample.primary, shadow: sample.shadow).isAlarm, firstOther == nil { firstOther = index }
        }
        let plain = try XCTUnwrap(verdicts(samples).firstAlarm)
        XCTAssertLessThan(try XCTUnwrap(first), plain)
        XCTAssertEqual(firstOther, plain)
    }

    func testAHardwareEventAloneIsNoDrift() {
        var analyzer = DriftAnalyzer(step: 60)
        for (index, sample) in pair(rows: 400).enumerated() {
            if index == 300 { analyzer.note(hardwareEvent: HardwareEvent(time: sample.time, side: .primary, sensor: "Fan 1")) }
            XCTAssertFalse(analyzer.add(time: sample.time, primary: sample.primary, shadow: sample.shadow).isAlarm)
        }
    }
}
