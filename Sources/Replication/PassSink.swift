import Glibc
import MigrationStream
import Platform

/// Takes a pass's pages: those that the shadow lacks are copied and go out in pieces, the others are forgotten at once.
///
/// The guest writes to a page only after it was read here, so nothing in here waits: what finds no room is left out, and then the
/// pass is not whole. A live migration's guest does not wait, so that one does (`mayWait`).
struct PassSink: PageSink {
    /// Every page of a chunk's worth, at most: a chunk of 1 MiB holds 255 of them, and a long run of zeros is cut here.
    private static let batch = 4096

    private let worker: SourceWorker
    private let readPool: ChunkPool
    private let table: ([RAMBlock]) throws(StreamError) -> (PageTable, PatchTable)
    private let number: UInt64
    private let connection: UInt64?
    private let mayWait: Bool
    private var pages: PageTable?
    private var patches: PatchTable?
    private var records: UnsafeMutableBufferPointer<PageRecord>
    private var count = 0
    /// Pages that went out, for when the connection breaks.
    private(set) var sent: [PageLocation] = []
    /// Everything that the shadow lacks went out.
    private(set) var isWhole = true
    /// What is copied but not passed on yet, the memory that it is copied into, and how much of that is taken.
    private var piece: CapturedEpoch?
    private var chunk: Chunk?
    private var used = 0

    /// - Parameters:
    ///   - number: the epoch that the pages are going to belong to; 0: of the first copy.
    ///   - connection: see `CapturedEpoch.connection`.
    ///   - table: what the shadow holds of these blocks.
    init(worker: SourceWorker, readPool: ChunkPool, number: UInt64, connection: UInt64?, mayWait: Bool,
         table: @escaping ([RAMBlock]) throws(StreamError) -> (PageTable, PatchTable)) {
        self.worker = worker
        self.readPool = readPool
        self.number = number
        self.connection = connection
        self.mayWait = mayWait
        self.table = table
        records = .allocate(capacity: Self.batch)
    }

    func deallocate() { records.deallocate() }

    mutating func blocks(_ blocks: [RAMBlock]) throws(StreamError) { (pages, patches) = try table(blocks) }

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

    /// Copies what the shadow lacks of the pages so far into the open piece.
    private mutating func flush() {
        guard count > 0, let pages, let patches else { return }
        let batch = UnsafeMutableBufferPointer(rebasing: records[..<count])
        count = 0
        worker.statistics[.syncBytes] += UInt64(batch.count) * 4096
        guard pages.filter(batch, worker.hash) > 0 else { return }
        for (index, record) in batch.enumerated() where !record.location.isDropped {
            guard let place = place() else {
                isWhole = false
                return pages.forget(batch[index...].lazy.filter { !$0.location.isDropped }.map(\.location))
            }
            var held = record
            held.bytes = nil
            if let bytes = record.bytes, !record.location.isFill {
                held.bytes = UnsafeRawPointer(place)
                if let changed = worker.hash.withHasher({ patches.update(record.location, bytes, epoch: number, $0) }) {
                    PagePatch.write(changed, of: bytes, to: place)
                    held.location.word |= PageLocation.patchBit
                    used += PagePatch.length(changed)
                } else {
                    memcpy(place, bytes, PageLocation.pageBytes)
                    used += PageLocation.pageBytes
                }
            } else {
                patches.forget(CollectionOfOne(record.location))
            }
            piece?.append(held)
            sent.append(record.location)
        }
    }

    /// The end of the stream: nothing stays behind.
    mutating func finish() {
        flush()
        passOn()
    }

    /// Where the next page goes, with an open piece around it; nil: there is no memory.
    private mutating func place() -> UnsafeMutableRawPointer? {
        if let chunk, let piece, used + PageLocation.pageBytes <= chunk.capacity, piece.count < Self.mostRecords { return chunk.base + used }
        passOn()
        guard let fresh = room() else { return nil }
        let piece = CapturedEpoch(number: number, pool: worker.pool)
        piece.isPiece = true
        piece.isFiltered = true
        piece.connection = connection
        piece.hold([fresh])
        (self.piece, chunk, used) = (piece, fresh, 0)
        return fresh.base
    }

    private mutating func passOn() {
        defer { (piece, chunk) = (nil, nil) }
        guard let piece, piece.count > 0 else { return }
        worker.statistics[.pagesDirtied] += UInt64(piece.count)
        worker.backlog.append(piece)
    }

    private func room() -> Chunk? {
        while true {
            // A little of the network's bandwidth in flight is enough; more would make QEMU believe in a faster network than there is.
            if !mayWait || worker.pool.bytesInUse < Self.inFlightBytes, let chunk = worker.pool.take() { return chunk }
            guard mayWait, !worker.isToldToEnd, !worker.backlog.isStopped,
                  connection == nil || worker.connection.read({ $0 }) == connection else { return nil }
            usleep(500)
        }
    }

    /// Zeros take no memory, so their number is limited.
    private static let mostRecords = 65_536
    private static let inFlightBytes = 16 << 20
}
