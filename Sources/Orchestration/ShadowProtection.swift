import ControlProtocol
import Foundation
import Glibc
import Libvirt
import MigrationStream
import Platform
import Replication
import ReplicaStore

/// A shadow on this host: a paused domain whose RAM a worker keeps up to date, until the primary says load and run, or discard.
///
///     receiving --load--> loaded --run--> running
///         |                  |
///         '-----discard------'--> gone         A loaded shadow stays paused until it is told; it never decides by itself.
public final class ShadowProtection: @unchecked Sendable {
    public let uuid: String
    public let name: String
    public let session: UUID
    public let primary: String
    let environment: HostEnvironment
    private let intervalMs: Double
    private let engine: String
    let domain: LocalDomain
    /// One change at a time: requests come from several connections.
    let lock = NSLock()
    let board: StatusBoard
    let worker = Guarded<WorkerProcess?>(nil)
    private let events = Guarded<[WorkerEvent]>([])
    let phaseBox = Guarded(ShadowPhase.receiving)
    private var files: (journal: Int32, state: Int32)?
    private var memory: GuestMemory?
    private var restarts = 0
    private var times = StepTimes()
    /// The epoch that was fed to QEMU; 0: none was.
    var loadedEpoch: UInt64 = 0
    private var processWatch: Descriptor?
    private let rate = RateMeter()
    /// Where the disks of the guest lie on this host; empty for a guest whose disks are left alone.
    private var layout = ReplicaLayout()
    var replicas: [ReplicaSet.Disk] = []
    /// It has disks on storage that both hosts share: its memory must not be set back.
    private(set) var hasSharedDisks = false
    /// The persistent definition, as its primary told it last.
    let carried = Guarded<CarriedDefinition?>(nil)
    /// The guest runs; its definition and its record are being written.
    let isSettling = Guarded(false)
    /// The firmware's variables that were put here for it, where none were before.
    var newNVRAM: String?
    /// The domain that waits, for a shadow of a later session.
    private let waiting = Guarded<WaitingDomain?>(nil)
    /// An earlier service left it: it has QEMU and its memory, and waits for its primary to begin a session with that.
    let isLeftOver: Bool
    /// What it is booted from when its memory is not to be used; nil: it is not to be booted.
    var coldXML: String?
    /// The guest's other shadows, as its primary told last.
    private let family = Guarded<ShadowFamily?>(nil)
    private let isFamilyTaken = Guarded(false)
    /// By the administrator's order it is about to become the guest: whatever its primary says, it is not removed.
    let isTakingOver = Guarded(false)
    var mayRestart: Bool { coldXML != nil }

    public init(_ request: PeerRequest, environment: HostEnvironment) throws {
        guard let uuid = request.uuid, let name = request.domain, let session = request.session, UUID(uuidString: uuid) != nil,
              !name.isEmpty, !name.contains("/") else {
            throw ControlFailure("The request to prepare a shadow lacks the domain or the session")
        }
        self.uuid = uuid.lowercased()
        self.name = name
        self.session = session
        self.environment = environment
        isLeftOver = false
        primary = request.host
        intervalMs = request.intervalMs ?? 0
        engine = request.engine ?? Engine.continuous.rawValue
        domain = LocalDomain(uuid: uuid.lowercased(), name: name, connect: environment.connect)
        board = StatusBoard(.syncing, label: "\(name) <- \(request.host)",
                            reporter: ProtectionReporter(domain: name, uuid: uuid.lowercased(), role: .shadow, peer: primary, environment: environment))
    }

    fileprivate init(record: ProtectionRecord, environment: HostEnvironment, isLeftOver: Bool = false) {
        self.isLeftOver = isLeftOver
        waiting.change { $0 = record.waiting }
        uuid = record.uuid
        name = record.domain
        session = record.session
        self.environment = environment
        primary = record.peer
        intervalMs = record.intervalMs
        engine = record.engine.rawValue
        domain = LocalDomain(uuid: record.uuid, name: record.domain, connect: environment.connect)
        board = StatusBoard(isLeftOver ? .degraded : .failedOver, label: "\(record.domain) <- \(record.peer)",
                            reporter: ProtectionReporter(domain: record.domain, uuid: record.uuid, role: .shadow, peer: record.peer, environment: environment))
        family.change { $0 = record.family }
        carried.change { $0 = record.carried }
    }

    deinit {
        if let files { [files.journal, files.state].forEach { close($0) } }
    }

    public var phase: ShadowPhase { phaseBox.read { $0 } }

    /// The phase after a look at the domain itself: a loaded shadow that somebody resumed with virsh is the guest from then on,
    /// whatever we intended.
    func verifiedPhase() throws -> ShadowPhase {
        try lock.withLock {
            guard phase == .loaded, try domain.handle().state().state == .running else { return phase }
            Log.error("\(name): its loaded shadow was resumed from outside")
            try environment.records.write(record(.running))
            markRunning()
            environment.taken.keep()
            return .running
        }
    }

    // MARK: Preparing

    /// Provides the replicas, creates the domain and its worker. On an error nothing is left behind but the replicas.
    /// - Parameter legacy: of an earlier session, which this one goes on with if it can.
    func prepare(_ request: PeerRequest, _ legacy: ShadowLegacy? = nil) throws -> PeerResponse {
        try lock.withLock {
            times = StepTimes()
            // What waits here already was looked at when it was made.
            if legacy == nil { try refuseIfRunning() }
            times.mark("look")
            var isBegun = legacy != nil
            do {
                newNVRAM = legacy?.newNVRAM
                let provisioned = try provision(request, replacesShadow: legacy != nil)
                times.mark("volumes")
                try keep(request.carried)
                family.change { $0 = request.family }
                try environment.records.write(record(.shadowing))
                isBegun = true
                let xml = try layout.rewrite(request.xml ?? "")
                if let legacy, legacy.waiting.fits(xml: xml, images: replicas.map(\.path)) {
                    try goOn(with: legacy)
                } else {
                    if legacy != nil { removeDomain() }
                    if let nvram = request.nvram, try NVRAM.provide(nvram, uuid: uuid, environment.connect()) { newNVRAM = nvram.path }
                    try create(xml)
                }
                try environment.records.write(record(.shadowing))
                Log.debug("\(name): its shadow was made: \(times.text)")
                return PeerResponse(phase: .receiving, replicas: layout.replicas, warnings: provisioned.warnings)
            } catch {
                if isBegun {
                    phaseBox.change { $0 = .failed }
                    stopWorker()
                    removeDomain()
                    environment.records.remove(uuid)
                }
                throw error
            }
        }
    }

    /// Ends this session, and hands out what another one of the same guest can use; nil: nothing, and it is as it was.
    func bequeath() throws -> ShadowLegacy? {
        try lock.withLock {
            guard !isTakingOver.read({ $0 }) else { throw ControlFailure("The shadow of \(name) is being started on \(environment.hostName)") }
            guard phase == .receiving || isLeftOver, let waiting = waiting.read({ $0 }), waiting.isThere(domain, socket: incomingSocket) else { return nil }
            phaseBox.change { $0 = .unknown }
            stopWorker()
            noteReplicasSettled()
            defer { (files, memory, newNVRAM) = (nil, nil, nil) }
            return ShadowLegacy(waiting, memory: memory, files: files, newNVRAM: newNVRAM)
        }
    }

    private func goOn(with legacy: ShadowLegacy) throws {
        let pid = legacy.waiting.processID
        processWatch = processDescriptor(pid)
        memory = try legacy.memory ?? GuestMemory(of: domain, pid: pid, isPreallocated: DomainDefinition(xml: legacy.waiting.xml).isMemoryPreallocated)
        files = try legacy.takeFiles() ?? ShadowWorker.makeFiles()
        waiting.change { $0 = legacy.waiting }
        Log.info("\(name): a shadow waits here already; \(primary) sends what it lacks")
        try startWorker()
    }

    var incomingSocket: String { "\(environment.configuration.runtimeDirectory)/\(uuid)/incoming.sock" }

    func stopWorker() {
        let old = worker.change { current in
            defer { current = nil }
            return current
        }
        old?.stop()
    }

    var provisioner: ReplicaProvisioner { ReplicaProvisioner(uuid: uuid, domain: name, environment: environment) }

    private func provision(_ request: PeerRequest, replacesShadow: Bool) throws -> ReplicaProvisioner.Provisioned {
        let disks = request.disks ?? []
        let provisioned = try provisioner.provision(disks, media: request.media ?? [],
                                                    .init(pool: request.pool, discardStale: request.discardStale ?? false, replacesShadow: replacesShadow))
        layout = provisioned.layout
        replicas = try disks.enumerated().map { index, disk in
            guard let path = layout.replicas[disk.target] else { throw ControlFailure("Disk \(disk.target) of \(name) got no replica on \(environment.hostName)") }
            return ReplicaSet.Disk(index: index, path: path, byteCount: disk.capacityBytes)
        }
        coldXML = request.onFailure == .restart ? try DomainDefinition(xml: request.xml ?? "").persistentXML(layout) : nil
        hasSharedDisks = request.hasSharedDisks ?? false
        return provisioned
    }

    /// After the last word of the worker about the replicas.
    private func noteReplicasSettled() {
        guard !replicas.isEmpty else { return }
        do { try provisioner.noteSettled() } catch { Log.error("\(name): \(error)") }
    }

    func record(_ phase: ProtectionRecord.Phase) -> ProtectionRecord {
        var record = ProtectionRecord(uuid: uuid, domain: name, role: .shadow, phase: phase, peer: primary, session: session, intervalMs: intervalMs,
                                      withoutDisks: true, savedParameters: [:], chosenEngine: Engine(rawValue: engine), carried: carried.read { $0 })
        record.family = family.read { $0 }
        if phase == .shadowing { record.waiting = waiting.read { $0 } }
        return record
    }

    // MARK: Siblings

    var siblings: [ShadowChoice] { family.read { $0?.others(than: environment.hostName) ?? [] } }

    /// What the guest's new primary protects it to, and how; told once. Kept in the record until that has come to pass.
    func takeFamily() -> ShadowFamily? {
        isFamilyTaken.change { isTaken in
            defer { isTaken = true }
            return isTaken ? nil : family.read { $0 }
        }
    }

    /// Notes who the others are, and keeps it.
    func note(_ fresh: ShadowFamily?) throws {
        guard let fresh else { return }
        try lock.withLock {
            family.change { $0 = fresh }
            if phase == .receiving { try environment.records.write(record(.shadowing)) }
        }
    }

    /// For another shadow of the guest.
    func siblingState() throws -> SiblingState {
        let phase = try verifiedPhase()
        let status = status
        return SiblingState(phase: phase, epoch: status.committedEpoch, generation: family.read { $0?.generation }, commitAgeMs: status.lastCommitAgeMs,
                            isTakingOver: isTakingOver.read { $0 }, runs: phase == .running)
    }

    /// With its disks as they are here, so that whoever takes it up needs nothing else.
    func keep(_ definition: CarriedDefinition?) throws {
        guard let definition else { return }
        let mine = CarriedDefinition(xml: try layout.rewrite(definition.xml), autostart: definition.autostart)
        carried.change { $0 = mine }
    }

    /// Its primary's persistent definition has changed.
    func carry(_ definition: CarriedDefinition?) throws {
        try lock.withLock {
            try keep(definition)
            if phase == .receiving { try environment.records.write(record(.shadowing)) }
        }
    }

    private func refuseIfRunning() throws {
        let connection = try environment.connect()
        for lookup in [{ try connection.lookup(uuid: self.uuid) }, { try connection.lookup(name: self.name) }] {
            do {
                let existing = try lookup()
                guard existing.uuid == uuid else {
                    throw ControlFailure("\(environment.hostName) has another domain called \(name), with UUID \(existing.uuid)", advice: "Rename one of them")
                }
                guard try !existing.hasManagedSave() else { throw leftOverSave("virsh managedsave-remove \(name)") }
                if try existing.isActive() {
                    throw ControlFailure("Domain \(name) is active on \(environment.hostName) already",
                                         advice: "A shadow needs it shut off there: check which copy is the right one, then `virsh destroy \(name)` the other")
                }
            } catch let error as LibvirtError where error.isNoDomain {
                continue
            }
        }
        // Libvirt looks for it by name when a domain is started, whether it was defined at that time or not.
        let saved = "/var/lib/libvirt/qemu/save/\(name).save"
        if access(saved, F_OK) == 0 { throw leftOverSave("rm \(saved)") }
    }

    private func leftOverSave(_ removal: String) -> ControlFailure {
        ControlFailure("\(environment.hostName) keeps a saved state of a domain \(name) from an earlier time, which its next start there would restore",
                       advice: "`\(removal)` there, if nobody needs it")
    }

    private func create(_ xml: String) throws {
        times.mark("record")
        let handle = try environment.connect().create(xml: xml, flags: [.paused])
        times.mark("QEMU")
        guard handle.uuid == uuid else { throw ControlFailure("The shadow got UUID \(handle.uuid) instead of \(uuid)") }
        let pid = try domain.processID()
        processWatch = processDescriptor(pid)
        let owner = try LocalDomain.owner(of: pid)
        let folder = try environment.socketDirectory(uuid, owner: owner)
        unlink("\(folder)/incoming.sock")
        try domain.monitor(MigrateIncoming(uri: "unix:\(folder)/incoming.sock"))
        memory = try GuestMemory(of: domain, pid: pid, isPreallocated: DomainDefinition(xml: xml).isMemoryPreallocated)
        files = try ShadowWorker.makeFiles()
        waiting.change { $0 = WaitingDomain(xml: xml, processID: pid, images: replicas.map(\.path)) }
        times.mark("memory")
        try startWorker()
        times.mark("worker")
    }

    private func startWorker() throws {
        guard let files, let memory else { throw ControlFailure("The shadow of \(name) has no memory files") }
        var options = ShadowWorkerOptions(session: session, domain: name, sharedBlocks: memory.files.map(\.block),
                                          peerTimeoutMs: Double(environment.configuration.peerTimeoutMs))
        options.waitingBlocks = memory.blocks
        options.knownHeader = waiting.read { $0?.header }
        options.disks = replicas
        options.diskFolder = provisioner.records.epochFolder(uuid)
        let process = try WorkerProcess(name: name, start: WorkerCommand(.startShadow, shadow: options),
                                        descriptors: [files.journal, files.state] + memory.files.map(\.fd)) { [weak self] event in
            self?.take(event)
        } onEnd: { [weak self] status in
            self?.workerEnded(status)
        }
        worker.change { $0 = process }
        // With disks it repeats what their journal has first.
        let event = awaitEvent([.ready, .failed, .activationFailed], milliseconds: replicas.isEmpty ? 10_000 : 30_000)
        guard event?.kind == .ready else {
            throw ControlFailure("The shadow worker did not start" + (event?.reason.map { ": \($0)" } ?? ""))
        }
    }

    // MARK: Worker

    private func take(_ event: WorkerEvent) {
        switch event.kind {
        case .linkLost:
            if phase == .receiving { board.set(.degraded, event.reason ?? "The connection to \(primary) broke", cause: .peerLost) }
        case .introduced:
            guard let header = event.header else { return }
            // Not here: whoever holds the lock may wait for the next event.
            DispatchQueue.global().async { [weak self] in self?.note(header) }
        case .sessionLost, .failed:
            board.set(.degraded, event.reason ?? "The shadow worker gave up")
            events.change { $0.append(event) }
        default:
            events.change { $0.append(event) }
        }
    }

    private func note(_ header: StreamHeader) {
        lock.withLock {
            guard phase == .receiving else { return }
            waiting.change { $0?.header = header }
            do { try environment.records.write(record(.shadowing)) } catch { Log.warning("\(name): \(error)") }
        }
    }

    func awaitEvent(_ kinds: Set<WorkerEvent.Kind>, milliseconds: Double) -> WorkerEvent? {
        events.wait(until: MonotonicTime.now.adding(milliseconds: milliseconds)) { events in
            guard let index = events.firstIndex(where: { kinds.contains($0.kind) }) else { return nil }
            return events.remove(at: index)
        }
    }

    /// A worker that died is replaced: everything it knew lies in the memory files.
    private func workerEnded(_ status: String) {
        guard worker.change({ current in
            let wasCurrent = current != nil
            current = nil
            return wasCurrent
        }), phase == .receiving else { return }
        Log.warning("Shadow of \(name): its worker ended (\(status)); starting another")
        // Whoever waits for the activation has the guest standing still, and whoever waits for its start need not. To all others it is nothing: the next
        // worker begins without it.
        events.change { $0.append(WorkerEvent(.activationFailed, reason: "its worker ended (\(status))")) }
        DispatchQueue.global().asyncAfter(deadline: .now() + .milliseconds(restarts > 5 ? 2000 : 20)) { [weak self] in
            guard let self else { return }
            lock.withLock {
                guard self.phase == .receiving, self.worker.read({ $0 == nil }) else { return }
                self.restarts += 1
                self.events.change { $0.removeAll() }
                do { try self.startWorker() } catch { self.board.set(.degraded, "\(error)") }
            }
        }
    }

    /// A data connection of this session, handshake done.
    public func connect(_ descriptor: consuming Descriptor) {
        let fd = descriptor.raw
        board.reporter?.linked()
        worker.read { $0 }?.order(WorkerCommand(.connection), descriptor: fd)
    }

    // MARK: Ending

    /// Whether this shadow's QEMU has ended; an event may be about a predecessor's.
    private var isDead: Bool {
        guard let watch = processWatch?.raw else { return false }
        let ready = (try? wait(watch, for: .readable, until: MonotonicTime.now.adding(milliseconds: 200))) ?? []
        return !ready.isEmpty
    }

    /// Somebody ended the waiting shadow's QEMU, or resumed it with virsh, after which it would not wait for its state. True: it was
    /// of no use any more and is gone; the primary makes a new one.
    func spoiled(byResume: Bool) -> Bool {
        lock.withLock {
            guard phase == .receiving || (phase == .loaded && !byResume), byResume || isDead else { return false }
            phaseBox.change { $0 = .failed }
            board.set(.degraded, byResume ? "Somebody resumed the waiting shadow; it is made anew" : "The shadow's QEMU ended; it is made anew")
            stopWorker()
            noteReplicasSettled()
            removeDomain()
            environment.records.remove(uuid)
            return true
        }
    }

    /// Removes a shadow that does not run.
    public func discard() throws {
        try lock.withLock {
            guard phase != .running else { throw ControlFailure("The shadow of \(name) runs on \(environment.hostName): it is the guest now") }
            guard !isTakingOver.read({ $0 }) else { throw ControlFailure("The shadow of \(name) is being started on \(environment.hostName)") }
            phaseBox.change { $0 = .unknown }
            stopWorker()
            removeDomain()
            noteReplicasSettled()
            environment.records.remove(uuid)
        }
    }

    func removeDomain() {
        Self.removeShadowDomain(domain, environment)
        if let newNVRAM { unlink(newNVRAM) }
        newNVRAM = nil
    }

    /// Destroys the domain if it is a shadow that never ran.
    static func removeShadowDomain(_ domain: LocalDomain, _ environment: HostEnvironment) {
        do {
            let handle = try domain.handle()
            if try handle.isActive() {
                let state = try handle.state().state
                // Libvirt believes a shadow running that somebody resumed, but QEMU knows better.
                guard try state == .paused || domain.monitor(QueryStatus()).status == "inmigrate" else {
                    return Log.error("\(domain.name): expected a paused shadow, found a \(state) domain; left alone")
                }
                try handle.destroy()
            }
        } catch let error as LibvirtError where error.isNoDomain {
            // Gone already.
        } catch {
            Log.warning("The shadow of \(domain.name) could not be removed: \(error)")
        }
        removeSocket(domain.uuid, environment)
    }

    static func removeSocket(_ uuid: String, _ environment: HostEnvironment) {
        let folder = "\(environment.configuration.runtimeDirectory)/\(uuid)"
        unlink("\(folder)/incoming.sock")
        rmdir(folder)
    }

    // MARK: Status

    public var status: DomainStatus {
        let now = board.current
        let statistics = worker.read { $0 }?.statistics
        var state = now.state
        var reason = now.reason
        if phase == .receiving, let statistics, statistics[.linkUp] == 1 {
            state = statistics[.committedEpoch] > 0 ? .protected : .syncing
            reason = ""
        }
        var status = DomainStatus(domain: name, uuid: uuid, role: .shadow, peer: primary, engine: engine, state: state, reason: reason,
                                  since: now.since, configuredIntervalMs: intervalMs)
        if let statistics {
            status.fill(from: statistics)
            rate.sample(statistics[.committedEpoch])
            status.epochsPerSecond = rate.perSecond
        } else {
            status.committedEpoch = loadedEpoch
            status.epoch = loadedEpoch
        }
        return status
    }
}

extension ShadowProtection {
    /// A guest that an earlier service had taken over: it runs here, or did until the service was away.
    convenience init(activated record: ProtectionRecord, environment: HostEnvironment) {
        self.init(record: record, environment: environment)
        if finishActivation(record) { markRunning() } else { keepActivating(record) }
    }

    /// A shadow that an earlier service left waiting, for its primary to begin a session with; nil: nothing waits that could be used.
    convenience init?(leftBy record: ProtectionRecord, environment: HostEnvironment) {
        guard let waiting = record.waiting else { return nil }
        self.init(record: record, environment: environment, isLeftOver: true)
        guard waiting.isThere(domain, socket: incomingSocket) else { return nil }
        phaseBox.change { $0 = .unknown }
        board.set(.degraded, "Left by an earlier service; \(primary) takes it up again")
    }
}
