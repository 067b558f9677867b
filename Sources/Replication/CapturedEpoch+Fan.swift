import Glibc
import MigrationStream
import Platform

/// One capture for several shadows, and several captures for one commit.
extension CapturedEpoch {
    /// The same pages, in the same memory, for another shadow: each has its own page table, so what it drops is its own affair.
    func share() -> CapturedEpoch {
        let twin = CapturedEpoch(number: number, pool: pool, capacity: max(1, count))
        twin.isPiece = isPiece
        twin.takeRecords(of: self)
        for chunk in chunks { pool.share(chunk) }
        twin.hold(chunks)
        twin.setDevice(device)
        twin.disks = disks
        twin.capturedAt = capturedAt
        twin.acknowledgedAt = acknowledgedAt
        return twin
    }

    /// One epoch in the place of several that follow each other: the newest content of every page, the last device state, all disk writes.
    /// In memory of `pool`, so that the captured ones go back; nil when it has not enough.
    static func merged(_ run: [CapturedEpoch], pool: ChunkPool) -> CapturedEpoch? {
        guard let first = run.first, let last = run.last else { return nil }
        let merged = CapturedEpoch(number: last.number, pool: pool, capacity: max(1024, run.map(\.count).max() ?? 0))
        merged.first = first.first
        merged.isMerged = true
        merged.capturedAt = last.capturedAt
        merged.acknowledgedAt = last.acknowledgedAt
        guard merged.copyDevice(last.device) else { return nil }
        var seen = Set<UInt64>(minimumCapacity: last.count * 2)
        var room = Room()
        for epoch in run.reversed() {
            for record in epoch.filledRecords.reversed() where seen.insert(record.location.word & ~PageLocation.fillBit).inserted {
                guard let bytes = record.bytes else {
                    merged.append(record)
                    continue
                }
                guard let place = room.next(merged, pool) else { return nil }
                memcpy(place, bytes, PageLocation.pageBytes)
                merged.append(record.location, bytes: UnsafeRawPointer(place))
            }
        }
        merged.disks = DiskSegment(joining: run.map(\.disks))
        return merged
    }

    /// Where the next page is copied to.
    private struct Room {
        var chunk: Chunk?
        var used = 0

        mutating func next(_ epoch: CapturedEpoch, _ pool: ChunkPool) -> UnsafeMutableRawPointer? {
            if chunk.map({ used + PageLocation.pageBytes > $0.capacity }) ?? true {
                guard let fresh = pool.take() else { return nil }
                epoch.hold([fresh])
                (chunk, used) = (fresh, 0)
            }
            defer { used += PageLocation.pageBytes }
            return chunk.map { $0.base + used }
        }
    }

    private func copyDevice(_ state: UnsafeRawBufferPointer) -> Bool {
        guard let source = state.baseAddress else { return true }
        guard let chunk = pool.take(atLeast: state.count) else { return false }
        hold([chunk])
        chunk.base.copyMemory(from: source, byteCount: state.count)
        setDevice(UnsafeRawBufferPointer(start: chunk.base, count: state.count))
        return true
    }
}

extension DiskSegment {
    /// All writes of several segments, in their order.
    init(joining segments: [DiskSegment]) {
        var known = Set<ObjectIdentifier>()
        for segment in segments {
            records += segment.records
            buffers += segment.buffers.filter { known.insert(ObjectIdentifier($0)).inserted }
            bytes += segment.bytes
        }
        paidRecords = max(DiskSegment.freeRecords, records.count)
    }
}
