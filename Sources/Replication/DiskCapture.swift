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
}

/// The writes between two epochs' stops, in their order.
struct DiskSegment {
    var records: [DiskRecord] = []
    /// What the records point into.
    var buffers: [WriteBuffer] = []
    var bytes = 0
}

/// A guest's disk writes, as QEMU's mirror delivers them, sorted into epochs.
///
/// QEMU completes a guest's write only when we have acknowledged it, and we do as soon as we hold it. When QEMU has stopped the guest
/// for an epoch it has completed everything, so what is here by then belongs to that epoch (`cut`), and what comes later to the next.
///
///     [learning] --hashes of the replica--> [copying] --mirrors ready--> [following] --first cut--> epochs
///                                            \____ pieces of epoch 0, applied at once ____/
final class DiskCapture: @unchecked Sendable {
    enum Failure: Error, CustomStringConvertible {
        /// What is captured from here on would lack writes.
        case broken(String)
        var description: String { switch self { case .broken(let reason): reason } }
    }

    private enum Phase { case learning, copying, following }

    private struct State {
        var phase = Phase.learning
        var open = DiskSegment()
        var hasCut = false
        var failure: String?
    }

    /// Pieces of the copy go out when they are this large: as large as a frame.
    static let pieceBytes = 1 << 20
    /// The copy waits for the network, and with it the guest's writes; but not for one that stands still.
    private static let roomMilliseconds = 10_000.0

    let disks: [CapturedDisk]
    let pool: WriteBufferPool
    private let statistics: SharedStatistics
    private let state = Guarded(State())
    private let passOn: @Sendable (DiskSegment) -> Void
    private let isEnding: @Sendable () -> Bool
    private(set) var exports: [DiskExport] = []

    /// - Parameters:
    ///   - passOn: takes a piece of the first copy; called in order.
    ///   - isEnding: that nobody needs the rest any more.
    init(disks: [CapturedDisk], limitBytes: Int, statistics: SharedStatistics, passOn: @escaping @Sendable (DiskSegment) -> Void,
         isEnding: @escaping @Sendable () -> Bool) {
        self.disks = disks
        pool = WriteBufferPool(limitBytes: limitBytes)
        self.statistics = statistics
        self.passOn = passOn
        self.isEnding = isEnding
        exports = disks.map { DiskExport($0, capture: self) }
    }

    // MARK: Phases

    /// The replica's hashes are known: what is written from here on can be compared.
    func startCopying() { state.change { if $0.phase == .learning { $0.phase = .copying } } }

    /// All mirrors are ready: every write comes here from now on, and none is compared any more.
    func follow() throws {
        for export in exports { try export.endDifference() }
        state.change { state in
            flush(&state)
            state.phase = .following
        }
    }

    /// Nothing was accepted yet.
    var isLearning: Bool { state.read { $0.phase == .learning } }

    var isFollowing: Bool { state.read { $0.phase == .following } }

    /// From here on epochs would lack writes: none is taken any more.
    func fail(_ reason: String) { state.change { $0.failure = $0.failure ?? reason } }

    var failure: String? { state.read { $0.failure } }

    // MARK: Writes

    func append(_ extent: DiskExtent, _ bytes: UnsafeRawPointer?, in buffer: WriteBuffer?) {
        state.change { state in
            state.open.records.append(DiskRecord(extent: extent, bytes: bytes))
            if extent.kind == .data { state.open.bytes += extent.length }
            if let buffer, state.open.buffers.last !== buffer { state.open.buffers.append(buffer) }
            statistics[.diskWrites] += 1
            statistics[.diskBytesWritten] += UInt64(extent.length)
            if !state.hasCut, state.open.bytes >= Self.pieceBytes || state.open.records.count >= 65_536 { flush(&state) }
        }
    }

    private func flush(_ state: inout State) {
        guard !state.open.records.isEmpty else { return }
        passOn(state.open)
        state.open = DiskSegment()
    }

    /// The guest stands still and its writes are complete: takes those since the last epoch.
    func cut() throws(Failure) -> DiskSegment {
        statistics[.diskHeldBytes] = UInt64(pool.bytesInUse)
        let result: Result<DiskSegment, Failure> = state.change { state in
            if let failure = state.failure { return .failure(.broken(failure)) }
            state.hasCut = true
            let segment = state.open
            state.open = DiskSegment()
            // As much room as last time: an epoch is like the one before.
            state.open.records.reserveCapacity(min(segment.records.count, 4096))
            return .success(segment)
        }
        return try result.get()
    }

    /// A buffer with room for a write. While the disk is copied this waits for the network; once epochs are taken the guest does
    /// not wait: it is the protection that gives way.
    func buffer(for disk: CapturedDisk) throws(NBDError) -> WriteBuffer {
        let (phase, hasCut, failure) = state.read { ($0.phase, $0.hasCut, $0.failure) }
        if let failure { throw NBDError(EIO, failure) }
        guard phase != .learning else { throw NBDError(EIO, "The shadow's replica of \(disk.target) is not known yet") }
        if let buffer = pool.take() { return buffer }
        let deadline = MonotonicTime.now.adding(milliseconds: Self.roomMilliseconds)
        while !hasCut, deadline > .now, !isEnding(), statistics[.linkUp] == 1 {
            usleep(1000)
            if let buffer = pool.take() { return buffer }
        }
        let mebibytes = pool.limitBytes >> 20
        let reason = "The guest writes to its disks faster than the shadow takes it: \(mebibytes) MiB wait already (unsent_ceiling_mib)"
        fail(reason)
        throw NBDError(ENOSPC, reason)
    }
}

/// What QEMU's mirror of one disk writes into.
final class DiskExport: NBDExport, @unchecked Sendable {
    let disk: CapturedDisk
    private unowned let capture: DiskCapture
    /// Held during a write, and while the phase changes.
    private let lock = NSLock()
    private var difference: ChunkDifference?
    private var buffer: WriteBuffer?
    private var used = 0

    init(_ disk: CapturedDisk, capture: DiskCapture) {
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

    func startDifference(_ hash: PageHash) throws {
        let fresh = try ChunkDifference(disk: disk.index, byteCount: disk.byteCount, hash: hash)
        lock.withLock { difference = fresh }
    }

    /// Hashes of the replica's chunks from `first` on. False: they do not fit the disk.
    func learn(_ bytes: UnsafeRawBufferPointer, first: Int) -> Bool { lock.withLock { difference?.learn(bytes, first: first) ?? false } }

    func endDifference() throws {
        try lock.withLock {
            try difference?.finish { extent, _ in capture.append(extent, nil, in: nil) }
            difference = nil
        }
    }

    // MARK: NBDExport

    func prepareWrite(length: Int, connection: NBDConnectionID) throws(NBDError) -> UnsafeMutableRawPointer {
        lock.lock()
        if let buffer, used + length <= buffer.capacity { return buffer.base + used }
        // The old one lives on in the segments that use it; alone it is as good as new.
        if buffer != nil, length <= WriteBufferPool.bufferBytes, isKnownUniquelyReferenced(&buffer), let buffer {
            used = 0
            return buffer.base
        }
        buffer = nil
        do throws(NBDError) {
            let fresh = try capture.buffer(for: disk)
            guard length <= fresh.capacity else { throw NBDError(EINVAL, "A write of \(length) bytes is too large") }
            buffer = fresh
            used = 0
            return fresh.base
        } catch {
            lock.unlock()
            throw error
        }
    }

    func abandonWrite(connection: NBDConnectionID) { lock.unlock() }

    func write(offset: UInt64, bytes: UnsafeRawBufferPointer, forceUnitAccess: Bool, connection: NBDConnectionID) throws(NBDError) {
        defer { lock.unlock() }
        guard let difference else {
            used += bytes.count
            return capture.append(DiskExtent(disk: disk.index, kind: .data, offset: offset, length: bytes.count), bytes.baseAddress, in: buffer)
        }
        var isKept = false
        do {
            try difference.write(offset, bytes) { extent, part in
                isKept = isKept || part != nil
                capture.append(extent, part, in: part == nil ? nil : buffer)
            }
        } catch {
            throw NBDError(EIO, "\(error)")
        }
        // What the replica holds already needs no memory.
        if isKept { used += bytes.count }
    }

    func writeZeroes(offset: UInt64, length: UInt64, mayTrim: Bool, forceUnitAccess: Bool) throws(NBDError) { try zero(.zero, offset, length) }
    func trim(offset: UInt64, length: UInt64, forceUnitAccess: Bool) throws(NBDError) { try zero(.trim, offset, length) }

    private func zero(_ kind: DiskExtent.Kind, _ offset: UInt64, _ length: UInt64) throws(NBDError) {
        lock.lock()
        defer { lock.unlock() }
        if let failure = capture.failure { throw NBDError(EIO, failure) }
        guard let difference else {
            return capture.append(DiskExtent(disk: disk.index, kind: kind, offset: offset, length: Int(length)), nil, in: nil)
        }
        do {
            try difference.writeZeroes(offset, length) { extent, _ in capture.append(extent, nil, in: nil) }
        } catch {
            throw NBDError(EIO, "\(error)")
        }
    }

    /// Held is safe: as safe as the guest's memory is.
    func flush() throws(NBDError) {
        if let failure = capture.failure { throw NBDError(EIO, failure) }
    }

    func read(offset: UInt64, into: UnsafeMutableRawBufferPointer) throws(NBDError) { throw NBDError(ENOTSUP, "\(disk.target) can only be written") }

    func blockStatus(offset: UInt64, length: UInt64, firstOnly: Bool, _ extent: (UInt64, NBDExtentState) -> Void) throws(NBDError) {
        throw NBDError(ENOTSUP, "\(disk.target) can only be written")
    }
}
