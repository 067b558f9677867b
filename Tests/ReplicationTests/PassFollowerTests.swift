import Foundation
import Platform
import XCTest
@testable import Replication

/// Several shadows of one pass: the guest is read once, and each shadow gets what it lacks, in its own time.
final class PassFollowerTests: XCTestCase {
    func testBothHoldTheSame() throws {
        let rig = try PassRig(seed: 301)
        for number: UInt64 in 1...5 {
            XCTAssertEqual(try rig.pass(), .committed(isComplete: true))
            for index in 0..<2 { try rig.assertHolds(index, number) }
        }
        XCTAssertEqual(Set(rig.parent.events.read { $0.filter { $0.kind == .following }.map(\.peer) }), [0, 1])
        // Only what changed crosses the wire.
        let first = rig.statistics[1, .bytesSent]
        XCTAssertEqual(try rig.pass(changes: 2), .committed(isComplete: true))
        try rig.assertHolds(1, 6)
        XCTAssertLessThan(rig.statistics[1, .bytesSent] - first, 64 << 10)
        XCTAssertEqual(rig.statistics[.epoch], 6)
        rig.awaitIdle()
        rig.parent.send(.stop)
        XCTAssertEqual(rig.run.result(), 0)
        rig.eventually("memory returned") { rig.worker.pool.bytesInUse == 0 }
    }

    /// The line to one stands still: it leaves passes out, nobody waits for it, and it gets all that it missed with its next one.
    func testOneStandsStillAndTheOtherDoesNotNotice() throws {
        let rig = try PassRig(seed: 302)
        XCTAssertEqual(try rig.pass(), .committed(isComplete: true))
        for index in 0..<2 { try rig.assertHolds(index, 1) }
        rig.proxies[1].faults.change { $0.stalled = true }
        for number: UInt64 in 2...5 {
            XCTAssertEqual(try rig.pass(changes: 40), .committed(isComplete: true))
            try rig.assertHolds(0, number)
        }
        XCTAssertEqual(try rig.shadows[1].digest().epoch, 1)
        rig.proxies[1].faults.change { $0.stalled = false }
        // The one that was on its way; or none of it, when the connection was given up.
        rig.eventually("the second pass arrives, or is given up") { rig.statistics[1, .committedEpoch] == 2 || rig.parent.count(.linkLost) > 0 }
        for _ in 0..<2 {
            rig.awaitIdle()
            XCTAssertEqual(try rig.pass(), .committed(isComplete: true))
        }
        for index in 0..<2 { try rig.assertHolds(index, 7) }
    }

    /// One commits every third pass only, and holds that one, whole.
    func testMultiple() throws {
        let rig = try PassRig(seed: 303, multiples: [1, 3])
        var held: Set<UInt64> = []
        for number: UInt64 in 1...8 {
            XCTAssertEqual(try rig.pass(), .committed(isComplete: true))
            try rig.assertHolds(0, number)
            rig.eventually("settled") { rig.worker.followers[1].backlog.isComplete }
            held.insert(try rig.shadows[1].digest().epoch)
        }
        XCTAssertEqual(held, [1, 4, 7])
        try rig.assertHolds(1, 7)
        // Alone it takes what there is: nobody else keeps the guest safe.
        rig.parent.send(.dropPeer, peer: 0)
        rig.eventually("dropped") { rig.worker.followers[0].isLost }
        XCTAssertEqual(try rig.pass(), .committed(isComplete: true))
        try rig.assertHolds(1, 9)
    }

    /// A connection breaks in the middle of a pass: that shadow gets its pages again, the other one never knows.
    func testConnectionBreaks() throws {
        for seed: UInt64 in 310..<313 {
            let rig = try PassRig(seed: seed)
            XCTAssertEqual(try rig.pass(), .committed(isComplete: true))
            for index in 0..<2 { try rig.assertHolds(index, 1) }
            rig.proxies[1].faults.change { $0.cutAfter = Int(seed - 310) * 20_000 + 40_000 + (rig.proxies[1].forwarded.read { $0.last } ?? 0) }
            for _ in 0..<4 { try rig.pass(changes: 60) }
            for _ in 0..<2 {
                rig.awaitIdle()
                XCTAssertEqual(try rig.pass(), .committed(isComplete: true))
                for index in 0..<2 { try rig.assertHolds(index, rig.statistics[.epoch], "seed \(seed)") }
            }
        }
    }

    /// Too little memory for all that waits for a shadow which is away: its first copy comes in parts, over several passes, the other's does not.
    func testFirstCopyInParts() throws {
        let rig = try PassRig(seed: 320, ceilingBytes: 6 << 20)
        rig.proxies[1].faults.change { $0.refuses = true }
        rig.shadows[1].cut()
        rig.eventually("away") { rig.statistics[1, .linkUp] == 0 }
        var ends = [try rig.pass(changes: 4000), try rig.pass(changes: 4), try rig.pass(changes: 4)]
        rig.proxies[1].faults.change { $0.refuses = false }
        while rig.statistics[1, .committedEpoch] == 0, ends.count < 60 {
            ends.append(try rig.pass(changes: 4))
            usleep(100_000)
        }
        XCTAssertTrue(ends.contains(.committed(isComplete: false)), "The one has an epoch, the other a part: \(ends)")
        XCTAssertGreaterThan(try rig.shadows[1].digest().epoch, 1)
        XCTAssertEqual(rig.parent.count(.sessionLost), 0, rig.lastWords)
        rig.awaitIdle()
        XCTAssertEqual(try rig.pass(), .committed(isComplete: true))
        for index in 0..<2 { try rig.assertHolds(index, rig.statistics[.epoch]) }
    }

    /// What the guest writes to its disks while a shadow leaves passes out is kept for it.
    func testDisks() throws {
        let sizes = [3 << 20, 1 << 20]
        let rig = try PassRig(seed: 330, benches: [DiskBench(sizes, seed: 330), DiskBench(sizes, seed: 331)])
        XCTAssertEqual(try rig.pass(), .committed(isComplete: true))
        for index in 0..<2 { try rig.assertHolds(index, 1) }
        rig.proxies[1].faults.change { $0.stalled = true }
        for number: UInt64 in 2...4 {
            XCTAssertEqual(try rig.pass(), .committed(isComplete: true))
            try rig.assertHolds(0, number)
        }
        rig.proxies[1].faults.change { $0.stalled = false }
        rig.awaitIdle()
        XCTAssertEqual(try rig.pass(), .committed(isComplete: true))
        for index in 0..<2 { try rig.assertHolds(index, 5) }
        // Over and over, with connections that break in the middle.
        for round in 0..<4 {
            rig.proxies[round % 2].faults.change { $0.cutAfter = (rig.proxies[round % 2].forwarded.read { $0.last } ?? 0) + 30_000 * (round + 1) }
            for _ in 0..<3 { try rig.pass(changes: 30) }
            rig.awaitIdle()
            XCTAssertEqual(try rig.pass(), .committed(isComplete: true))
            let last = rig.statistics[.epoch]
            for index in 0..<2 { try rig.assertHolds(index, last, "round \(round)") }
        }
    }

    /// A shadow that keeps half of the memory for disk writes is given up; the guest, and the other shadow, go on.
    func testALaggardIsGivenUp() throws {
        let rig = try PassRig(seed: 340, ceilingBytes: 16 << 20, benches: [DiskBench([4 << 20], seed: 340), DiskBench([4 << 20], seed: 341)])
        XCTAssertEqual(try rig.pass(), .committed(isComplete: true))
        for index in 0..<2 { try rig.assertHolds(index, 1) }
        rig.proxies[1].faults.change { $0.stalled = true }
        var number: UInt64 = 1
        while rig.parent.count(.sessionLost) == 0, number < 12 {
            let noise = [UInt8](repeating: UInt8(number), count: 1 << 20)
            for offset in 0..<3 { try rig.benches[0].write(0, offset << 20, noise) }
            XCTAssertEqual(try rig.pass(), .committed(isComplete: true))
            number += 1
            try rig.assertHolds(0, number)
        }
        let lost = rig.parent.event(.sessionLost)
        XCTAssertEqual(lost?.peer, 1)
        XCTAssertTrue(lost?.reason?.hasPrefix("It lags too far behind: ") == true, lost?.reason ?? "")
        XCTAssertEqual(try rig.pass(), .committed(isComplete: true))
        try rig.assertHolds(0, number + 1)
        XCTAssertNil(rig.worker.disks?.failure)
    }

    /// A swap's pass is for one of them; with nobody there the guest is read all the same, and nothing comes of it.
    func testOnePeerOnly() throws {
        let rig = try PassRig(seed: 350)
        XCTAssertEqual(try rig.pass(), .committed(isComplete: true))
        for index in 0..<2 { try rig.assertHolds(index, 1) }
        XCTAssertEqual(try rig.pass(peer: 1, kind: .migration), .committed(isComplete: true))
        try rig.assertHolds(1, 2)
        XCTAssertEqual(try rig.shadows[0].digest().epoch, 1)
        rig.awaitIdle()
        for proxy in rig.proxies { proxy.faults.change { $0.refuses = true } }
        for shadow in rig.shadows { shadow.cut() }
        rig.eventually("both are away") { rig.statistics[0, .linkUp] == 0 && rig.statistics[1, .linkUp] == 0 }
        guard case .failed(let reason) = try rig.pass() else { return XCTFail("Nobody took it") }
        XCTAssertTrue(reason.contains("No shadow could take the pass"), reason)
        for proxy in rig.proxies { proxy.faults.change { $0.refuses = false } }
        rig.awaitIdle()
        XCTAssertEqual(try rig.pass(), .committed(isComplete: true))
        for index in 0..<2 { try rig.assertHolds(index, 3) }
    }
}
