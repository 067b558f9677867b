import Foundation
import XCTest
@testable import ReplicaStore

final class ChunkTableTests: FolderTestCase {
    private let chunk = ChunkTable.chunkBytes
    private var byteCount: Int { 10 * chunk + 1000 }
    private var tablePath: String { folder + "/disk-0.chunks" }

    private func open(_ path: String) throws -> ReplicaImage { try ReplicaImage(path: path, byteCount: UInt64(byteCount)) }

    private func reference(_ table: ChunkTable, _ bytes: [UInt8]) -> [UInt8] {
        let hash = KeyedHash(secret: table.seed)!
        return stride(from: 0, to: bytes.count, by: chunk).flatMap { start in
            let value = Array(bytes[start..<min(bytes.count, start + chunk)]).withUnsafeBytes { hash.hash128($0.baseAddress!, $0.count) }
            return withUnsafeBytes(of: value.low.littleEndian) { Array($0) } + withUnsafeBytes(of: value.high.littleEndian) { Array($0) }
        }
    }

    private func hashes(_ table: ChunkTable) -> [UInt8] { table.withHashes { bytes, _ in Array(bytes) } }

    private func staleChunks(_ table: ChunkTable) -> [Int] { (0..<table.chunkCount).filter(table.isStale) }

    private func fill(_ image: ReplicaImage, _ range: Range<Int>, _ byte: UInt8, _ table: ChunkTable? = nil) throws {
        let bytes = [UInt8](repeating: byte, count: range.count)
        try image.write(bytes, range.count, at: UInt64(range.lowerBound))
        table?.wrote(UInt64(range.lowerBound), range.count, bytes)
    }

    func testRebuildHashesWhatIsStaleAndSkipsHoles() throws {
        let path = try makeDisk(bytes: byteCount)
        let image = try open(path)
        try fill(image, (3 * chunk + 5)..<(3 * chunk + 10), 1)
        try fill(image, (10 * chunk + 999)..<byteCount, 2)
        let table = try ChunkTable(image: image)
        XCTAssertEqual(table.staleChunks, 11)
        var told: [UInt64] = []
        XCTAssertTrue(try table.rebuild(progress: { told.append($0); return true }, bytesPerSecond: nil))
        XCTAssertEqual(told, [0, UInt64(byteCount)])
        XCTAssertEqual(table.staleChunks, 0)
        assertSame(hashes(table), reference(table, try content(path)))
    }

    func testWritesMakeStaleOrKnown() throws {
        let path = try makeDisk(bytes: byteCount)
        let image = try open(path)
        let table = try ChunkTable(image: image)
        _ = try table.rebuild(progress: { _ in true }, bytesPerSecond: nil)
        try fill(image, (chunk - 1)..<(3 * chunk + 1), 5, table)
        XCTAssertEqual(staleChunks(table), [0, 3], "Those in between were written whole")
        try fill(image, (10 * chunk)..<byteCount, 6, table)
        XCTAssertEqual(staleChunks(table), [0, 3], "The short last one, too")
        try image.zero(2 * chunk, at: UInt64(3 * chunk))
        table.wrote(UInt64(3 * chunk), 2 * chunk, nil)
        XCTAssertEqual(staleChunks(table), [0])
        table.wrote(UInt64(7 * chunk), chunk, nil, unknown: true)
        XCTAssertEqual(staleChunks(table), [0, 7])
        XCTAssertTrue(try table.rebuild(progress: { _ in true }, bytesPerSecond: nil))
        assertSame(hashes(table), reference(table, try content(path)))
    }

    func testRebuildCanBeStoppedAndSlowed() throws {
        let path = try makeDisk(bytes: byteCount, fill: 7)
        let table = try ChunkTable(image: try open(path))
        XCTAssertFalse(try table.rebuild(progress: { _ in false }, bytesPerSecond: nil))
        XCTAssertEqual(table.staleChunks, 11)
        let began = ProcessInfo.processInfo.systemUptime
        XCTAssertTrue(try table.rebuild(progress: { _ in true }, bytesPerSecond: 4 * byteCount))
        XCTAssertGreaterThan(ProcessInfo.processInfo.systemUptime - began, 0.2)
    }

    /// A chunk that is written to while it is hashed has a hash of neither the old nor the new content.
    func testWritesDuringARebuild() throws {
        let path = try makeDisk(bytes: byteCount, fill: 7)
        let image = try open(path)
        let table = try ChunkTable(image: image)
        let done = DispatchSemaphore(value: 0)
        let rounds = 200
        let chunk = self.chunk
        Thread.detachNewThread {
            for round in 0..<rounds {
                let at = (round % 10) * chunk + 100
                let bytes = [UInt8](repeating: UInt8(truncatingIfNeeded: round), count: 50)
                try? image.write(bytes, 50, at: UInt64(at))
                table.wrote(UInt64(at), 50, bytes)
            }
            done.signal()
        }
        while done.wait(timeout: .now()) == .timedOut { _ = try table.rebuild(progress: { _ in true }, bytesPerSecond: nil) }
        _ = try table.rebuild(progress: { _ in true }, bytesPerSecond: nil)
        assertSame(hashes(table), reference(table, try content(path)))
    }

    func testASavedTableIsKeptForTheSameImageOnly() throws {
        let path = try makeDisk(bytes: byteCount, fill: 7)
        let image = try open(path)
        let table = try ChunkTable(image: image)
        try table.save(path: tablePath, folder: folder)
        XCTAssertFalse(FileManager.default.fileExists(atPath: tablePath), "Nothing is known, nothing is worth keeping")
        _ = try table.rebuild(progress: { _ in true }, bytesPerSecond: nil)
        table.forget(4)
        try table.save(path: tablePath, folder: folder)
        let again = try ChunkTable.load(path: tablePath, image: image)
        XCTAssertEqual(staleChunks(again), [4])
        XCTAssertEqual(again.seed, table.seed)
        XCTAssertEqual(hashes(again), hashes(table))
        usleep(20_000)
        try fill(image, 0..<1, 8)
        XCTAssertEqual(try ChunkTable.load(path: tablePath, image: image).staleChunks, 11, "The image was changed")
    }

    func testADamagedTableCountsAsNone() throws {
        let path = try makeDisk(bytes: byteCount, fill: 7)
        let image = try open(path)
        let table = try ChunkTable(image: image)
        _ = try table.rebuild(progress: { _ in true }, bytesPerSecond: nil)
        try table.save(path: tablePath, folder: folder)
        let saved = try content(tablePath)
        XCTAssertEqual(saved.count, 4096 + 11 * 16 + 8)
        for place in [0, 8, 12, 16, 24, 40, 56, 64, 72, 80, 300, 4096, 4096 + 100, saved.count - 1] {
            var damaged = saved
            damaged[place] ^= 1
            try put(damaged, tablePath)
            XCTAssertEqual(try ChunkTable.load(path: tablePath, image: image).staleChunks, 11, "byte \(place)")
        }
        for length in [0, 80, 4095, 4096, saved.count - 1] {
            try put(Array(saved[..<length]), tablePath)
            XCTAssertEqual(try ChunkTable.load(path: tablePath, image: image).staleChunks, 11, "\(length) bytes")
        }
    }
}
