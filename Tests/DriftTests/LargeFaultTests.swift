import XCTest
@testable import Drift

/// A fault of many times the usual value must not change the scale that it is judged on, least of all while there is little history.
final class LargeFaultTests: XCTestCase {
    func testALargeFaultIsFoundAtOnceHoweverYoungTheBaseline() throws {
        for (age, factor) in [(70, 10.0), (70, 40), (130, 10), (450, 10), (450, 40)] {
            let all = verdicts(pair(rows: age + 40, seed: UInt64(age)) { index, primary, _ in
                if index >= age { scale(&primary, "disk_latency_ms", by: factor) }
            })
            let first = try XCTUnwrap(all.firstAlarm, "after \(age) rows, times \(factor)")
            XCTAssertTrue((age..<age + 8).contains(first), "after \(age) rows, times \(factor): \(first)")
            XCTAssertTrue(all[first].accusesPrimary, "after \(age) rows, times \(factor)")
        }
    }
}
