import Glibc
import MigrationStream
import Platform

/// What one shadow gets of the passes: the pages that it lacks, in pieces, and the guest's disk writes since its last epoch.
///
///     idle --begin--> taking part: pieces --seal--> under way --committed--> idle
///      ^                 |                              |
///      '--- not whole ---'      the connection broke ---'      what went over it is sent again
///
/// A pass brings the whole memory. So a shadow that is busy with an earlier one leaves this one out and finds everything in the next: for a
/// slow one nothing is kept but disk writes. The pass thread's own.
final class PassLane {
    let follower: Follower
    private let worker: SourceWorker
    /// Pages that may wait for this shadow, so that none takes the memory of the others.
    private let limitBytes: Int
    private var tables: (pages: PageTable, patches: PatchTable)?
    private var blocks: [RAMBlock] = []
    /// What went out since its last epoch, and over which connection; nil: of the first copy, which ends with its connection.
    private var sent: [PageLocation] = []
    private var connection: UInt64?
    /// Which of its epochs the pages belong to, from 1 on.
    private var serial: UInt64 = 1
    /// The last one that it was given.
    private var lastNumber: UInt64 = 0
    private var underWay: (number: UInt64, disks: DiskSegment)?
    /// Writes of passes that became no epoch of its own.
    private var waiting: [DiskSegment] = []

    // Of the present pass.
    private(set) var takesPart = false
    /// Everything that the shadow lacks went out.
    private(set) var isWhole = true
    private var number: UInt64 = 0
    private var mayWait = false
    /// What is copied but not passed on yet, the memory that it is copied into, and how much of that is taken.
    private var piece: CapturedEpoch?
    private var chunk: Chunk?
    private var used = 0

    /// Zeros take no memory, so their number is limited.
    private static let mostRecords = 65_536
    /// A little of the network's bandwidth in flight is enough for a migration; more would make QEMU believe in a faster network than there is.
    private static let inFlightBytes = 16 << 20
    /// Of the captures' memory: for the device state of an epoch whose pages fill all the rest.
    private static let reserveBytes = 4 << 20

    init(_ follower: Follower, of count: Int, worker: SourceWorker) {
        self.follower = follower
        self.worker = worker
        limitBytes = max(worker.pool.chunkBytes, (worker.options.ceilingBytes - Self.reserveBytes) / count)
    }

    private var backlog: Backlog { follower.backlog }
    var hasEpoch: Bool { backlog.counts.committed > 0 }
    var isUnderWay: Bool { underWay != nil }
    func holds(_ number: UInt64) -> Bool { backlog.counts.committed >= number }

    // MARK: Between passes

    /// Looks what became of the epoch that was under way.
    func settle() {
        guard !follower.isLost else { return forgetAll() }
        guard let (number, disks) = underWay else { return }
        if holds(number) {
            (underWay, sent) = (nil, [])
            serial += 1
        } else if follower.lostEpoch.change({ lost in
            defer { lost = nil }
            return lost == number
        }) {
            backlog.abandon(from: number)
            underWay = nil
            forgetSent()
            waiting.insert(disks, at: 0)
        }
    }

    /// Nothing is going to come of the epoch under way: the guest, or the session, ends.
    func abandon() {
        if let underWay { backlog.abandon(from: underWay.number) }
        underWay = nil
    }

    /// Its shadow is given up.
    private func forgetAll() { (tables, sent, underWay, waiting) = (nil, [], nil, []) }

    private func forgetSent() {
        tables?.pages.forget(sent)
        tables?.patches.forget(sent)
        sent = []
    }

    /// Whether it could take part in a pass now.
    var isReady: Bool { !follower.isLost && underWay == nil && (follower[.linkUp] == 1 || !hasEpoch) }

    /// Whether enough passes have gone by: some commit every Nth only.
    func isDue(for number: UInt64) -> Bool { !hasEpoch || number - lastNumber >= UInt64(max(1, follower.target.multiple)) }

    /// Memory of disk writes that wait for this shadow.
    var diskBytes: Int { waiting.reduce(0) { $0 + $1.bytes } + backlog.memory.disks }

    // MARK: A pass

    /// - Parameters:
    ///   - number: of the epoch that the pass is to become; nil: it is not for this shadow.
    ///   - mayWait: the guest does not wait for the pages to be read.
    func begin(_ number: UInt64?, mayWait: Bool) {
        (piece, chunk, used, isWhole, takesPart) = (nil, nil, 0, true, number != nil)
        guard let number else { return }
        self.mayWait = mayWait
        let current = follower.connection.read { $0 }
        // Pieces of an epoch go over one connection; those that an earlier one took along are sent again.
        if hasEpoch, connection != current, !sent.isEmpty { forgetSent() }
        connection = hasEpoch ? current : nil
        self.number = hasEpoch ? number : 0
        follower.lostEpoch.change { $0 = nil }
    }

    /// It cannot use this pass.
    func leave() { takesPart = false }

    /// What the shadow holds of these blocks is known from here on.
    func prepare(_ blocks: [RAMBlock], _ header: StreamHeader?) throws {
        guard tables == nil else {
            guard blocks == self.blocks else { throw WorkerFailure("The guest's memory has another layout than before") }
            return
        }
        guard let header else { throw WorkerFailure("The stream has no header") }
        tables = (try follower.table(for: header), try PatchTable(blocks))
        self.blocks = blocks
    }

    /// Copies what the shadow lacks of these pages, whose hashes are complete, into the open piece. Returns how many.
    func take(_ batch: UnsafeMutableBufferPointer<PageRecord>) -> Int {
        guard takesPart, let (pages, patches) = tables else { return 0 }
        let before = sent.count
        for record in batch where pages.update(record) {
            guard let place = place() else {
                // Left out, and the next pass brings it.
                isWhole = false
                pages.forget(CollectionOfOne(record.location))
                continue
            }
            var held = record
            held.bytes = nil
            if let bytes = record.bytes, !record.location.isFill {
                held.bytes = UnsafeRawPointer(place)
                if let changed = worker.hash.withHasher({ patches.update(record.location, bytes, epoch: serial, $0) }) {
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
        return sent.count - before
    }

    /// The end of the stream: nothing stays behind.
    func passOn() {
        defer { (piece, chunk) = (nil, nil) }
        guard let piece, piece.count > 0 else { return }
        backlog.append(piece)
    }

    /// Where the next page goes, with an open piece around it; nil: there is no memory.
    private func place() -> UnsafeMutableRawPointer? {
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

    private func room() -> Chunk? {
        let limit = mayWait ? min(limitBytes, Self.inFlightBytes) : limitBytes
        while true {
            if backlog.memory.chunks < limit, let chunk = worker.pool.take() { return chunk }
            guard mayWait, !worker.isToldToEnd, !backlog.isStopped, connection == nil || follower.connection.read({ $0 }) == connection else { return nil }
            usleep(500)
        }
    }

    // MARK: The epoch

    /// Makes an epoch of what the pass brought.
    /// - device: the device state, at the beginning of a chunk, which is shared.
    func seal(_ number: UInt64, device: Chunk, byteCount: Int, capturedAt: MonotonicTime, _ writes: DiskSegment?) {
        let epoch = CapturedEpoch(number: number, pool: worker.pool, capacity: 1)
        worker.pool.share(device)
        epoch.hold([device])
        epoch.setDevice(UnsafeRawBufferPointer(start: device.base, count: byteCount))
        epoch.isFiltered = true
        epoch.connection = connection
        // The parent proved it, by QEMU's events.
        epoch.acknowledgedAt = 0
        epoch.capturedAt = capturedAt
        if let writes { epoch.disks = waiting.isEmpty ? writes : DiskSegment(joining: waiting + [writes]) }
        waiting = []
        underWay = (number, epoch.disks)
        lastNumber = number
        backlog.append(epoch)
    }

    /// The writes up to a pass that becomes no epoch here.
    func keep(_ writes: DiskSegment?) {
        guard let writes, !writes.records.isEmpty, !follower.isLost else { return }
        guard !hasEpoch, underWay == nil else { return waiting.append(writes) }
        // Before the first epoch its replicas take whatever comes.
        let piece = CapturedEpoch(number: 0, pool: worker.pool, capacity: 1)
        piece.disks = writes
        backlog.append(piece)
    }
}
