import Foundation
import MigrationStream
import Platform

/// One of the shadows that a source worker feeds: its epochs, its connection, its figures. All of them have the same capture, and none waits
/// for another.
final class Follower: @unchecked Sendable {
    /// Its place in the options, and in the statistics.
    let index: Int
    let target: SourcePeer
    let backlog: Backlog
    /// The number of the present connection, 0 before the first.
    let connection = Guarded<UInt64>(0)
    /// (periodic) The epoch that broke with an earlier connection.
    let lostEpoch = Guarded<UInt64?>(nil)
    /// What the shadow said that it holds of an earlier session.
    private let memory = Guarded(ShadowContent.notToldYet)
    private let statistics: SharedStatistics
    private let link = Guarded<Link?>(nil)
    private let lost = Guarded(false)
    private let ceilingBytes: Int

    /// With several shadows so many waiting epochs go out as one: a slow shadow catches up that way.
    private static let mergesFrom = 8

    /// - gathers: epochs that wait may be merged; those of passes never wait for each other.
    init(index: Int, target: SourcePeer, isAlone: Bool, gathers: Bool, ceilingBytes: Int, statistics: SharedStatistics) {
        self.index = index
        self.target = target
        self.statistics = statistics
        self.ceilingBytes = ceilingBytes
        guard gathers else {
            backlog = Backlog()
            return
        }
        let pool = ChunkPool(limitBytes: ceilingBytes, keepChunks: 2)
        backlog = Backlog(.init(multiple: max(1, target.multiple), mergesFrom: isAlone ? Int.max : Self.mergesFrom) { CapturedEpoch.merged($0, pool: pool) })
    }

    // MARK: Figures

    subscript(field: SharedStatistics.PeerField) -> UInt64 {
        get { statistics[index, field] }
        set { statistics[index, field] = newValue }
    }

    func noteHeld() {
        let held = backlog.held
        self[.heldBytes] = UInt64(held.captured + held.merged)
        self[.unsentEpochs] = UInt64(backlog.counts.unsent)
    }

    // MARK: Its end

    /// Nothing is sent to it any more.
    var isLost: Bool { lost.read { $0 } }

    /// True for the first who says so.
    func lose() -> Bool {
        guard lost.change({ lost in
            defer { lost = true }
            return !lost
        }) else { return false }
        self[.isLost] = 1
        return true
    }

    /// Frees what it holds, and ends whatever is being sent.
    func close() {
        backlog.close()
        link.read { $0 }?.shutDown()
    }

    func use(_ link: Link?) { self.link.change { $0 = link } }

    /// The shadow has told all that it holds; nil: nothing.
    func note(_ content: KnownMemory?) { memory.change { $0 = content.map { .memory($0) } ?? .nothing } }

    /// What the shadow holds when its guest's memory is laid out as in `header`: it clears what was for another layout.
    func table(for header: StreamHeader) throws -> PageTable {
        switch memory.read({ $0 }) {
        case .notToldYet: throw WorkerFailure("\(target.peer) has not told yet what its memory holds")
        case .memory(let known) where known.header == header: return known.table
        case .memory, .nothing: return try PageTable(header.blocks)
        }
    }

    /// Keeps the memory of the captures free, however slow the shadow is: what waits is merged, until there is no memory for that either.
    /// Returns when the backlog is over, or that came to pass.
    func keepCompact() -> Bool {
        while !backlog.isStopped {
            if !backlog.compact(over: ceilingBytes / 8, milliseconds: 1000), backlog.held.captured > ceilingBytes / 4 { return false }
        }
        return true
    }
}

private enum ShadowContent: Sendable { case notToldYet, nothing, memory(KnownMemory) }

/// The memory of a shadow that an earlier session filled, by hashes.
struct KnownMemory: Sendable {
    /// More than any host has: whoever tells of more is not believed.
    private static let mostBytes: UInt64 = 1 << 46

    let header: StreamHeader
    let table: PageTable
    /// Pages that are not zero, 4096 bytes each.
    var bytes: UInt64 = 0

    init(_ header: StreamHeader) throws {
        var total: UInt64 = 0
        for block in header.blocks {
            guard block.length <= Self.mostBytes - total else { throw FrameError.badContent("The shadow tells of RAM blocks of \(block.length) bytes") }
            total += block.length
        }
        self.header = header
        table = try PageTable(header.blocks)
    }
}
