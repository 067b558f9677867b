import Foundation
import Glibc
import Platform

/// The replicas of one guest's disks and their journal: an epoch's writes reach the replicas whole or not at all, whatever happens to
/// the process or the host. For one thread at a time.
///
///                  beginSync                   endSync
///     [empty] ----------------> [syncing] ----------------> [consistent] <-----------.
///                                 ^  writeNow                 |   |  stage, prepare, | apply
///                                 '--------- beginSync -------'   '------------------'
///
/// The order at a commit: `prepare` (the journal has the epoch, flushed), the memory side notes that the epoch is complete, `apply`.
public final class ReplicaSet {
    public struct Disk: Codable, Sendable, Hashable {
        /// What extents and journal call it.
        public var index: Int
        public var path: String
        public var byteCount: UInt64

        public init(index: Int, path: String, byteCount: UInt64) {
            self.index = index
            self.path = path
            self.byteCount = byteCount
        }
    }

    public enum State: Equatable, Sendable {
        /// The replicas are no epoch of this session.
        case empty
        /// A first copy or a resync was begun and has not ended: they are no epoch at all.
        case syncing
        case consistent(epoch: UInt64)
    }

    /// A replica and its table.
    final class Volume {
        let disk: Disk
        let image: ReplicaImage
        let table: ChunkTable
        let tablePath: String
        var tableIsSaved = true

        init(_ disk: Disk, folder: String) throws {
            self.disk = disk
            image = try ReplicaImage(path: disk.path, byteCount: disk.byteCount)
            tablePath = "\(folder)/disk-\(disk.index).chunks"
            table = try ChunkTable.load(path: tablePath, image: image)
        }
    }

    public let folder: String
    public let session: UUID
    public let disks: [Disk]
    /// Durable, but for the epoch: that of the last flush is, and those behind it are in the journal.
    public internal(set) var state: State = .empty
    var stored: StoredState
    let journal: WriteJournal
    private let journalLimit: Int
    private(set) var volumes: [Int: Volume] = [:]
    private var staged: [WriteJournal.Staged] = []
    private var prepared: UInt64?
    /// Why nothing works any more until the set is opened again.
    private var failure: String?

    private let writingBack = Guarded(false)
    private static let writebackQueue = DispatchQueue(label: "shadow-virt.replica-writeback", qos: .utility)

    /// An epoch that is larger than the limit may take this many times as much.
    public static let ceilingFactor = 4
    public static let defaultJournalLimitBytes = 1 << 30

    /// Opens and locks the volumes and the journal in `folder`, which is made if need be, and recovers.
    ///
    /// `committed`: the last epoch that the memory side, which survived, has as complete. Records after it are dropped, those up to it
    /// are applied again. When `state` says another epoch afterwards, the two sides do not belong together: sync again. Nil: nothing
    /// survived, as after a power loss; every whole record is applied.
    public init(folder: String, session: UUID, disks: [Disk], journalLimitBytes: Int = ReplicaSet.defaultJournalLimitBytes,
                committed: UInt64?) throws {
        self.folder = folder
        self.session = session
        self.disks = disks
        journalLimit = max(journalLimitBytes, 4 * JournalRecord.alignment)
        try FileAccess.makeFolder(folder)
        // What a killed predecessor renamed or removed without getting to the flush is what we build upon from here on.
        try FileAccess.syncFolder(folder)
        let found = try StoredState.load(folder: folder)
        let known = found ?? StoredState(session: session, phase: .empty, epoch: 0, generation: 0, secret: Data(KeyedHash().secret),
                                         disks: disks)
        stored = known
        // Checked when it was loaded.
        let hash = KeyedHash(secret: Array(known.secret)) ?? KeyedHash()
        journal = try WriteJournal(path: Self.journalPath(folder), folder: folder, session: known.session, generation: known.generation,
                                   hash: hash, limit: journalLimit)
        for disk in disks { volumes[disk.index] = try Volume(disk, folder: folder) }
        // The journal's lock is ours only now, so what another worker wrote until then is read again.
        if let current = try StoredState.load(folder: folder), current != known { throw ReplicaError.journalInUse(path: journal.path) }
        try recover(committed: committed)
    }

    static func journalPath(_ folder: String) -> String { folder + "/journal" }

    public func chunkTable(disk: Int) -> ChunkTable? { volumes[disk]?.table }

    /// The replica of a disk, for reading.
    public func image(disk: Int) -> ReplicaImage? { volumes[disk]?.image }

    // MARK: Errors

    /// After a failed write or flush of a replica nobody knows what it holds, and the kernel reports a failed flush once only: a second
    /// flush that succeeds proves nothing. Opening again repeats everything since the last checkpoint from the journal.
    private func failing<R>(_ body: () throws -> R) throws -> R {
        do { return try body() } catch {
            failure = failure ?? "\(error)"
            throw error
        }
    }

    private func checkWorking() throws {
        if let failure { throw ReplicaError.failedBefore(cause: failure) }
    }

    private func wrongState(_ call: String) -> ReplicaError {
        ReplicaError.wrongState(call: call, state: prepared.map { "\(state), epoch \($0) prepared" } ?? "\(state)")
    }

    // MARK: Copying

    /// Durable: from now on until `endSync` the replicas are no epoch's. What the journal held is void.
    public func beginSync() throws {
        try checkWorking()
        discardStaged()
        var next = stored
        next.phase = .syncing
        next.epoch = 0
        next.session = session
        next.disks = disks
        try change(to: next)
        state = .syncing
    }

    /// Straight into the replica.
    public func writeNow(_ extent: DiskExtent, _ bytes: UnsafeRawPointer?) throws {
        try checkWorking()
        guard state == .syncing else { throw wrongState("writeNow") }
        try check(extent, bytes)
        try failing { try put(extent, bytes) }
    }

    /// Durable: the replicas are now `epoch`'s.
    public func endSync(epoch: UInt64) throws {
        try checkWorking()
        guard state == .syncing else { throw wrongState("endSync") }
        try checkpoint(epoch: epoch)
        state = .consistent(epoch: epoch)
    }

    // MARK: Epochs

    /// Adds to the epoch that comes; the bytes stay the caller's until it is applied or discarded. Extents may overlap: a later one
    /// goes over an earlier one.
    public func stage(_ extent: DiskExtent, _ bytes: UnsafeRawPointer?) {
        staged.append(WriteJournal.Staged(extent: extent, bytes: bytes))
    }

    /// Writes what is staged into the journal and flushes it; nothing without anything staged. On an error, `noSpace` or `journalFull`
    /// say, nothing has been applied and the epoch before remains the state.
    public func prepare(epoch: UInt64) throws {
        try checkWorking()
        guard case .consistent(let last) = state, prepared == nil else { throw wrongState("prepare") }
        guard epoch > last else { throw ReplicaError.epochOutOfOrder(epoch: epoch, after: last) }
        if staged.isEmpty {
            try failing { try journal.eraseLeftover() }
        } else {
            for item in staged { try check(item.extent, item.bytes) }
            try reserveSpace()
            try writeJournal(epoch)
        }
        prepared = epoch
    }

    private func writeJournal(_ epoch: UInt64) throws {
        let needed = WriteJournal.bytesNeeded(staged)
        let (product, overflow) = journalLimit.multipliedReportingOverflow(by: Self.ceilingFactor)
        let ceiling = overflow ? Int.max : product
        guard needed <= ceiling else {
            throw ReplicaError.journalFull(epoch: epoch, needed: needed, limit: journalLimit, ceiling: ceiling)
        }
        if journal.tail > journalLimit / 2 || journal.tail + needed > journalLimit { try checkpoint() }
        do {
            try append(epoch)
        } catch where isNoSpace(error) && journal.tail > 0 {
            // The space in front is in the file already.
            try checkpoint()
            try append(epoch)
        }
    }

    private func append(_ epoch: UInt64) throws {
        do { try journal.append(epoch: epoch, staged) } catch {
            if !isNoSpace(error) { failure = failure ?? "\(error)" }
            throw error
        }
    }

    /// So that a sparse replica on a full file system is found out here and not half way through `apply`.
    private func reserveSpace() throws {
        for (index, volume) in volumes {
            let bytes = staged.reduce(0) { $0 + ($1.extent.disk == index ? $1.extent.dataBytes : 0) }
            guard bytes > 0, volume.image.isScarce(bytes) else { continue }
            for item in staged where item.extent.disk == index && item.extent.kind == .data {
                try willWrite(volume)
                try volume.image.reserve(item.extent.length, at: item.extent.offset)
            }
        }
    }

    /// Writes a prepared epoch into the replicas, in the order of staging. On an error the set has to be opened again.
    public func apply(epoch: UInt64) throws {
        try checkWorking()
        guard prepared == epoch else { throw wrongState("apply") }
        let step = max(1, journalLimit / 8)
        let before = journal.tail / step
        try failing {
            for item in staged { try put(item.extent, item.bytes) }
        }
        if !staged.isEmpty { journal.accept() }
        staged.removeAll(keepingCapacity: true)
        prepared = nil
        state = .consistent(epoch: epoch)
        // By the time of the checkpoint most of it has reached the disk, so that the epoch that it falls into hardly waits.
        if journal.tail / step != before { startWriteback() }
    }

    /// Forgets what is staged, prepared or not.
    public func discardStaged() {
        staged.removeAll(keepingCapacity: true)
        prepared = nil
    }

    /// Has the replicas' dirty pages written out in the background, so that a `close` soon after has less to wait for. Not here: where
    /// the device's queue is full the call waits for it (1.7 s were seen with 4 KiB pages all over a disk).
    public func startWriteback() {
        let isRunning = writingBack.change { running -> Bool in
            defer { running = true }
            return running
        }
        guard !isRunning else { return }
        let images = volumes.values.map(\.image)
        Self.writebackQueue.async { [writingBack] in
            for image in images { image.startWriteback() }
            writingBack.change { $0 = false }
        }
    }

    // MARK: Writing

    private func check(_ extent: DiskExtent, _ bytes: UnsafeRawPointer?) throws {
        guard let volume = volumes[extent.disk] else { throw ReplicaError.unknownDisk(extent) }
        try volume.image.check(extent)
        guard extent.kind != .data || bytes != nil else { throw ReplicaError.missingData(extent) }
    }

    func put(_ extent: DiskExtent, _ bytes: UnsafeRawPointer?) throws {
        guard let volume = volumes[extent.disk] else { throw ReplicaError.unknownDisk(extent) }
        try willWrite(volume)
        var isKnown = true
        switch extent.kind {
        case .data:
            guard let bytes else { throw ReplicaError.missingData(extent) }
            try volume.image.write(bytes, extent.length, at: extent.offset)
        case .zero:
            try volume.image.zero(extent.length, at: extent.offset)
        case .trim:
            isKnown = try volume.image.trim(extent.length, at: extent.offset)
        }
        volume.table.wrote(extent.offset, extent.length, extent.kind == .data ? bytes : nil, unknown: !isKnown)
    }

    /// The saved table speaks of the replica as it was.
    private func willWrite(_ volume: Volume) throws {
        guard volume.tableIsSaved else { return }
        try FileAccess.remove(volume.tablePath, folder: folder)
        volume.tableIsSaved = false
    }

    // MARK: Durable steps

    /// Flushes the replicas, notes that they are at `epoch` (nil: where they are), and lets the journal begin again.
    func checkpoint(epoch: UInt64? = nil) throws {
        try failing {
            for volume in volumes.values { try volume.image.sync() }
        }
        var next = stored
        if let epoch {
            next.phase = .consistent
            next.epoch = epoch
        } else if case .consistent(let epoch) = state {
            next.epoch = epoch
        }
        try change(to: next)
    }

    /// Makes a state durable, under a new generation: the journal's records until now count no longer.
    private func change(to state: StoredState) throws {
        var next = state
        next.generation += 1
        var renamed = false
        do {
            try next.save(folder: folder) { renamed = true }
        } catch {
            // Either of the two may be found after a crash; a third must not come on top.
            if renamed { failure = failure ?? "\(error)" }
            throw error
        }
        stored = next
        journal.restart(generation: next.generation, session: next.session)
    }

    /// Ends the use of the set.
    /// - clean: flushes the replicas, empties the journal, and saves the chunk tables. Otherwise everything is left as a crash would.
    /// - activating: the guest is going to run on the replicas, which are nobody's epoch any more then. The journal will never be
    ///   applied over what the guest writes. Needs `clean`.
    public func close(clean: Bool, activating: Bool = false) throws {
        defer {
            // Somebody may still hold a chunk table, and with it an image; the locks go now.
            for volume in volumes.values { volume.image.unlock() }
            journal.unlock()
            volumes = [:]
            discardStaged()
            failure = failure ?? "it was closed"
        }
        guard clean else { return }
        try checkWorking()
        discardStaged()
        if activating {
            for volume in volumes.values { try willWrite(volume) }
            var next = stored
            next.phase = .empty
            next.epoch = 0
            try failing { for volume in volumes.values { try volume.image.sync() } }
            try change(to: next)
            state = .empty
        } else if stored.generation > 0 {
            try checkpoint()
            for volume in volumes.values { try volume.table.save(path: volume.tablePath, folder: folder) }
        }
        journal.shrink(to: 0)
    }
}
