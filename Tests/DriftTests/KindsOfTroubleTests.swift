import XCTest
@testable import Drift

/// Trouble of many shapes, none of which the analyzer knows by name; and what looks like trouble and is none.
final class KindsOfTroubleTests: XCTestCase {
    private typealias Bend = (_ row: Int, _ value: Double, _ noise: inout Noise) -> Double

    private func found(_ name: String, _ seed: UInt64, from start: Int = 600, for length: Int, _ bend: @escaping Bend) -> Int? {
        var noise = Noise(seed + 100)
        let all = verdicts(pair(rows: start + length + 20, seed: seed) { row, primary, _ in
            guard (start..<start + length).contains(row), let value = primary[name] ?? nil else { return }
            primary[name] = bend(row - start, value, &noise)
        })
        return all.firstAlarm.map { $0 - start }
    }

    private func assertFound(_ name: String, for length: Int, within rows: Int, line: UInt = #line, _ bend: @escaping Bend) {
        for seed: UInt64 in 1...3 {
            let delay = found(name, seed, for: length, bend)
            XCTAssertTrue(delay.map { (0...rows).contains($0) } ?? false, "seed \(seed): \(delay.map(String.init) ?? "not found")", line: line)
        }
    }

    func testGrowingScatter() { assertFound("disk_latency_ms", for: 120, within: 60) { $1 * exp(0.5 * $2.normal()) } }
    func testPeriodicStutters() { assertFound("disk_latency_ms", for: 120, within: 60) { row, value, _ in row % 10 < 2 ? 4 * value : value } }
    func testShortRepeatedBursts() { assertFound("cpu", for: 120, within: 60) { row, value, _ in row % 15 < 4 ? 1.7 * value : value } }
    func testSawtooth() { assertFound("disk_latency_ms", for: 150, within: 120) { row, value, _ in value * (1 + 0.9 * Double(row % 25) / 25) } }
    func testACapOnThroughput() { assertFound("net_rate", for: 60, within: 30) { _, value, _ in min(value, 100) } }
    func testAHang() { assertFound("net_rate", for: 30, within: 15) { _, value, _ in 0.01 * value } }
    func testASlowLeak() { assertFound("cpu", for: 240, within: 160) { row, value, _ in value * (1 + 0.5 * Double(row) / 240) } }

    func testTwoKPIsThatShiftALittleTogether() throws {
        let all = verdicts(pair(rows: 800) { row, primary, _ in
            guard row >= 600 else { return }
            scale(&primary, "cpu", by: 1.15)
            scale(&primary, "disk_latency_ms", by: 1.2)
        })
        XCTAssertTrue((600..<640).contains(try XCTUnwrap(all.firstAlarm)))
    }

    func testWhatBothSidesDoIsNone() {
        let shapes: [(name: String, work: Work)] = [
            ("level", Work { $0 < 700 ? 1 : 1.7 }), ("lull", Work { (700..<760).contains($0) ? 0.25 : 1 }),
            ("pulses", Work { (700..<780).contains($0) && $0 / 3 % 4 == 0 ? 2 : 1 }), ("climb", Work { 1 + max(0, Double($0 - 600)) / 500 }),
        ]
        for shape in shapes {
            let all = verdicts(pair(rows: 1100, work: shape.work))
            XCTAssertNil(all.firstAlarm, "\(shape.name): \(all.first(where: \.isAlarm)?.explanation ?? [])")
        }
    }

    func testSamplesOfOneSideThatAreLostForAnHourAreNone() {
        for side in [PairSide.primary, .shadow] {
            let all = verdicts(pair(rows: 900) { row, primary, shadow in
                guard (600..<660).contains(row) else { return }
                if side == .primary { primary["cpu"] = .some(nil) } else { shadow.removeValue(forKey: "cpu") }
            })
            XCTAssertNil(all.firstAlarm, "\(side): \(all.first(where: \.isAlarm)?.explanation ?? [])")
        }
    }
}
