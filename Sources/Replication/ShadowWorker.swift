import Foundation
import Glibc
import MigrationStream
import Platform
import ReplicaStore

/// The shadow's side of one protection, in a process of its own: checks what arrives, keeps an epoch in the journal until it is
/// complete, applies it to the shadow's RAM, and feeds the rest to QEMU when the guest is to run here.
///
///                    Hello                       commit: apply, acknowledge
///     [unintroduced] ------> [first copy] ------------------------> [following] ---.
///                     hashes  epoch 0, applied at once    pages, device | ^________|
///                                                                       v
///                                               activate: [sealed], nothing is applied any more
public final class ShadowWorker: @unchecked Sendable {
    private struct Sealing {
        var sealed = false
        var receiving: Link?
        /// The receiving thread is to end soon.
        var isEnding = false
    }

    public static let journalDescriptor: Int32 = 5
    public static let stateDescriptor: Int32 = 6
    /// The first of the shared blocks, in the order of the options.
    public static let firstBlockDescriptor: Int32 = 7

    private let options: ShadowWorkerOptions
    private let parent: WorkerChannel
    private let statistics: SharedStatistics
    private let memory: ShadowMemory
    /// The replicas of the guest's disks; nil when it has none in its epochs.
    private var replicas: ReplicaSet?
    private let sealing = Guarded(Sealing())
    /// A compressed page, for its hash; the receiving thread's.
    private let restored = UnsafeMutableRawPointer.allocate(byteCount: PageLocation.pageBytes, alignment: 64)
    private let patch = UnsafeMutableRawPointer.allocate(byteCount: PagePatch.mostBytes, alignment: 64)

    /// Damage on this many connections in a row is not line noise.
    private static let mostDamagedConnections = 3
    private var damagedConnections = 0

    public convenience init(options: ShadowWorkerOptions, parent: WorkerChannel, statistics: SharedStatistics) throws {
        let files = options.sharedBlocks.enumerated().map { ShadowMemory.SharedFile($0.element, fd: Self.firstBlockDescriptor + Int32($0.offset)) }
        let memory = try ShadowMemory(files, journalFD: Self.journalDescriptor, stateFD: Self.stateDescriptor, header: options.knownHeader)
        try self.init(options: options, parent: parent, statistics: statistics, memory: memory)
    }

    /// Over memory files that have other numbers than a worker process's.
    init(options: ShadowWorkerOptions, parent: WorkerChannel, statistics: SharedStatistics, memory: ShadowMemory) throws {
        self.options = options
        self.parent = parent
        self.statistics = statistics
        self.memory = memory
        memory.begin(options.session)
        guard !options.disks.isEmpty else { return }
        guard options.disks.count <= DiskEntry.mostDisks, options.disks.map(\.index) == Array(0..<options.disks.count) else {
            throw WorkerFailure("The replicas are numbered \(options.disks.map(\.index)), not from 0 on, or are more than \(DiskEntry.mostDisks)")
        }
        // What the memory holds is what counts: an epoch that reached only the disks' journal comes again.
        let committed = memory.completeEpoch?.epoch ?? memory.committedEpoch
        replicas = try ReplicaSet(folder: options.diskFolder, session: options.session, disks: options.disks,
                                  journalLimitBytes: options.journalLimitBytes, committed: committed)
    }

    deinit {
        restored.deallocate()
        patch.deallocate()
    }

    /// The journal and the state file of a new session, for the parent to hold across workers.
    public static func makeFiles() throws -> (journal: Int32, state: Int32) { try ShadowMemory.makeFiles() }

    /// Obeys the parent until it says stop or is gone. Returns the process's exit status.
    public func run() -> Int32 {
        // Whoever still receives may be between a commit of the memory and that of the replicas.
        defer {
            endReceiving()
            closeReplicas()
        }
        if let (epoch, end) = memory.completeEpoch { memory.apply(epoch, end: end) }
        do {
            try checkReplicas()
        } catch {
            tell(WorkerEvent(.failed, reason: "\(error)"))
            return 1
        }
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

    /// A predecessor's memory and its replicas must be of one epoch.
    private func checkReplicas() throws {
        guard let replicas, memory.committedEpoch > 0 else { return }
        guard replicas.state == .consistent(epoch: memory.committedEpoch) else {
            throw WorkerFailure("The replicas are \(replicas.state), the memory is at epoch \(memory.committedEpoch)")
        }
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

    /// Ends the current connection and waits until its thread touches nothing any more. There is no limit but storage's own: memory and
    /// replicas are not to be touched beside a thread that is between the two.
    private func endReceiving() {
        let link = sealing.change { sealing in
            sealing.isEnding = true
            return sealing.receiving
        }
        link?.shutDown()
        _ = sealing.wait(until: nil) { $0.receiving == nil ? true : nil }
        sealing.change { $0.isEnding = false }
    }

    /// Receives until the connection ends; returns why.
    private func receive(_ link: Link) -> String {
        let acknowledger = Acknowledger(link, everyMs: options.peerTimeoutMs / 4)
        defer {
            acknowledger.end()
            replicas?.discardStaged()
        }
        do {
            try introduce(link)
            if memory.committedEpoch == 0 {
                try tellMemory(link, acknowledger)
                try sendHashes(link, acknowledger)
            }
            try frames(link, acknowledger)
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
        guard hello.disks == options.disks.map(\.byteCount) else {
            throw WorkerFailure("The primary's disks have \(hello.disks) bytes, the replicas \(options.disks.map(\.byteCount))")
        }
        if let header = hello.header { try take(header) }
        try link.send(.welcome, data: JSONEncoder().encode(Welcome(committedEpoch: memory.committedEpoch)))
        link.adopt(PageHash(secret: Array(hello.hashSecret)))
        let hash = PageHash(secret: Array(hello.hashSecret))
        sessionHash = hash
        statistics[.linkUp] = 1
    }

    private func take(_ header: StreamHeader) throws {
        let isNews = memory.header != header
        try memory.introduce(header, waiting: options.waitingBlocks)
        if isNews { tell(header) }
        statistics[.syncBytesTotal] = header.blocks.reduce(0) { $0 + $1.length }
    }

    /// To the parent, for a worker of a later service, which has QEMU's memory but not this one's files.
    private func tell(_ header: StreamHeader) {
        var event = WorkerEvent(.introduced)
        event.header = header
        // A layout that makes too long a message is not kept: all of the memory is copied then.
        tell(event)
    }

    /// Pages to a frame of hashes.
    private static let mostHashes = PageFrame.mostBlobBytes / 16

    /// Tells the source what the memory holds from an earlier session, so that only the rest crosses the wire.
    private func tellMemory(_ link: Link, _ acknowledger: Acknowledger) throws {
        if let header = memory.header { try link.send(.memory, data: JSONEncoder().encode(header)) }
        let buffer = UnsafeMutablePointer<UInt64>.allocate(capacity: Self.mostHashes * 2)
        defer { buffer.deallocate() }
        var cursor = ShadowMemory.Cursor()
        while true {
            // 256 MiB at most at a time, a small part of a second.
            let found = acknowledger.whileBusy(0) {
                sessionHash.withHasher { memory.hashes(from: &cursor, $0, to: buffer, most: Self.mostHashes) }
            }
            if sealing.read({ $0.isEnding }) { throw ChannelError.interrupted }
            guard let (first, count) = found else { break }
            if count > 0 { try link.send(.pageHashes, epoch: first.word, blob: UnsafeRawBufferPointer(start: buffer, count: count * 16)) }
        }
        try link.send(.pageHashes, blob: UnsafeRawBufferPointer(start: buffer, count: 0))
    }

    private var sessionHash = Link.openingHash

    private func frames(_ link: Link, _ acknowledger: Acknowledger) throws -> Never {
        var end = ShadowMemory.journalStart
        var pages: UInt64 = 0
        var deviceBytes = 0
        var extents: UInt64 = 0
        // An acknowledgement is also our sign of life: an epoch that takes longer than the source's patience must not break the
        // connection, or it would never get across.
        let rhythm = options.peerTimeoutMs / 4
        var lastAcknowledged = MonotonicTime.now
        // The epoch that is under way: the first one after the last commit tells its number.
        var due: UInt64?
        while true {
            let base = try memory.journalSlot(at: end)
            let frame = try link.receive(to: base, deadline: MonotonicTime.now.adding(milliseconds: options.peerTimeoutMs))
            // What a pass brought that was not whole belongs to the epoch that a later one becomes; the commit counts all of it.
            if frame.epoch > due ?? memory.committedEpoch { due = frame.epoch }
            switch frame.type {
            case .pages where frame.epoch == 0 && memory.committedEpoch == 0:
                try verifyPages(frame, base, apply: true)
                statistics[.syncBytes] += UInt64(frame.count) * UInt64(PageLocation.pageBytes)
            case .pages where frame.epoch == due:
                try verifyPages(frame, base, apply: false)
                pages += UInt64(frame.count)
                end += PageFrame.headerBytes + Int(frame.length)
            case .streamHeader where memory.committedEpoch == 0:
                let header = try JSONDecoder().decode(StreamHeader.self, from: Data(try link.blob(frame, base)))
                // Memory that was set aside is looked through for what is not zero.
                try acknowledger.whileBusy(0) { try take(header) }
                replicas?.startWriteback()
            case .disk where frame.epoch == 0 && memory.committedEpoch == 0:
                // A replica that can only be zeroed by writing takes its time.
                try acknowledger.whileBusy(0) { try copyDisks(frame, base) }
            case .disk where frame.epoch == due:
                extents += try stageDisks(frame, base)
                end += PageFrame.headerBytes + Int(frame.length)
            case .device where frame.epoch == due:
                deviceBytes += try link.blob(frame, base).count
                guard deviceBytes <= ShadowMemory.deviceLimit else {
                    throw FrameError.badContent("Device state over \(ShadowMemory.deviceLimit) bytes")
                }
                end += PageFrame.headerBytes + Int(frame.length)
            case .commit where frame.epoch == due && frame.count == 2:
                let (totals, before) = (FrameEntry.read(base, index: 0), FrameEntry.read(base, index: 1).location)
                guard before == memory.committedEpoch else {
                    throw FrameError.badContent("Epoch \(frame.epoch) is to follow epoch \(before), but \(memory.committedEpoch) is the last one here")
                }
                guard totals.location == pages, totals.hashLow == UInt64(deviceBytes), totals.hashHigh == extents, deviceBytes > 0 else {
                    throw FrameError.badContent("Epoch \(frame.epoch) should have \(totals.location) pages, \(totals.hashLow) bytes of device "
                        + "state and \(totals.hashHigh) disk writes, \(pages), \(deviceBytes) and \(extents) arrived")
                }
                try commit(frame.epoch, end: end, acknowledger)
                noteCommit()
                damagedConnections = 0
                lastAcknowledged = .now
                try acknowledge(link)
                end = ShadowMemory.journalStart
                pages = 0
                deviceBytes = 0
                extents = 0
                due = nil
            case .heartbeat:
                lastAcknowledged = .now
                try acknowledge(link)
            default:
                throw FrameError.unexpected(frame.type, state: "epoch \(due ?? memory.committedEpoch + 1) was due, not \(frame.epoch)")
            }
            statistics[.bytesSent] += UInt64(PageFrame.headerBytes) + UInt64(frame.length)
            if MonotonicTime.now.milliseconds(since: lastAcknowledged) >= rhythm {
                lastAcknowledged = .now
                try acknowledge(link)
            }
        }
    }

    /// Makes an epoch the shadow's: its disk writes in their journal and on stable storage, then the memory, then the replicas. Whatever
    /// ends us in between, our successor finds memory and disks of the same epoch.
    private func commit(_ epoch: UInt64, end: Int, _ acknowledger: Acknowledger) throws {
        guard let replicas else {
            memory.complete(epoch, end: end)
            return memory.apply(epoch, end: end)
        }
        try acknowledger.whileBusy(memory.committedEpoch) {
            // The first copy is on stable storage before the first epoch is put on top of it.
            if replicas.state == .syncing { try replicas.endSync(epoch: 0) }
            try replicas.prepare(epoch: epoch)
        }
        memory.complete(epoch, end: end)
        memory.apply(epoch, end: end)
        try acknowledger.whileBusy(memory.committedEpoch) { try replicas.apply(epoch: epoch) }
    }

    // MARK: Disks

    /// Tells the source what the replicas hold, so that only the rest crosses the wire. Looks through those whose hashes are not known.
    private func sendHashes(_ link: Link, _ acknowledger: Acknowledger) throws {
        guard let replicas else { return }
        try replicas.beginSync()
        statistics[.diskHashTotal] = options.disks.reduce(0) { $0 + $1.byteCount }
        var seeds: [ReplicaSeed] = []
        var looked: UInt64 = 0
        for disk in options.disks {
            guard let table = replicas.chunkTable(disk: disk.index) else { throw WorkerFailure("Disk \(disk.index) has no replica") }
            let before = looked
            try acknowledger.whileBusy(0) {
                let isDone = try table.rebuild(progress: { bytes in
                    statistics[.diskHashedBytes] = before + bytes
                    return !sealing.read { $0.isEnding }
                }, bytesPerSecond: nil)
                if !isDone { throw ChannelError.interrupted }
            }
            // Where a hash means nothing stands an old one, and the source would leave out what seems equal.
            guard table.staleChunks == 0 else { throw WorkerFailure("The replica of disk \(disk.index) changed while it was looked through") }
            looked += disk.byteCount
            seeds.append(ReplicaSeed(disk: disk.index, seed: Data(table.seed)))
        }
        statistics[.diskHashedBytes] = looked
        try link.send(.replicas, data: JSONEncoder().encode(seeds))
        for disk in options.disks {
            try replicas.chunkTable(disk: disk.index)?.withHashes { hashes, _ in
                var offset = 0
                while offset < hashes.count {
                    let piece = UnsafeRawBufferPointer(rebasing: hashes[offset..<min(hashes.count, offset + PageFrame.mostBlobBytes)])
                    try link.send(.chunkHashes, epoch: UInt64(disk.index) << 48 | UInt64(offset / 16), blob: piece)
                    offset += piece.count
                }
            }
        }
        try link.send(.replicas, data: JSONEncoder().encode([ReplicaSeed]()))
    }

    /// Bytes of the first copy after which their way to stable storage begins: the first epoch waits for all of it.
    private static let writebackBytes: UInt64 = 256 << 20

    /// Applies a piece of the first copy.
    private func copyDisks(_ frame: FrameHeader, _ base: UnsafeMutableRawPointer) throws {
        let before = statistics[.diskBytesSent]
        try verifyDisks(frame, base)
        guard let replicas else { return }
        try forEachDiskWrite(frame, base) { extent, bytes in try replicas.writeNow(extent, bytes) }
        if before / Self.writebackBytes != statistics[.diskBytesSent] / Self.writebackBytes { replicas.startWriteback() }
    }

    /// Takes an epoch's writes, which stay in the journal's memory until its commit. Returns how many there are.
    private func stageDisks(_ frame: FrameHeader, _ base: UnsafeMutableRawPointer) throws -> UInt64 {
        try verifyDisks(frame, base)
        guard let replicas else { return 0 }
        try forEachDiskWrite(frame, base) { extent, bytes in replicas.stage(extent, bytes) }
        return UInt64(frame.count) / UInt64(DiskEntry.entries)
    }

    /// Calls `body` for each write of a frame that `verifyDisks` found sound.
    private func forEachDiskWrite(_ frame: FrameHeader, _ base: UnsafeMutableRawPointer,
                                  _ body: (DiskExtent, UnsafeRawPointer?) throws -> Void) throws {
        var offset = PageFrame.headerBytes + Int(frame.count) * PageFrame.entryBytes
        for index in stride(from: 0, to: Int(frame.count), by: DiskEntry.entries) {
            let (entry, count) = try DiskEntry.read(base, index: index, frame: frame.sequence)
            try body(entry.extent, count > 0 ? UnsafeRawPointer(base + offset) : nil)
            offset += count
            statistics[.diskWrites] += 1
            statistics[.diskBytesWritten] += UInt64(entry.extent.length)
            statistics[.diskBytesSent] += UInt64(count)
        }
    }

    /// Checks all of a frame's disk writes before any of them has an effect.
    private func verifyDisks(_ frame: FrameHeader, _ base: UnsafeMutableRawPointer) throws {
        guard replicas != nil, frame.count % UInt32(DiskEntry.entries) == 0 else {
            throw FrameError.unexpected(frame.type, state: "no disk is part of this session's epochs, or half an entry came")
        }
        let badLength = FrameError.badLength(count: Int(frame.count), length: Int(frame.length), frame: frame.sequence)
        var offset = PageFrame.headerBytes + Int(frame.count) * PageFrame.entryBytes
        let end = PageFrame.headerBytes + Int(frame.length)
        for index in stride(from: 0, to: Int(frame.count), by: DiskEntry.entries) {
            let (entry, count) = try DiskEntry.read(base, index: index, frame: frame.sequence)
            let extent = entry.extent
            guard options.disks.indices.contains(extent.disk), extent.offset <= options.disks[extent.disk].byteCount,
                  UInt64(extent.length) <= options.disks[extent.disk].byteCount - extent.offset else {
                throw FrameError.outsideDisk(disk: extent.disk, offset: extent.offset, length: extent.length, frame: frame.sequence)
            }
            guard count <= end - offset else { throw badLength }
            if count > 0 {
                let (low, high) = sessionHash.withHasher { $0.hash128(base + offset, count) }
                guard low == entry.hashLow, high == entry.hashHigh else {
                    throw FrameError.damaged("a write of \(count) bytes at \(extent.offset) of disk \(extent.disk)", frame: frame.sequence)
                }
            }
            offset += count
        }
        guard offset == end else { throw badLength }
    }

    /// Orderly: everything on stable storage, hashes kept for the next time.
    private func closeReplicas() {
        do { try replicas?.close(clean: true) } catch { Log.warning("Shadow of \(options.domain): \(error)") }
        replicas = nil
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
                    var page = UnsafeRawPointer(blobs + offset)
                    if location.isPatch {
                        guard let taken = PageCodec.restore(patch: page, available: length - offset, to: patch) else {
                            throw .damaged("the patch of page \(location.page) of block \(location.block)", frame: frame.sequence)
                        }
                        memcpy(restored, target, PageLocation.pageBytes)
                        PagePatch.apply(patch, to: restored)
                        page = UnsafeRawPointer(restored)
                        offset += taken
                    } else if location.isCompressed {
                        guard let taken = PageCodec.restore(page, available: length - offset, to: restored) else {
                            throw .damaged("page \(location.page) of block \(location.block), compressed", frame: frame.sequence)
                        }
                        page = UnsafeRawPointer(restored)
                        offset += taken
                    } else {
                        guard offset + PageLocation.pageBytes <= length else {
                            throw .badLength(count: Int(frame.count), length: length, frame: frame.sequence)
                        }
                        offset += PageLocation.pageBytes
                    }
                    let (low, high) = hasher.hash128(page, PageLocation.pageBytes)
                    guard low == entry.hashLow, high == entry.hashHigh else {
                        throw .damaged("page \(location.page) of block \(location.block)", frame: frame.sequence)
                    }
                    if apply { memcpy(target, page, PageLocation.pageBytes) }
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
            guard memory.committedEpoch > 0 else { throw WorkerFailure("No epoch has been committed yet") }
            try checkReplicas()
            // QEMU takes its own locks on the images when it has loaded its state.
            try replicas?.close(clean: true, activating: true)
            replicas = nil
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
