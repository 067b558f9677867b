import Foundation
import MigrationStream
import Platform

/// The epochs between capture and commit. The stream thread appends, the shipper takes, commits release.
///
///     append -> unsent -> (shipper takes it) -> unacknowledged -> (commit) -> gone
///                 ^------------ reconnect -----------'
///
/// An epoch counts as unacknowledged from the moment it is taken: its commit may be back before its sender knows that it is sent.
final class Backlog: @unchecked Sendable {
    private let condition = MonotonicCondition()
    private var unsent: [CapturedEpoch] = []
    private var unacknowledged: [CapturedEpoch] = []
    private var committed: UInt64 = 0
    private var lastAppended: UInt64 = 0
    private var lastTaken: UInt64 = 0
    private var stopped = false

    func append(_ epoch: CapturedEpoch) {
        condition.withLock {
            unsent.append(epoch)
            lastAppended = max(lastAppended, epoch.number)
            condition.broadcast()
        }
    }

    /// The next epoch to send; nil at the time limit, so that the shipper can send a heartbeat, or when stopped.
    func next(milliseconds: Double) -> CapturedEpoch? {
        condition.withLock {
            let limit = MonotonicTime.now.adding(milliseconds: milliseconds)
            while unsent.isEmpty, !stopped {
                if !condition.wait(until: limit) { break }
            }
            guard !stopped, !unsent.isEmpty else { return nil }
            let epoch = unsent.removeFirst()
            // Pieces are not kept: a connection that breaks during the first copy ends the session, during a later pass that pass.
            if !epoch.isPiece { unacknowledged.append(epoch) }
            lastTaken = max(lastTaken, epoch.number)
            return epoch
        }
    }

    /// The shadow has everything up to `epoch`. Returns the newest of the released epochs.
    func commit(_ epoch: UInt64) -> CapturedEpoch? {
        // Their memory goes back to the pool outside the lock.
        var released: [CapturedEpoch] = []
        condition.withLock {
            guard epoch > committed, epoch <= lastTaken else { return }
            committed = epoch
            released = unacknowledged.filter { $0.number <= epoch }
            unacknowledged.removeAll { $0.number <= epoch }
            condition.broadcast()
        }
        return released.last
    }

    /// QEMU ended before `epoch` was proved sound: it, and what came after it, is not to be had.
    func abandon(from epoch: UInt64) {
        condition.withLock {
            unsent.removeAll { $0.number >= epoch }
            unacknowledged.removeAll { $0.number >= epoch }
            lastAppended = min(lastAppended, epoch - 1)
            condition.broadcast()
        }
    }

    /// After a reconnect: everything the shadow has not committed goes out again, in order.
    func rewind() {
        condition.withLock {
            unsent = unacknowledged + unsent
            unacknowledged = []
        }
    }

    /// `unsent`: not committed, in fact. `lastTaken`: the newest that the shadow can know of.
    var counts: (unsent: Int, committed: UInt64, lastAppended: UInt64, lastTaken: UInt64) {
        condition.withLock { (unsent.count + unacknowledged.count, committed, lastAppended, lastTaken) }
    }

    /// Waits until `epoch` is committed; false at the deadline or when stopped.
    func waitUntilCommitted(_ epoch: UInt64, until deadline: MonotonicTime?) -> Bool {
        condition.withLock {
            while committed < epoch, !stopped {
                if let deadline, deadline <= .now { return false }
                _ = condition.wait(until: deadline)
            }
            return committed >= epoch
        }
    }

    func stop() {
        condition.withLock {
            stopped = true
            condition.broadcast()
        }
    }

    var isStopped: Bool { condition.withLock { stopped } }
}
