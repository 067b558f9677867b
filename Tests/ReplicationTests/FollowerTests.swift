import Foundation
import Platform
import XCTest
@testable import Replication

/// A source worker with its QEMU and two shadows, each behind a network of its own.
private final class FanRig {
    let shadows: [ShadowHost]
    let proxies: [Proxy]
    let parent: Parent
    let worker: SourceWorker
    let statistics: SharedStatistics
    let run: Running<Int32>
    let qemu: QEMUStandIn
    private let file: Descriptor

    init(seed: UInt64, multiples: [Int] = [1, 1], ceilingBytes: Int = 64 << 20) throws {
        signal(SIGPIPE, SIG_IGN)
        shadows = try multiples.map { _ in try ShadowHost(peerTimeoutMs: 2000) }
        proxies = try shadows.map { try Proxy(to: $0.port) }
        parent = try Parent()
        let path = NSTemporaryDirectory() + "sv-\(getpid())-\(UUID().uuidString.prefix(8)).sock"
        let peers = sourcePeers(shadows, proxies, multiples)
        let options = SourceWorkerOptions(domain: "rig", host: "host-a", peers: peers, secret: Data("rig".utf8), streamPath: path, streamOwner: getuid(), streamGroup: getgid(),
                                          intervalMs: 1, intervalLimitMs: 20, ceilingBytes: ceilingBytes, keepaliveMs: 50, peerTimeoutMs: 2000)
        let file = try memoryFile("rig-statistics", bytes: SharedStatistics.bytes)
        let statistics = try SharedStatistics(file.raw)
        statistics[.eventsAway] = 1
        self.file = file
        self.statistics = statistics
        let worker = try SourceWorker(options: options, parent: WorkerChannel(Descriptor(owning: parent.workerSide)), statistics: statistics)
        self.worker = worker
        run = Running { worker.run() }
        _ = parent.event(.ready)
        qemu = try QEMUStandIn(path, seed: seed)
        try qemu.firstCopy()
    }

    deinit {
        parent.send(.stop)
        parent.close_()
        qemu.hangUp()
        _ = run.result(seconds: 3)
    }

    /// Epochs at the rhythm of a guest.
    func epochs(_ count: Int, pages: Int = 12) throws {
        for _ in 0..<count { try qemu.runEpoch(pages: pages) }
    }

    /// The shadow holds an epoch of the guest's, whole; which one.
    @discardableResult
    func assertWhole(_ index: Int, file: StaticString = #filePath, line: UInt = #line) throws -> UInt64 {
        let held = try shadows[index].digest()
        XCTAssertEqual(held.digest, qemu.history[held.epoch], "Shadow \(index): epoch \(held.epoch) differs", file: file, line: line)
        return held.epoch
    }

    func eventually(_ what: String, ms: Double = 10_000, file: StaticString = #filePath, line: UInt = #line, _ condition: () -> Bool) {
        let deadline = MonotonicTime.now.adding(milliseconds: ms)
        while !condition() {
            let words = parent.events.read { $0.suffix(5).map { "\($0.kind) \($0.peer ?? -1) \($0.reason ?? "")" } }
            if deadline < .now { return XCTFail("Never: \(what); \(words)", file: file, line: line) }
            usleep(2000)
        }
    }
}

/// Several shadows of one capture.
final class FollowerTests: XCTestCase {
    func testBothHoldTheSame() throws {
        let rig = try FanRig(seed: 31)
        try rig.epochs(30)
        for index in 0..<2 {
            XCTAssertTrue(rig.shadows[index].waitForCommit(30))
            XCTAssertEqual(try rig.assertWhole(index), 30)
        }
        rig.eventually("both commits are known") { rig.statistics[0, .committedEpoch] == 30 && rig.statistics[1, .committedEpoch] == 30 }
        XCTAssertEqual(rig.statistics[.committedEpoch], 30)
        XCTAssertGreaterThan(rig.statistics[1, .bytesSent], 0)
        XCTAssertEqual(rig.statistics[.bytesSent], rig.statistics[0, .bytesSent] + rig.statistics[1, .bytesSent])
        XCTAssertEqual(Set(rig.parent.events.read { $0.filter { $0.kind == .following }.map(\.peer) }), [0, 1])
        rig.parent.send(.stop)
        XCTAssertEqual(rig.run.result(), 0)
        rig.eventually("memory returned") { rig.worker.pool.bytesInUse == 0 }
    }

    func testOneStandsStillAndTheOtherDoesNotNotice() throws {
        let rig = try FanRig(seed: 32)
        try rig.epochs(5)
        rig.eventually("both follow") { rig.statistics[1, .committedEpoch] == 5 }
        rig.proxies[1].faults.change { $0.stalled = true }
        try rig.epochs(40, pages: 100)
        XCTAssertTrue(rig.shadows[0].waitForCommit(45))
        XCTAssertLessThan(try rig.assertWhole(1), 45)
        XCTAssertEqual(rig.statistics[.intervalMicroseconds], 1000, "the capture keeps its pace")
        rig.proxies[1].faults.change { $0.stalled = false }
        XCTAssertTrue(rig.shadows[1].waitForCommit(45))
        XCTAssertEqual(try rig.assertWhole(1), 45)
        XCTAssertEqual(rig.parent.count(.sessionLost), 0)
        // What changed several times meanwhile crossed once; a frame that was cut off in the middle, twice.
        XCTAssertLessThan(rig.statistics[1, .bytesSent], rig.statistics[0, .bytesSent] + UInt64(2 << 20))
    }

    func testEveryFifth() throws {
        let rig = try FanRig(seed: 34, multiples: [1, 5])
        try rig.epochs(4)
        XCTAssertTrue(rig.shadows[0].waitForCommit(4))
        usleep(50_000)
        XCTAssertEqual(try rig.shadows[1].digest().epoch, 0, "four of five")
        try rig.epochs(17)
        XCTAssertTrue(rig.shadows[1].waitForCommit(17))
        XCTAssertTrue(rig.shadows[0].waitForCommit(21))
        let held = try rig.assertWhole(1)
        XCTAssertLessThanOrEqual(held, 21)
        XCTAssertLessThan(rig.statistics[1, .bytesSent], rig.statistics[0, .bytesSent])
        rig.parent.send(.suspend)
        // The order is on its way: an epoch that is asked for before it arrives is granted.
        usleep(200_000)
        XCTAssertFalse(try rig.qemu.request(ms: 200))
        XCTAssertTrue(rig.shadows[1].waitForCommit(21), "nothing waits while the guest is suspended")
        XCTAssertEqual(try rig.assertWhole(1), 21)
    }

    func testOneIsRefusedAndTheOtherGoesOn() throws {
        let rig = try FanRig(seed: 35)
        try rig.epochs(10)
        rig.eventually("both follow") { rig.statistics[1, .committedEpoch] == 10 }
        rig.shadows[1].verdict.change { $0 = .unknownSession("gone") }
        rig.shadows[1].cut()
        XCTAssertEqual(rig.parent.event(.sessionLost)?.peer, 1)
        XCTAssertEqual(rig.statistics[1, .isLost], 1)
        try rig.epochs(20)
        XCTAssertTrue(rig.shadows[0].waitForCommit(30))
        XCTAssertEqual(try rig.assertWhole(0), 30)
        XCTAssertEqual(rig.statistics[.linkUp], 1)
        rig.eventually("nothing is kept for the one that is gone") { rig.worker.followers[1].backlog.counts.unsent == 0 }
    }

    func testOneIsTakenAwayByOrder() throws {
        let rig = try FanRig(seed: 36)
        try rig.epochs(10)
        rig.parent.send(.dropPeer, peer: 0)
        rig.eventually("dropped") { rig.statistics[0, .isLost] == 1 }
        try rig.epochs(20)
        XCTAssertTrue(rig.shadows[1].waitForCommit(30))
        XCTAssertEqual(try rig.assertWhole(1), 30)
        XCTAssertEqual(rig.parent.count(.sessionLost), 0)
        rig.parent.send(.hold, peer: 1)
        usleep(20_000)
        XCTAssertTrue(try rig.qemu.request(ms: 3000))
        try rig.qemu.write(rig.qemu.capture(3))
        XCTAssertEqual(rig.parent.event(.held)?.epoch, 31)
        XCTAssertEqual(try rig.assertWhole(1), 31)
    }

    /// Nothing comes back from the one: what is held for it is bounded, and the capture never stops.
    func testWhatIsHeldForOneThatIsAwayIsBounded() throws {
        let rig = try FanRig(seed: 37, ceilingBytes: 8 << 20)
        try rig.epochs(5)
        rig.eventually("both follow") { rig.statistics[1, .committedEpoch] == 5 }
        rig.proxies[1].faults.change { ($0.refuses, $0.stalled) = (true, true) }
        rig.shadows[1].cut()
        for _ in 0..<3 {
            try rig.epochs(8, pages: 200)
            XCTAssertTrue(rig.shadows[0].waitForCommit(rig.qemu.epoch))
            XCTAssertLessThanOrEqual(rig.worker.followers[1].backlog.held.captured, 4 << 20)
        }
        XCTAssertEqual(try rig.assertWhole(0), 29)
    }
}
