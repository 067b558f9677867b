import Foundation
import XCTest
@testable import ReplicaStore

final class ReplicaSetTests: FolderTestCase {
    private let session = UUID()
    private let bytes = 200_000
    private var disks: [ReplicaSet.Disk] = []

    override func setUpWithError() throws {
        try super.setUpWithError()
        disks = try [0, 2].map { ReplicaSet.Disk(index: $0, path: try makeDisk("disk\($0).raw", bytes: bytes, fill: 0xee), byteCount: UInt64(bytes)) }
    }

    private func open(_ session: UUID? = nil, committed: UInt64? = nil, limit: Int = 1 << 20) throws -> ReplicaSet {
        try ReplicaSet(folder: store, session: session ?? self.session, disks: disks, journalLimitBytes: limit, committed: committed)
    }

    private func synced(at epoch: UInt64 = 1, limit: Int = 1 << 20) throws -> ReplicaSet {
        let set = try open(limit: limit)
        try set.beginSync()
        try set.write(data(0, [UInt8](repeating: 1, count: bytes)).0, [UInt8](repeating: 1, count: bytes))
        try set.write(zero(0, bytes, disk: 2).0, [])
        try set.endSync(epoch: epoch)
        return set
    }

    private func disk(_ index: Int) throws -> [UInt8] { try content(folder + "/disk\(index).raw") }

    private func journalBytes() throws -> [UInt8] { try content(store + "/journal") }

    // MARK: Order

    func testStatesAndTheirDurability() throws {
        var set = try open()
        XCTAssertEqual(set.state, .empty)
        XCTAssertThrowsError(try set.prepare(epoch: 1)) { XCTAssertEqual("\($0)", "prepare is out of order: the replica is empty") }
        XCTAssertThrowsError(try set.endSync(epoch: 1))
        XCTAssertThrowsError(try set.write(zero(0, 1).0, []))
        try set.beginSync()
        try set.close(clean: false)
        set = try open()
        XCTAssertEqual(set.state, .syncing)
        try set.endSync(epoch: 5)
        XCTAssertEqual(set.state, .consistent(epoch: 5))
        XCTAssertThrowsError(try set.write(zero(0, 1).0, []))
        XCTAssertThrowsError(try set.prepare(epoch: 5)) { XCTAssertEqual("\($0)", "Epoch 5 cannot follow epoch 5") }
        XCTAssertThrowsError(try set.apply(epoch: 6))
        try set.prepare(epoch: 6)
        XCTAssertThrowsError(try set.prepare(epoch: 7))
        XCTAssertThrowsError(try set.apply(epoch: 7))
        try set.apply(epoch: 6)
        try set.close(clean: true)
        XCTAssertThrowsError(try set.prepare(epoch: 7)) { XCTAssertTrue("\($0)".contains("it was closed"), "\($0)") }
        XCTAssertEqual(try open(committed: 6).state, .consistent(epoch: 6))
    }

    func testAnEpochIsAppliedInTheOrderOfStaging() throws {
        let set = try synced()
        let writes = [data(100, [UInt8](repeating: 2, count: 1000)), zero(300, 200), data(400, [UInt8](repeating: 3, count: 50)),
                      data(0, [9], disk: 2), zero(1050, 10, kind: .trim)]
        try set.staging(writes) {
            try set.prepare(epoch: 2)
            assertSame(try disk(0), [UInt8](repeating: 1, count: bytes), "Nothing is applied before the memory side has the epoch")
            try set.apply(epoch: 2)
        }
        var expected = [UInt8](repeating: 1, count: bytes)
        expected.replaceSubrange(100..<1100, with: [UInt8](repeating: 2, count: 1000))
        expected.replaceSubrange(300..<500, with: [UInt8](repeating: 0, count: 200))
        expected.replaceSubrange(400..<450, with: [UInt8](repeating: 3, count: 50))
        expected.replaceSubrange(1050..<1060, with: [UInt8](repeating: 0, count: 10))
        assertSame(try disk(0), expected)
        XCTAssertEqual(try disk(2)[..<2], [9, 0])
    }

    func testAnEpochWithoutWritesLeavesTheJournalAlone() throws {
        let set = try synced()
        try set.commit(2, [])
        XCTAssertEqual(set.state, .consistent(epoch: 2))
        XCTAssertEqual(try journalBytes().count, 0)
    }

    func testBadExtentsAreRefusedBeforeAnythingIsWritten() throws {
        let set = try synced()
        let bad: [(DiskExtent, String)] = [
            (DiskExtent(disk: 1, kind: .zero, offset: 0, length: 1), "There is no disk 1 for a zero of 1 bytes at 0 of disk 1"),
            (DiskExtent(disk: 0, kind: .data, offset: 0, length: 1), "A data of 1 bytes at 0 of disk 0 came without its data"),
            (DiskExtent(disk: 2, kind: .trim, offset: UInt64(bytes), length: 1), "A trim of 1 bytes at 200000 of disk 2 lies outside it: the disk has 200000 bytes"),
        ]
        for (extent, message) in bad {
            set.stage(data(0, []).0, nil)
            set.discardStaged()
            set.stage(extent, nil)
            XCTAssertThrowsError(try set.prepare(epoch: 2)) { XCTAssertEqual("\($0)", message) }
            set.discardStaged()
        }
        XCTAssertEqual(try journalBytes().count, 0)
        try set.commit(2, [data(0, [5])])
        XCTAssertEqual(try disk(0)[0], 5)
    }

    // MARK: Recovery

    /// Prepared, and then the process ended: before the memory side had the epoch, and after.
    func testAPreparedEpochIsDroppedOrAppliedAsTheMemorySideSays() throws {
        for (committed, expected, epoch) in [(UInt64?.some(2), UInt8(7), UInt64(2)), (3, 8, 3), (nil, 8, 3)] {
            try? FileManager.default.removeItem(atPath: store)
            let set = try synced()
            try set.commit(2, [data(10, [7])])
            try set.staging([data(10, [8])]) { try set.prepare(epoch: 3) }
            try set.close(clean: false)
            let again = try open(committed: committed)
            XCTAssertEqual(again.state, .consistent(epoch: epoch))
            XCTAssertEqual(try disk(0)[10], expected)
            try again.close(clean: false)
            // What was dropped stays dropped, also for a power loss later.
            let third = try open(committed: nil)
            XCTAssertEqual(third.state, .consistent(epoch: epoch))
            XCTAssertEqual(try disk(0)[10], expected)
            try third.close(clean: false)
        }
    }

    func testAnAbandonedEpochDoesNotComeBackUnderTheNumberOfOneWithoutWrites() throws {
        let set = try synced()
        try set.staging([data(10, [8])]) { try set.prepare(epoch: 2) }
        try set.commit(2, [])
        try set.close(clean: false)
        let again = try open(committed: 2)
        XCTAssertEqual(again.state, .consistent(epoch: 2))
        XCTAssertEqual(try disk(0)[10], 1)
    }

    func testALostReplicaIsRepairedFromTheJournal() throws {
        let set = try synced()
        let before = try disk(0)
        try set.commit(2, [data(0, [2, 2, 2])])
        try set.commit(5, [data(1, [5]), zero(50, 100)])
        let after = try disk(0)
        try set.close(clean: false)
        // The power went before any of it reached the disk.
        try put(before, folder + "/disk0.raw")
        let repair = ReplicaSet.Repair(session: session, disks: disks, flushedEpoch: 1, lastEpoch: 5)
        XCTAssertEqual(try ReplicaSet.pendingRepair(folder: store), repair)
        XCTAssertEqual(try ReplicaSet.recover(folder: store), .consistent(epoch: 5))
        assertSame(try disk(0), after)
        XCTAssertNil(try ReplicaSet.pendingRepair(folder: store))
        XCTAssertNil(try ReplicaSet.recover(folder: folder + "/none"))
    }

    func testCheckpointsKeepTheJournalWithinItsLimit() throws {
        let limit = 64 << 10
        let set = try synced(limit: limit)
        var expected = [UInt8](repeating: 1, count: bytes)
        for epoch in UInt64(2)...100 {
            let at = Int(epoch) * 1500
            let write = [UInt8](repeating: UInt8(epoch), count: 3000)
            try set.commit(epoch, [data(UInt64(at), write)])
            expected.replaceSubrange(at..<(at + 3000), with: write)
            XCTAssertLessThanOrEqual(try journalBytes().count, limit)
        }
        try set.close(clean: false)
        XCTAssertEqual(try open().state, .consistent(epoch: 100))
        assertSame(try disk(0), expected)
    }

    func testAnEpochLargerThanTheLimitAndOneLargerThanTheCeiling() throws {
        let limit = 16 << 10
        let set = try synced(limit: limit)
        try set.commit(2, [data(0, [UInt8](repeating: 2, count: 60_000))])
        XCTAssertEqual(try journalBytes().count, 61_440)
        try set.staging([data(0, [UInt8](repeating: 3, count: 70_000))]) {
            XCTAssertThrowsError(try set.prepare(epoch: 3)) { error in
                XCTAssertEqual(error as? ReplicaError, .journalFull(epoch: 3, needed: 73_728, limit: 16_384, ceiling: 65_536))
                XCTAssertTrue("\(error)".hasSuffix("Raise the journal's limit or shorten the interval between epochs"), "\(error)")
            }
        }
        try set.commit(3, [data(0, [3])])
        XCTAssertEqual(try journalBytes().count, limit, "The space of the large epoch is given back")
        XCTAssertEqual(try disk(0)[..<2], [3, 2])
    }

    // MARK: Sessions, activation

    func testAnotherSessionStartsEmptyOverTheLastWholeEpoch() throws {
        let set = try synced()
        try set.staging([data(0, [4])]) { try set.prepare(epoch: 2) }
        try set.close(clean: false)
        let other = UUID()
        let next = try open(other, committed: 9)
        XCTAssertEqual(next.state, .empty)
        XCTAssertEqual(try disk(0)[0], 4)
        try next.close(clean: true)
        XCTAssertEqual(try StoredState.load(folder: store)?.session, session, "Until the sync begins it is still the old session's")
        let third = try open(other)
        try third.beginSync()
        try third.endSync(epoch: 1)
        try third.commit(2, [data(0, [6])])
        try third.close(clean: false)
        XCTAssertEqual(try open(other, committed: 2).state, .consistent(epoch: 2))
        XCTAssertEqual(try disk(0)[0], 6)
    }

    func testRecordsOfOtherDisksAreNotApplied() throws {
        let set = try synced()
        try set.commit(2, [data(0, [4])])
        try set.close(clean: false)
        try makeDisk("other.raw", bytes: bytes, fill: 0xaa)
        disks[0].path = folder + "/other.raw"
        XCTAssertThrowsError(try open(committed: 2)) { XCTAssertEqual($0 as? ReplicaError, .disksDiffer(folder: store)) }
        XCTAssertEqual(try open(UUID()).state, .empty)
        XCTAssertEqual(try content(folder + "/other.raw")[0], 0xaa)
    }

    func testAfterAnActivationNothingIsAppliedOverTheGuest() throws {
        let set = try synced()
        try set.commit(2, [data(0, [4])])
        let table = try XCTUnwrap(set.chunkTable(disk: 0))
        try set.close(clean: true, activating: true)
        XCTAssertNotNil(table, "Whoever still holds a table does not hold the lock")
        try put([UInt8](repeating: 0xdd, count: bytes), folder + "/disk0.raw")
        XCTAssertNil(try ReplicaSet.pendingRepair(folder: store))
        let again = try open(committed: 2)
        XCTAssertEqual(again.state, .empty)
        XCTAssertEqual(try disk(0)[0], 0xdd)
        XCTAssertEqual(again.chunkTable(disk: 0)?.staleChunks, again.chunkTable(disk: 0)?.chunkCount)
    }

    func testTheTableSurvivesACleanCloseAndNothingElse() throws {
        var set = try synced()
        XCTAssertEqual(set.chunkTable(disk: 0)?.staleChunks, 0, "The first copy told all hashes")
        let seed = set.chunkTable(disk: 0)?.seed
        try set.close(clean: true)
        set = try open(committed: 1)
        XCTAssertEqual(set.chunkTable(disk: 0)?.seed, seed)
        XCTAssertEqual(set.chunkTable(disk: 0)?.staleChunks, 0)
        try set.commit(2, [data(0, [4])])
        XCTAssertEqual(set.chunkTable(disk: 0)?.staleChunks, 1)
        try set.close(clean: false)
        set = try open(committed: 2)
        XCTAssertEqual(set.chunkTable(disk: 0)?.staleChunks, set.chunkTable(disk: 0)?.chunkCount)
        XCTAssertEqual(set.chunkTable(disk: 2)?.staleChunks, 0, "Nothing was written to this one")
    }

    func testADamagedStateIsAnErrorThatNamesTheFile() throws {
        try synced().close(clean: true)
        let path = store + "/state"
        let whole = try content(path)
        for length in [0, 1, whole.count / 2, whole.count - 1] {
            try put(Array(whole[..<length]), path)
            XCTAssertThrowsError(try open()) { error in
                XCTAssertEqual("\(error)", "\(path) is damaged: it cannot be read as version 1. Remove it and copy the disks again")
            }
        }
        try put(Array(String(decoding: whole, as: UTF8.self).replacingOccurrences(of: "\"version\" : 1", with: "\"version\" : 2").utf8), path)
        XCTAssertThrowsError(try open()) { XCTAssertTrue("\($0)".contains("its version is 2, not 1"), "\($0)") }
        try FileManager.default.removeItem(atPath: path)
        XCTAssertEqual(try open().state, .empty)
    }

    func testTwoWorkersOfOneDomain() throws {
        let set = try synced()
        XCTAssertThrowsError(try open()) { XCTAssertEqual($0 as? ReplicaError, .journalInUse(path: store + "/journal")) }
        XCTAssertThrowsError(try ReplicaSet.pendingRepair(folder: store)) { XCTAssertEqual($0 as? ReplicaError, .journalInUse(path: store + "/journal")) }
        try set.close(clean: false)
        XCTAssertNoThrow(try open())
    }
}

/// A file system that is full, 8 MiB large.
final class NoSpaceTests: FolderTestCase {
    private let session = UUID()
    private let size = 6 << 20

    override func setUpWithError() throws {
        try super.setUpWithError()
        guard geteuid() == 0 else { throw XCTSkip("Needs root for a file system of its own") }
        let mounted = try shell("mount -t tmpfs -o size=8m tmpfs \(folder)")
        guard mounted.status == 0 else { throw XCTSkip("Cannot mount a tmpfs here: \(mounted.output)") }
    }

    override func tearDown() {
        _ = try? shell("umount -l \(folder)")
        super.tearDown()
    }

    private func open(committed: UInt64? = nil) throws -> ReplicaSet {
        let disk = ReplicaSet.Disk(index: 0, path: folder + "/disk.raw", byteCount: UInt64(size))
        return try ReplicaSet(folder: store, session: session, disks: [disk], journalLimitBytes: 64 << 20, committed: committed)
    }

    /// Fills the file system, but for about `leaving` bytes.
    private func fillUp(leaving: Int) throws {
        var info = statvfs()
        statvfs(folder, &info)
        let free = Int(info.f_bavail) * Int(info.f_frsize) - leaving
        XCTAssertEqual(try shell("fallocate -l \(free) \(folder)/filler").status, 0)
    }

    private func expectNoSpace(_ path: String, _ body: () throws -> Void) {
        XCTAssertThrowsError(try body()) { error in
            guard case .noSpace(let found, _)? = error as? ReplicaError else { return XCTFail("\(error)") }
            XCTAssertEqual(found, folder + path)
            XCTAssertTrue("\(error)".hasSuffix("Free space on its file system"), "\(error)")
        }
    }

    func testTheEpochBeforeRemainsWhenTheJournalCannotGrow() throws {
        try makeDisk(bytes: size)
        var set = try open()
        try set.beginSync()
        try set.write(data(0, [UInt8](repeating: 1, count: 100_000)).0, [UInt8](repeating: 1, count: 100_000))
        try set.endSync(epoch: 1)
        try fillUp(leaving: 100_000)
        let large = [data(0, [UInt8](repeating: 2, count: 90_000)), data(1000, [UInt8](repeating: 3, count: 90_000))]
        for _ in 0..<3 {
            expectNoSpace("/store/journal") { try set.commit(2, large) }
            XCTAssertEqual(set.state, .consistent(epoch: 1))
            assertSame(Array(try content(folder + "/disk.raw")[..<100_000]), [UInt8](repeating: 1, count: 100_000))
        }
        try set.commit(2, [data(0, [4])])
        // What is in the journal's front serves again.
        for epoch in UInt64(3)...40 { try set.commit(epoch, [data(5, [UInt8](repeating: UInt8(epoch), count: 20_000))]) }
        try set.close(clean: false)
        set = try open(committed: 40)
        XCTAssertEqual(set.state, .consistent(epoch: 40))
        XCTAssertEqual(try content(folder + "/disk.raw")[..<6], [4, 1, 1, 1, 1, 40])
        try FileManager.default.removeItem(atPath: folder + "/filler")
        try set.commit(41, large)
        XCTAssertEqual(try content(folder + "/disk.raw")[1000], 3)
    }

    func testASparseReplicaWithoutSpaceIsFoundOutBeforeTheEpochCounts() throws {
        try makeDisk(bytes: size)
        let set = try open()
        try set.beginSync()
        try set.endSync(epoch: 1)
        // The journal has its space.
        try set.commit(2, [data(0, [UInt8](repeating: 2, count: 300_000))])
        try fillUp(leaving: 20_000)
        expectNoSpace("/disk.raw") { try set.commit(3, [data(0, [3]), data(1 << 20, [UInt8](repeating: 3, count: 100_000))]) }
        XCTAssertEqual(set.state, .consistent(epoch: 2))
        let found = try content(folder + "/disk.raw")
        XCTAssertEqual(found[0], 2)
        XCTAssertTrue(found[(1 << 20)...].allSatisfy { $0 == 0 })
        try set.commit(3, [data(100_000, [UInt8](repeating: 3, count: 100_000))])
        XCTAssertEqual(set.state, .consistent(epoch: 3))
    }

    func testNoSpaceForTheStateFile() throws {
        try makeDisk(bytes: size)
        let set = try open()
        try set.beginSync()
        try set.endSync(epoch: 1)
        try fillUp(leaving: 0)
        expectNoSpace("/store/state.new") { try set.beginSync() }
        XCTAssertEqual(set.state, .consistent(epoch: 1))
        try FileManager.default.removeItem(atPath: folder + "/filler")
        try set.beginSync()
        XCTAssertEqual(set.state, .syncing)
    }
}
