import XCTest
@testable import Orchestration

final class IntervalLawTests: XCTestCase {
    private var law = IntervalLaw(.init(configuredMs: 100, isPeriodic: false, least: 0))
    private var now = 1000.0

    /// A second a step; the interval at the end.
    @discardableResult
    private func run(_ seconds: Int, pressure: Double = 0, pause: Double = 0.05, lags: Bool = false) -> Double {
        for _ in 0..<seconds {
            now += 1
            _ = law.step(.init(now: now, pressure: pressure, cause: "drift score \(pressure)", pauseShare: pause, isLagging: lags))
        }
        return law.intervalMs
    }

    func testBounds() {
        XCTAssertEqual(IntervalLaw.Bounds(configuredMs: 20, isPeriodic: false, least: 0).leastMs, 10)
        XCTAssertEqual(IntervalLaw.Bounds(configuredMs: 100, isPeriodic: false, least: 0).leastMs, 25)
        XCTAssertEqual(IntervalLaw.Bounds(configuredMs: 5, isPeriodic: false, least: 0).leastMs, 5, "never above the configured one")
        XCTAssertEqual(IntervalLaw.Bounds(configuredMs: 100, isPeriodic: false, least: 7).leastMs, 7)
        XCTAssertEqual(IntervalLaw.Bounds(configuredMs: 30_000, isPeriodic: true, least: 0).leastMs, 5000)
        XCTAssertEqual(IntervalLaw.Bounds(configuredMs: 3000, isPeriodic: true, least: 0).leastMs, 1000)
        XCTAssertEqual(IntervalLaw.Bounds(configuredMs: 100, isPeriodic: false, least: 0).mostMs, 400)
    }

    func testNothingHappensToAHealthyGuest() {
        XCTAssertEqual(run(7200, pressure: 0.34, pause: 0.49), 100)
        XCTAssertEqual(law.mode, .configured)
        XCTAssertEqual(law.reason, "as configured")
    }

    func testDoubtShortensAtOnceByItsDepth() {
        XCTAssertEqual(run(1, pressure: 0.5), 100)
        XCTAssertEqual(run(1, pressure: 0.75), 50, accuracy: 0.01)
        XCTAssertEqual(run(1, pressure: 1), 25, accuracy: 0.01)
        XCTAssertEqual(run(1, pressure: 7), 25, accuracy: 0.01)
        XCTAssertEqual(law.mode, .shortened)
        XCTAssertTrue(law.reason.hasPrefix("shortened: drift score"), law.reason)
        // Less pressure, as long as there is any, takes nothing back.
        XCTAssertEqual(run(600, pressure: 0.4), 25, accuracy: 0.01)
    }

    func testCalmGoesBackSlowly() {
        run(1, pressure: 1)
        XCTAssertEqual(run(59), 25, accuracy: 0.01)
        run(2)
        XCTAssertEqual(law.mode, .returning)
        let first = run(10)
        XCTAssertEqual(first, 31.25, accuracy: 0.01)
        XCTAssertLessThan(run(40), 100)
        XCTAssertEqual(run(30), 100)
        XCTAssertEqual(law.mode, .configured)
        XCTAssertEqual(law.reason, "as configured")
    }

    func testTroubleOnTheWayBackShortensAgain() {
        run(1, pressure: 1)
        run(80)
        XCTAssertGreaterThan(law.intervalMs, 26)
        XCTAssertEqual(run(1, pressure: 1), 25, accuracy: 0.01)
        // A short calm does not count.
        run(30)
        run(1, pressure: 0.4)
        run(58)
        XCTAssertEqual(law.mode, .shortened)
    }

    func testDearEpochsLengthenAndCheapOnesComeBack() {
        XCTAssertEqual(run(15, pause: 0.6), 100, "one long pause is no reason")
        XCTAssertEqual(run(10, pause: 0.6), 150)
        XCTAssertEqual(law.mode, .lengthened)
        XCTAssertTrue(law.reason.contains("60 % of the time"), law.reason)
        XCTAssertEqual(run(120, pause: 0.6), 400, "four times, no more")
        XCTAssertEqual(run(120, pause: 0.3), 400, "between dear and cheap it stays")
        XCTAssertEqual(run(120, pause: 0.05), 100)
        XCTAssertEqual(law.mode, .configured)
        XCTAssertEqual(run(35, lags: true), 225, "a shadow that lags")
        XCTAssertTrue(law.reason.contains("lags"), law.reason)
    }

    func testDoubtCountsMoreThanCost() {
        run(60, pause: 0.6)
        XCTAssertGreaterThan(law.intervalMs, 100)
        // Two thirds of the time is what doubt may cost, but it makes nothing longer than configured.
        XCTAssertEqual(run(1, pressure: 1, pause: 0.4), 100)
        XCTAssertTrue(law.reason.contains("two thirds of the guest's time"), law.reason)
        XCTAssertEqual(run(1, pressure: 1, pause: 0.05), 25, accuracy: 0.01)
        // Pauses that grow meanwhile make it longer again, but never longer than configured.
        XCTAssertEqual(run(1, pressure: 1, pause: 0.9), 33.75, accuracy: 0.01)
        XCTAssertEqual(run(10, pressure: 1, pause: 1), 100)
    }

    func testAnIntervalAtItsBoundSaysSo() {
        law = IntervalLaw(.init(configuredMs: 10, isPeriodic: false, least: 0))
        XCTAssertEqual(run(1, pressure: 1), 10)
        XCTAssertEqual(law.reason, "as configured, which is the lower bound: drift score 1.0")
    }
}
