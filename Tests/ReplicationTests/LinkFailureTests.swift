import Foundation
import Platform
import XCTest
@testable import Replication
@testable import Transport

final class LinkFailureTests: XCTestCase {
    func testReconnectSendsAgainWhatIsNotCommittedAndNothingElse() throws {
        let rig = try Rig(seed: 20)
        try rig.epochs(30, pages: 30)
        try rig.assertInStep()
        rig.eventually("committed") { rig.statistics[.committedEpoch] == 30 }
        rig.proxy.faults.change { $0.stalled = true }
        try rig.epochs(5, pages: 10)
        rig.eventually("sent") { rig.worker.followers[0].backlog.counts.lastTaken == 35 }
        usleep(20_000)
        rig.shadow.cut()
        XCTAssertNotNil(rig.parent.event(.linkLost))
        XCTAssertEqual(rig.statistics[.linkUp], 0)
        rig.proxy.faults.change { $0.stalled = false }
        try rig.assertInStep()
        XCTAssertNotNil(rig.parent.event(.following, 1))
        let resent = Int(rig.statistics[.bytesResent])
        let second = rig.proxy.forwarded.read { $0[1] }
        XCTAssertGreaterThan(resent, 5 * 4096)
        XCTAssertLessThan(second - resent, 16_384, "Handshake, introduction and heartbeats; no epoch of the 30")
        XCTAssertGreaterThanOrEqual(second, resent)
        XCTAssertEqual(rig.parent.count(.sessionLost), 0)
    }

    /// One flipped bit on the way, somewhere: noticed, sent again, never applied.
    func testDamageOnTheWay() throws {
        var random = SeededGenerator(seed: 21)
        let rig = try Rig(seed: 21)
        for round in 0..<25 {
            try rig.epochs(2, pages: 10)
            try rig.assertInStep("before round \(round)")
            let now = rig.proxy.forwarded.read { $0.last ?? 0 }
            rig.proxy.faults.change { $0.flipAt = now + Int(random.next() % 40_000) }
            var tries = 0
            while rig.proxy.faults.read({ $0.flipAt }) != nil, tries < 50 {
                try rig.epochs(1, pages: 10)
                tries += 1
            }
            XCTAssertNil(rig.proxy.faults.read { $0.flipAt })
            try rig.assertInStep("after round \(round)")
            rig.eventually("the damage of round \(round) was noticed") { rig.parent.count(.linkLost) == round + 1 }
        }
        XCTAssertEqual(rig.shadow.parent?.count(.linkLost), 25)
        XCTAssertEqual(rig.shadow.parent?.count(.sessionLost), 0, "Lines that damage now and then are no reason to give up")
        XCTAssertEqual(rig.parent.count(.sessionLost), 0)
    }

    /// The connection breaks anywhere, many times; whatever the shadow holds in between is one whole epoch.
    func testCutsAnywhere() throws {
        var random = SeededGenerator(seed: 22)
        let rig = try Rig(seed: 22, peerTimeoutMs: 3000)
        try rig.epochs(2)
        try rig.assertInStep()
        for round in 0..<16 {
            let now = rig.proxy.forwarded.read { $0.last ?? 0 }
            rig.proxy.faults.change { $0.cutAfter = now + Int(random.next() % 150_000) }
            var tries = 0
            while rig.proxy.faults.read({ $0.cutAfter }) != nil, tries < 60 {
                try rig.epochs(1, pages: 15)
                tries += 1
            }
            if round % 2 == 0 {
                rig.shadow.stopWorker()
                let held = try rig.assertWhole("round \(round)")
                XCTAssertGreaterThan(held, 0)
                try rig.shadow.startWorker()
                XCTAssertEqual(rig.shadow.parent?.event(.ready)?.epoch, held)
            }
            try rig.epochs(1)
            try rig.assertInStep("round \(round)")
        }
        XCTAssertEqual(rig.parent.count(.sessionLost) + rig.parent.count(.failed), 0)
    }

    /// Epochs of several frames, broken between two of them: what came of them must not be in the RAM. (Rule 2.)
    func testCutsInsideLargeEpochs() throws {
        let rig = try Rig(seed: 29, ceilingBytes: 128 << 20, peerTimeoutMs: 3000)
        try rig.epochs(2)
        for round in 0..<3 {
            try rig.assertInStep("before round \(round)")
            rig.eventually("committed") { rig.statistics[.committedEpoch] == rig.qemu.epoch }
            rig.eventually("connected") { rig.statistics[.linkUp] == 1 }
            let before = rig.qemu.epoch
            let now = rig.proxy.forwarded.read { $0.last ?? 0 }
            // The first frame has 256 pages: 1,054,760 bytes at most.
            rig.proxy.faults.change {
                $0.cutAfter = now + 1_100_000 + round * 200_000
                $0.refuses = true
            }
            // Nearly all of the 768 pages, three in four of them noise.
            try rig.epochs(1, pages: 4000)
            rig.eventually("cut") { rig.proxy.faults.read { $0.cutAfter } == nil && rig.shadow.statistics[.linkUp] == 0 }
            rig.shadow.stopWorker()
            XCTAssertEqual(try rig.assertWhole("round \(round)"), before)
            try rig.shadow.startWorker()
            rig.proxy.faults.change { $0.refuses = false }
        }
        try rig.assertInStep()
        XCTAssertEqual(rig.parent.count(.sessionLost) + rig.parent.count(.failed), 0)
    }

    /// The shadow's worker dies while the source goes on as fast as it can.
    func testShadowWorkerDiesAgainAndAgain() throws {
        let rig = try Rig(seed: 23)
        try rig.epochs(2)
        try rig.assertInStep()
        let over = Guarded(false)
        let qemu = rig.qemu
        let guest = Running<String> {
            do { while !over.read({ $0 }) { try qemu.runEpoch(pages: 25) } } catch { return "\(error)" }
            return "fine"
        }
        var last: UInt64 = 0
        for round in 0..<8 {
            usleep(40_000 + UInt32(round) * 9_000)
            rig.shadow.stopWorker()
            // Only the guest's thread may touch its history: look it up when it is done.
            let held = try rig.shadow.digest()
            XCTAssertGreaterThanOrEqual(held.epoch, last)
            last = held.epoch
            snapshots.append(held)
            try rig.shadow.startWorker()
        }
        over.change { $0 = true }
        XCTAssertEqual(guest.result(), "fine")
        for snapshot in snapshots { XCTAssertEqual(snapshot.digest, rig.qemu.history[snapshot.epoch], "epoch \(snapshot.epoch)") }
        try rig.assertInStep()
    }
    private var snapshots: [(epoch: UInt64, digest: GuestDigest)] = []

    func testBreakInTheFirstCopy() throws {
        let rig = try Rig(seed: 24, firstCopy: false)
        rig.proxy.faults.change { $0.cutAfter = 100_000 }
        try rig.qemu.firstCopy()
        XCTAssertNotNil(rig.parent.event(.linkLost))
        XCTAssertTrue(rig.parent.event(.sessionLost)?.reason?.hasPrefix("The connection broke during the first copy") == true)
        try rig.epochs(2)
    }

    func testDamageInTheFirstCopy() throws {
        let rig = try Rig(seed: 25, firstCopy: false)
        rig.proxy.faults.change { $0.flipAt = 100_000 }
        try rig.qemu.firstCopy()
        // What the shadow said of it may stand behind, when it arrived before the end of the connection.
        let reason = rig.parent.event(.sessionLost)?.reason ?? ""
        XCTAssertTrue(reason.hasPrefix("The connection broke during the first copy"), reason)
    }

    /// A shadow that lost its memory must not be taken for one that only lost the connection.
    func testShadowStandsElsewhere() throws {
        let rig = try Rig(seed: 26)
        try rig.epochs(3)
        try rig.assertInStep()
        rig.eventually("committed") { rig.statistics[.committedEpoch] == 3 }
        rig.shadow.stopWorker()
        XCTAssertEqual(ftruncate(rig.shadow.state, 0), 0)
        XCTAssertEqual(ftruncate(rig.shadow.state, off_t(ShadowMemory.stateBytes)), 0)
        try rig.shadow.startWorker()
        XCTAssertTrue(rig.parent.event(.sessionLost)?.reason?.hasPrefix("The connection broke during the first copy") == true)
    }

    func testShadowIsAwayForAWhile() throws {
        let rig = try Rig(seed: 27)
        try rig.epochs(2)
        try rig.assertInStep()
        rig.proxy.faults.change { $0.refuses = true }
        rig.shadow.cut()
        XCTAssertNotNil(rig.parent.event(.linkLost))
        try rig.epochs(10)
        usleep(600_000)
        let reasons = rig.parent.events.read { $0.filter { $0.kind == .linkLost }.map { $0.reason ?? "" } }
        XCTAssertEqual(reasons.count, Set(reasons).count, "Once a reason, not at every attempt: \(reasons)")
        rig.proxy.faults.change { $0.refuses = false }
        try rig.assertInStep()
    }

    /// Regression: only commits were acknowledged, so an epoch that took longer than the peer timeout was sent for ever.
    func testAnEpochThatTakesLongerThanThePeerTimeout() throws {
        let rig = try Rig(seed: 28, peerTimeoutMs: 1000)
        try rig.epochs(2)
        try rig.assertInStep()
        rig.proxy.faults.change { $0.bytesPerMillisecond = 1500 }
        let start = MonotonicTime.now
        try rig.epochs(1, pages: 4000)
        try rig.assertInStep()
        XCTAssertGreaterThan(MonotonicTime.now.milliseconds(since: start), 1200, "The test is pointless otherwise")
        XCTAssertEqual(rig.parent.count(.linkLost), 0, rig.lastWords)
    }

    // MARK: Back-pressure

    func testNetworkThatTakesNothing() throws {
        let ceiling = 16 << 20
        let rig = try Rig(seed: 30, ceilingBytes: ceiling, intervalLimitMs: 16, peerTimeoutMs: 20_000)
        try rig.epochs(3)
        try rig.assertInStep()
        rig.proxy.faults.change { $0.stalled = true }
        var granted = 0
        var most = 0
        while try rig.qemu.request(ms: 400) {
            try rig.qemu.finishEpoch(pages: 110)
            granted += 1
            most = max(most, rig.worker.pool.bytesInUse)
            XCTAssertLessThan(granted, 64, "Nothing stops it")
            if granted >= 64 { return }
        }
        XCTAssertGreaterThan(granted, 10, "Epochs go on until half the ceiling is full")
        XCTAssertLessThanOrEqual(most, ceiling)
        XCTAssertGreaterThanOrEqual(rig.worker.pool.bytesInUse, ceiling / 2)
        XCTAssertEqual(rig.statistics[.intervalMicroseconds], 16_000, "Doubled up to its limit")
        // The network stood still for seconds; no pause contains any of that.
        let worst = rig.qemu.pausesMilliseconds.max() ?? 0
        XCTAssertLessThan(worst, 300, "The guest's pause is local copying only")
        rig.proxy.faults.change { $0.stalled = false }
        XCTAssertTrue(try rig.qemu.awaitReply(ms: 5000), "It goes on when there is room again")
        try rig.qemu.finishEpoch(pages: 5)
        try rig.assertInStep()
        for _ in 0..<12 {
            try rig.epochs(1, pages: 2)
            try rig.assertInStep()
        }
        XCTAssertEqual(rig.statistics[.intervalMicroseconds], 1000, "Back to the configured interval")
        XCTAssertEqual(rig.parent.count(.linkLost), 0)
        XCTAssertLessThanOrEqual(rig.worker.pool.bytesInUse, 2 << 20)
    }

    /// Many small epochs: a limit of its own, and the interval is doubled once an epoch, not at every wake-up.
    func testIntervalDoublesOnceAnEpoch() throws {
        let rig = try Rig(seed: 31, intervalMs: 2, intervalLimitMs: 1000, peerTimeoutMs: 20_000)
        try rig.epochs(1)
        try rig.assertInStep()
        rig.proxy.faults.change { $0.stalled = true }
        var seen: [UInt64] = []
        for _ in 0..<14 {
            try rig.epochs(1, pages: 1)
            seen.append(rig.statistics[.intervalMicroseconds] / 1000)
        }
        XCTAssertEqual(Array(seen.prefix(8)), Array(repeating: 2, count: 8))
        XCTAssertGreaterThanOrEqual(seen.last ?? 0, 16, "\(seen)")
        for (before, after) in zip(seen, seen.dropFirst()) { XCTAssertTrue(after == before || after == before * 2, "\(seen)") }
        rig.proxy.faults.change { $0.stalled = false }
        try rig.assertInStep()
    }

    func testEpochLargerThanTheCeiling() throws {
        let rig = try Rig(seed: 32, ceilingBytes: 4 << 20)
        try rig.epochs(2)
        try rig.assertInStep()
        XCTAssertTrue(try rig.qemu.request(ms: 2000))
        let body = rig.qemu.capture(1800)
        XCTAssertGreaterThan(body.count, 5 << 20)
        // A large socket buffer may take all of it before the worker gives up.
        _ = try? rig.qemu.write(body, ms: 3000)
        let reason = rig.parent.event(.failed)?.reason ?? ""
        XCTAssertTrue(reason.hasPrefix("Receive buffers are at their limit of 4 MiB (QEMU stream, "), reason)
        XCTAssertEqual(rig.run.result(), 1)
        XCTAssertEqual(try rig.assertWhole("after the failure"), 2)
    }
}
