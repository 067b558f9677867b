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
///     here          | pieces of what changed --> Backlogs | disks, device --> Backlogs | committed
///
/// Each shadow has a lane of its own (`PassLane`): what it holds already, what it gets, and whether it is ready for another pass.
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
    private let lanes: [PassLane]
    /// The last pass that was sealed.
    private var lastNumber: UInt64 = 0

    /// QEMU connects within this time of its order, or not at all.
    private static let connectMilliseconds = 10_000.0
    /// A realtime clock that moved against the monotonic one by more than this during a pass was set.
    private static let clockToleranceNanoseconds: Int64 = 1_000_000
    /// The shadow that a swap goes to may be busy with an epoch still, and QEMU waits for us meanwhile, not the guest.
    private static let idleMilliseconds = 10_000.0

    init(_ worker: SourceWorker) {
        self.worker = worker
        lanes = worker.followers.map { PassLane($0, of: worker.followers.count, worker: worker) }
    }

    private var options: SourceWorkerOptions { worker.options }

    func run() throws {
        // Whoever ends a whole group of processes politely must not end this one in the middle of a pass.
        signal(SIGTERM, SIG_IGN)
        let listener = try UnixSocket.listen(options.streamPath, mode: 0o600, backlog: 1)
        guard chown(options.streamPath, options.streamOwner, options.streamGroup) == 0 else { throw SystemError("chown", options.streamPath) }
        defer { unlink(options.streamPath) }
        worker.tell(WorkerEvent(.ready))
        while let (kind, peer) = awaitOrder() {
            let lock = PassLock(path: PassLock.path(of: options.streamPath))
            if let socket = try accept(listener) {
                try worker.parent.send(WorkerEvent(.passConnected), descriptor: socket.raw)
                take(kind, for: peer, socket.raw)
            } else if isExpected {
                worker.tell(WorkerEvent(.passFailed, reason: "QEMU did not connect to \(options.streamPath)"))
            }
            withExtendedLifetime(lock) {}
        }
    }

    /// Takes the order away: the next one may come as soon as the parent has heard of the end of this pass.
    private func awaitOrder() -> (PassKind, Int?)? {
        worker.orders.wait(until: nil) { orders in
            if orders.stop || orders.orphaned { return .some(nil) }
            guard let kind = orders.pass else { return nil }
            orders.pass = nil
            return .some((kind, orders.passPeer))
        } ?? nil
    }

    private var isExpected: Bool { worker.orders.read { !$0.isPassCancelled && !$0.stop && !$0.orphaned } }

    private func accept(_ listener: borrowing Descriptor) throws -> Descriptor? {
        let deadline = MonotonicTime.now.adding(milliseconds: Self.connectMilliseconds)
        while deadline > .now, isExpected {
            if try waitOrWake(listener.raw, for: .readable, wake: worker.wake.raw, until: deadline) != nil {
                return try acceptConnection(listener.raw, until: deadline)
            }
            worker.wake.clear()
        }
        return nil
    }

    // MARK: A pass

    /// - Parameter peer: the only shadow that the pass is for; nil: all that can take one.
    private func take(_ kind: PassKind, for peer: Int?, _ fd: Int32) {
        let number = lastNumber + 1
        // Before the first epoch of any shadow the disks are copied still.
        let isFirst = !lanes.contains { $0.hasEpoch || $0.isUnderWay }
        begin(number, for: peer, mayWait: kind == .migration)
        if isFirst { worker.disks?.beginEpochs() }
        let clock = Self.clockOffset
        let reader = StreamReader(fd: fd, pool: readPool)
        let dialogue = PassDialogue(reader: reader)
        var sink = PassSink(worker: worker, readPool: readPool, lanes: lanes) { [self] blocks throws(StreamError) in
            // Known before the first page goes out.
            worker.header.change { $0 = $0 ?? dialogue.header }
            try prepare(blocks, dialogue.header)
        }
        defer { sink.deallocate() }
        // A migration that breaks leaves the guest running: that is how an order to end, or the service's own end, ends it.
        if kind == .migration { worker.mayBreak(fd) }
        defer { worker.mayBreak(nil) }
        let result = Result { () throws(StreamError) in try dialogue.read(into: &sink) }
        sink.finish()
        for chunk in reader.takeChunks() { readPool.give(chunk) }
        let isWhole = lanes.contains { $0.takesPart && $0.isWhole }
        do throws(any Error) {
            let state = try result.get()
            worker.tell(WorkerEvent(.passRead, isWhole: isWhole))
            guard case .seal(let stoppedAt, let resumedAt) = awaitVerdict() else { throw WorkerFailure("The pass was given up") }
            guard isWhole else { throw WorkerFailure(lanes.contains(where: \.takesPart) ? "The pass was not whole" : "No shadow could take the pass") }
            guard abs(Self.clockOffset - clock) < Self.clockToleranceNanoseconds else { throw WorkerFailure("The host's clock was set during the pass") }
            try seal(number, state, stoppedAt: stoppedAt, resumedAt: resumedAt, clock: clock)
        } catch {
            if result.isFailure { PassDialogue.discardRest(of: fd) }
            if isFirst { worker.disks?.resumeCopying() }
            guard !worker.isToldToEnd else { return }
            worker.tell(WorkerEvent(.passFailed, reason: "\(error)", epoch: number, isWhole: isWhole))
        }
    }

    /// Decides which shadows the pass is for: those that are idle and whose turn it is.
    private func begin(_ number: UInt64, for peer: Int?, mayWait: Bool) {
        for lane in lanes { lane.settle() }
        if let peer {
            let lane = lanes[max(0, min(peer, lanes.count - 1))]
            _ = worker.commits.wait(until: MonotonicTime.now.adding(milliseconds: Self.idleMilliseconds)) { _ in
                lane.settle()
                return !lane.isUnderWay || self.worker.isToldToEnd ? true : nil
            }
            for (index, other) in lanes.enumerated() { other.begin(index == lane.follower.index && lane.isReady ? number : nil, mayWait: mayWait) }
            return
        }
        let ready = lanes.filter(\.isReady)
        let due = ready.filter { $0.isDue(for: number) }
        // When those whose turn it would be are all away or busy, whoever is there takes it.
        let chosen = due.isEmpty ? ready : due
        for lane in lanes { lane.begin(chosen.contains { $0 === lane } ? number : nil, mayWait: mayWait) }
    }

    /// A shadow of which is not known what it holds leaves the pass; with nobody left it fails.
    private func prepare(_ blocks: [RAMBlock], _ header: StreamHeader?) throws(StreamError) {
        worker.statistics[.syncBytesTotal] = blocks.reduce(0) { $0 + $1.length }
        worker.statistics[.syncBytes] = 0
        var reason = "No shadow could take the pass"
        for lane in lanes where lane.takesPart {
            do throws(any Error) { try lane.prepare(blocks, header) } catch {
                reason = "\(error)"
                lane.leave()
            }
        }
        guard lanes.contains(where: \.takesPart) else { throw StreamError(.badBlockList(reason: reason), section: "ram start", offset: 0) }
    }

    private func awaitVerdict() -> PassVerdict {
        worker.orders.wait(until: nil) { orders in
            orders.stop || orders.orphaned ? .drop : orders.verdict
        } ?? .drop
    }

    // MARK: The epoch

    private func seal(_ number: UInt64, _ state: PassState, stoppedAt: UInt64, resumedAt: UInt64?, clock: Int64) throws {
        let capturedAt = MonotonicTime(nanoseconds: UInt64(clamping: Int64(clamping: stoppedAt) - clock))
        guard let device = worker.pool.take(atLeast: state.device.count) else { throw WorkerFailure("No memory for \(state.device.count) bytes of device state") }
        defer { worker.pool.give(device) }
        state.device.withUnsafeBytes { device.base.copyMemory(from: $0.baseAddress ?? UnsafeRawPointer(device.base), byteCount: $0.count) }
        // QEMU's events carry microseconds, rounded down: the guest cannot have written within that.
        let writes = try worker.disks.map { disks in try worker.lastWrites.read { $0 } ?? disks.cut(heldBy: resumedAt) }
        let end = resumedAt ?? SharedStatistics.realtimeNanoseconds
        worker.statistics.record(windowStart: stoppedAt, windowEnd: end, acknowledged: 0,
                                 pauseMicroseconds: UInt32(clamping: Int64(clamping: end) / 1000 - Int64(clamping: stoppedAt) / 1000))
        worker.statistics[.epoch] = number
        worker.statistics[.epochsTotal] += 1
        lastNumber = number
        let sealed = lanes.filter { $0.takesPart && $0.isWhole && !$0.follower.isLost }
        for lane in lanes {
            guard sealed.contains(where: { $0 === lane }) else {
                lane.keep(writes)
                continue
            }
            lane.seal(number, device: device, byteCount: state.device.count, capturedAt: capturedAt, writes)
        }
        try awaitCommit(number, sealed)
        cutOffLaggards()
        for lane in lanes { lane.follower.noteHeld() }
        // A first copy that came in parts goes on at once.
        let isComplete = !lanes.contains { $0.takesPart && !$0.isWhole && !$0.hasEpoch && !$0.follower.isLost }
        worker.tell(WorkerEvent(.passCommitted, epoch: number, at: capturedAt.nanoseconds, isWhole: isComplete))
    }

    /// Waits until one of the shadows holds the epoch: the guest has lost nothing then, and the others get there in their own time.
    private func awaitCommit(_ number: UInt64, _ sealed: [PassLane]) throws {
        while true {
            let isHeld = worker.commits.wait(until: MonotonicTime.now.adding(milliseconds: 20)) { _ in
                sealed.contains { $0.holds(number) } ? true : nil
            }
            for lane in sealed { lane.settle() }
            if isHeld == true { return }
            let living = sealed.filter { !$0.follower.isLost }
            let broken = living.first { !$0.isUnderWay }
            guard worker.isToldToEnd || living.isEmpty || broken != nil || living.allSatisfy(\.follower.backlog.isStopped) else { continue }
            if worker.isToldToEnd || living.isEmpty { for lane in sealed { lane.abandon() } }
            // What is under way to others still is theirs when it arrives.
            if !sealed.contains(where: \.isUnderWay) { worker.statistics[.epoch] = worker.statistics[.committedEpoch] }
            for lane in sealed { lane.follower.noteHeld() }
            throw WorkerFailure("The connection to \((broken ?? sealed.first)?.follower.target.peer ?? "the shadow") broke during the pass")
        }
    }

    /// Disk writes are the one thing that has to be kept for a slow shadow. One that keeps half of their memory, while another follows, is given up.
    private func cutOffLaggards() {
        guard lanes.count > 1 else { return }
        for lane in lanes where !lane.follower.isLost && lane.diskBytes > options.ceilingBytes / 2 && worker.isBehind(lane.follower) {
            worker.lost(lane.follower, "It lags too far behind: \(lane.diskBytes >> 20) MiB of disk writes wait for it (unsent_ceiling_mib)")
            lane.settle()
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
