import XCTest
@testable import Telemetry

final class WakeupProbeTests: XCTestCase {
    func testOneSleepDoesNotSpeakForAll() {
        XCTAssertEqual(WakeupProbe.mean([20, 20, 20, 4000]), 40)
        XCTAssertEqual(WakeupProbe.mean([20, 60, 20, 60]), 40)
        XCTAssertEqual(WakeupProbe.mean([]), 20)
    }

    func testThisHost() {
        let time = WakeupProbe.look()
        XCTAssertGreaterThanOrEqual(time, 20, "the kernel wakes nobody up early")
        XCTAssertLessThanOrEqual(time, 100)
    }
}
