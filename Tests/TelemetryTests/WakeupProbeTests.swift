import XCTest
@testable import Telemetry

final class WakeupProbeTests: XCTestCase {
    func testOneSleepDoesNotSpeakForAll() {
        XCTAssertEqual(WakeupProbe.mean([5, 5, 5, 4000]), 16.25)
        XCTAssertEqual(WakeupProbe.mean([5, 45, 5, 45]), 25)
        XCTAssertEqual(WakeupProbe.mean([]), 5)
    }

    func testThisHost() {
        let time = WakeupProbe.look()
        XCTAssertGreaterThanOrEqual(time, 5, "the kernel wakes nobody up early")
        XCTAssertLessThanOrEqual(time, 50)
    }
}
