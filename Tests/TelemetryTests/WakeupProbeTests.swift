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
        let time = WakeupProbe.look()
        XCTAssertGreaterThanOrEqual(time, 5, "the kernel wakes nobody up early")
        XCTAssertLessThan(time, 5000)
    }
}
