import ControlProtocol
import Foundation
import XCTest
@testable import Health

final class LogTrackerTests: XCTestCase {
    private func new(_ log: [LogRecord], after last: LogRecord?) -> [Int] { LogTracker.new(in: log, after: LogMark(last: last)).map(\.id) }

    func testNewRecords() {
        let log = (1...5).map { Sample.record($0) }
        XCTAssertEqual(LogTracker.new(in: log, after: nil).map(\.id), [], "a log that is seen for the first time")
        XCTAssertEqual(new(log, after: nil), [1, 2, 3, 4, 5], "it was empty before")
        XCTAssertEqual(new(log, after: log[2]), [4, 5])
        XCTAssertEqual(new(log, after: log[4]), [])
        XCTAssertEqual(new([], after: log[4]), [], "cleared")
    }

    func testClearedLogBeginsAtOneAgain() {
        let before = Sample.record(1, time: 1000), after = Sample.record(1, time: 2000)
        XCTAssertEqual(new([after, Sample.record(2)], after: before), [1, 2])
        // The clock was reset, too: what happened tells them apart.
        XCTAssertEqual(new([Sample.record(1, time: 1000, offset: 7)], after: before), [1])
        XCTAssertEqual(new([Sample.record(1, time: 1000, asserted: false)], after: before), [1])
    }

    func testARecordIsTheSameUnderAnotherName() {
        let before = Sample.record(1, sensor: "Sensor #4", state: .unknown, text: "Event")
        XCTAssertEqual(new([Sample.record(1), Sample.record(2)], after: before), [2])
    }

    func testWrappedLog() {
        // Numbers go on from the beginning, the log's order is that of time.
        let log = [65533, 65534, 1, 2].map { Sample.record($0) }
        XCTAssertEqual(new(log, after: log[1]), [1, 2])
        XCTAssertEqual(new(log, after: log[2]), [2])
        // It lost the one that was known.
        XCTAssertEqual(new(log, after: Sample.record(65000)), [65533, 65534, 1, 2])
    }

    func testWhatIsKnownSurvivesARestart() throws {
        let folder = try Folder()
        let log = (1...3).map { Sample.record($0) }
        var tracker = LogTracker(folder: folder.path, bmc: "b:623")
        XCTAssertNil(tracker.mark)
        tracker.advance(to: log)
        XCTAssertEqual(LogTracker(folder: folder.path, bmc: "b:623").mark, LogMark(last: log[2]))
        XCTAssertNil(LogTracker(folder: folder.path, bmc: "c:623").mark, "another BMC")
        tracker.advance(to: [])
        XCTAssertEqual(LogTracker(folder: folder.path, bmc: "b:623").mark, LogMark(last: nil))
        _ = try folder.file("log.json", "{ \"bmc\"")
        XCTAssertNil(LogTracker(folder: folder.path, bmc: "b:623").mark)
    }

    func testAFolderThatIsNotThereIsNoTrap() {
        var tracker = LogTracker(folder: "/proc/no-such-folder", bmc: "b")
        tracker.advance(to: [Sample.record(1)])
        XCTAssertEqual(tracker.mark, LogMark(last: Sample.record(1)))
    }

    // MARK: Events

    private let maker = EventMaker(host: "a", before: 1_700_000_000, now: 1_700_000_030)

    func testTimesOfNewEvents() {
        let cases: [(told: UInt32?, seconds: Double)] = [
            (1_700_000_012, 1_700_000_012), (1_699_999_950, 1_699_999_950),
            // A clock that is wrong, was never set, or says "unspecified".
            (1_699_990_000, 1_700_000_030), (1_700_003_600, 1_700_000_030), (27520, 1_700_000_030), (.max, 1_700_000_030), (nil, 1_700_000_030),
        ]
        for one in cases { XCTAssertEqual(maker.event(new: Sample.record(1, time: one.told)).seconds, one.seconds, "\(one)") }
        XCTAssertEqual(maker.event(new: Sample.record(1, time: 1_700_000_012)).time, "2023-11-14T22:13:32.000Z")
    }

    func testTimesOfOldEvents() {
        XCTAssertEqual(maker.event(old: Sample.record(1, time: 1_600_000_000))?.seconds, 1_600_000_000)
        XCTAssertEqual(maker.event(old: Sample.record(1, time: 1_800_000_000))?.seconds, 1_700_000_030)
        XCTAssertNil(maker.event(old: Sample.record(1, time: 27520)))
        XCTAssertNil(maker.event(old: Sample.record(1, time: nil)))
        XCTAssertNil(maker.event(old: Sample.record(1, time: .max)))
    }

    func testChangesOfSensors() {
        let before = [Sample.sensor(1, "CPU", .nominal), Sample.sensor(2, "Fan", .nominal, type: 4), Sample.sensor(3, "PSU", .critical, type: 8), Sample.sensor(4, "DIMM", .unknown)]
        let after = [Sample.sensor(1, "CPU", .warning, value: 85, reports: ["hot"]), Sample.sensor(2, "Fan", .critical, type: 4, reports: ["slow"]),
                     Sample.sensor(3, "PSU", .nominal, type: 8), Sample.sensor(4, "DIMM", .critical), Sample.sensor(5, "New", .critical)]
        let events = maker.changes(from: before, to: after, logged: [Sample.record(1, sensor: "Fan")])
        XCTAssertEqual(events.map(\.brief), ["CPU temperature warning (sensor)", "PSU power_supply nominal over (sensor)"])
        XCTAssertEqual(events.map(\.text), ["hot", "back to nominal"])
        XCTAssertEqual(maker.changes(from: after, to: after, logged: []), [])
        XCTAssertEqual(maker.changes(from: [], to: after, logged: []), [], "the first reading")
    }

    // MARK: The host's state

    private func event(_ sensor: String, _ severity: HealthState, text: String = "x", asserted: Bool = true, ago: Double = 60) -> HardwareEvent {
        HardwareEvent(time: "T", seconds: 1_700_000_000 - ago, host: "a", sensor: sensor, kind: .other, severity: severity, isAsserted: asserted, text: text, source: .log)
    }

    private func judge(_ sensors: [SensorRecord], _ events: [HardwareEvent] = []) -> (state: HealthState, reasons: [String]) {
        Assessment.judge(sensors: sensors.map(\.reading), events: events, now: 1_700_000_000)
    }

    func testStateOfSensors() {
        XCTAssertEqual(judge([]).state, .unknown)
        XCTAssertEqual(judge([Sample.sensor(1, "A", .unknown)]).state, .unknown)
        XCTAssertEqual(judge([Sample.sensor(1, "A", .unknown), Sample.sensor(2, "B", .nominal)]).state, .nominal)
        let bad = judge([Sample.sensor(1, "A", .warning, value: 81.239, unit: "C", reports: ["hot"]), Sample.sensor(2, "B", .critical), Sample.sensor(3, "C", .nominal)])
        XCTAssertEqual(bad.state, .critical)
        XCTAssertEqual(bad.reasons, ["B: critical", "A: hot (81.24 C)"])
    }

    func testEventsCountWhereNoSensorCanBeRead() {
        let fine = [Sample.sensor(1, "A", .nominal)]
        XCTAssertEqual(judge(fine, [event("A", .critical)]).state, .nominal, "the sensor says how it is")
        XCTAssertEqual(judge(fine, [event("DIMM", .critical)]).reasons, ["DIMM: x (at T)"])
        XCTAssertEqual(judge(fine, [event("DIMM", .critical, ago: 90_000)]).state, .nominal, "a day is over")
        XCTAssertEqual(judge(fine, [event("DIMM", .critical), event("DIMM", .nominal, asserted: false)]).state, .nominal)
        XCTAssertEqual(judge(fine, [event("DIMM", .critical), event("DIMM", .nominal, text: "y", asserted: false)]).state, .critical)
        XCTAssertEqual(judge(fine, [event("DIMM", .warning), event("DIMM", .warning)]).reasons.count, 1, "the same again")
    }

    func testFigures() {
        XCTAssertEqual([45, 12.033, 0.5, -3.256, 1e20].map(Assessment.figure), ["45", "12.03", "0.5", "-3.26", "1e+20"])
    }
}
