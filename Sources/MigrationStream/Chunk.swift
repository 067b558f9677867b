import Glibc
import Synchronization

/// A piece of memory that the stream is read into and that holds the pages of one epoch, or the end of one and the start
/// of the next.
///
/// The bytes are written by the reader's thread only, and never below `used`, so whoever holds a chunk may read there.
public final class Chunk: @unchecked Sendable {
    public let base: UnsafeMutableRawPointer
    public let capacity: Int
    /// Bytes that belong to epochs handed out so far. Set by the reader before it hands the chunk over.
    public internal(set) var used = 0
    /// Holders: the reader, and each epoch that has pages here. Guarded by the pool's lock.
    fileprivate var holders = 1

    fileprivate init?(bytes: Int) {
        guard let memory = mmap(nil, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0),
              memory != MAP_FAILED
        else { return nil }
        base = memory
        capacity = bytes
    }

    deinit { munmap(base, capacity) }
}

/// Memory for chunks, with a ceiling. `take` on the reader's thread, `give` on any.
public final class ChunkPool: Sendable {
    private struct State {
        var free: [Chunk] = []
        var bytes = 0
        /// The fewest free chunks there were since the last look, and the chunks given back since then.
        var fewestFree = 0
        var given = 0
    }

    /// Ordinary chunks have this size. 1 MiB: two or three epochs of 100 pages, and one read(2) of a large one.
    public let chunkBytes: Int
    public let limitBytes: Int
    private let keepChunks: Int
    private static let trimEvery = 64
    private let state = Mutex(State())

    /// - Parameters:
    ///   - chunkBytes: rounded up to whole pages; at least 64 KiB, so that a page record always fits.
    ///   - limitBytes: `take` returns nil rather than having more than this in use.
    ///   - keepChunks: free chunks kept mapped for good; 16 spare a steady stream of small epochs all page faults. Those beyond
    ///     go back to the kernel once a few seconds (`trimEvery` chunks) have passed without need for them: unmapping them at once
    ///     would make a stream of large epochs fault in every page anew, which takes longer than reading it.
    public init(chunkBytes: Int = 1 << 20, limitBytes: Int, keepChunks: Int = 16) {
        self.chunkBytes = roundUpToPage(max(chunkBytes, 64 << 10))
        self.limitBytes = limitBytes
        self.keepChunks = keepChunks
    }

    /// Bytes of all chunks taken and not given back.
    public var bytesInUse: Int { state.withLock { $0.bytes } }

    /// An empty chunk, or nil at the ceiling (or when the kernel has no memory).
    public func take() -> Chunk? { take(atLeast: 0) }

    /// A chunk of at least `bytes`: of its own size when an ordinary one does not do.
    public func take(atLeast bytes: Int) -> Chunk? {
        let size = bytes <= chunkBytes ? chunkBytes : roundUpToPage(bytes)
        let recycled: Chunk?? = state.withLock { state in
            guard state.bytes + size <= limitBytes else { return .some(nil) }
            state.bytes += size
            guard size == chunkBytes, let chunk = state.free.popLast() else {
                // What is mapped stays below the limit, too.
                let excess = (state.bytes + state.free.count * chunkBytes - limitBytes + chunkBytes - 1) / chunkBytes
                if excess > 0 { state.free.removeFirst(min(excess, state.free.count)) }
                state.fewestFree = 0
                return .none
            }
            state.fewestFree = min(state.fewestFree, state.free.count)
            return .some(chunk)
        }
        switch recycled {
        case .some(nil): return nil
        case .some(let chunk?):
            return chunk
        case .none:
            if let fresh = Chunk(bytes: size) { return fresh }
            state.withLock { $0.bytes -= size }
            return nil
        }
    }

    /// Returns a chunk; when this was its last holder the memory is used again or unmapped.
    public func give(_ chunk: Chunk) {
        // Unmapped outside the lock.
        let unneeded: [Chunk] = state.withLock { state in
            chunk.holders -= 1
            guard chunk.holders == 0 else { return [] }
            state.bytes -= chunk.capacity
            guard chunk.capacity == chunkBytes else { return [] }
            chunk.holders = 1
            chunk.used = 0
            state.free.append(chunk)
            state.given += 1
            guard state.given >= Self.trimEvery else { return [] }
            let unneeded = Array(state.free.prefix(max(0, state.fewestFree - keepChunks)))
            state.free.removeFirst(unneeded.count)
            state.given = 0
            state.fewestFree = state.free.count
            return unneeded
        }
        withExtendedLifetime(unneeded) {}
    }

    /// Adds a holder, who gives the chunk back as well.
    public func share(_ chunk: Chunk) {
        state.withLock { _ in chunk.holders += 1 }
    }

    /// Whether the caller is the only holder.
    func isUnshared(_ chunk: Chunk) -> Bool {
        state.withLock { _ in chunk.holders == 1 }
    }
}

private func roundUpToPage(_ bytes: Int) -> Int { (bytes + 4095) & ~4095 }
