import XCTest
@testable import ControlProtocol

final class DataRateTests: XCTestCase {
    func testRates() throws {
        for (text, bytes) in [("65536", 65536), ("64KiB", 65536), ("64KiB/s", 65536), ("1.5MiB", 1_572_864), ("1GiB/s", 1 << 30), ("1024GiB", 1 << 40), ("100000B/s", 100_000)] as [(String, UInt64)] {
            XCTAssertEqual(try DataRate.parse(text), bytes, text)
        }
    }

    func testNonsense() {
        for text in ["", "fast", "-1MiB", ".5MiB", "5.", "1.2.3MiB", "50MB", "50 MiB", "50mib", "MiB", "1e9", "٥MiB", String(repeating: "9", count: 400)] {
            XCTAssertThrowsError(try DataRate.parse(text), text) { XCTAssertTrue("\($0)".contains("is no rate"), "\($0)") }
        }
        for text in ["0", "65535", "63KiB", "1025GiB", "99999999999999999999GiB"] {
            XCTAssertThrowsError(try DataRate.parse(text), text) { XCTAssertTrue("\($0)".contains("out of range"), "\($0)") }
        }
    }
}
