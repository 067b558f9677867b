import CLinux
import Foundation
import Glibc
import Platform

extension ReplicaSet {
    /// Brings the replicas to the last epoch that counts: the flushed one that the state file names, and the records after it.
    func recover(committed: UInt64?) throws {
        guard stored.session == session else { return try recoverForeign() }
        switch stored.phase {
        case .empty: state = .empty
        case .syncing: state = .syncing
        case .consistent: try repeatRecords(committed: committed)
        }
    }

    private func repeatRecords(committed: UInt64?) throws {
        let all = try journal.scan()
        let wanted = all.filter { located in committed.map { located.record.epoch <= $0 } ?? true }
        if !wanted.isEmpty {
            guard Set(stored.disks) == Set(disks) else { throw ReplicaError.disksDiffer(folder: folder) }
            for located in wanted {
                try journal.forEachExtent(of: located) { entry, bytes in try put(entry.extent, bytes) }
            }
        }
        let last = max(stored.epoch, wanted.last?.record.epoch ?? 0, committed ?? 0)
        // Without records the replicas are at the flushed epoch, and epochs up to the committed one had no disk writes.
        state = .consistent(epoch: last)
        if !all.isEmpty { try checkpoint() }
    }

    /// What an earlier session left. Its last epoch is made whole, should anybody want it until this session's first sync; for this
    /// session it is only something to compare with.
    private func recoverForeign() throws {
        guard stored.phase == .consistent else { return }
        guard Set(stored.disks) == Set(disks) else {
            Log.warning("The replicas of an earlier session in \(folder) were of other disks; what its journal holds is dropped")
            return
        }
        try repeatRecords(committed: nil)
        state = .empty
    }

    // MARK: Without a worker

    /// Epochs in a journal that its replicas may lack.
    public struct Repair: Sendable, Equatable {
        public var session: UUID
        public var disks: [Disk]
        /// The epoch that the replicas were flushed at.
        public var flushedEpoch: UInt64
        /// The epoch that they have after the repair.
        public var lastEpoch: UInt64
    }

    /// What `recover` would do; nil: nothing. Changes nothing.
    public static func pendingRepair(folder: String) throws -> Repair? {
        guard let stored = try StoredState.load(folder: folder), stored.phase == .consistent,
              access(journalPath(folder), F_OK) == 0, let hash = KeyedHash(secret: Array(stored.secret)) else { return nil }
        let journal = try WriteJournal(path: journalPath(folder), folder: folder, session: stored.session, generation: stored.generation,
                                       hash: hash, limit: defaultJournalLimitBytes)
        guard let last = try journal.scan().last?.record.epoch else { return nil }
        return Repair(session: stored.session, disks: stored.disks, flushedEpoch: stored.epoch, lastEpoch: last)
    }

    /// Brings the replicas of a host that lost its power to the last whole epoch, and closes them. No worker may have them.
    /// Returns what they are now; nil: the folder knows of none.
    @discardableResult
    public static func recover(folder: String) throws -> State? {
        guard let stored = try StoredState.load(folder: folder) else { return nil }
        let set = try ReplicaSet(folder: folder, session: stored.session, disks: stored.disks, committed: nil)
        let state = set.state
        try set.close(clean: true)
        return state
    }
}
