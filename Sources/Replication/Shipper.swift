import Foundation
import Glibc
import MigrationStream
import Platform
import ReplicaStore
import Transport

/// Sends one shadow's backlog to its host, over as many connections as it takes, and hears of commits.
///
///     connect -> handshake -> Hello -> Welcome(committed) -> resend what is not committed -> ship, ship, ...
///        ^-------------------------- link lost: wait 0.1 .. 1 s --------------------------------'
final class Shipper: @unchecked Sendable {
    private let worker: SourceWorker
    private let follower: Follower
    private var hash: PageHash { worker.hash }
    private var table: PageTable?
    /// Something went out that cannot be sent again: the first copy is not kept.
    private var hasSentPieces = false
    private var firstCopyStarted: Bool { hasSentPieces }
    /// Whether the shadow of the present connection has the stream's header.
    private var hasToldHeader = false
    /// Why the shadow ended a connection, in its words.
    private var lastReason: String?
    /// Connections so far, and the pages that pieces of the next epoch brought over the present one.
    private var connection: UInt64 = 0
    private var piecePages: UInt64 = 0
    /// The epoch that the next commit is put on top of.
    private var base: UInt64 = 0

    init(worker: SourceWorker, follower: Follower) {
        self.worker = worker
        self.follower = follower
    }

    private var options: SourceWorkerOptions { worker.options }
    private var backlog: Backlog { follower.backlog }

    func run() {
        var attempt = 0
        var refusals = 0
        var toldReasons: Set<String> = []
        while !backlog.isStopped {
            defer { follower.use(nil) }
            do {
                let link = try connect(worker.header.read { $0 })
                attempt = 0
                refusals = 0
                toldReasons = []
                try ship(over: link)
            } catch HandshakeError.unknownSession(let reason) {
                return sessionLost(reason)
            } catch let error as SessionLost {
                return sessionLost(error.reason)
            } catch {
                worker.setLink(follower, up: false)
                if backlog.isStopped { return }
                let reason = reason(error)
                refusals += error is ShadowFailure ? 1 : 0
                if refusals >= Self.mostRefusals { return sessionLost(reason) }
                lastReason = error is ShadowFailure ? reason : lastReason
                if toldReasons.insert(reason).inserted { tell(.linkLost, reason: reason) }
            }
            attempt += 1
            usleep(UInt32(min(1_000_000, 100_000 << min(attempt, 4))))
        }
    }

    /// A shadow that says no to the introduction so often in a row is not going to say yes: its RAM is not the primary's.
    private static let mostRefusals = 3

    private struct SessionLost: Error { let reason: String }

    private func sessionLost(_ reason: String) {
        worker.lost(follower, reason)
    }

    private func tell(_ kind: WorkerEvent.Kind, reason: String? = nil, epoch: UInt64? = nil) {
        worker.tell(WorkerEvent(kind, reason: reason, epoch: epoch, peer: follower.index))
    }

    /// The peer is there, and says why it cannot go on.
    private struct ShadowFailure: Error, CustomStringConvertible { let description: String }

    private func reason(_ error: any Error) -> String {
        error is ShadowFailure ? "\(follower.target.peer) cannot follow: \(error)" : "No connection to \(follower.target.peer): \(error)"
    }

    // MARK: Connecting

    @_optimize(none)  // Swift 6.0's optimizer crashes on it: "All discovered blocks must be live"
    private func connect(_ header: StreamHeader?) throws -> Link {
        let deadline = MonotonicTime.now.adding(milliseconds: options.peerTimeoutMs)
        let socket = try TCP.connect(Endpoint(address: follower.target.address, port: follower.target.port), deadline: deadline,
                                     stallMilliseconds: Int32(options.peerTimeoutMs))
        try Handshake.initiate(socket.raw, secret: options.secret.map { SharedSecret($0) } ?? .none, name: options.host,
                               peer: follower.target.peer, purpose: .data, session: follower.target.session, deadline: deadline)
        let link = Link(socket, hash: hash, stallMilliseconds: options.peerTimeoutMs, compressesPages: options.engine == .periodic)
        follower.use(link)
        // It is asked again, and may have been cleared.
        if !firstCopyStarted { table = nil }
        let hello = Hello(domain: options.domain, hashSecret: Data(hash.secret), header: header,
                          disks: options.disks.map(\.byteCount),
                          firstEpoch: firstCopyStarted ? backlog.counts.committed + 1 : 0)
        hasToldHeader = header != nil
        try link.send(.hello, data: JSONEncoder().encode(hello))
        try acceptWelcome(link, deadline)
        connection += 1
        piecePages = 0
        let current = connection
        follower.connection.change { $0 = current }
        worker.setLink(follower, up: true)
        return link
    }

    private func acceptWelcome(_ link: Link, _ deadline: MonotonicTime) throws {
        let buffer = FrameBuffer()
        let frame = try link.receive(to: buffer.base, deadline: deadline)
        let blob = try link.blob(frame, buffer.base)
        switch frame.type {
        case .welcome: break
        case .failure: throw ShadowFailure(description: String(decoding: blob, as: UTF8.self))
        default: throw FrameError.unexpected(frame.type, state: "waiting for the welcome")
        }
        let welcome = try JSONDecoder().decode(Welcome.self, from: Data(blob))
        let mine = backlog.counts
        if firstCopyStarted, welcome.committedEpoch == 0 {
            throw SessionLost(reason: "The connection broke during the first copy" + (lastReason.map { " (\($0))" } ?? ""))
        }
        guard welcome.committedEpoch >= mine.committed, welcome.committedEpoch <= mine.lastTaken else {
            throw SessionLost(reason: "The shadow stands at epoch \(welcome.committedEpoch), this side between \(mine.committed) and \(mine.lastTaken)")
        }
        committed(welcome.committedEpoch)
        base = welcome.committedEpoch
        backlog.rewind()
    }

    // MARK: Shipping

    private func ship(over link: Link) throws {
        let broken = Guarded<(any Error)?>(nil)
        let finished = Guarded(false)
        let isOver = Guarded(false)
        let shadowReads = Guarded(backlog.counts.committed > 0)
        startThread("commits") { [self] in
            do { try hearCommits(link, shadowReads) { isOver.read { $0 } } } catch { broken.change { $0 = error } }
            link.shutDown()
            finished.change { $0 = true }
            shadowReads.change { $0 = true }
        }
        defer {
            isOver.change { $0 = true }
            link.shutDown()
            _ = finished.wait(until: MonotonicTime.now.adding(milliseconds: 2000)) { $0 ? true : nil }
        }
        while !backlog.isStopped {
            if let error = broken.read({ $0 }) { throw error }
            guard awaitShadow(shadowReads), let epoch = backlog.next(milliseconds: options.keepaliveMs) else {
                if !backlog.isStopped { try link.send(.heartbeat, blob: UnsafeRawBufferPointer(start: nil, count: 0)) }
                continue
            }
            do {
                try ship(epoch, link) { broken.read { $0 != nil } }
            } catch let error as SessionLost {
                throw error
            } catch {
                // The next connection begins with a rewind, which puts the epoch back in its place.
                throw broken.read { $0 } ?? error
            }
        }
    }

    /// The shadow stops reading while it looks through the memory that it kept, and with disks twice, perhaps for minutes: while it looks through
    /// its replicas, and while it puts the first copy on stable storage, before the first epoch. What is sent meanwhile fills the connection until it counts as broken, which
    /// during the first copy costs the session. False: not yet, and a heartbeat is due.
    private func awaitShadow(_ shadowReads: Guarded<Bool>) -> Bool {
        let limit = MonotonicTime.now.adding(milliseconds: options.keepaliveMs)
        guard shadowReads.wait(until: limit, { $0 ? true : nil }) != nil else { return false }
        guard worker.disks != nil, backlog.counts.lastTaken > 0 else { return true }
        return backlog.waitUntilCommitted(1, until: limit)
    }

    private func ship(_ epoch: CapturedEpoch, _ link: Link, isBroken: () -> Bool) throws {
        if let wanted = epoch.connection, wanted != connection {
            // What its pieces brought is gone with the connection that they went over.
            backlog.abandon(from: epoch.number)
            return follower.lostEpoch.change { $0 = epoch.number }
        }
        if epoch.number == 0 { hasSentPieces = true }
        if epoch.count > 0 || epoch.number > 0 { try tellHeader(link) }
        let isRepeat = epoch.wasSent
        epoch.wasSent = true
        if !epoch.isFiltered {
            _ = table?.filter(epoch.filledRecords, hash)
            epoch.isFiltered = true
            worker.statistics.add(.pagesDropped, UInt64(epoch.filledRecords.reduce(0) { $0 + ($1.location.isDropped ? 1 : 0) }))
        }
        let before = link.bytesSent
        // Half an epoch over a connection that broke is traffic as well.
        defer {
            worker.statistics.add(.bytesSent, link.bytesSent - before)
            follower[.bytesSent] += link.bytesSent - before
            if isRepeat { worker.statistics.add(.bytesResent, link.bytesSent - before) }
        }
        let pages = try link.send(epoch)
        worker.statistics.add(.diskBytesSent, UInt64(epoch.disks.bytes))
        guard !epoch.isPiece else {
            if epoch.number > 0 { piecePages += pages }
            return
        }
        guard try isProvedSound(epoch, link, isBroken) else { return }
        try link.sendCommit(epoch, pages: piecePages + pages, base: base)
        base = epoch.number
        piecePages = 0
    }

    /// The stream's header goes before its first page, also to a shadow that was connected before QEMU's stream began.
    private func tellHeader(_ link: Link) throws {
        guard table == nil || !hasToldHeader else { return }
        guard let header = worker.header.read({ $0 }) else { throw WorkerFailure("Pages were captured before the stream's header") }
        if table == nil { table = try follower.table(for: header) }
        guard !hasToldHeader else { return }
        try link.send(.streamHeader, data: JSONEncoder().encode(header))
        hasToldHeader = true
    }

    /// Waits until it is known that nobody let the guest run while this epoch was captured (`SharedStatistics.Field.provenUntil`):
    /// a few milliseconds, the way of QEMU's event through libvirt. False: QEMU ended before that.
    private func isProvedSound(_ epoch: CapturedEpoch, _ link: Link, _ isBroken: () -> Bool) throws -> Bool {
        let statistics = worker.statistics
        var heartbeat = MonotonicTime.now.adding(milliseconds: options.keepaliveMs)
        var giveUp: MonotonicTime?
        while true {
            if statistics[.torn] != 0 {
                throw SessionLost(reason: statistics[.torn] == SharedStatistics.mirrorEnded ? "The mirror of a disk was ended"
                    : "Somebody resumed the guest while an epoch was captured")
            }
            // QEMU's events carry microseconds, rounded down.
            if statistics[.provenUntil] &+ 2000 >= epoch.acknowledgedAt, epoch.acknowledgedAt != .max { return true }
            if statistics[.provenEpoch] >= epoch.number || statistics[.eventsAway] != 0 { return true }
            if backlog.isStopped || isBroken() { throw ChannelError.interrupted }
            if worker.hasStreamEnded.read({ $0 }) {
                let limit = giveUp ?? MonotonicTime.now.adding(milliseconds: 300)
                giveUp = limit
                if limit < .now {
                    backlog.abandon(from: epoch.first)
                    return false
                }
            }
            if heartbeat < .now {
                try link.send(.heartbeat, blob: UnsafeRawBufferPointer(start: nil, count: 0))
                heartbeat = MonotonicTime.now.adding(milliseconds: options.keepaliveMs)
            }
            usleep(300)
        }
    }

    // MARK: Commits

    /// - Parameter isOver: what was received before the end, hashes say, must not mix with that of the next connection.
    private func hearCommits(_ link: Link, _ shadowReads: Guarded<Bool>, _ isOver: () -> Bool) throws {
        let buffer = FrameBuffer()
        let known = backlog.counts.committed
        var memory: KnownMemory?
        var first = true
        while true {
            let frame = try link.receive(to: buffer.base, deadline: MonotonicTime.now.adding(milliseconds: options.peerTimeoutMs))
            if isOver() { throw ChannelError.interrupted }
            switch frame.type {
            case .acknowledge:
                guard frame.count == 1 else { throw FrameError.unexpected(frame.type, state: "waiting for commits") }
                let epoch = FrameEntry.read(buffer.base, index: 0).location
                guard epoch <= backlog.counts.lastTaken else {
                    throw FrameError.badContent("The shadow commits epoch \(epoch), which was never sent")
                }
                committed(epoch)
                // One that repeats what it had is connected, but may be unable to take more.
                if epoch > 0, first, epoch > known || backlog.counts.unsent == 0 {
                    first = false
                    tell(.following, epoch: epoch)
                }
            case .failure:
                throw ShadowFailure(description: String(decoding: try link.blob(frame, buffer.base), as: UTF8.self))
            case .replicas where worker.disks != nil:
                let seeds = try JSONDecoder().decode([ReplicaSeed].self, from: Data(try link.blob(frame, buffer.base)))
                try learnReplicas(seeds)
                if seeds.isEmpty { shadowReads.change { $0 = true } }
            case .memory:
                memory = try KnownMemory(JSONDecoder().decode(StreamHeader.self, from: Data(try link.blob(frame, buffer.base))))
            case .pageHashes:
                guard try learnPages(PageLocation(word: frame.epoch), try link.blob(frame, buffer.base), &memory) else { continue }
                if worker.disks == nil { shadowReads.change { $0 = true } }
            case .chunkHashes:
                try learnHashes(disk: Int(frame.epoch >> 48), first: Int(frame.epoch & ((1 << 48) - 1)), try link.blob(frame, buffer.base))
            default:
                throw FrameError.unexpected(frame.type, state: "waiting for commits")
            }
        }
    }

    /// True: those were all.
    private func learnPages(_ first: PageLocation, _ hashes: UnsafeRawBufferPointer, _ known: inout KnownMemory?) throws -> Bool {
        guard !hashes.isEmpty else {
            follower.note(known)
            var event = WorkerEvent(.memoryKnown, peer: follower.index)
            event.bytes = known?.bytes ?? 0
            worker.tell(event)
            return true
        }
        guard known?.table.learn(hashes, first: first) == true else { throw FrameError.badContent("The shadow sent hashes of pages that it did not tell of") }
        known?.bytes += UInt64(hashes.count / 16 * PageLocation.pageBytes)
        return false
    }

    /// First how the replicas' chunks are hashed, then, when all hashes have come, an empty list.
    private func learnReplicas(_ seeds: [ReplicaSeed]) throws {
        guard let disks = worker.disks, disks.isLearning else { return }
        guard !seeds.isEmpty else {
            if disks.startCopying(follower.index) { worker.tell(WorkerEvent(.disksPrepared)) }
            return
        }
        for seed in seeds {
            guard disks.exports.indices.contains(seed.disk), seed.seed.count == PageHash.secretBytes else {
                throw FrameError.badContent("The shadow speaks of disk \(seed.disk), which does not exist, or sent a wrong seed")
            }
            try disks.exports[seed.disk].startDifference(PageHash(secret: Array(seed.seed)), follower: follower.index)
        }
    }

    private func learnHashes(disk: Int, first: Int, _ hashes: UnsafeRawBufferPointer) throws {
        guard let disks = worker.disks, disks.exports.indices.contains(disk) else {
            throw FrameError.badContent("The shadow sent hashes of disk \(disk), which does not exist")
        }
        // A connection that broke before the first piece: nothing has changed there, while here some chunks have other hashes already.
        guard disks.isLearning else { return }
        guard disks.exports[disk].learn(hashes, first: first, follower: follower.index) else {
            throw FrameError.badContent("The shadow sent hashes of chunks that disk \(disk) does not have")
        }
    }

    private func committed(_ epoch: UInt64) {
        guard let newest = backlog.commit(epoch) else { return }
        let now = MonotonicTime.now.nanoseconds
        follower[.lastCommitCaptured] = newest.capturedAt.nanoseconds
        follower[.lastCommitAt] = now
        follower[.committedEpoch] = epoch
        worker.committed(epoch, capturedAt: newest.capturedAt.nanoseconds, at: now)
    }
}

/// Room for the largest frame.
final class FrameBuffer {
    let base = UnsafeMutableRawPointer.allocate(byteCount: PageFrame.headerBytes + PageFrame.mostPayloadBytes, alignment: 4096)
    deinit { base.deallocate() }
}
