import Foundation
import Platform
import XCTest
@testable import Telemetry

final class ProbeTests: XCTestCase {
    private func soon(_ milliseconds: Double) -> MonotonicTime { .now.adding(milliseconds: milliseconds) }

    func testAResultIsHandedOutOnce() {
        let probe = Probe<Int>("test", meter: CPUMeter())
        XCTAssertNil(probe.take(until: .now))
        XCTAssertTrue(probe.start { 7 })
        XCTAssertEqual(probe.take(until: soon(5000)), 7)
        XCTAssertNil(probe.take(until: .now))
        XCTAssertTrue(probe.start { nil })
        XCTAssertNil(probe.take(until: soon(5000)))
        XCTAssertFalse(probe.isBusy)
    }

    func testOneThatHangsHoldsNobodyUpAndIsNotBegunTwice() {
        let probe = Probe<Int>("test", meter: CPUMeter())
        let gate = Guarded(false)
        XCTAssertTrue(probe.start { gate.wait(until: nil) { $0 ? 1 : nil } })
        let begin = MonotonicTime.now
        XCTAssertNil(probe.take(until: soon(50)))
        XCTAssertLessThan(MonotonicTime.now.milliseconds(since: begin), 3000)
        XCTAssertTrue(probe.isBusy)
        XCTAssertGreaterThanOrEqual(probe.busyMs ?? 0, 50, "how long it has taken so far is known")
        XCTAssertFalse(probe.start { 2 })
        gate.change { $0 = true }
        XCTAssertEqual(probe.take(until: soon(5000)), 1, "late, but nothing was begun since")
        XCTAssertNil(probe.busyMs)
    }

    func testWorkOfAllThreadsIsCounted() throws {
        let meter = CPUMeter()
        XCTAssertNil(meter.percentOfCore)
        meter.mark()
        let probe = Probe<Int>("test", meter: meter)
        probe.start {
            let end = MonotonicTime.now.adding(milliseconds: 100)
            while MonotonicTime.now < end {}
            return 1
        }
        XCTAssertEqual(probe.take(until: soon(10_000)), 1)
        meter.mark()
        let busy = try XCTUnwrap(meter.percentOfCore)
        XCTAssertGreaterThan(busy, 1)
        XCTAssertLessThan(busy, 110)
        usleep(300_000)
        meter.mark()
        XCTAssertLessThan(try XCTUnwrap(meter.percentOfCore), busy, "sleep costs nothing")
    }

    func testRates() {
        var rates = RateTable()
        let begin = MonotonicTime(nanoseconds: 1_000_000_000)
        XCTAssertNil(rates.perSecond("a", 10, at: begin))
        XCTAssertEqual(rates.perSecond("a", 30, at: begin.adding(milliseconds: 2000)), 10)
        XCTAssertNil(rates.perSecond("a", nil, at: begin.adding(milliseconds: 3000)))
        XCTAssertEqual(rates.perSecond("a", 40, at: begin.adding(milliseconds: 4000)), 5, "over the gap")
        XCTAssertNil(rates.perSecond("a", 3, at: begin.adding(milliseconds: 5000)), "it began anew")
        XCTAssertEqual(rates.perSecond("a", 4, at: begin.adding(milliseconds: 6000)), 1)
        XCTAssertNil(rates.perSecond("a", 5, at: begin.adding(milliseconds: 6000)), "no time has passed")
        XCTAssertEqual(rates.perSecond("a", 5, at: begin.adding(milliseconds: 7000)), 0)
    }

    /// Thousands of short-lived guests must not keep a later one from being measured.
    func testCountersOfLongAgoMakeRoom() {
        var rates = RateTable()
        let begin = MonotonicTime(nanoseconds: 1_000_000_000)
        for index in 0..<5000 { _ = rates.perSecond("guest \(index)", 1, at: begin) }
        let soon = begin.adding(milliseconds: 60_000), late = begin.adding(milliseconds: 700_000)
        XCTAssertNil(rates.perSecond("late", 10, at: soon))
        XCTAssertNil(rates.perSecond("late", 20, at: soon.adding(milliseconds: 1000)), "full, and all of it young")
        XCTAssertNil(rates.perSecond("late", 30, at: late))
        XCTAssertEqual(rates.perSecond("late", 40, at: late.adding(milliseconds: 1000)), 10)
    }

    func testOnlyNumbersAreNoted() {
        var values: [String: Double] = [:]
        values.note("a", nil)
        values.note("b", .nan)
        values.note("c", .infinity)
        values.noteWorst("d", of: "x", 2)
        values.noteWorst("d", of: "y", 1)
        values.noteWorst("d", of: "z", nil)
        XCTAssertEqual(values, ["d": 2, "d@x": 2, "d@y": 1])
    }
}
