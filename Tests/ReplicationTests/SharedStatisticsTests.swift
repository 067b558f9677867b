import Foundation
import Platform
import XCTest
@testable import Replication

final class SharedStatisticsTests: XCTestCase {
    private func make() throws -> (writer: SharedStatistics, reader: SharedStatistics) {
        let file = try memoryFile("statistics", bytes: SharedStatistics.bytes)
        return (try SharedStatistics(file.raw), try SharedStatistics(file.raw))
    }

    func testFieldsDoNotOverlap() throws {
        let (writer, reader) = try make()
        for field in SharedStatistics.Field.allCases { writer[field] = UInt64(field.rawValue) + 100 }
        for field in SharedStatistics.Field.allCases { XCTAssertEqual(reader[field], UInt64(field.rawValue) + 100) }
        XCTAssertLessThanOrEqual(SharedStatistics.Field.allCases.count * 8, 1024)
        writer[.pauseCount] = 0
        writer[.windowCount] = 0
        for index in 0..<UInt64(SharedStatistics.pauses) {
            writer.record(windowStart: 10 + index * 10, windowEnd: 15 + index * 10, pauseMicroseconds: .max)
        }
        XCTAssertEqual(reader[.syncBytesTotal], UInt64(SharedStatistics.Field.syncBytesTotal.rawValue) + 100)
    }

    func testWindows() throws {
        let (writer, reader) = try make()
        XCTAssertFalse(reader.isInsideWindow(1_000_000))
        writer.openWindow(start: 1_000_000)
        XCTAssertFalse(reader.isInsideWindow(997_000))
        XCTAssertTrue(reader.isInsideWindow(998_000), "QEMU's events carry microseconds")
        XCTAssertTrue(reader.isInsideWindow(1_000_000))
        XCTAssertTrue(reader.isInsideWindow(.max / 2), "An open window has no end yet")
        writer.record(windowStart: 1_000_000, windowEnd: 2_000_000, pauseMicroseconds: 1)
        XCTAssertTrue(reader.isInsideWindow(2_002_000))
        XCTAssertFalse(reader.isInsideWindow(2_002_001))
        writer.openWindow(start: 10_000_000)
        XCTAssertFalse(reader.isInsideWindow(5_000_000), "Between two windows: somebody else's doing")
        XCTAssertTrue(reader.isInsideWindow(1_500_000))
        XCTAssertTrue(reader.isInsideWindow(11_000_000))
    }

    func testWindowRingWraps() throws {
        let (writer, reader) = try make()
        let count = SharedStatistics.windows * 3 + 17
        for index in 1...UInt64(count) {
            writer.openWindow(start: index * 1_000_000)
            writer.record(windowStart: index * 1_000_000, windowEnd: index * 1_000_000 + 100_000, pauseMicroseconds: 1)
        }
        let newest = UInt64(count)
        for back in 0..<UInt64(SharedStatistics.windows - 2) {
            XCTAssertTrue(reader.isInsideWindow((newest - back) * 1_000_000 + 50_000), "\(back)")
            XCTAssertFalse(reader.isInsideWindow((newest - back) * 1_000_000 + 500_000), "\(back)")
        }
        XCTAssertFalse(reader.isInsideWindow(5_050_000), "Too long ago to be known")
        // The slot of the next window holds the oldest one; opening it must not make a window without an end of that.
        writer.openWindow(start: (newest + 5) * 1_000_000)
        XCTAssertFalse(reader.isInsideWindow((newest + 1) * 1_000_000))
        XCTAssertTrue(reader.isInsideWindow((newest + 6) * 1_000_000))
    }

    func testQuantiles() throws {
        let (writer, reader) = try make()
        XCTAssertTrue(reader.pauseQuantiles() == (0, 0))
        writer.record(windowStart: 1, windowEnd: 2, pauseMicroseconds: 700)
        XCTAssertTrue(reader.pauseQuantiles() == (0.7, 0.7))
        for value in (1...99).reversed() { writer.record(windowStart: 1, windowEnd: 2, pauseMicroseconds: UInt32(value) * 1000) }
        XCTAssertEqual(reader.pauseQuantiles().median, 50, accuracy: 1)
        XCTAssertEqual(reader.pauseQuantiles().p99, 99, accuracy: 1)
        for _ in 0..<SharedStatistics.pauses * 2 { writer.record(windowStart: 1, windowEnd: 2, pauseMicroseconds: 5000) }
        XCTAssertTrue(reader.pauseQuantiles() == (5, 5), "Old pauses are forgotten")
    }
}
