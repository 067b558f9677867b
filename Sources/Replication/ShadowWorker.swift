import Foundation
import Glibc
import MigrationStream
import Platform

/// The shadow's side of one protection, in a process of its own: checks what arrives, keeps an epoch in the journal until it is
/// complete, applies it to the shadow's RAM, and feeds the rest to QEMU when the guest is to run here.
///
///                    Hello                       commit: apply, acknowledge
///     [unintroduced] ------> [first copy] ------------------------> [following] ---.
///                             epoch 0, applied at once    pages, device | ^________|
///                                                                       v
///                                               activate: [sealed], nothing is applied any more
public final class ShadowWorker: @unchecked Sendable {
    private struct Sealing {
        var sealed = false
        var receiving: Link?
    }

    public static let ramDescriptor: Int32 = 5
    public static let journalDescriptor: Int32 = 6
    public static let stateDescriptor: Int32 = 7

    private let options: ShadowWorkerOptions
    private let parent: WorkerChannel
    private let statistics: SharedStatistics
    private let memory: ShadowMemory
    private let sealing = Guarded(Sealing())

    /// Damage on this many connections in a row is not line noise.
    private static let mostDamagedConnections = 3
    private var damagedConnections = 0

    public convenience init(options: ShadowWorkerOptions, parent: WorkerChannel, statistics: SharedStatistics) throws {
        let memory = try ShadowMemory(ramFD: Self.ramDescriptor, ramBytes: Int(options.ramBytes), journalFD: Self.journalDescriptor,
                                      stateFD: Self.stateDescriptor)
        self.init(options: options, parent: parent, statistics: statistics, memory: memory)
    }

    /// Over memory files that have other numbers than a worker process's.
    init(options: ShadowWorkerOptions, parent: WorkerChannel, statistics: SharedStatistics, memory: ShadowMemory) {
        self.options = options
        self.parent = parent
        self.statistics = statistics
        self.memory = memory
    }

    /// The journal and the state file of a new session, for the parent to hold across workers.
    public static func makeFiles() throws -> (journal: Int32, state: Int32) { try ShadowMemory.makeFiles() }

    /// Obeys the parent until it says stop or is gone. Returns the process's exit status.
    public func run() -> Int32 {
        if let (epoch, end) = memory.completeEpoch { memory.apply(epoch, end: end) }
        noteCommit()
        tell(WorkerEvent(.ready, epoch: memory.committedEpoch))
        while true {
            let message: (WorkerCommand, Int32)?
            do { message = try parent.receive(WorkerCommand.self) } catch { message = nil }
            guard let (command, fd) = message else { return 0 }
            switch command.verb {
            case .connection where fd >= 0: serve(Descriptor(owning: fd))
            case .activate: activate(command.path ?? "")
            case .stop: return 0
            default: if fd >= 0 { close(fd) }
            }
        }
    }

    private func tell(_ event: WorkerEvent) { try? parent.send(event) }

    private func noteCommit() {
        statistics[.committedEpoch] = memory.committedEpoch
        statistics[.epoch] = memory.committedEpoch
        if memory.committedEpoch > 0 { statistics[.lastCommitAt] = MonotonicTime.now.nanoseconds }
    }

    // MARK: Receiving

    /// Starts to receive on a connection; an older one is dropped first.
    private func serve(_ descriptor: consuming Descriptor) {
        let link = Link(descriptor, hash: Link.openingHash, stallMilliseconds: options.peerTimeoutMs)
        endReceiving()
        let admitted = sealing.change { sealing in
            guard !sealing.sealed else { return false }
            sealing.receiving = link
            return true
        }
        guard admitted else { return link.shutDown() }
        startThread("receive") { [self] in
            let reason = receive(link)
            link.shutDown()
            statistics[.linkUp] = 0
            let wasCurrent = sealing.change { sealing in
                guard sealing.receiving === link else { return false }
                sealing.receiving = nil
                return true
            }
            if wasCurrent, !sealing.read({ $0.sealed }) { tell(WorkerEvent(.linkLost, reason: reason)) }
        }
    }

    /// Ends the current connection and waits until its thread touches nothing any more.
    private func endReceiving() {
        sealing.read { $0.receiving }?.shutDown()
        _ = sealing.wait(until: nil) { $0.receiving == nil ? true : nil }
    }

    /// Receives until the connection ends; returns why.
    private func receive(_ link: Link) -> String {
        do {
            try introduce(link)
            try frames(link)
        } catch let error as ChannelError {
            return error.description
        } catch {
            // Something arrived that must not be applied. The source hears why, and sends again what is not committed.
            damagedConnections += 1
            try? link.send(.failure, data: Data("\(error)".utf8))
            Log.warning("Shadow of \(options.domain): \(error)")
            if damagedConnections >= Self.mostDamagedConnections { tell(WorkerEvent(.sessionLost, reason: "\(error)")) }
            return "\(error)"
        }
    }

    private func introduce(_ link: Link) throws {
        let buffer = FrameBuffer()
        let frame = try link.receive(to: buffer.base, deadline: MonotonicTime.now.adding(milliseconds: options.peerTimeoutMs))
        guard frame.type == .hello else { throw FrameError.unexpected(frame.type, state: "waiting for the introduction") }
        let hello = try JSONDecoder().decode(Hello.self, from: Data(try link.blob(frame, buffer.base)))
        guard hello.hashSecret.count == PageHash.secretBytes else { throw FrameError.badContent("The hash secret has \(hello.hashSecret.count) bytes") }
        try memory.introduce(hello.header, sharedBlock: options.sharedBlock)
        try link.send(.welcome, data: JSONEncoder().encode(Welcome(committedEpoch: memory.committedEpoch)))
        link.adopt(PageHash(secret: Array(hello.hashSecret)))
        let hash = PageHash(secret: Array(hello.hashSecret))
        sessionHash = hash
        statistics[.syncBytesTotal] = hello.header.blocks.reduce(0) { $0 + $1.length }
        statistics[.linkUp] = 1
    }

    private var sessionHash = Link.openingHash

    private func frames(_ link: Link) throws -> Never {
        var end = ShadowMemory.journalStart
        var pages: UInt64 = 0
        var deviceBytes = 0
        // An acknowledgement is also our sign of life: an epoch that takes longer than the source's patience must not break the
        // connection, or it would never get across.
        let rhythm = options.peerTimeoutMs / 4
        var lastAcknowledged = MonotonicTime.now
        while true {
            let base = try memory.journalSlot(at: end)
            let frame = try link.receive(to: base, deadline: MonotonicTime.now.adding(milliseconds: options.peerTimeoutMs))
            let due = memory.committedEpoch + 1
            switch frame.type {
            case .pages where frame.epoch == 0 && memory.committedEpoch == 0:
                try verifyPages(frame, base, apply: true)
                statistics[.syncBytes] += UInt64(frame.count) * UInt64(PageLocation.pageBytes)
            case .pages where frame.epoch == due:
                try verifyPages(frame, base, apply: false)
                pages += UInt64(frame.count)
                end += PageFrame.headerBytes + Int(frame.length)
            case .device where frame.epoch == due:
                deviceBytes += try link.blob(frame, base).count
                guard deviceBytes <= ShadowMemory.deviceLimit else {
                    throw FrameError.badContent("Device state over \(ShadowMemory.deviceLimit) bytes")
                }
                end += PageFrame.headerBytes + Int(frame.length)
            case .commit where frame.epoch == due && frame.count == 1:
                let totals = FrameEntry.read(base, index: 0)
                guard totals.location == pages, totals.hashLow == UInt64(deviceBytes), deviceBytes > 0 else {
                    throw FrameError.badContent("Epoch \(due) should have \(totals.location) pages and \(totals.hashLow) bytes of device "
                        + "state, \(pages) and \(deviceBytes) arrived")
                }
                memory.complete(due, end: end)
                memory.apply(due, end: end)
                noteCommit()
                damagedConnections = 0
                lastAcknowledged = .now
                try acknowledge(link)
                end = ShadowMemory.journalStart
                pages = 0
                deviceBytes = 0
            case .heartbeat:
                lastAcknowledged = .now
                try acknowledge(link)
            default:
                throw FrameError.unexpected(frame.type, state: "epoch \(due) was due, not \(frame.epoch)")
            }
            statistics[.bytesSent] += UInt64(PageFrame.headerBytes) + UInt64(frame.length)
            if MonotonicTime.now.milliseconds(since: lastAcknowledged) >= rhythm {
                lastAcknowledged = .now
                try acknowledge(link)
            }
        }
    }

    private func acknowledge(_ link: Link) throws(ChannelError) {
        try link.send(.acknowledge, epoch: memory.committedEpoch,
                      numbers: FrameEntry(location: memory.committedEpoch, hashLow: 0, hashHigh: 0))
    }

    /// Checks every page of a frame against its hash, and applies it when it belongs to the first copy.
    private func verifyPages(_ frame: FrameHeader, _ base: UnsafeMutableRawPointer, apply: Bool) throws(FrameError) {
        let result: Result<Void, FrameError> = sessionHash.withHasher { hasher in
            Result { () throws(FrameError) in
                let blobs = base + PageFrame.headerBytes
                let length = Int(frame.length)
                var offset = Int(frame.count) * PageFrame.entryBytes
                for index in 0..<Int(frame.count) {
                    let entry = FrameEntry.read(base, index: index)
                    let location = PageLocation(word: entry.location)
                    guard let target = memory.page(location) else {
                        throw .outsideBlock(block: location.block, page: location.page, frame: frame.sequence)
                    }
                    if location.isFill {
                        if apply { memset(target, Int32(entry.hashLow & 0xff), PageLocation.pageBytes) }
                        continue
                    }
                    guard offset + PageLocation.pageBytes <= length else {
                        throw .badLength(count: Int(frame.count), length: length, frame: frame.sequence)
                    }
                    let (low, high) = hasher.hash128(blobs + offset, PageLocation.pageBytes)
                    guard low == entry.hashLow, high == entry.hashHigh else {
                        throw .damaged("page \(location.page) of block \(location.block)", frame: frame.sequence)
                    }
                    if apply { memcpy(target, blobs + offset, PageLocation.pageBytes) }
                    offset += PageLocation.pageBytes
                }
                guard offset == length else { throw .badLength(count: Int(frame.count), length: length, frame: frame.sequence) }
            }
        }
        try result.get()
    }

    // MARK: Activation

    private func activate(_ path: String) {
        sealing.change { $0.sealed = true }
        endReceiving()
        do {
            try memory.withActivationStream { stream in
                let socket = try UnixSocket.connect(path)
                try stream.write(to: socket.raw, deadline: MonotonicTime.now.adding(milliseconds: 10_000))
            }
            tell(WorkerEvent(.activated, epoch: memory.committedEpoch))
        } catch {
            tell(WorkerEvent(.activationFailed, reason: "\(error)"))
        }
    }
}
