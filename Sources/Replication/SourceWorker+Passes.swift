import CLinux
import Foundation
import Glibc
import MigrationStream
import NBDServer
import Platform

/// What the parent found out about a pass that was read.
enum PassVerdict: Sendable {
    /// It is sound: QEMU stopped the guest then, and let it run on then (nil: not at all). Nanoseconds on the realtime clock.
    case seal(stoppedAt: UInt64, resumedAt: UInt64?)
    case drop
}

/// Engine `periodic`: QEMU sends its whole memory in a pass, and each pass that is whole becomes an epoch.
///
///     parent  takePass ................... seal ............................ takePass
///     QEMU          connect, pages, device, end
///     here          | pieces of what changed --> Backlog | disks, device --> Backlog | committed
///
/// The stream is read to its end whatever happens: see `PassDialogue`.
extension SourceWorker {
    func passLoop() -> Int32 {
        do {
            try PassRunner(self).run()
            return 0
        } catch {
            if isToldToEnd { return 0 }
            tell(WorkerEvent(.failed, reason: "\(error)"))
            return 1
        }
    }
}

/// The pass thread's own state.
private final class PassRunner {
    private let worker: SourceWorker
    /// Two to read into, one that waits in the parser: nothing is kept here.
    private let readPool = ChunkPool(limitBytes: 8 << 20, keepChunks: 3)
    private var tables: (PageTable, PatchTable)?
    private var blocks: [RAMBlock] = []
    /// What went out for the next epoch, and over which connection.
    private var sent: [PageLocation] = []
    private var connection: UInt64?

    /// QEMU connects within this time of its order, or not at all.
    private static let connectMilliseconds = 10_000.0
    /// A realtime clock that moved against the monotonic one by more than this during a pass was set.
    private static let clockToleranceNanoseconds: Int64 = 1_000_000

    init(_ worker: SourceWorker) { self.worker = worker }

    private var options: SourceWorkerOptions { worker.options }
    /// The epoch that the next whole pass becomes.
    private var due: UInt64 { worker.backlog.counts.committed + 1 }

    func run() throws {
        // Whoever ends a whole group of processes politely must not end this one in the middle of a pass.
        signal(SIGTERM, SIG_IGN)
        let listener = try UnixSocket.listen(options.streamPath, mode: 0o600, backlog: 1)
        guard chown(options.streamPath, options.streamOwner, options.streamGroup) == 0 else { throw SystemError("chown", options.streamPath) }
        defer { unlink(options.streamPath) }
        worker.tell(WorkerEvent(.ready))
        while let kind = awaitOrder() {
            let lock = PassLock(path: PassLock.path(of: options.streamPath))
            if let socket = try accept(listener) {
                try worker.parent.send(WorkerEvent(.passConnected), descriptor: socket.raw)
                take(kind, socket.raw)
            } else if worker.orders.read({ $0.pass != nil && !$0.stop && !$0.orphaned }) {
                worker.tell(WorkerEvent(.passFailed, reason: "QEMU did not connect to \(options.streamPath)"))
            }
            worker.orders.change { $0.pass = nil }
            withExtendedLifetime(lock) {}
        }
    }

    private func awaitOrder() -> PassKind? {
        worker.orders.wait(until: nil) { orders in
            orders.stop || orders.orphaned ? .some(nil) : orders.pass.map { .some($0) }
        } ?? nil
    }

    private func accept(_ listener: borrowing Descriptor) throws -> Descriptor? {
        let deadline = MonotonicTime.now.adding(milliseconds: Self.connectMilliseconds)
        while deadline > .now, worker.orders.read({ $0.pass != nil && !$0.stop && !$0.orphaned }) {
            if try waitOrWake(listener.raw, for: .readable, wake: worker.wake.raw, until: deadline) != nil {
                return try acceptConnection(listener.raw, until: deadline)
            }
            worker.wake.clear()
        }
        return nil
    }

    // MARK: A pass

    private func take(_ kind: PassKind, _ fd: Int32) {
        let number = due
        let isFirst = number == 1
        settleConnection(isFirst)
        if isFirst { worker.disks?.beginEpochs() }
        let clock = Self.clockOffset
        let reader = StreamReader(fd: fd, pool: readPool)
        let dialogue = PassDialogue(reader: reader)
        var sink = PassSink(worker: worker, readPool: readPool, number: isFirst ? 0 : number, connection: connection, mayWait: kind == .migration) { [self] blocks throws(StreamError) in
            // Known before the first page goes out.
            worker.header.change { $0 = $0 ?? dialogue.header }
            return try pages(for: blocks, dialogue.header)
        }
        defer { sink.deallocate() }
        // A migration that breaks leaves the guest running: that is how an order to end, or the service's own end, ends it.
        if kind == .migration { worker.mayBreak(fd) }
        defer { worker.mayBreak(nil) }
        let result = Result { () throws(StreamError) in try dialogue.read(into: &sink) }
        sink.finish()
        for chunk in reader.takeChunks() { readPool.give(chunk) }
        sent += sink.sent
        do throws(any Error) {
            let state = try result.get()
            worker.tell(WorkerEvent(.passRead, isWhole: sink.isWhole))
            guard case .seal(let stoppedAt, let resumedAt) = awaitVerdict() else { throw WorkerFailure("The pass was given up") }
            guard sink.isWhole else { throw WorkerFailure("The pass was not whole") }
            guard abs(Self.clockOffset - clock) < Self.clockToleranceNanoseconds else { throw WorkerFailure("The host's clock was set during the pass") }
            try seal(number, state, stoppedAt: stoppedAt, resumedAt: resumedAt, clock: clock)
        } catch {
            if result.isFailure { PassDialogue.discardRest(of: fd) }
            if isFirst { worker.disks?.resumeCopying() }
            guard !worker.isToldToEnd else { return }
            worker.tell(WorkerEvent(.passFailed, reason: "\(error)", epoch: number, isWhole: sink.isWhole))
        }
    }

    /// Pieces of an epoch go over one connection; those that an earlier one took along are sent again. The first copy is different: it
    /// ends with its connection.
    private func settleConnection(_ isFirst: Bool) {
        let current = worker.connection.read { $0 }
        if !isFirst, connection != current, !sent.isEmpty { forgetSent() }
        connection = isFirst ? nil : current
        worker.lostEpoch.change { $0 = nil }
    }

    private func forgetSent() {
        tables?.0.forget(sent)
        tables?.1.forget(sent)
        sent = []
    }

    private func pages(for blocks: [RAMBlock], _ header: StreamHeader?) throws(StreamError) -> (PageTable, PatchTable) {
        worker.statistics[.syncBytesTotal] = blocks.reduce(0) { $0 + $1.length }
        worker.statistics[.syncBytes] = 0
        if let tables {
            guard blocks == self.blocks else { throw StreamError(.badBlockList(reason: "The guest's memory has another layout than before"), section: "ram start", offset: 0) }
            return tables
        }
        do throws(any Error) {
            guard let header else { throw WorkerFailure("It has no header") }
            let fresh = (try worker.followers[0].table(for: header), try PatchTable(blocks))
            (tables, self.blocks) = (fresh, blocks)
            return fresh
        } catch {
            throw StreamError(.badBlockList(reason: "\(error)"), section: "ram start", offset: 0)
        }
    }

    private func awaitVerdict() -> PassVerdict {
        worker.orders.wait(until: nil) { orders in
            orders.stop || orders.orphaned ? .drop : orders.verdict
        } ?? .drop
    }

    // MARK: The epoch

    private func seal(_ number: UInt64, _ state: PassState, stoppedAt: UInt64, resumedAt: UInt64?, clock: Int64) throws {
        let epoch = CapturedEpoch(number: number, pool: worker.pool, capacity: 1)
        guard let chunk = worker.pool.take(atLeast: state.device.count) else { throw WorkerFailure("No memory for \(state.device.count) bytes of device state") }
        epoch.hold([chunk])
        state.device.withUnsafeBytes { chunk.base.copyMemory(from: $0.baseAddress ?? UnsafeRawPointer(chunk.base), byteCount: $0.count) }
        epoch.setDevice(UnsafeRawBufferPointer(start: chunk.base, count: state.device.count))
        epoch.isFiltered = true
        epoch.connection = connection
        // The parent proved it, by QEMU's events.
        epoch.acknowledgedAt = 0
        epoch.capturedAt = MonotonicTime(nanoseconds: UInt64(clamping: Int64(clamping: stoppedAt) - clock))
        if let disks = worker.disks {
            // QEMU's events carry microseconds, rounded down: the guest cannot have written within that.
            epoch.disks = try worker.lastWrites.read { $0 } ?? disks.cut(heldBy: resumedAt)
        }
        let end = resumedAt ?? SharedStatistics.realtimeNanoseconds
        worker.statistics.record(windowStart: stoppedAt, windowEnd: end, acknowledged: 0,
                                 pauseMicroseconds: UInt32(clamping: Int64(clamping: end) / 1000 - Int64(clamping: stoppedAt) / 1000))
        worker.statistics[.epoch] = number
        worker.statistics[.epochsTotal] += 1
        worker.backlog.append(epoch)
        try awaitCommit(number, epoch)
        sent = []
        worker.tell(WorkerEvent(.passCommitted, epoch: number, at: epoch.capturedAt.nanoseconds))
    }

    private func awaitCommit(_ number: UInt64, _ epoch: CapturedEpoch) throws {
        while !worker.backlog.waitUntilCommitted(number, until: MonotonicTime.now.adding(milliseconds: 20)) {
            let isLost = worker.lostEpoch.change { lost in
                defer { lost = nil }
                return lost == number
            }
            guard isLost || worker.isToldToEnd || worker.backlog.isStopped else { continue }
            worker.backlog.abandon(from: number)
            worker.disks?.giveBack(epoch.disks)
            epoch.disks = DiskSegment()
            worker.statistics[.epoch] = number - 1
            forgetSent()
            throw WorkerFailure("The connection to \(options.peers[0].peer) broke during the pass")
        }
    }

    /// Realtime less monotonic. Between two looks at the one clock that lie close together: a thread that has to wait for a processor in
    /// between must not pass for a clock that was set.
    private static var clockOffset: Int64 {
        var best: (span: UInt64, offset: Int64) = (.max, 0)
        for _ in 0..<20 where best.span > 20_000 {
            let before = MonotonicTime.now.nanoseconds
            let realtime = SharedStatistics.realtimeNanoseconds
            let span = MonotonicTime.now.nanoseconds - before
            if span < best.span { best = (span, Int64(clamping: realtime) - Int64(clamping: before + span / 2)) }
        }
        return best.offset
    }
}

extension Result {
    fileprivate var isFailure: Bool { if case .failure = self { true } else { false } }
}

/// Reads what is left of a pass whose worker died, and throws it away: QEMU, and the guest, would wait for good otherwise.
public func readPassToEnd(_ fd: Int32) { PassDialogue.discardRest(of: fd) }

/// Held by whoever reads a pass, for a service that starts anew: QEMU's memory is looked after.
public final class PassLock {
    private let fd: Int32

    /// Beside the stream's socket.
    public static func path(of socket: String) -> String { socket + ".lock" }

    fileprivate init(path: String) {
        fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0o600)
        if fd >= 0 { _ = clinux_lock_open_file(fd, 1, 0, 1) }
    }

    deinit { if fd >= 0 { close(fd) } }

    /// Whether somebody reads a pass.
    public static func isHeld(_ path: String) -> Bool {
        let fd = open(path, O_RDWR | O_CLOEXEC)
        guard fd >= 0 else { return false }
        defer { close(fd) }
        return clinux_open_file_is_locked(fd, 0, 1) == 1
    }
}
