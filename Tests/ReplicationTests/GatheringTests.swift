import MigrationStream
import NBDServer
import Platform
import ReplicaStore
import XCTest
@testable import Replication

/// Several epochs that become one, and when they do.
final class GatheringTests: XCTestCase {
    private let captures = ChunkPool(chunkBytes: 64 << 10, limitBytes: 16 << 20)
    private let copies = ChunkPool(chunkBytes: 64 << 10, limitBytes: 1 << 20)

    /// An epoch with these pages, each of which holds the epoch's number.
    private func epoch(_ number: UInt64, pages: [Int], fills: [Int] = []) throws -> CapturedEpoch {
        let epoch = CapturedEpoch(number: number, pool: captures, capacity: 1)
        let chunk = try XCTUnwrap(captures.take(atLeast: (pages.count + 1) * 4096))
        epoch.hold([chunk])
        for (place, page) in pages.enumerated() {
            memset(chunk.base + place * 4096, Int32(number), 4096)
            epoch.append(PageLocation(block: 0, offset: UInt64(page) << 12), bytes: UnsafeRawPointer(chunk.base + place * 4096))
        }
        for page in fills {
            var location = PageLocation(block: 0, offset: UInt64(page) << 12)
            location.word |= PageLocation.fillBit
            epoch.append(location, bytes: nil, fill: UInt8(number))
        }
        let device = chunk.base + pages.count * 4096
        memset(device, Int32(number), 100)
        epoch.setDevice(UnsafeRawBufferPointer(start: device, count: 100))
        epoch.disks.records = [DiskRecord(extent: DiskExtent(disk: 0, kind: .zero, offset: number << 16, length: 512), bytes: nil)]
        epoch.capturedAt = MonotonicTime(nanoseconds: number)
        epoch.acknowledgedAt = number
        return epoch
    }

    private func content(_ epoch: CapturedEpoch) -> [Int: UInt8] {
        Dictionary(uniqueKeysWithValues: epoch.filledRecords.map { (Int($0.location.page), $0.bytes?.load(as: UInt8.self) ?? UInt8($0.hashLow)) })
    }

    private func backlog(_ multiple: Int, mergesFrom: Int = .max) -> Backlog {
        Backlog(.init(multiple: multiple, mergesFrom: mergesFrom) { [copies] in CapturedEpoch.merged($0, pool: copies) })
    }

    func testTheNewestOfEachPage() throws {
        let merged: CapturedEpoch = try {
            let run = [try epoch(1, pages: [1, 2, 3]), try epoch(2, pages: [2, 5], fills: [3]), try epoch(3, pages: [5, 6], fills: [7])]
            return try XCTUnwrap(CapturedEpoch.merged(run, pool: copies))
        }()
        XCTAssertEqual(content(merged), [1: 1, 2: 2, 3: 2, 5: 3, 6: 3, 7: 3])
        XCTAssertEqual(merged.first, 1)
        XCTAssertEqual(merged.number, 3)
        XCTAssertEqual(merged.span, 3)
        XCTAssertEqual(merged.acknowledgedAt, 3, "its proof is that of the last")
        XCTAssertEqual(merged.capturedAt.nanoseconds, 3)
        XCTAssertEqual(Array(merged.device), [UInt8](repeating: 3, count: 100))
        XCTAssertEqual(merged.disks.records.map(\.extent.offset), [1 << 16, 2 << 16, 3 << 16], "all writes, in order")
        XCTAssertEqual(captures.bytesInUse, 0, "the captures' memory is free")
        XCTAssertEqual(merged.pageBytes, 4 * 4096)
    }

    func testWithoutMemoryNothingIsMerged() throws {
        let small = ChunkPool(chunkBytes: 64 << 10, limitBytes: 128 << 10)
        let run = [try epoch(1, pages: Array(0..<40)), try epoch(2, pages: Array(20..<60))]
        XCTAssertNil(CapturedEpoch.merged(run, pool: small))
        XCTAssertEqual(small.bytesInUse, 0)
    }

    func testATwinOutlivesTheOther() throws {
        var original: CapturedEpoch? = try epoch(4, pages: [1, 2], fills: [3])
        let twin = try XCTUnwrap(original?.share())
        original?.filledRecords[0].location.word |= PageLocation.droppedBit
        XCTAssertFalse(twin.filledRecords[0].location.isDropped, "what one shadow has already, the other may lack")
        original = nil
        XCTAssertGreaterThan(captures.bytesInUse, 0)
        XCTAssertEqual(content(twin), [1: 4, 2: 4, 3: 4])
        XCTAssertEqual(twin.device.first, 4)
        XCTAssertEqual(twin.disks.records.count, 1)
    }

    func testEveryThird() throws {
        let backlog = backlog(3)
        for number in UInt64(1)...2 { backlog.append(try epoch(number, pages: [Int(number)])) }
        XCTAssertNil(backlog.next(milliseconds: 5), "two of three")
        backlog.append(try epoch(3, pages: [3]))
        let first = try XCTUnwrap(backlog.next(milliseconds: 5))
        XCTAssertEqual([first.first, first.number], [1, 3])
        XCTAssertEqual(content(first), [1: 1, 2: 2, 3: 3])
        XCTAssertEqual(backlog.lag, 0, "one commit under way is no lag of three epochs")
        backlog.append(try epoch(4, pages: [4]))
        XCTAssertNil(backlog.next(milliseconds: 5))
        backlog.hurry(true)
        XCTAssertEqual(backlog.next(milliseconds: 5)?.number, 4)
        XCTAssertEqual(backlog.commit(4)?.number, 4)
        XCTAssertTrue(backlog.isComplete)
    }

    /// What went out stands in the page table by its hashes: merged with something newer, a page that both have would count as known.
    func testWhatWentOutIsSentAgainAsItIs() throws {
        let backlog = backlog(2)
        for number in UInt64(1)...2 { backlog.append(try epoch(number, pages: [1])) }
        let sent = try XCTUnwrap(backlog.next(milliseconds: 5))
        sent.isFiltered = true
        for number in UInt64(3)...6 { backlog.append(try epoch(number, pages: [1])) }
        backlog.rewind()
        XCTAssertTrue(backlog.next(milliseconds: 5) === sent)
        let next = try XCTUnwrap(backlog.next(milliseconds: 5))
        XCTAssertEqual([next.first, next.number], [3, 6], "everything that waits")
    }

    /// QEMU died before the last of three was proved: none of the three can be had, because they are one by now.
    func testAMergedEpochIsAbandonedWhole() throws {
        let backlog = backlog(3)
        for number in UInt64(1)...4 { backlog.append(try epoch(number, pages: [1])) }
        let merged = try XCTUnwrap(backlog.next(milliseconds: 5))
        XCTAssertEqual([merged.first, merged.number], [1, 4])
        backlog.abandon(from: merged.first)
        XCTAssertTrue(backlog.isComplete, "nothing is left to wait for")
        XCTAssertEqual(backlog.counts.lastAppended, 0)
    }

    func testALaggardsEpochsAreMerged() throws {
        let backlog = backlog(1, mergesFrom: 4)
        for number in UInt64(1)...3 { backlog.append(try epoch(number, pages: [Int(number)])) }
        XCTAssertEqual(backlog.next(milliseconds: 5)?.span, 1, "three are not many")
        for number in UInt64(4)...6 { backlog.append(try epoch(number, pages: [Int(number)])) }
        XCTAssertEqual(backlog.next(milliseconds: 5)?.span, 5)
        XCTAssertEqual(backlog.commit(6)?.number, 6)
    }

    func testCompaction() throws {
        let backlog = backlog(1)
        for number in UInt64(1)...20 { backlog.append(try epoch(number, pages: Array(0..<10))) }
        XCTAssertGreaterThan(backlog.held.captured, 20 * 10 * 4096)
        XCTAssertTrue(backlog.compact(over: 100_000, milliseconds: 5))
        XCTAssertEqual(captures.bytesInUse, 0)
        XCTAssertEqual(backlog.held.captured, 0)
        XCTAssertEqual(backlog.counts.unsent, 1)
        let all = try XCTUnwrap(backlog.next(milliseconds: 5))
        XCTAssertEqual([all.first, all.number], [1, 20])
        // Too much for the pool of copies: they stay as they are.
        for number in UInt64(21)...24 { backlog.append(try epoch(number, pages: Array(Int(number) * 100..<Int(number) * 100 + 90))) }
        XCTAssertFalse(backlog.compact(over: 100_000, milliseconds: 5))
        XCTAssertEqual(backlog.next(milliseconds: 5)?.number, 21)
    }

    /// Each replica lacks other chunks, and gets those; from the first epoch on all get the same.
    func testTwoReplicasLackDifferentChunks() throws {
        let pieces = Guarded<[[UInt64]]>([[], []])
        let file = try memoryFile("gathering", bytes: SharedStatistics.bytes)
        let chunk = ChunkDifference.chunkBytes
        let disk = CapturedDisk(index: 0, target: "vda", byteCount: UInt64(4 * chunk))
        let capture = DiskCapture(disks: [disk], followers: 2, limitBytes: 32 << 20, statistics: try SharedStatistics(file.raw)) { segment, follower in
            pieces.change { $0[follower] += segment.records.map { $0.extent.offset / UInt64(chunk) } }
        } isEnding: { false }
        let export = capture.exports[0]
        let content = (0..<4).map { [UInt8](repeating: UInt8($0 + 1), count: chunk) }
        for follower in 0..<2 {
            let hash = PageHash()
            try export.startDifference(hash, follower: follower)
            // The one has chunk 1, the other chunk 2.
            let (low, high) = hash.withHasher { $0.hash128(content[follower + 1], chunk) }
            XCTAssertTrue([low, high].withUnsafeBytes { export.learn($0, first: follower + 1, follower: follower) })
        }
        XCTAssertFalse(capture.startCopying(0), "the other's hashes are not known yet")
        XCTAssertTrue(capture.isLearning)
        XCTAssertTrue(capture.startCopying(1))
        capture.mirrorCame("vda")
        let connection = NBDConnectionID(slot: 0, serial: 1)
        func write(_ index: Int) throws {
            let memory = try export.prepareWrite(length: chunk, connection: connection)
            content[index].withUnsafeBytes { memory.copyMemory(from: $0.baseAddress!, byteCount: chunk) }
            try export.write(offset: UInt64(index * chunk), bytes: UnsafeRawBufferPointer(start: memory, count: chunk), forceUnitAccess: false, connection: connection)
        }
        for index in 0..<4 { try write(index) }
        try capture.follow()
        XCTAssertEqual(pieces.read { $0.map { $0.sorted() } }, [[0, 2, 3], [0, 1, 3]])
        capture.beginEpochs()
        try write(1)
        XCTAssertEqual(try capture.cut().records.map(\.extent.offset), [UInt64(chunk)])
    }

    /// A shadow that is gone before its replicas are known does not keep the others waiting.
    func testOneIsGoneBeforeItsReplicasAreKnown() throws {
        let file = try memoryFile("gathering", bytes: SharedStatistics.bytes)
        let disk = CapturedDisk(index: 0, target: "vda", byteCount: 1 << 20)
        let capture = DiskCapture(disks: [disk], followers: 2, limitBytes: 32 << 20, statistics: try SharedStatistics(file.raw)) { _, _ in } isEnding: { false }
        try capture.exports[0].startDifference(PageHash(), follower: 1)
        XCTAssertFalse(capture.startCopying(1))
        XCTAssertTrue(capture.drop(0))
        XCTAssertFalse(capture.isLearning)
        XCTAssertFalse(capture.drop(1), "nobody is left")
    }
}
