import XCTest
@testable import ControlProtocol
@testable import Orchestration

final class MigrationEstimateTests: XCTestCase {
    private let mib: UInt64 = 1 << 20

    private func estimate(memory: UInt64 = 1024, disks: UInt64 = 0, dirty: UInt64, bandwidth: UInt64 = 100, downtimeMs: UInt64 = 300,
                          autoConverge: Bool = false, postcopy: Bool = false) -> MigrationEstimate {
        MigrationEstimate(.init(memoryBytes: memory * mib, diskBytes: disks * mib, dirtyBytesPerSecond: dirty * mib, bandwidthBytesPerSecond: bandwidth * mib,
                                downtimeLimitMs: downtimeMs, autoConverge: autoConverge, postcopy: postcopy))
    }

    func testAnIdleGuestTakesOnePass() throws {
        let idle = estimate(disks: 500, dirty: 0)
        XCTAssertEqual(idle.converges, .yes)
        XCTAssertEqual(try XCTUnwrap(idle.course), .init(durationMs: 15_240, downtimeMs: 0, bytes: 1524 * mib, throttlePercent: 0))
    }

    /// 20 MiB/s at 100 MiB/s: 10.24 s for the first pass, then 204.8 MiB, 40.96 MiB, and at the end what it may dirty in a second, 200 ms.
    func testPassesBecomeShorter() throws {
        let course = try XCTUnwrap(estimate(dirty: 20).course)
        XCTAssertEqual(course.bytes >> 20, 1289)
        XCTAssertEqual(course.durationMs, 12_897, accuracy: 2)
        XCTAssertEqual(course.downtimeMs, 200, accuracy: 1)
    }

    /// What it dirties in a second fits into the downtime: it converges whatever the pattern. If not, that depends.
    func testWhatASecondLeavesDecides() {
        XCTAssertEqual(estimate(dirty: 29).converges, .yes)
        XCTAssertEqual(estimate(dirty: 60).converges, .uncertain)
        XCTAssertEqual(estimate(dirty: 100).converges, .no)
        XCTAssertNil(estimate(dirty: 100).course)
        XCTAssertEqual(estimate(dirty: 60, downtimeMs: 700).converges, .yes)
    }

    /// A guest cannot dirty more than it has.
    func testASmallGuestFitsIntoTheDowntime() {
        XCTAssertEqual(estimate(memory: 25, dirty: 5000).converges, .yes)
    }

    func testAutoConvergeSlowsItDownUntilItFits() throws {
        let slowed = estimate(dirty: 150, autoConverge: true)
        XCTAssertNotEqual(slowed.converges, .no)
        XCTAssertGreaterThanOrEqual(try XCTUnwrap(slowed.course).throttlePercent, 20)
        XCTAssertEqual(try XCTUnwrap(estimate(dirty: 5, autoConverge: true).course).throttlePercent, 0)
    }

    func testPostcopyAlwaysConverges() throws {
        let course = try XCTUnwrap(estimate(dirty: 5000, postcopy: true).course)
        XCTAssertEqual(course.downtimeMs, 0)
        XCTAssertEqual(course.bytes, 2048 * mib)
    }

    func testExtremesDoNotTrap() {
        for value in [0, 1, UInt64.max >> 21] {
            _ = MigrationEstimate(.init(memoryBytes: value, diskBytes: value, dirtyBytesPerSecond: value, bandwidthBytesPerSecond: 0, downtimeLimitMs: value))
        }
    }
}
