import Foundation
import Glibc
import Platform

/// A hash of every 64 KiB of one replica, so that a primary that comes back sends only the chunks that differ. 256 KiB of memory per
/// GiB of disk. A chunk whose hash is not known (stale) counts as different until `rebuild` has read it.
///
/// Writers tell of a write after it was done. A chunk that is being hashed meanwhile stays stale.
public final class ChunkTable: @unchecked Sendable {
    public static let chunkBytes = 65536
    /// XXH3-128, low half first, both little-endian.
    public static let hashBytes = 16

    public let byteCount: UInt64
    public let chunkCount: Int
    /// The hash of a chunk is XXH3-128 with this secret.
    public var seed: [UInt8] { hash.secret }

    let image: ReplicaImage
    private let hash: KeyedHash
    private let lock = MonotonicCondition()
    private let hashes: MappedMemory
    /// One bit a chunk.
    private var stale: [UInt64]
    private var staleCount: Int
    /// The chunk that `rebuild` reads at this moment, and whether it was written to meanwhile.
    private var hashing = -1
    private var hashingWasTouched = false
    private let zero: Hash128
    /// Of the last chunk when it is shorter than the others.
    private let lastZero: Hash128

    init(image: ReplicaImage, hash: KeyedHash = KeyedHash()) throws {
        self.image = image
        self.hash = hash
        byteCount = image.byteCount
        let size = UInt64(Self.chunkBytes)
        chunkCount = Int((image.byteCount + size - 1) / size)
        hashes = try MappedMemory.anonymous(max(1, chunkCount * Self.hashBytes))
        stale = [UInt64](repeating: .max, count: (chunkCount + 63) / 64)
        staleCount = chunkCount
        let zeroes = [UInt8](repeating: 0, count: Self.chunkBytes)
        zero = hash.hash128(zeroes, zeroes.count)
        let rest = Int(image.byteCount % size)
        lastZero = rest == 0 ? zero : hash.hash128(zeroes, rest)
    }

    // MARK: Reading

    /// How many chunks have no known hash.
    public var staleChunks: Int { lock.withLock { staleCount } }

    public func isStale(_ chunk: Int) -> Bool { lock.withLock { staleBit(chunk) } }

    /// All hashes, one after the other, and one bit a chunk that tells which of them mean nothing; lent until the closure returns.
    /// Writers wait meanwhile.
    public func withHashes<R>(_ body: (_ hashes: UnsafeRawBufferPointer, _ stale: [UInt64]) throws -> R) rethrows -> R {
        try lock.withLock {
            try body(UnsafeRawBufferPointer(start: hashes.base, count: chunkCount * Self.hashBytes), stale)
        }
    }

    /// Makes `rebuild` read the chunk again.
    public func forget(_ chunk: Int) { lock.withLock { markStale(chunk) } }

    private func staleBit(_ chunk: Int) -> Bool { stale[chunk >> 6] >> UInt64(chunk & 63) & 1 == 1 }

    private func markStale(_ chunk: Int) {
        if !staleBit(chunk) { staleCount += 1 }
        stale[chunk >> 6] |= 1 << UInt64(chunk & 63)
        if chunk == hashing { hashingWasTouched = true }
    }

    private func set(_ chunk: Int, _ value: Hash128) {
        if staleBit(chunk) { staleCount -= 1 }
        stale[chunk >> 6] &= ~(1 << UInt64(chunk & 63))
        hashes.base.storeBytes(of: value.low.littleEndian, toByteOffset: chunk * Self.hashBytes, as: UInt64.self)
        hashes.base.storeBytes(of: value.high.littleEndian, toByteOffset: chunk * Self.hashBytes + 8, as: UInt64.self)
        if chunk == hashing { hashingWasTouched = true }
    }

    private func length(_ chunk: Int) -> Int {
        Int(min(UInt64(Self.chunkBytes), byteCount - UInt64(chunk) * UInt64(Self.chunkBytes)))
    }

    private func zeroHash(_ chunk: Int) -> Hash128 { chunk == chunkCount - 1 ? lastZero : zero }

    // MARK: Writes

    /// The range was written: chunks that lie in it whole have a known hash, those at its ends are stale.
    /// `bytes` nil: it reads as zeros now, or, with `unknown`, as nobody knows what.
    func wrote(_ offset: UInt64, _ length: Int, _ bytes: UnsafeRawPointer?, unknown: Bool = false) {
        guard length > 0 else { return }
        let size = UInt64(Self.chunkBytes)
        let end = offset + UInt64(length)
        for chunk in Int(offset / size)...Int((end - 1) / size) {
            let start = UInt64(chunk) * size
            let count = self.length(chunk)
            guard !unknown, start >= offset, start + UInt64(count) <= end else {
                lock.withLock { markStale(chunk) }
                continue
            }
            let value = bytes.map { hash.hash128($0 + Int(start - offset), count) } ?? zeroHash(chunk)
            lock.withLock { set(chunk, value) }
        }
    }

    // MARK: Rebuilding

    /// Reads and hashes the stale chunks; holes are not read. `progress` is called with the bytes that are done, about every 16 MiB,
    /// and stops it with false. `bytesPerSecond` limits what is read. True: went through to the end.
    public func rebuild(progress: (UInt64) -> Bool, bytesPerSecond: Int?) throws -> Bool {
        let buffer = UnsafeMutableRawPointer.allocate(byteCount: Self.chunkBytes, alignment: 4096)
        defer { buffer.deallocate() }
        let began = MonotonicTime.now
        var bytesRead = 0
        for chunk in 0..<chunkCount {
            if chunk & 255 == 0, !progress(UInt64(chunk) * UInt64(Self.chunkBytes)) { return false }
            guard beginHashing(chunk) else { continue }
            let start = UInt64(chunk) * UInt64(Self.chunkBytes)
            let count = length(chunk)
            // A hole is looked up again a chunk at a time: it may have been written to since.
            if let holeEnd = image.holeEnd(at: start), holeEnd >= start + UInt64(count) {
                endHashing(chunk, zeroHash(chunk))
                continue
            }
            do {
                try image.read(buffer, count, at: start)
            } catch {
                lock.withLock { hashing = -1 }
                throw error
            }
            endHashing(chunk, hash.hash128(buffer, count))
            bytesRead += count
            if let bytesPerSecond { Self.pause(bytesRead, bytesPerSecond, since: began) }
        }
        return progress(byteCount)
    }

    private func beginHashing(_ chunk: Int) -> Bool {
        lock.withLock {
            guard staleBit(chunk) else { return false }
            hashing = chunk
            hashingWasTouched = false
            return true
        }
    }

    private func endHashing(_ chunk: Int, _ value: Hash128) {
        lock.withLock {
            hashing = -1
            if !hashingWasTouched { set(chunk, value) }
        }
    }

    /// Sleeps until `bytes` may have been read.
    private static func pause(_ bytes: Int, _ bytesPerSecond: Int, since began: MonotonicTime) {
        let due = Double(bytes) / Double(max(1, bytesPerSecond)) * 1000
        let elapsed = MonotonicTime.now.milliseconds(since: began)
        if due > elapsed + 1 { usleep(UInt32(min(1000, due - elapsed) * 1000)) }
    }

    // MARK: The file

    /// The table as `disk-N.chunks`, all numbers little-endian:
    ///
    ///      0  u64 checksum    XXH3-64 of everything from byte 8 to 4096, with the secret
    ///      8  u32 magic       "SVCT"
    ///     12  u32 version     1
    ///     16  u64 chunk bytes
    ///     24  u64 size, u64 device, u64 inode, i64 and i64 modification time of the image
    ///     64  u64 XXH3-64 of the hashes   u64 of the stale bits
    ///     80  192 bytes secret
    ///   4096  the hashes, then the stale bits
    ///
    /// The file is there only while the replica is closed: before the first write it is removed, and the removal flushed. So after a
    /// crash there is none, and every chunk is stale.
    static let magic: UInt32 = 0x5443_5653
    static let version: UInt32 = 1
    static let headerBytes = 4096
    private static let secretAt = 80

    /// The saved table, when there is one and it is of this image as it is now; else a new one with every chunk stale.
    static func load(path: String, image: ReplicaImage) throws -> ChunkTable {
        if let identity = try image.identity(), let saved = try? read(path: path, image: image, identity: identity) { return saved }
        return try ChunkTable(image: image)
    }

    @_optimize(none)  // Swift 6.0's optimizer crashes on it (CopyPropagation)
    private static func read(path: String, image: ReplicaImage, identity: ReplicaImage.Identity) throws -> ChunkTable? {
        let fd = try Descriptor(checking: open(path, O_RDONLY | O_CLOEXEC), "open", path)
        var header = [UInt8](repeating: 0, count: headerBytes)
        try header.withUnsafeMutableBytes { buffer in
            guard let base = buffer.baseAddress else { return }
            try FileAccess.read(fd.raw, base, buffer.count, at: 0, path: path)
        }
        guard let hash = KeyedHash(secret: Array(header[secretAt..<(secretAt + KeyedHash.secretBytes)])) else { return nil }
        let table = try ChunkTable(image: image, hash: hash)
        let hashesBytes = table.chunkCount * hashBytes
        try FileAccess.read(fd.raw, table.hashes.base, hashesBytes, at: UInt64(headerBytes), path: path)
        let staleAt = UInt64(headerBytes + hashesBytes)
        try table.stale.withUnsafeMutableBytes { buffer in
            guard let base = buffer.baseAddress else { return }
            try FileAccess.read(fd.raw, base, buffer.count, at: staleAt, path: path)
        }
        guard header == table.header(identity) else { return nil }
        table.staleCount = (0..<table.chunkCount).reduce(0) { $0 + (table.staleBit($1) ? 1 : 0) }
        return table
    }

    /// What the header is for this table and that image: to be written, or to be compared with.
    private func header(_ identity: ReplicaImage.Identity) -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: Self.headerBytes)
        bytes.withUnsafeMutableBytes { buffer in
            guard let base = buffer.baseAddress else { return }
            base.storeBytes(of: Self.magic.littleEndian, toByteOffset: 8, as: UInt32.self)
            base.storeBytes(of: Self.version.littleEndian, toByteOffset: 12, as: UInt32.self)
            base.storeBytes(of: UInt64(Self.chunkBytes).littleEndian, toByteOffset: 16, as: UInt64.self)
            base.storeBytes(of: identity.byteCount.littleEndian, toByteOffset: 24, as: UInt64.self)
            base.storeBytes(of: identity.device.littleEndian, toByteOffset: 32, as: UInt64.self)
            base.storeBytes(of: identity.inode.littleEndian, toByteOffset: 40, as: UInt64.self)
            base.storeBytes(of: identity.modifiedSeconds.littleEndian, toByteOffset: 48, as: Int64.self)
            base.storeBytes(of: identity.modifiedNanoseconds.littleEndian, toByteOffset: 56, as: Int64.self)
            let ofHashes = hash.hash64(hashes.base, chunkCount * Self.hashBytes)
            base.storeBytes(of: ofHashes.littleEndian, toByteOffset: 64, as: UInt64.self)
            base.storeBytes(of: hash.hash64(stale, stale.count * 8).littleEndian, toByteOffset: 72, as: UInt64.self)
            hash.secret.withUnsafeBytes { secret in
                if let from = secret.baseAddress { memcpy(base + Self.secretAt, from, secret.count) }
            }
            base.storeBytes(of: hash.hash64(base + 8, buffer.count - 8).littleEndian, as: UInt64.self)
        }
        return bytes
    }

    /// Saves the table of an image that nobody writes to any more. Nothing is saved when nothing is known, or when a later change of
    /// the image could not be noticed (a block device).
    func save(path: String, folder: String) throws {
        guard let identity = try image.identity() else { return }
        try lock.withLock {
            guard staleCount < chunkCount else { return }
            let header = header(identity)
            try header.withUnsafeBytes { header in
                try stale.withUnsafeBytes { stale in
                    let all = UnsafeRawBufferPointer(start: hashes.base, count: chunkCount * Self.hashBytes)
                    try FileAccess.replace(path, folder: folder, pieces: [header, all, stale])
                }
            }
        }
    }
}
