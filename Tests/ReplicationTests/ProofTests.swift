import Platform
import XCTest
@testable import Replication

/// An epoch is committed only once it is proved that nobody let the guest run while it was captured.
final class ProofTests: XCTestCase {
    func testUnprovedEpochWaits() throws {
        let rig = try Rig(seed: 31)
        rig.statistics[.eventsAway] = 0
        try rig.epochs(1)
        XCTAssertFalse(rig.shadow.waitForCommit(1, ms: 400), "Nobody has proved it")
        rig.statistics.noteResume(at: SharedStatistics.realtimeNanoseconds)
        XCTAssertTrue(rig.shadow.waitForCommit(1))
        try rig.assertInStep()
    }

    func testTornEpochIsNeverCommitted() throws {
        let rig = try Rig(seed: 32)
        rig.statistics[.eventsAway] = 0
        XCTAssertTrue(try rig.qemu.request(ms: 2000))
        // Somebody resumes the guest between the reply and the acknowledgement.
        rig.statistics.noteResume(at: SharedStatistics.realtimeNanoseconds)
        XCTAssertEqual(rig.statistics[.torn], 1)
        try rig.qemu.finishEpoch(pages: 3)
        XCTAssertNotNil(rig.parent.event(.sessionLost))
        rig.statistics.noteResume(at: SharedStatistics.realtimeNanoseconds)
        XCTAssertFalse(rig.shadow.waitForCommit(1, ms: 300), "What comes later proves nothing about it")
    }

    func testUnprovedEpochIsTakenBackWhenQEMUEnds() throws {
        let rig = try Rig(seed: 33)
        rig.statistics[.eventsAway] = 0
        try rig.epochs(1)
        rig.statistics.noteResume(at: SharedStatistics.realtimeNanoseconds)
        XCTAssertTrue(rig.shadow.waitForCommit(1))
        try rig.epochs(1)
        rig.qemu.hangUp()
        XCTAssertEqual(rig.parent.event(.drained)?.epoch, 1)
        XCTAssertFalse(rig.shadow.waitForCommit(2, ms: 300))
    }

    func testOwnResumeIsToldFromOthers() throws {
        let file = try memoryFile("statistics", bytes: SharedStatistics.bytes)
        let statistics = try SharedStatistics(file.raw)
        statistics.openWindow(start: 1_000_000)
        XCTAssertTrue(statistics.isInsideCapture(1_500_000))
        statistics.publishAcknowledgement(2_000_000)
        XCTAssertFalse(statistics.isInsideCapture(1_999_000), "QEMU's events carry microseconds, rounded down")
        XCTAssertTrue(statistics.isInsideCapture(1_900_000))
        statistics.record(windowStart: 1_000_000, windowEnd: 1_200_000, acknowledged: 2_000_000, pauseMicroseconds: 900)
        XCTAssertFalse(statistics.isInsideCapture(2_000_500))
        XCTAssertFalse(statistics.isInsideCapture(999_999))
    }
}
