import CLinux
import Glibc
import Platform

/// Reads a file descriptor into chunks and lends out what it read by pointer.
///
///     chunk   |....epoch n....|....epoch n+1......-----------------|
///             base            epochStart  cursor  limit            capacityEnd
///
/// An item that would cross `capacityEnd` is moved, what there is of it, to the start of a fresh chunk: at most a page record
/// (4096 + 8 + 256 bytes) or the start of a device state. Nothing else is ever copied.
///
/// Not thread-safe: one thread reads. Other threads interrupt it through the wake-up descriptor.
public final class StreamReader {
    /// The stream; borrowed, and non-blocking from here on.
    public let fd: Int32
    /// Reading ends with `interrupted` when this becomes readable (an eventfd or a pipe); borrowed and never read.
    public let wakeFD: Int32?
    public let pool: ChunkPool
    /// When to give up waiting for bytes; nil: never.
    public var deadline: MonotonicTime?
    /// Bytes received so far, looked at or not.
    public private(set) var receivedBytes: UInt64 = 0

    @usableFromInline var cursor: UnsafeMutableRawPointer
    @usableFromInline var limit: UnsafeMutableRawPointer
    @usableFromInline var filled: [Chunk] = []
    @usableFromInline var offered = 0
    /// What is being read, for errors.
    @usableFromInline var section: StaticString = "header"

    private var chunk: Chunk?
    private var capacityEnd: UnsafeMutableRawPointer
    private var epochStart: UnsafeMutableRawPointer
    /// Where all pointers stand while there is no chunk.
    private let nowhere = UnsafeMutableRawPointer.allocate(byteCount: 16, alignment: 16)

    /// - Parameter fd: a socket or pipe, borrowed; it is made non-blocking.
    public init(fd: Int32, wakeFD: Int32? = nil, pool: ChunkPool) {
        self.fd = fd
        self.wakeFD = wakeFD
        self.pool = pool
        cursor = nowhere
        limit = nowhere
        capacityEnd = nowhere
        epochStart = nowhere
        _ = clinux_set_nonblocking(fd, 1)
    }

    deinit {
        for chunk in filled { pool.give(chunk) }
        if let chunk { pool.give(chunk) }
        nowhere.deallocate()
    }

    /// Bytes of the stream before the next unread one.
    @inlinable public var offset: UInt64 { receivedBytes &- UInt64(bitPattern: Int64(limit - cursor)) }

    /// Bytes received and not yet looked at.
    @inlinable public var bufferedBytes: Int { limit - cursor }

    // MARK: Items

    /// Makes `count` contiguous bytes available at `cursor`.
    @inlinable
    func require(_ count: Int) throws(StreamError) {
        if limit - cursor < count { try refill(count) }
    }

    /// The same, offering filled chunks to the sink and letting it wait for memory.
    @inlinable
    func require<S: PageSink>(_ count: Int, _ sink: inout S) throws(StreamError) {
        if limit - cursor < count { try refill(count, &sink) }
    }

    @inlinable
    @inline(never)
    func refill<S: PageSink>(_ count: Int, _ sink: inout S) throws(StreamError) {
        while true {
            do throws(StreamError) {
                try refill(count)
                break
            } catch {
                guard case .ceiling = error.kind, sink.poolExhausted() else { throw error }
            }
        }
        while offered < filled.count {
            if sink.filled(filled[offered]) {
                filled.remove(at: offered)
            } else {
                offered += 1
            }
        }
    }

    @inlinable
    public func takeU8() throws(StreamError) -> UInt8 {
        try require(1)
        let value = cursor.load(as: UInt8.self)
        cursor += 1
        return value
    }

    @inlinable
    public func takeU16() throws(StreamError) -> UInt16 {
        try require(2)
        let value = UInt16(bigEndian: cursor.loadUnaligned(as: UInt16.self))
        cursor += 2
        return value
    }

    @inlinable
    public func takeU32() throws(StreamError) -> UInt32 {
        try require(4)
        let value = UInt32(bigEndian: cursor.loadUnaligned(as: UInt32.self))
        cursor += 4
        return value
    }

    @inlinable
    public func takeU64() throws(StreamError) -> UInt64 {
        try require(8)
        let value = UInt64(bigEndian: cursor.loadUnaligned(as: UInt64.self))
        cursor += 8
        return value
    }

    /// `count` contiguous bytes, by pointer into a chunk (of its own size when an ordinary one does not do).
    public func takeBytes(_ count: Int) throws(StreamError) -> UnsafeRawBufferPointer {
        try require(count)
        let bytes = UnsafeRawBufferPointer(start: cursor, count: count)
        cursor += count
        return bytes
    }

    // MARK: Chunks

    /// Hands over the chunks that hold what was read since the last call; the caller gives each back to the pool.
    ///
    /// A chunk with room left is shared: the next epoch starts in it, and it counts as in use until both have given it back.
    public func takeChunks() -> [Chunk] {
        var chunks = filled
        filled.removeAll(keepingCapacity: true)
        offered = 0
        guard let current = chunk, cursor > epochStart else { return chunks }
        current.used = cursor - current.base
        chunks.append(current)
        // With less than a sixteenth (64 KiB) left the next epoch would move on almost at once.
        if capacityEnd - limit >= current.capacity / 16 || cursor < limit {
            pool.share(current)
            epochStart = cursor
        } else {
            forgetChunk()
        }
        return chunks
    }

    /// Starts over at the chunk's beginning when no epoch holds it any more: small epochs then stay in the processor's cache.
    func rewindIfUnshared() {
        guard let chunk, cursor == limit, cursor == epochStart, pool.isUnshared(chunk) else { return }
        cursor = chunk.base
        limit = chunk.base
        epochStart = chunk.base
        chunk.used = 0
    }

    private func forgetChunk() {
        chunk = nil
        cursor = nowhere
        limit = nowhere
        capacityEnd = nowhere
        epochStart = nowhere
    }

    // MARK: Reading

    @usableFromInline
    @inline(never)
    func refill(_ count: Int) throws(StreamError) {
        if capacityEnd - cursor < count { try moveToFreshChunk(count) }
        while limit - cursor < count {
            guard try readSome() else { throw fail(.endOfStream) }
        }
    }

    /// Reads once, waiting for bytes when there are none; false at the end of the stream.
    private func readSome() throws(StreamError) -> Bool {
        while true {
            let got = read(fd, limit, capacityEnd - limit)
            if got > 0 {
                limit += got
                receivedBytes += UInt64(got)
                return true
            }
            if got == 0 { return false }
            switch errno {
            case EINTR: continue
            case EAGAIN: try wait(for: Int16(POLLIN))
            case ECONNRESET: return false
            case let code: throw fail(.system(call: "read", code: code))
            }
        }
    }

    private func moveToFreshChunk(_ count: Int) throws(StreamError) {
        // A stream that never pauses never polls: look at the wake-up once a chunk.
        try checkWake()
        guard let fresh = pool.take(atLeast: count) else { throw fail(.ceiling(limitBytes: pool.limitBytes)) }
        let rest = limit - cursor
        if rest > 0 { memcpy(fresh.base, cursor, rest) }
        if let old = chunk {
            if cursor > epochStart {
                old.used = cursor - old.base
                filled.append(old)
            } else {
                pool.give(old)
            }
        }
        chunk = fresh
        cursor = fresh.base
        limit = fresh.base + rest
        capacityEnd = fresh.base + fresh.capacity
        epochStart = fresh.base
    }

    private func checkWake() throws(StreamError) {
        guard let wakeFD else { return }
        var entry = pollfd(fd: wakeFD, events: Int16(POLLIN), revents: 0)
        if poll(&entry, 1, 0) > 0 { throw fail(.interrupted) }
    }

    /// Waits until the stream is ready, the wake-up descriptor is readable, or the deadline has passed.
    func wait(for events: Int16) throws(StreamError) {
        while true {
            var entries = (pollfd(fd: fd, events: events, revents: 0),
                           pollfd(fd: wakeFD ?? -1, events: Int16(POLLIN), revents: 0))
            let timeout = deadline?.pollTimeout ?? -1
            let ready = withUnsafeMutableBytes(of: &entries) { bytes in
                poll(bytes.baseAddress?.assumingMemoryBound(to: pollfd.self), 2, timeout)
            }
            if ready == 0, timeout >= 0 { throw fail(.timedOut) }
            if ready < 0 {
                if errno == EINTR { continue }
                throw fail(.system(call: "poll", code: errno))
            }
            if entries.1.revents != 0 { throw fail(.interrupted) }
            if entries.0.revents != 0 { return }
        }
    }

    /// Sends a few bytes on the stream's socket, waiting while it is full.
    func send(_ bytes: UnsafeRawBufferPointer) throws(StreamError) {
        var rest = bytes[...]
        while !rest.isEmpty {
            let part = UnsafeRawBufferPointer(rebasing: rest)
            let sent = Glibc.send(fd, part.baseAddress, part.count, Int32(MSG_NOSIGNAL))
            if sent >= 0 {
                rest = rest.dropFirst(sent)
                continue
            }
            switch errno {
            case EINTR: continue
            case EAGAIN: try wait(for: Int16(POLLOUT))
            case let code: throw fail(.system(call: "send", code: code))
            }
        }
    }

    /// Appends everything that can be had without waiting to `tail`, starting with what is buffered. False at the end of
    /// the stream.
    func drain(into tail: inout [UInt8], limit ceiling: Int) throws(StreamError) -> Bool {
        tail.append(contentsOf: UnsafeRawBufferPointer(start: cursor, count: limit - cursor))
        cursor = limit
        let scratch = UnsafeMutableRawBufferPointer.allocate(byteCount: 64 << 10, alignment: 16)
        defer { scratch.deallocate() }
        while true {
            guard tail.count <= ceiling else {
                throw fail(.tooLong(what: "Device state", length: UInt64(tail.count), limit: UInt64(ceiling)))
            }
            let got = read(fd, scratch.baseAddress, scratch.count)
            if got > 0 {
                receivedBytes += UInt64(got)
                tail.append(contentsOf: UnsafeRawBufferPointer(rebasing: scratch[..<got]))
                continue
            }
            if got == 0 { return false }
            switch errno {
            case EINTR: continue
            case EAGAIN: return true
            case ECONNRESET: return false
            case let code: throw fail(.system(call: "read", code: code))
            }
        }
    }

    /// An error at the current place.
    @usableFromInline
    @inline(never)
    func fail(_ kind: StreamError.Kind, back: Int = 0) -> StreamError {
        StreamError(kind, section: section.description, offset: offset &- UInt64(back))
    }
}
