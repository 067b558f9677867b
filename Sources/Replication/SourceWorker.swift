import CLinux
import Foundation
import Glibc
import MigrationStream
import NBDServer
import Platform
import Transport

/// The primary's side of one protection, in a process of its own: reads QEMU's stream, keeps the epochs until the shadows have
/// committed them, and never makes the guest wait for the network, nor one shadow for another.
///
///     stream thread    QEMU -> parser -> CapturedEpoch -> each shadow's Backlog
///     disk threads     QEMU's mirrors -> DiskCapture -> CapturedEpoch
///     for each shadow (Follower.swift):
///     shipper thread   Backlog -> page table -> frames -> peer          (Shipper.swift)
///     commit thread    peer -> commits -> Backlog                       (Shipper.swift)
///     compact thread   what waits too long -> one epoch                 (with several shadows)
///     control thread   parent -> orders
public final class SourceWorker: @unchecked Sendable {
    /// What the parent ordered. Changed by the control thread, obeyed by the stream thread between epochs.
    struct Orders {
        var firstCopyDone = false
        var hold = false
        /// The shadow that the hold is for.
        var holdPeer = 0
        var release = false
        var suspended = false
        var standBack = false
        var stop = false
        /// The disks' mirrors still want an answer when the stream has ended.
        var staysForMirrors = false
        /// The parent is gone: no stop order will come, and a held guest must stay held.
        var orphaned = false
        var intervalMs: Double
        /// (periodic) The pass that QEMU is about to send; nil: none.
        var pass: PassKind?
        /// (periodic) The only shadow that it is for; nil: for all. QEMU is not going to send it after all.
        var passPeer: Int?
        var isPassCancelled = false
        /// (periodic) What becomes of the pass that was read.
        var verdict: PassVerdict?
    }

    let options: SourceWorkerOptions
    let parent: WorkerChannel
    let statistics: SharedStatistics
    let followers: [Follower]
    let pool: ChunkPool
    /// The session's own, for pages and disk writes.
    let hash = PageHash()
    /// (periodic) The writes before a guest's end here: its mirrors are over.
    let lastWrites = Guarded<DiskSegment?>(nil)
    /// Nil for a guest without disks in its epochs.
    private(set) var disks: DiskCapture?
    private var diskServer: NBDServer?
    let orders: Guarded<Orders>
    let wake: WakeUp
    /// The interval that was ordered when it was adapted last; the stream thread's.
    private var orderedInterval: Double
    let header = Guarded<StreamHeader?>(nil)
    let hasStreamEnded = Guarded(false)
    let isOver = Guarded(false)
    /// Commits of all shadows, to wait on.
    let commits = Guarded<UInt64>(0)
    /// QEMU's connection while the first copy is read, which may take minutes: what a stop order ends.
    let firstCopyConnection = Guarded<Int32?>(nil)

    /// Past this many epochs on the way the interval is doubled; at 20 ms that is a lag of 160 ms.
    private static let mostUnsentEpochs = 8
    /// Before its own shipper and whatever else the host does in ordinary priority.
    private static let streamNiceness: Int32 = -10
    /// QEMU writes an epoch in one go; when it stops in the middle for this long it hangs.
    private static let stallMilliseconds = 30_000.0
    /// A guest that ran this long without an epoch has so much memory dirty that capturing it at once would stop it for long.
    static let longestGapMilliseconds = 20_000.0

    public init(options: SourceWorkerOptions, parent: WorkerChannel, statistics: SharedStatistics) throws {
        guard !options.peers.isEmpty, options.peers.count <= SharedStatistics.mostPeers else {
            throw WorkerFailure("A guest can have 1 to \(SharedStatistics.mostPeers) shadows, not \(options.peers.count)")
        }
        self.options = options
        self.parent = parent
        self.statistics = statistics
        pool = ChunkPool(limitBytes: options.ceilingBytes)
        followers = options.peers.enumerated().map { index, target in
            Follower(index: index, target: target, isAlone: options.peers.count == 1, gathers: options.engine == .continuous, ceilingBytes: options.ceilingBytes,
                     statistics: statistics)
        }
        orders = Guarded(Orders(intervalMs: options.intervalMs))
        orderedInterval = options.intervalMs
        wake = try WakeUp()
        statistics[.intervalMicroseconds] = UInt64(options.intervalMs * 1000)
        guard !options.disks.isEmpty else { return }
        let (pool, followers) = (pool, followers)
        disks = DiskCapture(disks: options.disks, followers: followers.count, limitBytes: options.ceilingBytes, statistics: statistics) { segment, follower in
            let piece = CapturedEpoch(number: 0, pool: pool, capacity: 1)
            piece.disks = segment
            followers[follower].backlog.append(piece)
        } isEnding: { [weak self] in self?.isEnding ?? true }
    }

    /// Runs until the stream ends or the parent says stop. Returns the process's exit status.
    public func run() -> Int32 {
        startThread("control") { [self] in controlLoop() }
        startThread("heartbeat") { [self] in
            // A busy host must not pass for a process that was stopped.
            _ = clinux_set_thread_niceness(Self.streamNiceness)
            while true {
                statistics[.heartbeat] = MonotonicTime.now.nanoseconds
                noteHeld()
                usleep(250_000)
            }
        }
        do {
            try startDiskServer()
        } catch {
            tell(WorkerEvent(.failed, reason: "\(error)"))
            return 1
        }
        defer { diskServer?.stop() }
        startFollowers()
        // The guest waits for this thread, for nobody else here. Threads have a niceness of their own on Linux; without the right to
        // raise it, it stays.
        _ = clinux_set_thread_niceness(Self.streamNiceness)
        let status = options.engine == .periodic ? passLoop() : streamLoop()
        isOver.change { $0 = true }
        for follower in followers { follower.backlog.stop() }
        statistics[.streamEnded] = 1
        _ = orders.wait(until: nil) { !$0.staysForMirrors || $0.orphaned ? true : nil }
        return status
    }

    private func noteHeld() {
        if let disks {
            statistics[.diskHeldBytes] = UInt64(disks.pool.bytesInUse)
            statistics[.diskOpenBytes] = UInt64(disks.openBytes)
        }
        // Between two passes nobody else looks.
        guard options.engine == .periodic else { return }
        for follower in followers where !follower.isLost { follower.noteHeld() }
    }

    private func startDiskServer() throws {
        guard let disks else { return }
        guard options.disks.count <= DiskEntry.mostDisks else {
            throw WorkerFailure("The guest has \(options.disks.count) disks, at most \(DiskEntry.mostDisks) can be part of its epochs")
        }
        let server = try NBDServer(path: options.diskPath, mode: 0o600, owner: (options.streamOwner, options.streamGroup), exports: disks.exports,
                                   maximumPayload: PageFrame.mostBlobBytes) { [weak self] event in self?.noteDisk(event) }
        server.start()
        diskServer = server
    }

    /// A mirror that is gone: the guest's writes do not come here any more, so no epoch is complete from now on.
    private func noteDisk(_ event: NBDServerEvent) {
        if case .connected(_, let export) = event {
            // This is the connection's own thread, and each of the guest's writes waits for it, as the guest itself does for the stream's.
            _ = clinux_set_thread_niceness(Self.streamNiceness)
            disks?.mirrorCame(export)
        }
        guard case .disconnected(_, let export, let error) = event, !isEnding, lastWrites.read({ $0 == nil }), let disks else { return }
        let words = "QEMU ended the mirror of \(export)" + (error.map { ": \($0)" } ?? "")
        disks.fail(words)
        // When QEMU itself has ended its stream says so, and what was captured before still counts.
        startThread("mirror-gone") { [self] in
            if hasStreamEnded.wait(until: MonotonicTime.now.adding(milliseconds: 2000), { $0 ? true : nil }) == nil, !isEnding {
                tell(WorkerEvent(.failed, reason: disks.failure ?? words))
            }
        }
    }

    /// Not on the control thread: a mirror in the middle of a write is waited for.
    func followDisks() {
        startThread("disks-ready") { [self] in
            do {
                try disks?.follow()
                tell(WorkerEvent(.disksFollowing))
            } catch {
                tell(WorkerEvent(.failed, reason: "\(error)"))
            }
        }
    }

    /// The guest stands still, and its writes are complete.
    func cutDisksForGood() {
        do {
            if let disks {
                let segment = try disks.cut()
                lastWrites.change { $0 = segment }
            }
            tell(WorkerEvent(.disksCut))
        } catch {
            tell(WorkerEvent(.failed, reason: "\(error)"))
        }
    }

    /// Wakes whoever waits for commits.
    func noteCommit() { commits.change { $0 &+= 1 } }

    func tell(_ event: WorkerEvent) {
        // A parent that is gone is noticed by the control thread.
        try? parent.send(event)
    }

    // MARK: Stream

    private func streamLoop() -> Int32 {
        do {
            guard let connection = try acceptQEMU() else { return 0 }
            let reader = StreamReader(fd: connection.raw, pool: pool)
            let dialogue = COLODialogue(reader: reader)
            try firstCopy(dialogue)
            try epochs(dialogue)
            return 0
        } catch let error as StreamError where Self.isEnd(error.kind) {
            return streamEnded(disks?.failure ?? "QEMU closed the stream")
        } catch {
            if isToldToEnd { return 0 }
            tell(WorkerEvent(.failed, reason: "\(error)"))
            return 1
        }
    }

    /// QEMU may go away just before we answer: that is its end as well as a read that finds nothing more.
    private static func isEnd(_ kind: StreamError.Kind) -> Bool {
        switch kind {
        case .endOfStream, .system("send", EPIPE), .system("send", ECONNRESET): true
        default: false
        }
    }

    /// QEMU is gone or gave up: what was captured still goes to the shadow, that is what it is for.
    private func streamEnded(_ reason: String) -> Int32 {
        if isToldToEnd { return 0 }
        tell(WorkerEvent(.streamEnded, reason: reason, epoch: followers.map(\.backlog.counts.lastAppended).max()))
        hasStreamEnded.change { $0 = true }
        for follower in followers { follower.backlog.hurry(true) }
        var complete: Follower?
        while complete == nil {
            if isToldToEnd { return 0 }
            if followers.allSatisfy(\.isLost) { return 1 }
            // An epoch that cannot be proved sound any more is taken back.
            complete = commits.wait(until: MonotonicTime.now.adding(milliseconds: 50)) { _ in self.followers.first(where: \.backlog.isComplete) }
        }
        // One that has everything will do: it is the one to go on.
        tell(WorkerEvent(.drained, epoch: complete?.backlog.counts.committed, peer: complete?.index))
        // The parent ends us once it has decided what to do with the epoch.
        _ = orders.wait(until: MonotonicTime.now.adding(milliseconds: 60_000)) { $0.stop || $0.orphaned ? true : nil }
        return 0
    }

    private func acceptQEMU() throws -> Descriptor? {
        let listener = try UnixSocket.listen(options.streamPath, mode: 0o600, backlog: 1)
        guard chown(options.streamPath, options.streamOwner, options.streamGroup) == 0 else {
            throw SystemError("chown", options.streamPath)
        }
        defer { unlink(options.streamPath) }
        tell(WorkerEvent(.ready))
        // QEMU connects when the disks have been copied; the parent knows when that goes wrong.
        let deadline = disks == nil ? MonotonicTime.now.adding(milliseconds: 30_000) : nil
        while true {
            if try waitOrWake(listener.raw, for: .readable, wake: wake.raw, until: deadline) != nil {
                guard let connection = try acceptConnection(listener.raw, until: deadline ?? .now.adding(milliseconds: 1000)) else {
                    throw ChannelError.timedOut(during: "waiting for QEMU to connect to \(options.streamPath)")
                }
                return connection
            }
            wake.clear()
            if isToldToEnd { return nil }
        }
    }

    private func firstCopy(_ dialogue: COLODialogue) throws {
        var sink = FirstCopySink(worker: self, dialogue: dialogue)
        firstCopyConnection.change { $0 = dialogue.reader.fd }
        defer { firstCopyConnection.change { $0 = nil } }
        if isToldToEnd { return }
        _ = try dialogue.firstPass(into: &sink)
        // A guest without enough memory for one piece has shipped nothing yet: the shipper still needs the header.
        header.change { $0 = dialogue.header }
        sink.finish(dialogue.reader.takeChunks())
        tell(WorkerEvent(.firstCopyRead))
        // The guest stands still here, so look often; QEMU needs a few milliseconds for its device state.
        let deadline = MonotonicTime.now.adding(milliseconds: Self.stallMilliseconds)
        while try !dialogue.drainFirstDeviceState() {
            let told = orders.read { ($0.firstCopyDone, $0.stop || $0.orphaned) }
            if told.1 { return }
            if told.0 {
                _ = try dialogue.drainFirstDeviceState()
                break
            }
            guard deadline > .now else { throw ChannelError.timedOut(during: "the first device state") }
            _ = orders.wait(until: MonotonicTime.now.adding(milliseconds: 2)) { $0.firstCopyDone ? true : nil }
        }
        try dialogue.sendReady()
    }

    private func epochs(_ dialogue: COLODialogue) throws {
        let reader = dialogue.reader
        var number: UInt64 = 0
        var lastReply = MonotonicTime.now
        var lastCapacity = 1024
        while true {
            if reader.bufferedBytes < 4, try !waitForRequest(reader.fd) { return }
            reader.deadline = MonotonicTime.now.adding(milliseconds: Self.stallMilliseconds)
            try dialogue.awaitRequest()
            guard let order = try admission(reader.fd, lastEpoch: number, lastReply: lastReply) else { return }

            number += 1
            let epoch = CapturedEpoch(number: number, pool: pool, capacity: lastCapacity)
            var sink = EpochSink(epoch: epoch)
            lastReply = .now
            epoch.capturedAt = lastReply
            let windowStart = SharedStatistics.realtimeNanoseconds
            var windowEnd: UInt64 = 0
            statistics.openWindow(start: windowStart)
            if number == 1 { disks?.beginEpochs() }
            try dialogue.reply()
            reader.deadline = MonotonicTime.now.adding(milliseconds: Self.stallMilliseconds)
            var acknowledged = UInt64.max
            var written: Result<DiskSegment, any Error>?
            let device = try dialogue.receiveEpoch(into: &sink, acknowledgeEarly: order == .run) {
                acknowledged = SharedStatistics.realtimeNanoseconds
                statistics.publishAcknowledgement(acknowledged)
            } beforeBody: {
                windowEnd = SharedStatistics.realtimeNanoseconds
                if let disks { written = Result { try disks.cut() } }
            }
            let pause = MonotonicTime.now.milliseconds(since: lastReply)
            statistics.record(windowStart: windowStart, windowEnd: windowEnd, acknowledged: acknowledged,
                              pauseMicroseconds: UInt32(clamping: Int(pause * 1000)))
            if let written { epoch.disks = try diskWrites(written, dialogue, order) }
            epoch.hold(reader.takeChunks())
            epoch.setDevice(device.bytes)
            epoch.acknowledgedAt = acknowledged
            lastCapacity = max(1024, epoch.count + epoch.count / 4)
            statistics[.epoch] = number
            statistics[.epochsTotal] += 1
            statistics[.pagesDirtied] += UInt64(epoch.count)
            pass(on: epoch)
            cutOffLaggards()
            if order == .hold, try !stayHeld(dialogue, epoch) { return }
        }
    }

    /// An epoch without all of its disk writes is none: to the parent it is as if QEMU had ended before it.
    private func diskWrites(_ written: Result<DiskSegment, any Error>, _ dialogue: COLODialogue, _ order: Admission) throws -> DiskSegment {
        do { return try written.get() } catch {
            if order == .hold {
                // There is nothing to hold the guest for.
                statistics.recordRelease(at: SharedStatistics.realtimeNanoseconds)
                try dialogue.acknowledge()
                refuseHold("\(error)")
            }
            throw StreamError(.endOfStream, section: "\(error)", offset: 0)
        }
    }

    /// Waits for QEMU's next request; false when told to stop.
    private func waitForRequest(_ fd: Int32) throws -> Bool {
        while true {
            if isToldToEnd { return false }
            if try waitOrWake(fd, for: .readable, wake: wake.raw, until: nil) != nil { return true }
            wake.clear()
        }
    }

    private enum Admission { case run, hold }

    /// Decides when the requested epoch may begin. The guest runs on all the while. Nil: told to stop.
    private func admission(_ fd: Int32, lastEpoch: UInt64, lastReply: MonotonicTime) throws -> Admission? {
        var toldSuspended = false
        var holdDeadline: MonotonicTime?
        var interval: Double?
        let asked = MonotonicTime.now
        while true {
            wake.clear()
            let now = orders.read { $0 }
            if now.stop || now.orphaned { return nil }
            if now.release {
                // The hold that this takes back was refused, or not begun yet: the guest runs.
                orders.change { $0.release = false }
                tell(WorkerEvent(.released, epoch: lastEpoch))
            }
            let load = load(holding: now.hold ? now.holdPeer : nil, hurried: now.suspended)
            statistics[.unsentEpochs] = UInt64(load.lag)
            statistics[.heldBytes] = UInt64(pool.bytesInUse + (disks?.pool.bytesInUse ?? 0))
            statistics[.suspended] = now.suspended ? 1 : 0

            // Suspended, resumed and suspended again between two epochs: the parent waits for an answer to each.
            if !now.suspended { toldSuspended = false }
            var waitUntil = MonotonicTime.now.adding(milliseconds: 10)
            if now.standBack, !now.suspended, !now.hold {
                waitUntil = MonotonicTime.now.adding(milliseconds: 1000)
            } else if now.suspended {
                if !toldSuspended {
                    tell(WorkerEvent(.suspended, epoch: lastEpoch))
                    toldSuspended = true
                }
                waitUntil = MonotonicTime.now.adding(milliseconds: 1000)
                if now.hold { refuseHold("The guest is suspended; resume it first") }
            } else if now.hold {
                // The guest runs while older epochs drain, so that it stands still for one epoch only.
                let limit = holdDeadline ?? MonotonicTime.now.adding(milliseconds: 5000)
                holdDeadline = limit
                let target = followers[now.holdPeer]
                let unsent = target.backlog.counts.unsent
                if unsent == 0, target[.linkUp] == 1, !target.isLost { return .hold }
                if limit < .now {
                    refuseHold(target[.linkUp] == 1 ? "The shadow lags \(unsent) epochs behind" : "The shadow is not connected")
                }
                waitUntil = MonotonicTime.now.adding(milliseconds: 1)
            } else {
                holdDeadline = nil
                // Once a request: every wake-up would double it again. But an order counts at once.
                if interval == nil || now.intervalMs != orderedInterval { interval = adaptInterval(unsent: load.lag, configured: now.intervalMs) }
                // Early by a tenth, and by the millisecond that poll(2) rounds up to and some: QEMU's clock does not wait for us, and a
                // request that is held up until its next one is due costs that next one.
                let wanted = interval ?? now.intervalMs
                // QEMU keeps the configured interval itself; to hold its requests up on top of that would cost epochs.
                let due = wanted > min(options.intervalMs, now.intervalMs) ? lastReply.adding(milliseconds: wanted - max(wanted * 0.1, 1.5)) : asked
                let canBegin = lastEpoch > 0 || disks?.hasRoomForEpochs ?? true
                let hasRoom = canBegin && pool.bytesInUse < roomBytes && load.lag < 64
                if hasRoom, due <= .now {
                    // Ten times the configured limit without an epoch: see longestGapMilliseconds.
                    if toldSuspended == false, MonotonicTime.now.milliseconds(since: asked) > Self.longestGapMilliseconds {
                        throw WorkerFailure("The guest ran \(Int(MonotonicTime.now.milliseconds(since: asked) / 1000)) s without an epoch")
                    }
                    return .run
                }
                if hasRoom { waitUntil = due }
            }
            try waitUnlessHungUp(fd, until: waitUntil, "between epochs")
        }
    }

    private func refuseHold(_ reason: String) {
        orders.change { $0.hold = false }
        tell(WorkerEvent(.holdFailed, reason: reason))
    }

    /// Doubles the interval while the shadow lags, halves it back when it has caught up.
    private func adaptInterval(unsent: Int, configured: Double) -> Double {
        var interval = configured == orderedInterval ? Double(statistics[.intervalMicroseconds]) / 1000 : configured
        orderedInterval = configured
        if unsent > Self.mostUnsentEpochs {
            // Never near the gap after which an epoch would be too large.
            interval = min(interval * 2, max(min(options.intervalLimitMs, Self.longestGapMilliseconds / 2), configured))
        } else if unsent <= 1, interval > configured {
            interval = max(configured, interval / 2)
        } else if interval < configured {
            interval = configured
        }
        statistics[.intervalMicroseconds] = UInt64(interval * 1000)
        return interval
    }

    /// The guest stands still with its exact state captured. False: told to stop, or QEMU is gone.
    private func stayHeld(_ dialogue: COLODialogue, _ epoch: CapturedEpoch) throws -> Bool {
        orders.change { $0.hold = false }
        // The parent looks whether the guest really stands still, and proves the epoch by that.
        tell(WorkerEvent(.captured, epoch: epoch.number))
        // Everything before it was committed, so this is one epoch's way there and back. The guest stands still meanwhile.
        let target = followers[orders.read { $0.holdPeer }]
        let limit = MonotonicTime.now.adding(milliseconds: min(options.peerTimeoutMs, 2000))
        // The parent may think better of it meanwhile. Until it has heard `held` nobody relies on the guest's standing still, so
        // when it goes away the guest runs on.
        while !target.backlog.waitUntilCommitted(epoch.number, until: min(limit, MonotonicTime.now.adding(milliseconds: 20))) {
            let now = orders.read { $0 }
            if now.release { break }
            guard limit > .now, target[.linkUp] == 1, !now.stop, !now.orphaned, !target.backlog.isStopped else {
                statistics.recordRelease(at: SharedStatistics.realtimeNanoseconds)
                try dialogue.acknowledge()
                tell(WorkerEvent(.holdFailed, reason: "The shadow did not commit the last epoch in time"))
                return true
            }
        }
        if !orders.read({ $0.release }) { tell(WorkerEvent(.held, epoch: epoch.number, at: epoch.capturedAt.nanoseconds)) }
        while true {
            wake.clear()
            let now = orders.read { $0 }
            // Neither of these lets the guest run: whether it may is for the parent, or its successor, to find out.
            if now.orphaned || now.stop { return false }
            if now.release {
                orders.change { $0.release = false }
                statistics.recordRelease(at: SharedStatistics.realtimeNanoseconds)
                try dialogue.acknowledge()
                tell(WorkerEvent(.released, epoch: epoch.number))
                return true
            }
            try waitUnlessHungUp(dialogue.reader.fd, until: nil, "held")
        }
    }

    /// Waits for a wake-up, the deadline, or QEMU's end, which is an error.
    private func waitUnlessHungUp(_ fd: Int32, until deadline: MonotonicTime?, _ place: String) throws {
        let ready = try waitOrWake(fd, for: .hangup, wake: wake.raw, until: deadline) ?? []
        if !ready.isDisjoint(with: .hangup) { throw StreamError(.endOfStream, section: place, offset: 0) }
    }
}

/// A worker cannot go on, and says so in words for the administrator.
struct WorkerFailure: Error, CustomStringConvertible {
    let description: String
    init(_ description: String) { self.description = description }
}

/// Collects one epoch.
struct EpochSink: PageSink {
    let epoch: CapturedEpoch

    mutating func blocks(_ blocks: [RAMBlock]) throws(StreamError) {}

    @inline(__always)
    mutating func page(block: Int, offset: UInt64, bytes: UnsafeRawPointer) {
        epoch.append(PageLocation(block: block, offset: offset), bytes: bytes)
    }

    @inline(__always)
    mutating func fill(block: Int, offset: UInt64, byte: UInt8) {
        var location = PageLocation(block: block, offset: offset)
        location.word |= PageLocation.fillBit
        epoch.append(location, bytes: nil, fill: byte)
    }
}

/// Hands the first copy on in pieces of one receive buffer each, and waits for memory: the guest runs meanwhile.
struct FirstCopySink: PageSink {
    private let worker: SourceWorker
    private let dialogue: COLODialogue
    private var inner: EpochSink

    init(worker: SourceWorker, dialogue: COLODialogue) {
        self.worker = worker
        self.dialogue = dialogue
        inner = EpochSink(epoch: CapturedEpoch(number: 0, pool: worker.pool))
    }

    mutating func blocks(_ blocks: [RAMBlock]) throws(StreamError) {
        worker.statistics[.syncBytesTotal] = blocks.reduce(0) { $0 + $1.length }
    }

    @inline(__always)
    mutating func page(block: Int, offset: UInt64, bytes: UnsafeRawPointer) {
        inner.page(block: block, offset: offset, bytes: bytes)
    }

    @inline(__always)
    mutating func fill(block: Int, offset: UInt64, byte: UInt8) {
        inner.fill(block: block, offset: offset, byte: byte)
        // A long run of zero pages fills no buffer: keep the list of records within bounds.
        if inner.epoch.count >= 65_536 { passOn([]) }
    }

    private mutating func passOn(_ chunks: [Chunk]) {
        let epoch = inner.epoch
        epoch.hold(chunks)
        worker.header.change { $0 = dialogue.header }
        worker.statistics[.pagesDirtied] += UInt64(epoch.count)
        worker.statistics[.syncBytes] += UInt64(epoch.count) * 4096
        worker.pass(on: epoch)
        inner = EpochSink(epoch: CapturedEpoch(number: 0, pool: worker.pool))
    }

    mutating func filled(_ chunk: Chunk) -> Bool {
        passOn([chunk])
        return true
    }

    mutating func poolExhausted() -> Bool {
        usleep(1000)
        return !worker.isEnding && !worker.followers.allSatisfy(\.isLost)
    }

    mutating func finish(_ chunks: [Chunk]) { passOn(chunks) }
}
