import Glibc
import MigrationStream
import Platform

/// Takes a pass's pages: each is hashed once, and every shadow that lacks it gets a copy of its own (`PassLane`).
///
/// The guest writes to a page only after it was read here, so nothing in here waits: what finds no room is left out, and then the
/// pass is not whole. A live migration's guest does not wait, so that one does.
struct PassSink: PageSink {
    /// Every page of a chunk's worth, at most: a chunk of 1 MiB holds 255 of them, and a long run of zeros is cut here.
    private static let batch = 4096

    private let worker: SourceWorker
    private let readPool: ChunkPool
    private let lanes: [PassLane]
    private let begin: ([RAMBlock]) throws(StreamError) -> Void
    private var records: UnsafeMutableBufferPointer<PageRecord>
    private var count = 0

    /// - Parameters:
    ///   - lanes: the shadows that the pass is for.
    ///   - begin: called with the guest's memory blocks, before the first page.
    init(worker: SourceWorker, readPool: ChunkPool, lanes: [PassLane], begin: @escaping ([RAMBlock]) throws(StreamError) -> Void) {
        self.worker = worker
        self.readPool = readPool
        self.lanes = lanes
        self.begin = begin
        records = .allocate(capacity: Self.batch)
    }

    func deallocate() { records.deallocate() }

    mutating func blocks(_ blocks: [RAMBlock]) throws(StreamError) { try begin(blocks) }

    @inline(__always)
    mutating func page(block: Int, offset: UInt64, bytes: UnsafeRawPointer) {
        append(PageRecord(location: PageLocation(block: block, offset: offset), bytes: bytes, hashLow: 0, hashHigh: 0))
    }

    @inline(__always)
    mutating func fill(block: Int, offset: UInt64, byte: UInt8) {
        var location = PageLocation(block: block, offset: offset)
        location.word |= PageLocation.fillBit
        append(PageRecord(location: location, bytes: nil, hashLow: UInt64(byte), hashHigh: 0))
    }

    @inline(__always)
    private mutating func append(_ record: PageRecord) {
        records.initializeElement(at: count, to: record)
        count += 1
        if count == Self.batch { flush() }
    }

    /// Only for reading into: nothing here points into it afterwards.
    mutating func filled(_ chunk: Chunk) -> Bool {
        flush()
        readPool.give(chunk)
        return true
    }

    private mutating func flush() {
        guard count > 0 else { return }
        let batch = UnsafeMutableBufferPointer(rebasing: records[..<count])
        count = 0
        worker.statistics[.syncBytes] += UInt64(batch.count) * 4096
        worker.hash.withHasher { hasher in
            for index in batch.indices { PageTable.complete(&batch[index], hasher) }
        }
        var most = 0
        for lane in lanes { most = max(most, lane.take(batch)) }
        worker.statistics[.pagesDirtied] += UInt64(most)
    }

    /// The end of the stream: nothing stays behind.
    mutating func finish() {
        flush()
        for lane in lanes { lane.passOn() }
    }
}
