import Glibc
import MigrationStream
import Platform

/// What the shadow holds of every page, by hash: 16 bytes a page, in memory that costs nothing before it is touched.
///
/// An entry of 0 means a page of zeros: that is what a fresh shadow holds, so pages the guest never used cost neither wire nor memory. One that kept
/// its memory from an earlier session tells what it holds first (`learn`).
final class PageTable: @unchecked Sendable {
    private struct Block {
        let memory: MappedMemory
        let pages: UInt64
    }
    private let blocks: [Block]

    init(_ ram: [RAMBlock]) throws(SystemError) {
        var blocks: [Block] = []
        for block in ram {
            let pages = (block.length + 4095) / 4096
            blocks.append(Block(memory: try MappedMemory.anonymous(max(16, Int(pages) * 16)), pages: pages))
        }
        self.blocks = blocks
    }

    /// Stores what the shadow is about to hold; false when it holds that already.
    @inline(__always)
    func update(_ location: PageLocation, low: UInt64, high: UInt64) -> Bool {
        let block = blocks[location.block]
        let entry = (block.memory.base + Int(location.page) * 16).assumingMemoryBound(to: UInt64.self)
        if entry[0] == low, entry[1] == high { return false }
        entry[0] = low
        entry[1] = high
        return true
    }

    /// Takes over what the shadow says that it holds, from `first` on. False: there are no such pages.
    func learn(_ hashes: UnsafeRawBufferPointer, first: PageLocation) -> Bool {
        guard !first.hasUnknownBits, blocks.indices.contains(first.block), hashes.count % 16 == 0 else { return false }
        let block = blocks[first.block]
        guard first.page <= block.pages, UInt64(hashes.count / 16) <= block.pages - first.page else { return false }
        if let base = hashes.baseAddress { memcpy(block.memory.base + Int(first.page) * 16, base, hashes.count) }
        return true
    }

    /// Nobody knows what the shadow holds of these pages: whatever comes next is sent.
    func forget(_ locations: some Sequence<PageLocation>) {
        for location in locations {
            let entry = (blocks[location.block].memory.base + Int(location.page) * 16).assumingMemoryBound(to: UInt64.self)
            // No page's hash, by the same design as below; and no fill byte.
            entry[0] = .max
            entry[1] = .max
        }
    }

    /// Decides for each record whether the shadow needs it, and completes its hash. Returns the bytes that have to be sent.
    func filter(_ records: UnsafeMutableBufferPointer<PageRecord>, _ hash: PageHash) -> Int {
        hash.withHasher { hasher in
            var bytes = 0
            for index in records.indices {
                Self.complete(&records[index], hasher)
                if update(records[index]) {
                    bytes += PageFrame.entryBytes + (records[index].location.isFill ? 0 : PageLocation.pageBytes)
                } else {
                    records[index].location.word |= PageLocation.droppedBit
                }
            }
            return bytes
        }
    }

    /// Completes a record's hash; a page of zeros becomes a fill.
    @inline(__always)
    static func complete(_ record: inout PageRecord, _ hasher: PageHash.Hasher) {
        guard let bytes = record.bytes else { return }
        let (low, high) = hasher.hash128(bytes, PageLocation.pageBytes)
        let isZero = hasher.isZeroPage(low, high)
        if isZero { record.location.word |= PageLocation.fillBit }
        (record.hashLow, record.hashHigh) = isZero ? (0, 0) : (low, high)
    }

    /// Stores what the shadow is about to hold of a record whose hash is complete; false when it holds that already.
    @inline(__always)
    func update(_ record: PageRecord) -> Bool {
        guard record.location.isFill else { return update(record.location, low: record.hashLow, high: record.hashHigh) }
        // Other fill bytes than 0 never compare equal to a page's hash: no page has a hash of (byte, all ones) by design.
        return update(record.location, low: record.hashLow, high: record.hashLow == 0 ? 0 : .max)
    }
}
