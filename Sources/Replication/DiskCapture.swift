import Foundation
import Glibc
import MigrationStream
import NBDServer
import Platform
import ReplicaStore

/// One write to a disk, on its way to the shadow.
struct DiskRecord {
    var extent: DiskExtent
    /// In a buffer that the segment holds; nil for zeroes and trims.
    var bytes: UnsafeRawPointer?
    /// When it was held, nanoseconds on the realtime clock, which QEMU's events carry.
    var at: UInt64 = 0
}

/// The writes between two epochs' stops, in their order.
struct DiskSegment {
    /// A record has 48 bytes: so many of them cost as much as a buffer, and are paid for with one. Zeroes and trims carry no data, and
    /// a guest that discards its disk in small pieces while the network stands still would take memory without a limit.
    static let recordsPerBuffer = 32_768
    /// Come for nothing with every segment: 192 KiB.
    static let freeRecords = 4096

    var records: [DiskRecord] = []
    /// What the records point into, and what they are paid for with.
    var buffers: [WriteBuffer] = []
    var bytes = 0
    var paidRecords = freeRecords

    var isUnpaid: Bool { records.count >= paidRecords }

    mutating func pay(_ buffer: WriteBuffer) {
        buffers.append(buffer)
        paidRecords += Self.recordsPerBuffer
    }
}

/// A guest's disk writes, as QEMU's mirror delivers them, sorted into epochs.
///
/// QEMU completes a guest's write only when we have acknowledged it, and we do as soon as we hold it. When QEMU has stopped the guest
/// for an epoch it has completed everything, so what is here by then belongs to that epoch (`cut`), and what comes later to the next.
///
///     [learning] --hashes of the replicas--> [copying] --mirrors ready--> [following] --first cut--> epochs
///                                             \____ pieces of epoch 0, applied at once ____/
///
/// Several shadows have each their own replicas, which lack different chunks: while the disks are copied each has its own segment. From
/// then on there is one for all.
final class DiskCapture: @unchecked Sendable {
    enum Failure: Error, CustomStringConvertible {
        /// What is captured from here on would lack writes.
        case broken(String)
        var description: String { switch self { case .broken(let reason): reason } }
    }

    private enum Phase { case learning, copying, following }

    /// `unpaid`: of a shadow's copy, or of the open segment.
    private enum Outcome { case taken, unpaid(Int?), refused(String) }

    private struct State {
        var phase = Phase.learning
        /// What is written while the disks are copied, for each shadow.
        var copies: [DiskSegment]
        /// Shadows whose replicas' hashes are not known yet, and all that are to have the disks.
        var learning: Set<Int>
        var living: Set<Int>
        /// (following) The writes since the last epoch.
        var open = DiskSegment()
        /// Which segment is open, from 1 on.
        var serial: UInt64 = 1
        var takesEpochs = false
        /// Disks whose mirror is here, by number.
        var mirrored: Set<Int> = []
        var failure: String?
        /// What is written is thrown away.
        var isAbandoned = false
    }

    /// Pieces of the copy go out when they are this large: as large as a frame.
    static let pieceBytes = 1 << 20
    private static let mostPieceRecords = 65_536
    /// The copy waits for the network, and with it the guest's writes; but not for one that stands still.
    private static let roomMilliseconds = 10_000.0

    let disks: [CapturedDisk]
    let pool: WriteBufferPool
    private let statistics: SharedStatistics
    private let state: Guarded<State>
    private let passOn: @Sendable (DiskSegment, Int) -> Void
    private let isEnding: @Sendable () -> Bool
    private(set) var exports: [DiskExport] = []

    /// - Parameters:
    ///   - followers: how many shadows there are.
    ///   - passOn: takes a piece of the first copy, for the shadow of that number; called in order.
    ///   - isEnding: that nobody needs the rest any more.
    init(disks: [CapturedDisk], followers: Int = 1, limitBytes: Int, statistics: SharedStatistics, passOn: @escaping @Sendable (DiskSegment, Int) -> Void,
         isEnding: @escaping @Sendable () -> Bool) {
        self.disks = disks
        state = Guarded(State(copies: Array(repeating: DiskSegment(), count: followers), learning: Set(0..<followers), living: Set(0..<followers)))
        pool = WriteBufferPool(limitBytes: limitBytes)
        self.statistics = statistics
        self.passOn = passOn
        self.isEnding = isEnding
        exports = disks.map { DiskExport($0, followers: followers, capture: self) }
    }

    // MARK: Phases

    /// The hashes of a shadow's replicas are known. True: now those of all are, and what is written from here on can be compared.
    @discardableResult
    func startCopying(_ follower: Int = 0) -> Bool {
        state.change { state in
            state.learning.remove(follower)
            return Self.beginCopying(&state)
        }
    }

    private static func beginCopying(_ state: inout State) -> Bool {
        guard state.phase == .learning, state.learning.isEmpty, !state.living.isEmpty else { return false }
        state.phase = .copying
        return true
    }

    /// A shadow is gone: nothing is kept for it any more. True: the others only waited for it.
    func drop(_ follower: Int) -> Bool {
        let (began, held) = state.change { state in
            state.living.remove(follower)
            state.learning.remove(follower)
            let held = state.copies[follower]
            state.copies[follower] = DiskSegment()
            return (Self.beginCopying(&state), held)
        }
        return withExtendedLifetime(held) { began }
    }

    /// A client has the export of this name: the disk's mirror.
    func mirrorCame(_ target: String) {
        guard let disk = disks.first(where: { $0.target == target }) else { return }
        state.change { _ = $0.mirrored.insert(disk.index) }
    }

    /// All mirrors are ready: every write comes here from now on, and none is compared any more. A second time does nothing.
    func follow() throws {
        guard try mayFollow() else { return }
        for export in exports { try export.endDifference() }
        state.change { state in
            for follower in state.living { flushCopy(follower, &state) }
            state.phase = .following
        }
    }

    private func mayFollow() throws(Failure) -> Bool {
        let (failure, phase, mirrored) = state.read { ($0.failure, $0.phase, $0.mirrored) }
        if let failure { throw .broken(failure) }
        if phase == .following { return false }
        guard phase == .copying else { throw .broken("The mirrors are said to be ready before the replicas are known") }
        // An export that nobody writes to would make epochs without that disk's writes.
        if let disk = disks.first(where: { !mirrored.contains($0.index) }) { throw .broken("No mirror writes to the export of \(disk.target)") }
        return true
    }

    /// From here on no write waits for room. Before the first epoch is granted: QEMU stops the guest for it and then waits for all writes
    /// under way, which would be a pause as long as the wait.
    func beginEpochs() { state.change { $0.takesEpochs = true } }

    /// A half is free: what the copy and the network leave behind when epochs begin must not be taken for a guest that writes too fast.
    var hasRoomForEpochs: Bool { pool.bytesInUse <= pool.limitBytes / 2 }

    /// Memory of the writes since the last epoch.
    var openBytes: Int { state.read { $0.open.buffers.count } * WriteBufferPool.bufferBytes }

    /// Nothing was accepted yet.
    var isLearning: Bool { state.read { $0.phase == .learning } }

    var isFollowing: Bool { state.read { $0.phase == .following } }

    /// From here on epochs would lack writes: none is taken any more.
    func fail(_ reason: String) { state.change { $0.failure = $0.failure ?? reason } }

    /// Nobody is going to take what the mirrors write. They hear nothing of it until they are ended in their turn, after the epochs: a mirror that ends by
    /// itself, because a write failed, may do so inside an epoch's stop, and then QEMU (7.2 seen) keeps its filter on the disk for good.
    func abandon(_ reason: String) {
        state.change { state in
            state.failure = state.failure ?? reason
            state.isAbandoned = true
        }
    }

    var failure: String? { state.read { $0.failure } }

    /// Why the mirrors are told that nothing is taken any more.
    var refusal: String? { state.read { $0.isAbandoned ? nil : $0.failure } }

    // MARK: Writes

    /// Adds a write; refused is what would be captured after a failure, or before the replicas are known.
    /// - Parameter follower: (copying) The shadow that needs it; nil: all do.
    func append(_ extent: DiskExtent, _ bytes: UnsafeRawPointer?, in buffer: WriteBuffer?, for follower: Int? = nil) throws(NBDError) {
        while true {
            let outcome: Outcome = state.change { state in
                if state.isAbandoned { return .taken }
                if let reason = state.failure { return .refused(reason) }
                guard state.phase != .learning else { return .refused(Self.tooEarly) }
                let record = DiskRecord(extent: extent, bytes: bytes, at: SharedStatistics.realtimeNanoseconds)
                guard state.phase == .following else { return addCopy(record, buffer, state.living.filter { follower ?? $0 == $0 }, &state) }
                guard !state.open.isUnpaid else { return .unpaid(nil) }
                add(record, buffer, &state)
                return .taken
            }
            switch outcome {
            case .taken: return
            case .refused(let reason): throw NBDError(EIO, reason)
            case .unpaid(let follower):
                let payment = try room()
                state.change { state in
                    if let follower { state.copies[follower].pay(payment) } else { state.open.pay(payment) }
                }
            }
        }
    }

    /// Part of the first copy, for each of these shadows.
    private func addCopy(_ record: DiskRecord, _ buffer: WriteBuffer?, _ followers: Set<Int>, _ state: inout State) -> Outcome {
        if let unpaid = followers.first(where: { state.copies[$0].isUnpaid }) { return .unpaid(unpaid) }
        for follower in followers {
            // Exclusive access in place: no copy of the list for each write.
            state.copies[follower].records.append(record)
            if record.extent.kind == .data { state.copies[follower].bytes += record.extent.length }
            if let buffer, state.copies[follower].buffers.last !== buffer { state.copies[follower].buffers.append(buffer) }
            if isPiece(state.copies[follower]) { flushCopy(follower, &state) }
        }
        count(record)
        return .taken
    }

    private func isPiece(_ segment: DiskSegment) -> Bool { segment.bytes >= Self.pieceBytes || segment.records.count >= Self.mostPieceRecords }

    private func flushCopy(_ follower: Int, _ state: inout State) {
        guard !state.copies[follower].records.isEmpty else { return }
        passOn(state.copies[follower], follower)
        state.copies[follower] = DiskSegment()
    }

    private func count(_ record: DiskRecord) {
        statistics[.diskWrites] += 1
        statistics[.diskBytesWritten] += UInt64(record.extent.length)
    }

    private func add(_ record: DiskRecord, _ buffer: WriteBuffer?, _ state: inout State) {
        state.open.records.append(record)
        if record.extent.kind == .data { state.open.bytes += record.extent.length }
        if let buffer, buffer.segment != state.serial {
            state.open.buffers.append(buffer)
            buffer.segment = state.serial
        }
        count(record)
        if isPiece(state.open), !state.takesEpochs { flush(&state) }
    }

    private func flush(_ state: inout State) {
        guard !state.open.records.isEmpty else { return }
        for follower in state.living { passOn(state.open, follower) }
        state.open = DiskSegment()
        state.serial += 1
    }

    private static let tooEarly = "The replicas of the guest's disks are not known yet"

    /// Throws when no write may be taken now.
    func checkAccepting() throws(NBDError) {
        let reason = state.read { $0.isAbandoned ? nil : $0.failure ?? ($0.phase == .learning ? Self.tooEarly : nil) }
        if let reason { throw NBDError(EIO, reason) }
    }

    /// Takes the writes since the last epoch. Without a moment: the guest stands still and they are complete. With one: those that
    /// were held by then (nanoseconds, realtime clock), which is when the guest ran on after its stop; later ones are the next epoch's.
    func cut(heldBy moment: UInt64? = nil) throws(Failure) -> DiskSegment {
        statistics[.diskHeldBytes] = UInt64(pool.bytesInUse)
        let result: Result<DiskSegment, Failure> = state.change { state in
            if let failure = state.failure { return .failure(.broken(failure)) }
            guard state.phase == .following else { return .failure(.broken("An epoch began before the mirrors of all disks were ready")) }
            state.takesEpochs = true
            var segment = state.open
            state.open = DiskSegment()
            state.serial += 1
            // As much room as last time: an epoch is like the one before.
            state.open.records.reserveCapacity(min(segment.records.count, 4096))
            if let moment, let first = segment.records.firstIndex(where: { $0.at > moment }) { Self.move(from: first, &segment, &state) }
            return .success(segment)
        }
        return try result.get()
    }

    /// Moves a segment's records from `first` on into the open one, which is empty, with the buffers that they lie in.
    private static func move(from first: Int, _ segment: inout DiskSegment, _ state: inout State) {
        let later = segment.records[first...]
        state.open.records.append(contentsOf: later)
        segment.records.removeSubrange(first...)
        let bytes = state.open.records.reduce(0) { $1.extent.kind == .data ? $0 + $1.extent.length : $0 }
        state.open.bytes = bytes
        segment.bytes -= bytes
        state.open.paidRecords = max(DiskSegment.freeRecords, later.count)
        let buffers = segment.buffers.sorted { $0.base < $1.base }
        var held: Set<Int> = []
        for record in state.open.records {
            guard let bytes = record.bytes, let index = index(of: bytes, in: buffers), held.insert(index).inserted else { continue }
            buffers[index].segment = state.serial
            state.open.buffers.append(buffers[index])
        }
    }

    /// The last of the buffers, sorted by their place, that begins at or before the bytes.
    private static func index(of bytes: UnsafeRawPointer, in buffers: [WriteBuffer]) -> Int? {
        var (low, high) = (0, buffers.count)
        while low < high {
            let middle = (low + high) / 2
            if UnsafeRawPointer(buffers[middle].base) <= bytes { low = middle + 1 } else { high = middle }
        }
        return low > 0 ? low - 1 : nil
    }

    /// Before the first epoch: the writes of the copy's end become pieces of it again, because the pass that was to be the first epoch
    /// came to nothing.
    func resumeCopying() {
        state.change { state in
            state.takesEpochs = false
            flush(&state)
        }
    }

    /// A buffer with room for a write, as `room`.
    func buffer() throws(NBDError) -> WriteBuffer {
        try checkAccepting()
        return try room()
    }

    /// The same, when it can be had without waiting.
    func bufferAtOnce() -> WriteBuffer? { pool.take() }

    /// While the disk is copied this waits for the network; once epochs are taken the guest does not wait: it is the protection that
    /// gives way. Whatever is refused here is missing in the epochs from now on, so every refusal is a failure for good.
    private func room() throws(NBDError) -> WriteBuffer {
        if let buffer = pool.take(beyondLimit: state.read { $0.isAbandoned }) { return buffer }
        let deadline = MonotonicTime.now.adding(milliseconds: Self.roomMilliseconds)
        while deadline > .now, !isEnding(), state.read({ !$0.takesEpochs && $0.failure == nil }) {
            usleep(1000)
            if let buffer = pool.take() { return buffer }
        }
        let mebibytes = pool.limitBytes >> 20
        fail(isEnding() ? "The protection ends"
            : "The guest writes to its disks faster than the shadow takes it: \(mebibytes) MiB wait already (unsent_ceiling_mib)")
        throw NBDError(ENOSPC, failure ?? "")
    }
}

/// What QEMU's mirror of one disk writes into.
final class DiskExport: NBDExport, @unchecked Sendable {
    let disk: CapturedDisk
    private unowned let capture: DiskCapture
    /// Held during a write, and while the phase changes.
    private let lock = NSLock()
    /// (copying) What each shadow's replica holds; nil for one whose hashes are not known, or when the copy is over.
    private var differences: [ChunkDifference?]
    private var isCompared = true
    private var buffer: WriteBuffer?
    private var used = 0

    init(_ disk: CapturedDisk, followers: Int, capture: DiskCapture) {
        differences = Array(repeating: nil, count: followers)
        self.disk = disk
        self.capture = capture
    }

    var name: String { disk.target }
    var description: String { "writes to \(disk.target) of a protected guest" }
    var byteCount: UInt64 { disk.byteCount }
    var isReadOnly: Bool { false }
    /// A mirror has one connection, and the order of its writes is that of the guest.
    var allowsSeveralConnections: Bool { false }
    /// The bytes leave for the shadow; nothing here could answer.
    var canRead: Bool { false }
    /// They are a note in the epoch.
    var zeroesFast: Bool { true }

    // MARK: Phases

    func startDifference(_ hash: PageHash, follower: Int = 0) throws {
        let fresh = try ChunkDifference(disk: disk.index, byteCount: disk.byteCount, hash: hash)
        lock.withLock { differences[follower] = fresh }
    }

    /// Hashes of the replica's chunks from `first` on. False: they do not fit the disk.
    func learn(_ bytes: UnsafeRawBufferPointer, first: Int, follower: Int = 0) -> Bool {
        lock.withLock { differences[follower]?.learn(bytes, first: first) ?? false }
    }

    func endDifference() throws {
        try lock.withLock {
            for (follower, difference) in differences.enumerated() {
                try difference?.finish { extent, _ in try capture.append(extent, nil, in: nil, for: follower) }
                differences[follower] = nil
            }
            isCompared = false
        }
    }

    // MARK: NBDExport

    func prepareWrite(length: Int, connection: NBDConnectionID) throws(NBDError) -> UnsafeMutableRawPointer {
        lock.lock()
        if let place = place(length) { return place }
        do throws(NBDError) {
            guard length <= WriteBufferPool.bufferBytes else { throw NBDError(EINVAL, "A write of \(length) bytes is too large") }
            return begin(try capture.buffer())
        } catch {
            lock.unlock()
            throw error
        }
    }

    /// Takes the buffer that `prepareWrite` is going to need: between the two another disk could take the last one.
    func takesWriteAtOnce(length: Int, connection: NBDConnectionID) -> Bool {
        // The end of the comparison holds it for as long as that takes.
        guard lock.try() else { return false }
        defer { lock.unlock() }
        if place(length) != nil { return true }
        do throws(NBDError) { try capture.checkAccepting() } catch { return true }
        guard let fresh = capture.bufferAtOnce() else { return false }
        _ = begin(fresh)
        return true
    }

    /// Where `length` bytes fit without a new buffer. Otherwise the present one is let go.
    private func place(_ length: Int) -> UnsafeMutableRawPointer? {
        if let buffer, used + length <= buffer.capacity { return buffer.base + used }
        // The old one lives on in the segments that use it; alone it is as good as new.
        if length <= WriteBufferPool.bufferBytes, isKnownUniquelyReferenced(&buffer), let buffer { return begin(buffer) }
        buffer = nil
        return nil
    }

    private func begin(_ fresh: WriteBuffer) -> UnsafeMutableRawPointer {
        buffer = fresh
        used = 0
        return fresh.base
    }

    func abandonWrite(connection: NBDConnectionID) { lock.unlock() }

    func write(offset: UInt64, bytes: UnsafeRawBufferPointer, forceUnitAccess: Bool, connection: NBDConnectionID) throws(NBDError) {
        defer { lock.unlock() }
        guard isCompared else {
            used += bytes.count
            return try capture.append(DiskExtent(disk: disk.index, kind: .data, offset: offset, length: bytes.count), bytes.baseAddress, in: buffer)
        }
        var isKept = false
        do {
            try compare { difference, follower in
                try difference.write(offset, bytes) { extent, part in
                    isKept = isKept || part != nil
                    try capture.append(extent, part, in: part == nil ? nil : buffer, for: follower)
                }
            }
        } catch {
            throw refused(error)
        }
        // What the replica holds already needs no memory.
        if isKept { used += bytes.count }
    }

    func writeZeroes(offset: UInt64, length: UInt64, mayTrim: Bool, forceUnitAccess: Bool) throws(NBDError) { try zero(.zero, offset, length) }
    func trim(offset: UInt64, length: UInt64, forceUnitAccess: Bool) throws(NBDError) { try zero(.trim, offset, length) }

    private func zero(_ kind: DiskExtent.Kind, _ offset: UInt64, _ length: UInt64) throws(NBDError) {
        lock.lock()
        defer { lock.unlock() }
        try capture.checkAccepting()
        guard isCompared else {
            return try capture.append(DiskExtent(disk: disk.index, kind: kind, offset: offset, length: Int(length)), nil, in: nil)
        }
        do {
            try compare { difference, follower in
                try difference.writeZeroes(offset, length) { extent, _ in try capture.append(extent, nil, in: nil, for: follower) }
            }
        } catch {
            throw refused(error)
        }
    }

    /// Calls `body` for each shadow whose replica is known. There is at least one, or nothing is accepted yet.
    private func compare(_ body: (ChunkDifference, Int) throws -> Void) throws {
        try capture.checkAccepting()
        for case (let follower, let difference?) in differences.enumerated() { try body(difference, follower) }
    }

    private func refused(_ error: any Error) -> NBDError { error as? NBDError ?? NBDError(EIO, "\(error)") }

    /// Held is safe: as safe as the guest's memory is.
    func flush() throws(NBDError) {
        if let refusal = capture.refusal { throw NBDError(EIO, refusal) }
    }

    func read(offset: UInt64, into: UnsafeMutableRawBufferPointer) throws(NBDError) { throw NBDError(ENOTSUP, "\(disk.target) can only be written") }

    func blockStatus(offset: UInt64, length: UInt64, firstOnly: Bool, _ extent: (UInt64, NBDExtentState) -> Void) throws(NBDError) {
        throw NBDError(ENOTSUP, "\(disk.target) can only be written")
    }
}
