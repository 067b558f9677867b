import Foundation
import MigrationStream
import Platform

/// One captured epoch: where its pages lie, in receive buffers that it holds until the shadow has committed it.
final class CapturedEpoch: @unchecked Sendable {
    /// 0 for a piece of the first copy.
    let number: UInt64
    /// The first of the epochs that were merged to this one; its own number otherwise.
    var first: UInt64
    /// Its pages were copied: it holds none of the receive buffers.
    var isMerged = false
    /// Of its pages' content.
    private(set) var pageBytes = 0
    /// Not kept once it is sent: a connection that breaks loses it, and the epoch it belongs to.
    var isPiece: Bool
    /// The connection that it has to go over, because its epoch's pieces did; nil: any.
    var connection: UInt64?
    /// It went out once already.
    var wasSent = false
    private(set) var records: UnsafeMutableBufferPointer<PageRecord>
    private(set) var count = 0
    private(set) var device = UnsafeRawBufferPointer(start: nil, count: 0)
    /// What the guest wrote to its disks since the epoch before.
    var disks = DiskSegment()
    private(set) var chunks: [Chunk] = []
    let pool: ChunkPool
    /// When the guest was stopped for it.
    var capturedAt = MonotonicTime.now
    /// When the guest was allowed to run on, nanoseconds on the realtime clock; the greatest number: it is held.
    var acknowledgedAt = UInt64.max
    /// Set by the shipper once hashes stand in the records; a second shipment after a reconnect skips that.
    var isFiltered = false

    init(number: UInt64, pool: ChunkPool, capacity: Int = 1024) {
        self.number = number
        first = number
        isPiece = number == 0
        self.pool = pool
        records = .allocate(capacity: capacity)
    }

    deinit {
        records.deallocate()
        for chunk in chunks { pool.give(chunk) }
    }

    @inline(__always)
    func append(_ location: PageLocation, bytes: UnsafeRawPointer?, fill: UInt8 = 0) {
        if count == records.count { grow() }
        records.initializeElement(at: count, to: PageRecord(location: location, bytes: bytes, hashLow: UInt64(fill), hashHigh: 0))
        count += 1
        if bytes != nil { pageBytes += PageLocation.pageBytes }
    }

    /// A record whose hash is known.
    func append(_ record: PageRecord) {
        if count == records.count { grow() }
        records.initializeElement(at: count, to: record)
        count += 1
        if record.bytes != nil { pageBytes += PageLocation.pageBytes }
    }

    /// A copy of another's records, into an epoch that has none.
    func takeRecords(of other: CapturedEpoch) {
        while records.count < other.count { grow() }
        // Not initialize(fromContentsOf:): programs that Swift 6.0 builds do not find it when they are linked.
        if let from = other.records.baseAddress { records.baseAddress?.initialize(from: from, count: other.count) }
        (count, pageBytes) = (other.count, other.pageBytes)
    }

    /// Memory that it holds.
    var bytes: Int { pageBytes + device.count + disks.bytes }

    /// How many captured epochs it stands for.
    var span: UInt64 { number - first + 1 }

    private func grow() {
        let larger = UnsafeMutableBufferPointer<PageRecord>.allocate(capacity: records.count * 2)
        _ = larger.moveInitialize(fromContentsOf: records)
        records.deallocate()
        records = larger
    }

    var filledRecords: UnsafeMutableBufferPointer<PageRecord> { UnsafeMutableBufferPointer(rebasing: records[..<count]) }

    func hold(_ more: [Chunk]) { chunks.append(contentsOf: more) }

    func setDevice(_ bytes: UnsafeRawBufferPointer) { device = bytes }
}
