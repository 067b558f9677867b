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
    private let statistics: SharedStatistics
    private let link = Guarded<Link?>(nil)
    private let lost = Guarded(false)
    private let ceilingBytes: Int

    /// With several shadows so many waiting epochs go out as one: a slow shadow catches up that way.
    private static let mergesFrom = 8

    init(index: Int, target: SourcePeer, isAlone: Bool, ceilingBytes: Int, statistics: SharedStatistics) {
        self.index = index
        self.target = target
        self.statistics = statistics
        self.ceilingBytes = ceilingBytes
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

    /// Keeps the memory of the captures free, however slow the shadow is: what waits is merged, until there is no memory for that either.
    /// Returns when the backlog is over, or that came to pass.
    func keepCompact() -> Bool {
        while !backlog.isStopped {
            if !backlog.compact(over: ceilingBytes / 8, milliseconds: 1000), backlog.held.captured > ceilingBytes / 4 { return false }
        }
        return true
    }
}
