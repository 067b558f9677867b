import Platform
import ReplicaStore

/// XXH3-128 of a chunk, with the replica's own secret.
struct ChunkHash: Equatable {
    static let unknown = ChunkHash(low: 0, high: 0)
    var low: UInt64
    var high: UInt64
}

/// Finds out, while a disk is copied for the first time, which of its chunks the replica does not hold already.
///
/// The mirror writes the whole disk: zeroes first, then what is allocated, and in between whatever the guest writes. A chunk that
/// is written whole is compared by its hash with what the replica holds and dropped when that is equal. Zeroes are put off until it is
/// clear that nothing else follows, because the mirror zeroes everything before it copies.
///
///     replica's hash known --whole chunk, equal--> nothing sent
///           |   |   '--------whole chunk, other--> sent, new hash known
///           |   '------------part of a chunk-----> sent, hash unknown from then on
///           '----------------whole chunk of zeroes -> put off: dropped by the next whole chunk, sent before a part or at the end
///
/// One disk, one thread at a time.
final class ChunkDifference {
    static let chunkBytes = ChunkTable.chunkBytes

    private let disk: Int
    private let byteCount: UInt64
    private let hashes: MappedMemory
    private let zeroPending: MappedMemory
    private let hash: PageHash
    /// Chunks put off, to know when there is nothing to look for.
    private var pendingCount = 0
    private(set) var droppedBytes: UInt64 = 0

    typealias Emit = (DiskExtent, UnsafeRawPointer?) throws -> Void

    /// - Parameter hash: the replica's own, so that hashes can be compared.
    init(disk: Int, byteCount: UInt64, hash: PageHash) throws(SystemError) {
        self.disk = disk
        self.byteCount = byteCount
        self.hash = hash
        let chunks = Int((byteCount + UInt64(Self.chunkBytes) - 1) / UInt64(Self.chunkBytes))
        hashes = try MappedMemory.anonymous(max(16, chunks * 16))
        zeroPending = try MappedMemory.anonymous(max(1, (chunks + 7) / 8))
    }

    // MARK: The replica's hashes

    /// Takes the replica's hashes of the chunks from `first` on: 16 bytes each, zero for unknown. False: there are no such chunks.
    func learn(_ bytes: UnsafeRawBufferPointer, first: Int) -> Bool {
        let offset = first * 16
        guard first >= 0, bytes.count % 16 == 0, offset + bytes.count <= chunkCount * 16 else { return false }
        if let base = bytes.baseAddress { hashes.base.advanced(by: offset).copyMemory(from: base, byteCount: bytes.count) }
        return true
    }

    var chunkCount: Int { Int((byteCount + UInt64(Self.chunkBytes) - 1) / UInt64(Self.chunkBytes)) }

    private func length(_ chunk: Int) -> Int {
        Int(min(UInt64(Self.chunkBytes), byteCount - UInt64(chunk) * UInt64(Self.chunkBytes)))
    }

    private func known(_ chunk: Int) -> ChunkHash {
        let at = chunk * 16
        return ChunkHash(low: hashes.base.load(fromByteOffset: at, as: UInt64.self), high: hashes.base.load(fromByteOffset: at + 8, as: UInt64.self))
    }

    private func set(_ chunk: Int, _ hash: ChunkHash) {
        hashes.base.storeBytes(of: hash.low, toByteOffset: chunk * 16, as: UInt64.self)
        hashes.base.storeBytes(of: hash.high, toByteOffset: chunk * 16 + 8, as: UInt64.self)
    }

    private func isPending(_ chunk: Int) -> Bool {
        zeroPending.base.load(fromByteOffset: chunk >> 3, as: UInt8.self) & (1 << UInt8(chunk & 7)) != 0
    }

    private func setPending(_ chunk: Int, _ pending: Bool) {
        guard isPending(chunk) != pending else { return }
        let old = zeroPending.base.load(fromByteOffset: chunk >> 3, as: UInt8.self)
        zeroPending.base.storeBytes(of: old ^ (1 << UInt8(chunk & 7)), toByteOffset: chunk >> 3, as: UInt8.self)
        pendingCount += pending ? 1 : -1
    }

    // MARK: Writes

    /// Calls `body` for each chunk that the range touches: the chunk, where its part begins, the part's length, whether that is all of it.
    private func forEachChunk(_ offset: UInt64, _ length: UInt64, _ body: (Int, UInt64, Int, Bool) throws -> Void) rethrows {
        var at = offset
        let end = offset + length
        while at < end {
            let chunk = Int(at / UInt64(Self.chunkBytes))
            let start = UInt64(chunk) * UInt64(Self.chunkBytes)
            let count = Int(min(end, start + UInt64(self.length(chunk))) - at)
            try body(chunk, at, count, at == start && count == self.length(chunk))
            at += UInt64(count)
        }
    }

    func write(_ offset: UInt64, _ bytes: UnsafeRawBufferPointer, _ emit: Emit) throws {
        guard let base = bytes.baseAddress else { return }
        // Neighbours that have to be sent go as one.
        var run: (offset: UInt64, length: Int) = (offset, 0)
        func endRun() throws {
            guard run.length > 0 else { return }
            try emit(DiskExtent(disk: disk, kind: .data, offset: run.offset, length: run.length), base + Int(run.offset - offset))
            run.length = 0
        }
        try forEachChunk(offset, UInt64(bytes.count)) { chunk, at, count, isWhole in
            if isWhole {
                setPending(chunk, false)
                let new = hashOf(base + Int(at - offset), count)
                if known(chunk) == new {
                    droppedBytes += UInt64(count)
                    return try endRun()
                }
                set(chunk, new)
            } else {
                if isPending(chunk) {
                    try endRun()
                    try sendZeroes(chunk, emit)
                }
                set(chunk, .unknown)
            }
            if run.length == 0 { run.offset = at }
            run.length += count
        }
        try endRun()
    }

    func writeZeroes(_ offset: UInt64, _ length: UInt64, _ emit: Emit) throws {
        try forEachChunk(offset, length) { chunk, at, count, isWhole in
            if isWhole {
                setPending(chunk, known(chunk) != zeroHash(count))
            } else if !isPending(chunk) {
                set(chunk, .unknown)
                try emit(DiskExtent(disk: disk, kind: .zero, offset: at, length: count), nil)
            }
        }
    }

    private func hashOf(_ bytes: UnsafeRawPointer, _ count: Int) -> ChunkHash {
        let (low, high) = hash.withHasher { $0.hash128(bytes, count) }
        return ChunkHash(low: low, high: high)
    }

    private lazy var zeroChunk = hashOfZeroes(Self.chunkBytes)
    private func zeroHash(_ count: Int) -> ChunkHash { count == Self.chunkBytes ? zeroChunk : hashOfZeroes(count) }
    private func hashOfZeroes(_ count: Int) -> ChunkHash { hashOf([UInt8](repeating: 0, count: count), count) }

    private func sendZeroes(_ chunk: Int, _ emit: Emit) throws {
        setPending(chunk, false)
        set(chunk, zeroHash(length(chunk)))
        try emit(DiskExtent(disk: disk, kind: .zero, offset: UInt64(chunk) * UInt64(Self.chunkBytes), length: length(chunk)), nil)
    }

    /// The copy is complete: sends the zeroes that were put off.
    func finish(_ emit: Emit) throws {
        var chunk = 0
        let count = chunkCount
        while chunk < count, pendingCount > 0 {
            if chunk & 7 == 0, zeroPending.base.load(fromByteOffset: chunk >> 3, as: UInt8.self) == 0 {
                chunk += 8
                continue
            }
            guard isPending(chunk) else {
                chunk += 1
                continue
            }
            let first = chunk
            var bytes = 0
            // One extent for a run of them: an empty disk is one, not one a chunk.
            while chunk < count, isPending(chunk), bytes < Self.mostZeroBytes {
                setPending(chunk, false)
                bytes += length(chunk)
                chunk += 1
            }
            try emit(DiskExtent(disk: disk, kind: .zero, offset: UInt64(first) * UInt64(Self.chunkBytes), length: bytes), nil)
        }
    }

    /// So that no single operation on the replica takes long.
    private static let mostZeroBytes = 1 << 30
}
