import XCTest
@testable import Drift

final class RobustnessTests: XCTestCase {
    private func bent() -> [Sample] {
        pair(rows: 700) { index, primary, _ in
            if index >= 500 { scale(&primary, "disk_latency_ms", by: 1.4) }
        }
    }

    func testARestartChangesNothing() throws {
        let samples = bent(), expected = verdicts(samples)
        var analyzer = DriftAnalyzer(step: 60)
        for (index, sample) in samples.enumerated() {
            if index % 97 == 50 { analyzer = try JSONDecoder().decode(DriftAnalyzer.self, from: JSONEncoder().encode(analyzer)) }
            let verdict = analyzer.add(time: sample.time, primary: sample.primary, shadow: sample.shadow)
            XCTAssertEqual(verdict, expected[index], "row \(index)")
        }
        XCTAssertNotNil(expected.firstAlarm)
    }

    func testTheStateDoesNotGrow() throws {
        var analyzer = DriftAnalyzer(step: 60), early = 0
        for (index, sample) in pair(rows: 2000).enumerated() {
            analyzer.add(time: sample.time, primary: sample.primary, shadow: sample.shadow)
            if index == 500 { early = try JSONEncoder().encode(analyzer).count }
        }
        XCTAssertLessThan(Double(try JSONEncoder().encode(analyzer).count), 1.2 * Double(early))
    }

    func testUnknownNamesAreJudgedToo() throws {
        let names = ["cpu": "zulu", "disk_latency_ms": "alpha", "net_rate": "kilo"]
        func renamed(_ values: [String: Double?]) -> [String: Double?] { Dictionary(uniqueKeysWithValues: values.map { (names[$0] ?? $0, $1) }) }
        let all = verdicts(bent().map { ($0.time, renamed($0.primary), renamed($0.shadow)) })
        let first = try XCTUnwrap(all.firstAlarm)
        XCTAssertTrue((500..<540).contains(first), "\(first)")
        XCTAssertEqual(all[first].contributions.first?.kpi, "alpha")
        XCTAssertEqual(all[first].contributions.first?.kind, .generic)
    }

    func testConstantAndIdenticalSeriesStayQuiet() {
        let same = (0..<500).map { Sample(Double($0), ["cpu": 20, "errors": 0, "x": -3], ["cpu": 25, "errors": 0, "x": -4]) }
        XCTAssertTrue(verdicts(same, step: 1).allSatisfy { $0.score == 0 || $0.score < 0.3 })
    }

    func testErrorsOnOneSideOnlyAlarm() throws {
        let all = verdicts((0..<300).map { index in (60 * Double(index), ["net_errors": index < 200 ? 0 : 7], ["net_errors": 0]) })
        XCTAssertTrue((200..<220).contains(try XCTUnwrap(all.firstAlarm)))
        XCTAssertEqual(all[220].side, .primary)
    }

    func testAbsurdValuesDoNoHarm() throws {
        let odd: [Double] = [.nan, .infinity, -.infinity, -5, 0, 1e308, -1e308, .leastNonzeroMagnitude, .greatestFiniteMagnitude]
        var index = 0
        let samples = pair(rows: 900) { row, primary, shadow in
            guard row % 40 == 7, row < 800 else { return }
            primary["cpu"] = odd[index % odd.count]
            shadow["net_rate"] = odd[(index + 4) % odd.count]
            index += 1
        }
        for verdict in verdicts(samples) {
            XCTAssertTrue(verdict.score.isFinite && verdict.score >= 0)
            XCTAssertNoThrow(try JSONEncoder().encode(verdict))
        }
    }

    func testATimeThatDoesNotRiseIsRefused() {
        var analyzer = DriftAnalyzer(step: 60)
        let samples = pair(rows: 200)
        for sample in samples { analyzer.add(time: sample.time, primary: sample.primary, shadow: sample.shadow) }
        let before = analyzer.verdict
        XCTAssertEqual(analyzer.add(time: 60, primary: ["cpu": 1e9], shadow: ["cpu": 1]), before)
        XCTAssertEqual(analyzer.add(time: .nan, primary: ["cpu": 1e9], shadow: ["cpu": 1]), before)
    }

    func testAKPIThatComesLaterIsLearnedFirst() {
        let all = verdicts(pair(rows: 600) { index, primary, shadow in
            if index >= 300 { (primary["queue"], shadow["queue"]) = (40, 10) }
        })
        XCTAssertNil(all.firstAlarm)
    }

    func testNothingAtAll() {
        let verdict = verdicts([(0, [:], [:]), (1, ["cpu": nil], [:])], step: 1)[1]
        XCTAssertEqual(verdict.score, 0)
        XCTAssertTrue(verdict.isLearning)
    }

    func testClassesOfNames() {
        let expected: [String: KPIClass] = ["cpu": .utilisation, "memlat": .latency, "mem_latency_ns": .latency, "disk_write_latency_us": .latency,
                                            "diskthr": .throughput, "net_rx_bytes": .throughput, "net_drops": .errors, "edac_ce_errors": .errors,
                                            "rss_kib": .memory, "mem": .memory, "vcpu_steal_ms": .latency, "host_storage_write_ms": .latency, "disk_read_ms": .latency, "banana": .generic, "CPU": .utilisation]
        for (name, kind) in expected { XCTAssertEqual(KPIClass(name: name), kind, name) }
    }
}

/// Who is accused, and for how long.
final class LastingFaultTests: XCTestCase {
    /// Eight times the latency for two hours: the size of it must not become the scale on which the healthy side is then seen to fall.
    func testALastingFaultIsThePrimarysAllTheTime() {
        for name in ["host_storage_write_ms", "something_unknown"] {
            var analyzer = DriftAnalyzer(step: 60)
            var seed: UInt64 = 7
            func noise() -> Double {
                seed = seed &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
                return Double(seed >> 40) / Double(1 << 24)
            }
            for row in 0..<540 {
                let load = 25 + 5 * sin(Double(row) / 30)
                let primary: [String: Double?] = [name: (2 + noise()) * (row >= 420 ? 8 : 1), "host_cpu_percent": load + noise()]
                let shadow: [String: Double?] = [name: 2 + noise(), "host_cpu_percent": load + noise()]
                let verdict = analyzer.add(time: Double(row * 60), primary: primary, shadow: shadow)
                guard row >= 430 else { continue }
                XCTAssertGreaterThan(verdict.score, 0.9, "\(name), sample \(row)")
                XCTAssertEqual(verdict.side, .primary, "\(name), sample \(row): \(verdict.explanation)")
            }
        }
    }
}
