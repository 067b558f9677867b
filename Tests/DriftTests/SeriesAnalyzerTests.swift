import XCTest
@testable import Drift

final class SeriesAnalyzerTests: XCTestCase {
    private func scores(_ values: [Double]) -> [Double] {
        var analyzer = SeriesAnalyzer()
        return values.enumerated().map { analyzer.add(time: Double($0) * 300, value: $1) }
    }

    private func noisy(_ count: Int, seed: UInt64 = 3) -> [Double] {
        var noise = Noise(seed)
        return (0..<count).map { _ in 50 + 3 * noise.normal() }
    }

    func testAJumpOfTheLevelAlarms() throws {
        let values = noisy(2000).enumerated().map { $0 < 1500 ? $1 : $1 + 40 }
        let first = try XCTUnwrap(scores(values).firstIndex { $0 >= 0.5 })
        XCTAssertTrue((1500..<1510).contains(first), "\(first)")
    }

    func testOneAlarmAnEpisode() {
        let values = noisy(2000).enumerated().map { $0 < 1500 ? $1 : $1 + 40 }
        XCTAssertLessThanOrEqual(scores(values)[1500..<1600].count { $0 >= 0.5 }, 1)
    }

    func testNoiseIsQuiet() {
        for seed in 1...4 { XCTAssertLessThanOrEqual(scores(noisy(3000, seed: UInt64(seed))).count { $0 >= 0.5 }, 4, "seed \(seed)") }
    }

    func testConstantSeriesIsQuiet() { XCTAssertTrue(scores([Double](repeating: 7, count: 2000)).allSatisfy { $0 < 0.5 }) }

    func testScoresLieBetweenZeroAndOne() {
        var values = noisy(1000)
        for (index, odd) in [Double.nan, .infinity, -.infinity, 1e308, -1e308, 0].enumerated() { values[300 + 30 * index] = odd }
        XCTAssertTrue(scores(values).allSatisfy { (0...1).contains($0) })
    }

    func testARestartChangesNothing() throws {
        let values = noisy(900).enumerated().map { $0 < 700 ? $1 : 3 * $1 }, expected = scores(values)
        var analyzer = SeriesAnalyzer()
        for (index, value) in values.enumerated() {
            if index == 450 { analyzer = try JSONDecoder().decode(SeriesAnalyzer.self, from: JSONEncoder().encode(analyzer)) }
            XCTAssertEqual(analyzer.add(time: Double(index) * 300, value: value), expected[index])
        }
    }

    func testWhatHappensEveryDayAtTheSameTimeIsLearned() throws {
        // Half an hour of much work at nine every day for twelve days, and once, on the last, at three.
        let values = noisy(12 * 288).enumerated().map { row, value in
            let hour = Double(row % 288) / 12
            return (9..<9.5).contains(hour) || row >= 11 * 288 && (3..<3.5).contains(hour) ? value + 60 : value
        }
        let alarms = scores(values).indices(where: { $0 >= 0.5 }).ranges.flatMap { $0 }
        XCTAssertTrue(alarms.contains { (11 * 288 + 36..<11 * 288 + 42).contains($0) }, "\(alarms)")
        XCTAssertFalse(alarms.contains { $0 > 3 * 288 && $0 % 288 >= 108 && $0 % 288 < 120 }, "\(alarms)")
    }
}
