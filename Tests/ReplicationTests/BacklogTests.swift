import Foundation
import MigrationStream
import Platform
import XCTest
@testable import Replication

final class BacklogTests: XCTestCase {
    private let pool = ChunkPool(chunkBytes: 64 << 10, limitBytes: 16 << 20)

    private func epoch(_ number: UInt64, chunks: Int = 1) throws -> CapturedEpoch {
        let epoch = CapturedEpoch(number: number, pool: pool)
        epoch.hold(try (0..<chunks).map { _ in try XCTUnwrap(pool.take()) })
        return epoch
    }

    private func fill(_ backlog: Backlog, _ numbers: ClosedRange<UInt64>) throws {
        for number in numbers { backlog.append(try epoch(number)) }
    }

    private func take(_ backlog: Backlog, _ count: Int) -> [UInt64] {
        (0..<count).compactMap { _ in backlog.next(milliseconds: 0)?.number }
    }

    func testOrderAndCommit() throws {
        let backlog = Backlog()
        XCTAssertNil(backlog.next(milliseconds: 5))
        try fill(backlog, 1...5)
        XCTAssertEqual(pool.bytesInUse, 5 * 64 << 10)
        XCTAssertEqual(take(backlog, 3), [1, 2, 3])
        XCTAssertEqual(backlog.counts.unsent, 5)
        XCTAssertEqual(backlog.commit(2)?.number, 2)
        XCTAssertEqual(pool.bytesInUse, 3 * 64 << 10)
        XCTAssertNil(backlog.commit(2), "Twice is nothing new")
        XCTAssertNil(backlog.commit(1))
        XCTAssertEqual(backlog.counts.committed, 2)
        XCTAssertEqual(take(backlog, 9), [4, 5])
        XCTAssertEqual(backlog.commit(5)?.number, 5)
        XCTAssertEqual(pool.bytesInUse, 0)
        XCTAssertEqual(backlog.counts.unsent, 0)
    }

    /// The commit may be back before the sender looks again: regression, it released nothing.
    func testCommitOfAnEpochThatIsStillBeingSent() throws {
        let backlog = Backlog()
        try fill(backlog, 1...1)
        let inHand = backlog.next(milliseconds: 0)
        XCTAssertEqual(backlog.counts.unsent, 1, "An epoch on its way is not committed")
        XCTAssertEqual(backlog.commit(1)?.number, 1)
        XCTAssertEqual(pool.bytesInUse, 64 << 10, "as long as the sender reads it")
        withExtendedLifetime(inHand) {}
    }

    func testCommitOfWhatWasNeverSent() throws {
        let backlog = Backlog()
        try fill(backlog, 1...3)
        XCTAssertEqual(take(backlog, 1), [1])
        XCTAssertNil(backlog.commit(2))
        XCTAssertNil(backlog.commit(99))
        XCTAssertEqual(backlog.counts.committed, 0)
        XCTAssertEqual(backlog.counts.lastTaken, 1)
    }

    func testRewind() throws {
        let backlog = Backlog()
        try fill(backlog, 1...4)
        XCTAssertEqual(take(backlog, 3), [1, 2, 3])
        _ = backlog.commit(1)
        backlog.rewind()
        XCTAssertEqual(backlog.counts.unsent, 3)
        XCTAssertEqual(take(backlog, 1), [2])
        try fill(backlog, 5...5)
        backlog.rewind()
        backlog.rewind()
        XCTAssertEqual(take(backlog, 9), [2, 3, 4, 5])
        _ = backlog.commit(5)
        XCTAssertEqual(pool.bytesInUse, 0)
    }

    /// Pieces of the first copy are released when sent, whatever becomes of them.
    func testFirstCopyIsNotKept() throws {
        let backlog = Backlog()
        for _ in 0..<3 { backlog.append(try epoch(0, chunks: 2)) }
        XCTAssertEqual(take(backlog, 3), [0, 0, 0])
        XCTAssertEqual(pool.bytesInUse, 0)
        XCTAssertEqual(backlog.counts.unsent, 0)
        backlog.rewind()
        XCTAssertNil(backlog.next(milliseconds: 0))
    }

    func testWaitUntilCommitted() throws {
        let backlog = Backlog()
        try fill(backlog, 1...2)
        XCTAssertFalse(backlog.waitUntilCommitted(2, until: .now.adding(milliseconds: 20)))
        XCTAssertEqual(take(backlog, 2), [1, 2])
        Thread.detachNewThread {
            usleep(20_000)
            _ = backlog.commit(2)
        }
        XCTAssertTrue(backlog.waitUntilCommitted(2, until: .now.adding(milliseconds: 5000)))
        XCTAssertTrue(backlog.waitUntilCommitted(0, until: .now))
    }

    func testStop() throws {
        let backlog = Backlog()
        Thread.detachNewThread {
            usleep(20_000)
            backlog.stop()
        }
        let start = MonotonicTime.now
        XCTAssertNil(backlog.next(milliseconds: 10_000))
        XCTAssertLessThan(MonotonicTime.now.milliseconds(since: start), 5000)
        XCTAssertTrue(backlog.isStopped)
        try fill(backlog, 1...1)
        XCTAssertNil(backlog.next(milliseconds: 1000), "Nothing is handed out after the end")
        XCTAssertFalse(backlog.waitUntilCommitted(1, until: .now.adding(milliseconds: 5000)))
    }

    func testMemoryGoesBackWithTheBacklog() throws {
        do {
            let backlog = Backlog()
            try fill(backlog, 1...9)
            XCTAssertEqual(take(backlog, 4), [1, 2, 3, 4])
        }
        XCTAssertEqual(pool.bytesInUse, 0)
    }

    func testRecordsGrow() {
        let epoch = CapturedEpoch(number: 1, pool: pool, capacity: 1)
        for index in 0..<5000 { epoch.append(PageLocation(block: 0, offset: UInt64(index) << 12), bytes: nil, fill: UInt8(index & 0xff)) }
        XCTAssertEqual(epoch.filledRecords.map(\.location.page), (0..<5000).map { UInt64($0) })
    }
}
