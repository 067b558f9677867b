import XCTest
@testable import Telemetry

final class WakeupProbeTests: XCTestCase {
    func testOneLongWaitComesByChance() {
        XCTAssertEqual(WakeupProbe.secondLongest([0.1, 40, 0.2, 0.1]), 0.2)
        XCTAssertEqual(WakeupProbe.secondLongest([40, 0.1, 38, 0.2]), 38)
        XCTAssertEqual(WakeupProbe.secondLongest([3]), 3)
        XCTAssertEqual(WakeupProbe.secondLongest([]), 0)
    }

    func testThisHost() {
        let late = WakeupProbe.look()
        // The kernel wakes nobody up early, and not to the microsecond.
        XCTAssertGreaterThan(late, 0.001)
        XCTAssertLessThan(late, 5000)
    }
}
