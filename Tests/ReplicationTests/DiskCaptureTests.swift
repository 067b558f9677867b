import Foundation
import NBDServer
import Platform
import ReplicaStore
import XCTest
@testable import Replication

/// A capture of small disks whose pieces and epochs are collected.
private final class CaptureBench: @unchecked Sendable {
    let pieces = Guarded<[DiskSegment]>([])
    let isEnding = Guarded(false)
    let statistics: SharedStatistics
    let capture: DiskCapture
    private let file: Descriptor
    static let connection = NBDConnectionID(slot: 0, serial: 1)

    init(sizes: [UInt64] = [4 << 20], limitBytes: Int = 32 << 20) throws {
        let file = try memoryFile("capture", bytes: SharedStatistics.bytes)
        statistics = try SharedStatistics(file.raw)
        self.file = file
        let disks = sizes.enumerated().map { CapturedDisk(index: $0, target: "vd\($0)", byteCount: $1) }
        let (pieces, isEnding) = (pieces, isEnding)
        capture = DiskCapture(disks: disks, limitBytes: limitBytes, statistics: statistics) { segment, _ in
            pieces.change { $0.append(segment) }
        } isEnding: { isEnding.read { $0 } }
    }

    func begin() throws {
        for export in capture.exports { try export.startDifference(PageHash()) }
        capture.startCopying()
        for disk in capture.disks { capture.mirrorCame(disk.target) }
    }

    func follow() throws {
        try begin()
        try capture.follow()
    }

    func write(_ disk: Int, _ offset: Int, _ bytes: [UInt8]) throws(NBDError) {
        let export = capture.exports[disk]
        let memory = try export.prepareWrite(length: bytes.count, connection: Self.connection)
        bytes.withUnsafeBytes { memory.copyMemory(from: $0.baseAddress!, byteCount: bytes.count) }
        try export.write(offset: UInt64(offset), bytes: UnsafeRawBufferPointer(start: memory, count: bytes.count), forceUnitAccess: false,
                         connection: Self.connection)
    }

    /// Fills the pool in writes of 1 MiB; how many went in.
    func fill() -> Int {
        var count = 0
        while count < 1000 {
            do { try write(0, count % 4 << 20, [UInt8](repeating: UInt8(count & 0xff), count: 1 << 20)) } catch { return count }
            count += 1
        }
        return count
    }

    func takesAtOnce(_ disk: Int, _ length: Int) -> Bool { capture.exports[disk].takesWriteAtOnce(length: length, connection: Self.connection) }
}

final class DiskCaptureTests: XCTestCase {
    /// A pass's epoch ends when the guest ran on, which is known only later: what was written since belongs to the next one.
    func testCutAtAMoment() throws {
        let bench = try CaptureBench()
        try bench.follow()
        try bench.write(0, 0, [1])
        try bench.write(0, 4096, [2])
        usleep(1000)
        let moment = SharedStatistics.realtimeNanoseconds
        usleep(1000)
        try bench.write(0, 8192, [3])
        try bench.capture.exports[0].trim(offset: 65536, length: 4096, forceUnitAccess: false)
        let first = try bench.capture.cut(heldBy: moment)
        try bench.write(0, 12288, [4])
        let second = try bench.capture.cut()
        XCTAssertEqual(first.records.map(\.extent.offset), [0, 4096])
        XCTAssertEqual(second.records.map(\.extent.offset), [8192, 65536, 12288])
        XCTAssertEqual((first.bytes + second.bytes), 4)
        XCTAssertEqual(second.records.compactMap { $0.bytes?.load(as: UInt8.self) }, [3, 4])
        XCTAssertFalse(second.buffers.isEmpty, "Nothing keeps the memory of the writes that stayed")
    }

    /// The writes of an epoch that came to nothing are the beginning of the next.
    func testSegmentsAreJoinedInTheirOrder() throws {
        let bench = try CaptureBench()
        try bench.follow()
        try bench.write(0, 0, [1])
        let lost = try bench.capture.cut()
        try bench.write(0, 0, [2])
        let next = try DiskSegment(joining: [lost, bench.capture.cut()])
        XCTAssertEqual(next.records.compactMap { $0.bytes?.load(as: UInt8.self) }, [1, 2])
        XCTAssertEqual(next.bytes, 2)
    }

    /// Memory that several epochs share is held by each of them, and goes back when the last is gone.
    func testMomentsWithinOneBuffer() throws {
        let bench = try CaptureBench()
        try bench.follow()
        var segments: [DiskSegment] = []
        for round in 0..<50 {
            for index in 0..<20 { try bench.write(0, index * 4096, [UInt8](repeating: UInt8(round), count: 4096)) }
            let moment = SharedStatistics.realtimeNanoseconds
            usleep(100)
            try bench.write(0, 1 << 20, [UInt8(round)])
            segments.append(try bench.capture.cut(heldBy: moment))
        }
        for (round, segment) in segments.enumerated() {
            XCTAssertEqual(segment.records.suffix(20).compactMap { $0.bytes?.load(as: UInt8.self) }, [UInt8](repeating: UInt8(round), count: 20))
        }
        segments = []
        _ = try bench.capture.cut()
        XCTAssertLessThanOrEqual(bench.capture.pool.bytesInUse, WriteBufferPool.bufferBytes)
    }

    private func apply(_ segment: DiskSegment, to disks: inout [[UInt8]]) {
        for record in segment.records {
            let extent = record.extent
            put(record.bytes, extent.length, at: Int(extent.offset), into: &disks[extent.disk])
        }
    }

    func testPhases() throws {
        let bench = try CaptureBench(sizes: [1 << 20, 1 << 20])
        let capture = bench.capture
        for export in capture.exports { try export.startDifference(PageHash()) }
        // Nothing is taken before the replicas are known: it could not be compared.
        XCTAssertThrowsError(try bench.write(0, 0, [1]))
        XCTAssertThrowsError(try capture.exports[0].writeZeroes(offset: 0, length: 512, mayTrim: true, forceUnitAccess: false))
        XCTAssertThrowsError(try capture.exports[0].trim(offset: 0, length: 512, forceUnitAccess: false))
        XCTAssertThrowsError(try capture.follow()) { XCTAssertEqual("\($0)", "The mirrors are said to be ready before the replicas are known") }
        XCTAssertTrue(capture.isLearning)
        capture.startCopying()
        XCTAssertFalse(capture.isLearning)
        XCTAssertThrowsError(try capture.cut(), "Without mirrors an epoch lacks writes")
        capture.mirrorCame("vd0")
        try bench.write(0, 0, [1])
        XCTAssertThrowsError(try capture.follow()) { XCTAssertEqual("\($0)", "No mirror writes to the export of vd1") }
        XCTAssertThrowsError(try capture.cut())
        capture.mirrorCame("vd1")
        capture.mirrorCame("another")
        try capture.follow()
        XCTAssertTrue(capture.isFollowing)
        try capture.follow()
        XCTAssertEqual(try capture.cut().records.count, 0)
        XCTAssertEqual(bench.pieces.read { $0.map(\.records.count) }, [1])
    }

    /// Pieces, then epochs: in their order they make what was written in its order.
    func testOrderOverPiecesAndEpochs() throws {
        var random = SeededGenerator(seed: 70)
        let bench = try CaptureBench(sizes: [600_000, 300_000], limitBytes: 256 << 20)
        try bench.begin()
        var disks = [[UInt8](repeating: 0, count: 600_000), [UInt8](repeating: 0, count: 300_000)]
        var copy = disks
        var taken: [DiskSegment] = []
        for disk in 0..<2 {
            try bench.capture.exports[disk].writeZeroes(offset: 0, length: UInt64(disks[disk].count), mayTrim: true, forceUnitAccess: false)
        }
        for step in 0..<500 {
            let disk = Int(random.next() % 2)
            let length = 1 + Int(random.next() % 60_000)
            let offset = Int(random.next() % UInt64(disks[disk].count - length))
            if random.next() % 5 == 0 {
                put(nil, length, at: offset, into: &disks[disk])
                try bench.capture.exports[disk].trim(offset: UInt64(offset), length: UInt64(length), forceUnitAccess: false)
            } else {
                let bytes = noise(length, &random)
                put(bytes, length, at: offset, into: &disks[disk])
                try bench.write(disk, offset, bytes)
            }
            if step == 200 { try bench.capture.follow() }
            guard step > 300, step % 20 == 0 else { continue }
            if taken.isEmpty { for piece in bench.pieces.read({ $0 }) { apply(piece, to: &copy) } }
            taken.append(try bench.capture.cut())
            apply(taken.last!, to: &copy)
            XCTAssertTrue(copy == disks, "epoch \(taken.count)")
        }
        XCTAssertGreaterThan(bench.pieces.read { $0.count }, 3)
        // Late: buffers live as long as what points into them.
        var again = [[UInt8](repeating: 0, count: 600_000), [UInt8](repeating: 0, count: 300_000)]
        for piece in bench.pieces.read({ $0 }) { apply(piece, to: &again) }
        for epoch in taken { apply(epoch, to: &again) }
        XCTAssertTrue(again == copy)
        for epoch in taken { XCTAssertEqual(epoch.buffers.count, Set(epoch.buffers.map(ObjectIdentifier.init)).count) }
        bench.pieces.change { $0 = [] }
        taken = []
        _ = try bench.capture.cut()
        XCTAssertLessThanOrEqual(bench.capture.pool.bytesInUse, 2 * WriteBufferPool.bufferBytes, "One for each disk to go on with")
    }

    /// While the disks are copied a write waits for room, and goes on when there is some.
    func testTheCopyWaitsForRoom() throws {
        let bench = try CaptureBench(limitBytes: 8 << 20)
        try bench.begin()
        let writer = Running { bench.fill() }
        usleep(150_000)
        XCTAssertNil(writer.result(seconds: 0.1))
        XCTAssertEqual(bench.capture.pool.bytesInUse, 8 << 20)
        XCTAssertFalse(bench.takesAtOnce(0, 1 << 20), "Somebody is in there")
        let limit = MonotonicTime.now.adding(milliseconds: 5000)
        while bench.statistics[.diskWrites] <= 30, limit > .now {
            bench.pieces.change { $0.removeFirst(min(2, $0.count)) }
            usleep(2000)
        }
        let waits = MonotonicTime.now
        bench.isEnding.change { $0 = true }
        XCTAssertGreaterThan(writer.result() ?? 0, 30)
        XCTAssertLessThan(MonotonicTime.now.milliseconds(since: waits), 2000, "Whoever ends does not wait for room")
        // Refused is lost: no epoch may be taken from now on.
        XCTAssertEqual(bench.capture.failure, "The protection ends")
        XCTAssertThrowsError(try bench.capture.cut())
        XCTAssertThrowsError(try bench.capture.follow())
    }

    /// The last shadow is lost: the mirrors hear nothing of it until they are ended, however much the guest writes; but no epoch is taken any more.
    func testAbandonedWritesAreThrownAway() throws {
        let bench = try CaptureBench(limitBytes: 8 << 20)
        try bench.follow()
        try bench.write(0, 0, [1, 2, 3])
        let held = try bench.capture.cut()
        bench.capture.abandon("Nobody is left")
        for round in 0..<40 { try bench.write(0, round * 4096, [UInt8](repeating: 7, count: 1 << 20)) }
        try bench.capture.exports[0].trim(offset: 0, length: 4096, forceUnitAccess: false)
        try bench.capture.exports[0].flush()
        XCTAssertThrowsError(try bench.capture.cut()) { XCTAssertEqual("\($0)", "Nobody is left") }
        XCTAssertEqual(held.records.compactMap { $0.bytes?.load(as: UInt8.self) }, [1], "What is under way stays as it was")
        XCTAssertLessThanOrEqual(bench.capture.pool.bytesInUse, 6 << 20)
    }

    func testOverflowOnceEpochsAreTaken() throws {
        let bench = try CaptureBench(limitBytes: 8 << 20)
        try bench.follow()
        try bench.write(0, 0, [1, 2, 3])
        let first = try bench.capture.cut()
        XCTAssertEqual(first.records.count, 1)
        let start = MonotonicTime.now
        let count = bench.fill()
        XCTAssertLessThan(MonotonicTime.now.milliseconds(since: start), 3000, "The guest does not wait for the network")
        XCTAssertGreaterThanOrEqual(count, 7)
        let reason = "The guest writes to its disks faster than the shadow takes it: 8 MiB wait already (unsent_ceiling_mib)"
        XCTAssertThrowsError(try bench.capture.cut()) { XCTAssertEqual("\($0)", reason) }
        XCTAssertThrowsError(try bench.write(0, 0, [1])) { XCTAssertEqual(($0 as? NBDError)?.message, reason) }
        XCTAssertThrowsError(try bench.capture.exports[0].writeZeroes(offset: 0, length: 1, mayTrim: true, forceUnitAccess: false))
        XCTAssertThrowsError(try bench.capture.exports[0].flush())
        // Room again is no reason to go on: writes are missing.
        withExtendedLifetime(first) {}
        XCTAssertThrowsError(try bench.capture.cut())
        XCTAssertTrue(bench.takesAtOnce(0, 4096), "Refusing takes no time")
    }

    /// QEMU waits for all writes under way when it has stopped the guest: they must not wait for the network then.
    func testAWriteThatWaitsWhenEpochsBegin() throws {
        let bench = try CaptureBench(limitBytes: 8 << 20)
        try bench.follow()
        XCTAssertTrue(bench.capture.hasRoomForEpochs)
        let writer = Running { bench.fill() }
        let limit = MonotonicTime.now.adding(milliseconds: 5000)
        while bench.statistics[.diskWrites] < 8, limit > .now { usleep(2000) }
        XCTAssertNil(writer.result(seconds: 0.1))
        XCTAssertFalse(bench.capture.hasRoomForEpochs)
        bench.capture.beginEpochs()
        XCTAssertEqual(writer.result(seconds: 3), 8)
        XCTAssertThrowsError(try bench.capture.cut())
    }

    func testAMirrorThatIsGone() throws {
        let bench = try CaptureBench()
        try bench.follow()
        XCTAssertNoThrow(try bench.capture.cut())
        bench.capture.fail("QEMU ended the mirror of vd0")
        bench.capture.fail("And something else")
        XCTAssertThrowsError(try bench.capture.cut()) { XCTAssertEqual("\($0)", "QEMU ended the mirror of vd0") }
        XCTAssertThrowsError(try bench.write(0, 0, [1]))
    }

    /// Zeroes have no bytes, but they are not free.
    func testManySmallTrimsAreAnOverflowAsWell() throws {
        let bench = try CaptureBench(limitBytes: 8 << 20)
        try bench.follow()
        _ = try bench.capture.cut()
        var count = 0
        while count < 1_000_000 {
            do { try bench.capture.exports[0].trim(offset: UInt64(count % 4096), length: 1, forceUnitAccess: false) } catch { break }
            count += 1
        }
        XCTAssertEqual(count, DiskSegment.freeRecords + 4 * DiskSegment.recordsPerBuffer)
        XCTAssertThrowsError(try bench.capture.cut())
    }

    func testTheRoomThatWasPromisedIsThere() throws {
        let bench = try CaptureBench(sizes: [4 << 20, 4 << 20], limitBytes: 8 << 20)
        XCTAssertTrue(bench.takesAtOnce(0, 4096), "Refusing takes no time")
        try bench.follow()
        _ = try bench.capture.cut()
        // Three of four buffers.
        for index in 0..<6 { try bench.write(0, index % 4 << 20, [UInt8](repeating: 1, count: 1 << 20)) }
        XCTAssertEqual(bench.capture.pool.bytesInUse, 6 << 20)
        XCTAssertTrue(bench.takesAtOnce(1, 4096))
        XCTAssertFalse(bench.takesAtOnce(0, 4096), "The last one is promised to the other disk")
        try bench.write(1, 0, [UInt8](repeating: 2, count: 4096))
        XCTAssertNil(bench.capture.failure)
        XCTAssertTrue(bench.takesAtOnce(1, 1 << 20))
        // An epoch that goes gives its buffers back.
        XCTAssertGreaterThan(try bench.capture.cut().records.count, 0)
        XCTAssertTrue(bench.takesAtOnce(0, 4096))
    }

    func testOneConnectionsWritesLieTogether() throws {
        let bench = try CaptureBench()
        try bench.follow()
        for index in 0..<100 { try bench.write(0, index * 4096, [UInt8](repeating: UInt8(index), count: 4096)) }
        let epoch = try bench.capture.cut()
        XCTAssertEqual(epoch.buffers.count, 1)
        XCTAssertEqual(epoch.bytes, 409_600)
        let first = try XCTUnwrap(epoch.records[0].bytes)
        XCTAssertEqual(epoch.records[99].bytes, first + 99 * 4096)
        // A payload that breaks off leaves nothing behind.
        _ = try bench.capture.exports[0].prepareWrite(length: 4096, connection: CaptureBench.connection)
        bench.capture.exports[0].abandonWrite(connection: CaptureBench.connection)
        XCTAssertEqual(try bench.capture.cut().records.count, 0)
        XCTAssertThrowsError(try bench.capture.exports[0].prepareWrite(length: 3 << 20, connection: CaptureBench.connection))
        XCTAssertNoThrow(try bench.write(0, 0, [1]))
    }

    // MARK: Buffers

    func testPool() {
        let pool = WriteBufferPool(limitBytes: 1)
        XCTAssertEqual(pool.limitBytes, 8 << 20, "Never less than four buffers")
        var buffers = (0..<4).compactMap { _ in pool.take() }
        XCTAssertEqual(buffers.count, 4)
        XCTAssertNil(pool.take())
        XCTAssertEqual(pool.bytesInUse, 8 << 20)
        let base = buffers[2].base
        memset(base, 7, buffers[2].capacity)
        buffers.remove(at: 2)
        XCTAssertEqual(pool.bytesInUse, 6 << 20)
        let again = pool.take()
        XCTAssertEqual(again?.base, base, "What was used is used again")
        XCTAssertNil(pool.take())
        buffers = []
        XCTAssertEqual(pool.bytesInUse, 2 << 20)
        withExtendedLifetime(again) {}
    }

    func testBuffersFromManyThreads() {
        let pool = WriteBufferPool(limitBytes: 16 << 20)
        DispatchQueue.concurrentPerform(iterations: 4) { thread in
            var held: [WriteBuffer] = []
            for round in 0..<400 {
                if let buffer = pool.take() {
                    memset(buffer.base, Int32(thread), 4096)
                    held.append(buffer)
                }
                if round % 3 == 0 { held = held.dropFirst().filter { $0.base.load(as: UInt8.self) == UInt8(thread) } }
            }
        }
        XCTAssertEqual(pool.bytesInUse, 0)
    }
}
