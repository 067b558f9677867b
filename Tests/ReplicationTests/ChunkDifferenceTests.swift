import Platform
import ReplicaStore
import XCTest
@testable import Replication

final class ChunkDifferenceTests: XCTestCase {
    private static let chunk = ChunkDifference.chunkBytes
    private let hash = PageHash(secret: (0..<192).map { UInt8($0 ^ 0x55) })

    /// A disk, its replica, and what connects the two.
    private final class Model {
        var disk: [UInt8]
        var replica: [UInt8]
        let difference: ChunkDifference
        var extents: [DiskExtent] = []

        init(_ replica: [UInt8], _ hash: PageHash) throws {
            self.replica = replica
            disk = replica
            difference = try ChunkDifference(disk: 3, byteCount: UInt64(replica.count), hash: hash)
        }

        private func emit(_ extent: DiskExtent, _ bytes: UnsafeRawPointer?) {
            extents.append(extent)
            put(bytes, extent.length, at: Int(extent.offset), into: &replica)
        }

        func write(_ offset: Int, _ bytes: [UInt8]) throws {
            put(bytes, bytes.count, at: offset, into: &disk)
            try bytes.withUnsafeBytes { try difference.write(UInt64(offset), $0, emit) }
        }

        func zero(_ offset: Int, _ count: Int) throws {
            put(nil, count, at: offset, into: &disk)
            try difference.writeZeroes(UInt64(offset), UInt64(count), emit)
        }

        func finish() throws { try difference.finish(emit) }
    }

    /// The hashes of a replica as its shadow tells them; `unknown` chunks are left out.
    private func learn(_ model: Model, unknown: (Int) -> Bool = { _ in false }) {
        var bytes: [UInt8] = []
        for start in stride(from: 0, to: model.replica.count, by: Self.chunk) {
            let part = Array(model.replica[start..<min(start + Self.chunk, model.replica.count)])
            let (low, high) = hash.withHasher { hasher in part.withUnsafeBytes { hasher.hash128($0.baseAddress!, $0.count) } }
            let known = !unknown(start / Self.chunk)
            for word in [low, high] { withUnsafeBytes(of: (known ? word : 0).littleEndian) { bytes += $0 } }
        }
        XCTAssertTrue(bytes.withUnsafeBytes { model.difference.learn($0, first: 0) })
    }

    /// Whatever is written in whatever order: what goes out makes the replica the disk.
    func testAgainstAModel() throws {
        var random = SeededGenerator(seed: 60)
        let sizes = [1, 511, 65_535, 65_536, 65_537, 3 * 65_536 + 1000, 9 * 65_536]
        for round in 0..<84 {
            let size = sizes[round % sizes.count]
            var old = noise(size, &random)
            // Some of it is zeros already.
            if round % 3 == 0 { put(nil, size / 2, at: 0, into: &old) }
            let original = old
            let model = try Model(old, hash)
            let missing = random.next()
            learn(model) { missing >> UInt64($0 & 63) & 1 == 1 }
            // The mirror touches everything once.
            if round % 2 == 0 { try model.zero(0, size) } else { try model.write(0, noise(size, &random)) }
            for _ in 0..<Int(random.next() % 40) {
                let offset = Int(random.next() % UInt64(size))
                let length = 1 + Int(random.next() % UInt64(size - offset))
                let whole = random.next() % 2 == 0
                let from = whole ? offset / Self.chunk * Self.chunk : offset
                let to = whole ? min(size, (from + length + Self.chunk - 1) / Self.chunk * Self.chunk) : offset + length
                switch random.next() % 4 {
                case 0: try model.zero(from, to - from)
                case 1: try model.write(from, Array(original[from..<to]))
                case 2: try model.write(from, [UInt8](repeating: 0, count: to - from))
                default: try model.write(from, noise(to - from, &random))
                }
            }
            try model.finish()
            XCTAssertTrue(model.replica == model.disk, "round \(round), \(size) bytes")
            XCTAssertTrue(model.extents.allSatisfy { $0.length > 0 && $0.disk == 3 && Int($0.offset) + $0.length <= size })
        }
    }

    func testEqualChunksAreNotSent() throws {
        var random = SeededGenerator(seed: 61)
        let size = 20 * Self.chunk + 777
        let model = try Model(noise(size, &random), hash)
        learn(model)
        try model.zero(0, size)
        try model.write(0, model.replica)
        try model.finish()
        XCTAssertEqual(model.extents, [])
        XCTAssertEqual(model.difference.droppedBytes, UInt64(size))
        // One byte in the middle, one in the last chunk, which is short: those two chunks.
        var changed = model.replica
        changed[5 * Self.chunk + 9] ^= 1
        changed[size - 1] ^= 1
        try model.write(0, changed)
        try model.finish()
        XCTAssertEqual(model.extents, [DiskExtent(disk: 3, kind: .data, offset: UInt64(5 * Self.chunk), length: Self.chunk),
                                       DiskExtent(disk: 3, kind: .data, offset: UInt64(20 * Self.chunk), length: 777)])
        XCTAssertTrue(model.replica == changed)
        // And back: the hashes are now those of what was sent.
        model.extents = []
        try model.write(0, changed)
        XCTAssertEqual(model.extents, [])
    }

    /// Regression by design: after a part was written nobody knows the chunk's hash, so its old content is sent again.
    func testAPartMakesAChunkUnknown() throws {
        var random = SeededGenerator(seed: 62)
        let old = noise(2 * Self.chunk, &random)
        let model = try Model(old, hash)
        learn(model)
        try model.write(0, old)
        try model.write(100, [1, 2, 3])
        try model.write(0, old)
        try model.finish()
        XCTAssertTrue(model.replica == old)
        XCTAssertEqual(model.extents.map(\.length), [3, Self.chunk])
    }

    func testZeroes() throws {
        let size = 4 * Self.chunk + 5
        let zeros = [UInt8](repeating: 0, count: size)
        let known = try Model(zeros, hash)
        learn(known)
        try known.zero(0, size)
        try known.zero(10, 100_000)
        try known.finish()
        XCTAssertEqual(known.extents.map(\.length), [Self.chunk - 10, 100_010 - Self.chunk], "Only the parts, which make two chunks unknown")

        var random = SeededGenerator(seed: 63)
        let other = try Model(noise(size, &random), hash)
        learn(other)
        try other.zero(0, size)
        XCTAssertEqual(other.extents, [], "Put off")
        try other.zero(1000, 10)
        XCTAssertEqual(other.extents, [], "Zeroes in what is going to be zeroes")
        try other.write(2 * Self.chunk + 8, [7])
        XCTAssertEqual(other.extents.map(\.kind), [.zero, .data])
        try other.finish()
        XCTAssertEqual(other.extents.dropFirst(2).map(\.length), [2 * Self.chunk, Self.chunk + 5])
        XCTAssertTrue(other.replica == other.disk)
    }

    /// No memory of a disk's size, no 32-bit arithmetic: 6 GiB and a bit.
    func testLargeDisks() throws {
        let size: UInt64 = 6 << 30 + 512
        let difference = try ChunkDifference(disk: 0, byteCount: size, hash: hash)
        var extents: [DiskExtent] = []
        let emit: ChunkDifference.Emit = { extent, _ in extents.append(extent) }
        try difference.writeZeroes(0, size, emit)
        try [UInt8](repeating: 9, count: 512).withUnsafeBytes { try difference.write(size - 512, $0, emit) }
        try [UInt8](repeating: 9, count: 1024).withUnsafeBytes { try difference.write(5 << 30 - 512, $0, emit) }
        XCTAssertEqual(extents.map(\.offset), [size - 512, 5 << 30 - 65_536, 5 << 30 - 512, 5 << 30, 5 << 30])
        extents = []
        try difference.finish(emit)
        XCTAssertEqual(extents.reduce(0) { $0 + UInt64($1.length) }, 6 << 30 - 2 * 65_536)
        XCTAssertLessThanOrEqual(extents.count, 8)
        XCTAssertTrue(extents.allSatisfy { $0.kind == .zero && $0.length <= 1 << 30 })
        var next: UInt64 = 0
        for extent in extents {
            XCTAssertTrue(extent.offset == next || extent.offset == 5 << 30 + 65_536)
            next = extent.offset + UInt64(extent.length)
        }
    }

    func testAnEmptyDiskIsOneExtent() throws {
        let size: UInt64 = 300 << 20
        let difference = try ChunkDifference(disk: 1, byteCount: size, hash: hash)
        var extents: [DiskExtent] = []
        try difference.writeZeroes(0, size) { extent, _ in extents.append(extent) }
        try difference.finish { extent, _ in extents.append(extent) }
        XCTAssertEqual(extents, [DiskExtent(disk: 1, kind: .zero, offset: 0, length: Int(size))])
    }

    func testHashesOfOtherChunksAreRefused() throws {
        let difference = try ChunkDifference(disk: 0, byteCount: 3 * 65_536 + 1, hash: hash)
        let bytes = [UInt8](repeating: 1, count: 5 * 16)
        func learn(_ count: Int, _ first: Int) -> Bool { bytes.withUnsafeBytes { difference.learn(UnsafeRawBufferPointer(rebasing: $0[..<count]), first: first) } }
        XCTAssertTrue(learn(64, 0))
        XCTAssertTrue(learn(16, 3))
        for (count, first) in [(80, 0), (64, 1), (16, 4), (16, -1), (15, 0), (17, 0), (16, 1 << 48 - 1)] {
            XCTAssertFalse(learn(count, first), "\(count) bytes from chunk \(first) on")
        }
    }
}
