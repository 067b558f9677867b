import Glibc
import XCTest
@testable import Platform

final class LogTests: XCTestCase {
    /// The variable is inherited by whoever is started below a unit; it counts for the descriptor only that it names.
    func testJournalStream() throws {
        var ends: [Int32] = [0, 0]
        XCTAssertEqual(pipe(&ends), 0)
        defer { ends.forEach { close($0) } }
        var status = stat()
        XCTAssertEqual(fstat(ends[1], &status), 0)
        let own = "\(status.st_dev):\(status.st_ino)"
        XCTAssertTrue(Log.isJournal(ends[1], stream: own))
        for other in [nil, "", ":", "\(status.st_dev)", "\(status.st_dev):\(status.st_ino &+ 1)", "x:\(status.st_ino)", own + ":1", "\(status.st_dev &+ 1):\(status.st_ino)"] {
            XCTAssertFalse(Log.isJournal(ends[1], stream: other), other ?? "nil")
        }
        XCTAssertFalse(Log.isJournal(-1, stream: own))
    }

    func testTimestamps() {
        XCTAssertEqual(Timestamp.seconds("2024-05-01T10:00:00.250Z"), 1_714_557_600.25)
        XCTAssertEqual(Timestamp.seconds(Timestamp.format(seconds: 951_782_400, milliseconds: 7)), 951_782_400.007)
        for text in ["", "now", "2024-05-01", "2024-13-01T10:00:00.250Z", "2024-05-01T10:00:00.250", "2024-05-01T10:00:00Z", "99999999999-05-01T10:00:00.250Z"] {
            XCTAssertNil(Timestamp.seconds(text), text)
        }
    }
}
