import Foundation
import Platform
import XCTest
@testable import Replication
@testable import Transport

final class EndToEndTests: XCTestCase {
    func testEveryEpochArrivesWhole() throws {
        let rig = try Rig(seed: 1)
        XCTAssertNotNil(rig.parent.event(.firstCopyRead))
        var sizes = SeededGenerator(seed: 11)
        for epoch in 1...60 {
            try rig.epochs(1, pages: Int(sizes.next() % 40))
            try rig.assertInStep("epoch \(epoch)")
        }
        XCTAssertEqual(rig.parent.event(.following)?.epoch, 1)
        XCTAssertEqual(rig.parent.count(.linkLost), 0)
        XCTAssertEqual(rig.shadow.statistics[.committedEpoch], 60)
        rig.eventually("all committed") { rig.statistics[.committedEpoch] == 60 }
        XCTAssertEqual(rig.statistics[.epoch], 60)
        XCTAssertEqual(rig.statistics[.epochsTotal], 60)
        XCTAssertEqual(rig.statistics[.bytesResent], 0)
        XCTAssertGreaterThan(rig.statistics[.pagesDropped], 50, "Pages sent unchanged must not cross")
        XCTAssertGreaterThanOrEqual(rig.statistics[.lastCommitAt], rig.statistics[.lastCommitCaptured])
        rig.parent.send(.stop)
        XCTAssertEqual(rig.run.result(), 0)
        rig.eventually("memory returned") { rig.worker.pool.bytesInUse == 0 }
    }

    func testFreeRunning() throws {
        let rig = try Rig(seed: 2)
        try rig.epochs(150, pages: 20)
        try rig.assertInStep()
        XCTAssertLessThan(rig.statistics[.unsentEpochs], 64)
    }

    /// The memory of a session that never breaks: nothing is held once all is committed.
    func testMemoryIsReturnedWhileItRuns() throws {
        let rig = try Rig(seed: 3)
        try rig.epochs(100, pages: 60)
        try rig.assertInStep()
        rig.eventually("only the reader's chunk is in use") { rig.worker.pool.bytesInUse <= 2 << 20 }
        rig.eventually("nothing waits for a commit") { rig.worker.followers[0].backlog.counts.unsent == 0 }
    }

    func testUserSuspends() throws {
        let rig = try Rig(seed: 4)
        try rig.epochs(3)
        rig.parent.send(.suspend)
        usleep(50_000)
        XCTAssertFalse(try rig.qemu.request(ms: 300), "An epoch would start the guest that its user stopped")
        XCTAssertEqual(rig.parent.event(.suspended)?.epoch, 3)
        XCTAssertEqual(rig.statistics[.suspended], 1)
        rig.parent.send(.hold)
        XCTAssertEqual(rig.parent.event(.holdFailed)?.reason, "The guest is suspended; resume it first")
        rig.parent.send(.resume)
        XCTAssertTrue(try rig.qemu.awaitReply(ms: 2000))
        try rig.qemu.finishEpoch(pages: 5)
        try rig.epochs(3)
        try rig.assertInStep()
        XCTAssertEqual(rig.statistics[.suspended], 0)
        XCTAssertEqual(rig.parent.count(.suspended), 1)
    }

    func testWindowsAreRecorded() throws {
        let rig = try Rig(seed: 5)
        let before = SharedStatistics.realtimeNanoseconds
        XCTAssertTrue(try rig.qemu.request(ms: 2000))
        let stopped = SharedStatistics.realtimeNanoseconds
        XCTAssertTrue(rig.statistics.isInsideWindow(stopped), "The guest stops between the reply and VMSTATE_SEND: ours")
        try rig.qemu.finishEpoch(pages: 3)
        rig.eventually("recorded") { rig.statistics[.windowCount] == 1 }
        XCTAssertTrue(rig.statistics.isInsideWindow(stopped))
        XCTAssertFalse(rig.statistics.isInsideWindow(before - 1_000_000))
        XCTAssertFalse(rig.statistics.isInsideWindow(SharedStatistics.realtimeNanoseconds + 1_000_000))
        XCTAssertGreaterThan(rig.statistics.pauseQuantiles().median, 0)
    }

    func testIntervalIsKept() throws {
        let rig = try Rig(seed: 6, intervalMs: 60, intervalLimitMs: 100)
        try rig.epochs(5)
        // QEMU's own timer keeps the configured interval; the worker keeps longer ones. A shorter one counts at once, also for the request that waits already.
        rig.parent.send(.setInterval, intervalMs: 10_000)
        rig.eventually("ordered") { rig.worker.orders.read { $0.intervalMs == 10_000 } }
        XCTAssertFalse(try rig.qemu.request(ms: 200))
        rig.parent.send(.setInterval, intervalMs: 5)
        XCTAssertTrue(try rig.qemu.awaitReply(ms: 1000))
        try rig.qemu.finishEpoch(pages: 1)
        try rig.assertInStep()
    }

    // MARK: Ends

    func testQEMUCloses() throws {
        let rig = try Rig(seed: 7)
        rig.proxy.faults.change { $0.stalled = true }
        try rig.epochs(5)
        rig.qemu.hangUp()
        XCTAssertEqual(rig.parent.event(.streamEnded)?.epoch, 5)
        XCTAssertNil(rig.parent.event(.drained, ms: 100))
        rig.proxy.faults.change { $0.stalled = false }
        XCTAssertEqual(rig.parent.event(.drained)?.epoch, 5)
        try rig.assertInStep()
        rig.parent.send(.stop)
        XCTAssertEqual(rig.run.result(), 0)
    }

    /// Half an epoch is not an epoch, wherever it breaks off.
    func testQEMUClosesMidEpoch() throws {
        var random = SeededGenerator(seed: 8)
        for round in 0..<6 {
            let rig = try Rig(seed: 80 + UInt64(round))
            try rig.epochs(3)
            XCTAssertTrue(try rig.qemu.request(ms: 2000))
            let body = rig.qemu.capture(30)
            let cut = round == 0 ? 0 : round == 1 ? body.count - 1 : Int(random.next() % UInt64(body.count))
            try rig.qemu.write(Array(body.prefix(cut)))
            rig.qemu.hangUp()
            XCTAssertEqual(rig.parent.event(.streamEnded)?.epoch, 3, rig.lastWords)
            XCTAssertEqual(rig.parent.event(.drained)?.epoch, 3)
            XCTAssertEqual(try rig.assertWhole("cut after \(cut)"), 3)
            XCTAssertEqual(rig.parent.count(.failed), 0)
        }
    }

    func testQEMUClosesInTheFirstCopy() throws {
        let rig = try Rig(seed: 9, firstCopy: false)
        try rig.qemu.write(Array("QEVM".utf8) + [0, 0])
        rig.qemu.hangUp()
        XCTAssertEqual(rig.parent.event(.streamEnded)?.epoch, 0)
    }

    func testRubbishFromQEMU() throws {
        let rig = try Rig(seed: 10, firstCopy: false)
        try rig.qemu.write(Array("GET / HTTP/1.1\r\n\r\n".utf8))
        XCTAssertEqual(rig.parent.event(.failed)?.reason,
                       "Not a QEMU migration stream: it starts with 0x47455420 (QEMU stream, header, offset 0)")
        XCTAssertEqual(rig.run.result(), 1)
    }

    func testStopBetweenEpochs() throws {
        let rig = try Rig(seed: 11)
        try rig.epochs(3)
        rig.parent.send(.stop)
        XCTAssertEqual(rig.run.result(), 0)
        XCTAssertEqual(rig.parent.count(.streamEnded) + rig.parent.count(.failed), 0)
    }

    /// Stop ends a first copy that nobody empties; regression: it went on for as long as QEMU had pages.
    func testStopInTheFirstCopy() throws {
        let rig = try Rig(seed: 12, ceilingBytes: 4 << 20, firstCopy: false)
        rig.proxy.faults.change { $0.stalled = true }
        let qemu = rig.qemu
        let sending = Running { (try? qemu.firstCopy(ms: 5000, repeating: 8)) != nil }
        usleep(200_000)
        rig.parent.send(.stop)
        XCTAssertEqual(rig.run.result(seconds: 3), 0)
        XCTAssertEqual(rig.parent.count(.failed), 0)
        rig.qemu.hangUp()
        XCTAssertEqual(sending.result(), false)
    }

    /// The first copy is many times larger than the ceiling: QEMU waits, the guest runs.
    func testFirstCopyLargerThanTheCeiling() throws {
        let rig = try Rig(seed: 13, ceilingBytes: 4 << 20, firstCopy: false)
        try rig.qemu.firstCopy(repeating: 8)
        try rig.epochs(3)
        try rig.assertInStep()
    }

    /// The service dies between epochs, and inside one: that one is finished, and the guest runs on.
    func testParentGoes() throws {
        for inside in [false, true] {
            let rig = try Rig(seed: 14)
            try rig.epochs(2)
            if inside { XCTAssertTrue(try rig.qemu.request(ms: 2000)) }
            rig.parent.close_()
            if inside {
                usleep(50_000)
                XCTAssertNil(rig.run.result(seconds: 0.05), "Not before the epoch is read: the guest would stay stopped")
                try rig.qemu.finishEpoch(pages: 4)
            }
            XCTAssertEqual(rig.run.result(), 0)
        }
    }

    func testWrongSecret() throws {
        let rig = try Rig(seed: 15, secret: "another")
        XCTAssertEqual(rig.parent.event(.linkLost)?.reason, "No connection to host-b: host-b holds another secret: copy the same secret_file to both hosts")
        XCTAssertEqual(rig.shadow.statistics[.linkUp], 0)
    }

    func testUnknownSession() throws {
        // The worker connects as soon as it is there.
        let shadow = try ShadowHost(peerTimeoutMs: 2000)
        shadow.verdict.change { $0 = .unknownSession("host-b does not know this session") }
        let rig = try Rig(seed: 16, firstCopy: false, shadow: shadow)
        try rig.qemu.firstCopy()
        XCTAssertEqual(rig.parent.event(.sessionLost)?.reason, "host-b does not know this session")
        try rig.epochs(3)
        XCTAssertNil(rig.run.result(seconds: 0.05), "The guest runs on until the service ends the worker")
    }
}
