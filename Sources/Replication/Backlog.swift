import Foundation
import MigrationStream
import Platform

/// The epochs between capture and commit, for one shadow. The stream thread appends, the shipper takes, commits release.
///
///     append -> unsent -> (shipper takes it) -> unacknowledged -> (commit) -> gone
///                 ^------------ reconnect -----------'
///
/// An epoch counts as unacknowledged from the moment it is taken: its commit may be back before its sender knows that it is sent.
/// Epochs that nobody has looked at yet may be merged to one: for a shadow that commits every Nth, and for one that lags.
final class Backlog: @unchecked Sendable {
    /// How epochs are gathered before they are sent.
    struct Gathering: Sendable {
        /// Epochs to a commit.
        var multiple = 1
        /// So many waiting ones are sent as one.
        var mergesFrom = Int.max
        /// Makes one of several; nil when there is no memory for it.
        var merge: @Sendable ([CapturedEpoch]) -> CapturedEpoch? = { _ in nil }
        /// Each goes out as it is: what waits need not be looked through for every epoch.
        var isPlain: Bool { multiple == 1 && mergesFrom == .max }
    }

    private enum Step { case take(CapturedEpoch), merge([CapturedEpoch]), nothing }

    private let gathering: Gathering
    private let condition = MonotonicCondition()
    private var unsent: [CapturedEpoch] = []
    private var unacknowledged: [CapturedEpoch] = []
    private var committed: UInt64 = 0
    private var lastAppended: UInt64 = 0
    private var lastTaken: UInt64 = 0
    private var stopped = false
    /// Nothing is kept any more.
    private var closed = false
    /// Whatever waits goes out, even when the multiple is not reached.
    private var hurried = false
    private var isMerging = false
    private var cannotMerge = false

    init(_ gathering: Gathering = Gathering()) { self.gathering = gathering }

    func append(_ epoch: CapturedEpoch) {
        condition.withLock {
            lastAppended = max(lastAppended, epoch.number)
            guard !closed else { return }
            unsent.append(epoch)
            condition.broadcast()
        }
    }

    // MARK: Taking

    /// The next epoch to send; nil at the time limit, so that the shipper can send a heartbeat, or when stopped.
    func next(milliseconds: Double) -> CapturedEpoch? {
        let limit = MonotonicTime.now.adding(milliseconds: milliseconds)
        while true {
            switch step(until: limit) {
            case .take(let epoch): return epoch
            case .merge(let run): finish(run)
            case .nothing: return nil
            }
        }
    }

    private func step(until limit: MonotonicTime) -> Step {
        condition.withLock {
            while !stopped {
                if !isMerging, let head = unsent.first {
                    let run = gathering.isPlain ? [] : freshRun
                    if mustMerge(run) {
                        isMerging = true
                        return .merge(run)
                    }
                    if run.isEmpty || hurried || cannotMerge || head.span >= UInt64(gathering.multiple) { return .take(take()) }
                }
                if !condition.wait(until: limit) { break }
            }
            return .nothing
        }
    }

    private func take() -> CapturedEpoch {
        let epoch = unsent.removeFirst()
        // Pieces are not kept: a connection that breaks during the first copy ends the session, during a later pass that pass.
        if !epoch.isPiece { unacknowledged.append(epoch) }
        lastTaken = max(lastTaken, epoch.number)
        return epoch
    }

    // MARK: Merging

    /// The epochs at the front that nobody has looked at yet. One that went out once has left its hashes in the page table: it must go out
    /// again as it is.
    private var freshRun: [CapturedEpoch] { Array(unsent.prefix { !$0.isFiltered && !$0.isPiece }) }

    private func mustMerge(_ run: [CapturedEpoch]) -> Bool {
        guard run.count > 1, !cannotMerge, let first = run.first, let last = run.last else { return false }
        if run.count >= gathering.mergesFrom { return true }
        return gathering.multiple > 1 && (hurried || last.number - first.first + 1 >= UInt64(gathering.multiple))
    }

    /// Puts one epoch in the place of several, unless something happened to them meanwhile. Returns whether there was memory for it.
    @discardableResult
    private func finish(_ run: [CapturedEpoch]) -> Bool {
        let merged = gathering.merge(run)
        // What they held goes back to its pool outside the lock.
        return withExtendedLifetime(run) {
            condition.withLock {
                isMerging = false
                cannotMerge = merged == nil
                condition.broadcast()
                guard let merged else { return false }
                let isUntouched = unsent.count >= run.count && zip(unsent, run).allSatisfy { $0 === $1 }
                if isUntouched { unsent.replaceSubrange(0..<run.count, with: [merged]) }
                return true
            }
        }
    }

    /// Waits until captured memory of more than `bytes` waits here, and merges it. False: there was no memory to do so.
    func compact(over bytes: Int, milliseconds: Double) -> Bool {
        let limit = MonotonicTime.now.adding(milliseconds: milliseconds)
        let run: [CapturedEpoch] = condition.withLock {
            while !stopped {
                let run = freshRun
                if !isMerging, run.count > 1, run.reduce(0, { $0 + ($1.isMerged ? 0 : $1.bytes) }) > bytes {
                    isMerging = true
                    return run
                }
                if !condition.wait(until: limit) { break }
            }
            return []
        }
        return run.isEmpty || finish(run)
    }

    /// Whether what waits goes out at once, however few epochs it is.
    func hurry(_ on: Bool) {
        condition.withLock {
            guard hurried != on else { return }
            hurried = on
            condition.broadcast()
        }
    }

    // MARK: Commits

    /// The shadow has everything up to `epoch`. Returns the newest of the released epochs.
    func commit(_ epoch: UInt64) -> CapturedEpoch? {
        // Their memory goes back to the pool outside the lock.
        var released: [CapturedEpoch] = []
        condition.withLock {
            guard epoch > committed, epoch <= lastTaken else { return }
            committed = epoch
            cannotMerge = false
            released = unacknowledged.filter { $0.number <= epoch }
            unacknowledged.removeAll { $0.number <= epoch }
            condition.broadcast()
        }
        return released.last
    }

    /// QEMU ended before `epoch` was proved sound: it, and what came after it, is not to be had. One that was merged goes as a whole.
    func abandon(from epoch: UInt64) {
        condition.withLock {
            let lost = (unacknowledged + unsent).filter { $0.number >= epoch }
            unsent.removeAll { $0.number >= epoch }
            unacknowledged.removeAll { $0.number >= epoch }
            lastAppended = min(lastAppended, min(lost.first?.first ?? epoch, epoch) - 1)
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

    // MARK: Looking

    /// `unsent`: not committed, in fact. `lastTaken`: the newest that the shadow can know of.
    var counts: (unsent: Int, committed: UInt64, lastAppended: UInt64, lastTaken: UInt64) {
        condition.withLock { (unsent.count + unacknowledged.count, committed, lastAppended, lastTaken) }
    }

    /// How far it is behind, in commits.
    var lag: Int { condition.withLock { (unsent.count + unacknowledged.count) / gathering.multiple } }

    /// Bytes of captured memory that it holds, and of merged epochs.
    var held: (captured: Int, merged: Int) {
        condition.withLock {
            (unacknowledged + unsent).reduce(into: (0, 0)) { sum, epoch in
                if epoch.isMerged { sum.1 += epoch.bytes } else { sum.0 += epoch.bytes }
            }
        }
    }

    /// Memory of captured pages that waits here, and disk writes.
    var memory: (chunks: Int, disks: Int) {
        condition.withLock {
            (unacknowledged + unsent).reduce(into: (0, 0)) { sum, epoch in
                sum.0 += epoch.chunks.reduce(0) { $0 + $1.capacity }
                sum.1 += epoch.disks.bytes
            }
        }
    }

    /// Everything that was appended is committed.
    var isComplete: Bool { condition.withLock { !stopped && committed >= lastAppended } }

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

    /// Its shadow is given up: what it holds goes back, and nothing is kept any more.
    func close() {
        let all: [CapturedEpoch] = condition.withLock {
            (stopped, closed) = (true, true)
            defer { (unsent, unacknowledged) = ([], []) }
            condition.broadcast()
            return unsent + unacknowledged
        }
        withExtendedLifetime(all) {}
    }

    var isStopped: Bool { condition.withLock { stopped } }
}
