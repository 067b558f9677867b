import Configuration
import ControlProtocol
import Foundation
import Glibc
import Libvirt
import Platform
import Replication
import Transport

/// One protected domain on its primary's host: a thread that reacts to events, one at a time.
///
///                    +---------------- retry after 0.1 .. 10 s -----------------+
///                    v                                                          |
///     protect -> [begin: prepare the peers, guard, worker, COLO] -> [follow] --> [end: thaw, clean up]
///                                                                     |
///                         swap / QEMU died:  hold -> load -> commit -> run -> handed over      (Handover.swift)
///
/// Whatever fails before the commit of a hand-over leaves the guest running here. One or several shadows are fed from the one capture
/// (Shadows/); messages go to the one that is aimed at.
public final class PrimaryProtection: @unchecked Sendable {
    /// How one attempt ended.
    enum Outcome {
        case retry(String)
        /// The guest ended here (shutdown, destroy, …) or the protection was taken back.
        case ended(String)
        case handedOver
        /// The service ends; the record stays, so that its successor protects anew.
        case serviceStops(Reply<Void>)
    }

    public let domain: LocalDomain
    let environment: HostEnvironment
    let slotBox: Guarded<[ShadowSlot]>
    let target: Guarded<ShadowSlot>
    var peer: Peer { target.read { $0.peer } }
    var client: PeerClient { target.read { $0.client } }
    /// Of the present capture: see `ShadowFamily`.
    var captureID = UUID()
    /// The first attempt counts as failed when one of the shadows cannot be prepared.
    var demandsAll = false
    /// The host that may become the guest's; see `claim`.
    let claimant = Guarded<String?>(nil)
    /// An earlier service began it.
    let isResumed: Bool
    let board: StatusBoard
    var record: ProtectionRecord { didSet { isProtecting.change { $0 = record.phase == .protecting } } }
    /// For the watch on its own thread.
    private let isProtecting = Guarded(true)
    private let mailbox = Guarded<[PrimaryEvent]>([])
    private let onEnd: @Sendable (PrimaryProtection) -> Void


    // The current attempt; touched by the protection's thread only, but for `worker`, which `status` reads.
    private let currentWorker = Guarded<WorkerProcess?>(nil)
    /// Nil for a guest without disks in its epochs.
    let currentDisks = Guarded<DiskSession?>(nil)
    private(set) var streamPath = ""
    private var generation = 0
    var processWatch: Descriptor?
    var watchedProcess: pid_t = 0
    private var suspension: Suspension?
    private var suspendWatch: SuspendWatch?
    /// Saves of libvirt's status file that say nothing new: they belong to a suspension that is over.
    private var savesSettled = 0
    private var settledAt = MonotonicTime(nanoseconds: 0)
    /// Saves come through inotify on a thread of its own; those of a suspension that is over, our own repetition included, may
    /// still be on their way for this long. A suspend by the user in that time, if it meets an epoch, is missed: better than a
    /// guest that stands still although its user resumed it.
    private static let settleMilliseconds = 300.0
    /// A suspend is repeated at once or not at all.
    private static let repeatMilliseconds = 250.0
    /// A worker without a beat for so long, eight of them, was stopped, or the host is past help. The guest may stand still meanwhile.
    private static let longestBreathMilliseconds = 2000.0
    /// An epoch that is under way is over in a few milliseconds, the first one in some hundred.
    private static let endOfStreamMilliseconds = 2000.0
    private var lastLook = MonotonicTime(nanoseconds: 0)
    private let libvirtIsAway = Guarded(false)
    /// Its user suspended the guest, and an earlier attempt's COLO is still on: nothing can be done before it runs again.
    private var waitsForResume = false
    private var lastProof: (proven: UInt64, committed: UInt64, at: MonotonicTime) = (0, 0, .now)
    private var wasProtected = false
    private(set) var wasEverProtected = false
    let firstFailure = Guarded<String?>(nil)
    var stopDetail: StoppedDetail?
    var pendingUnprotect: Reply<Void>?
    /// What the administrator who ends it wants, and is told.
    let ending = Guarded<(deletesReplica: Bool, remarks: [String])>((false, []))
    /// What an administrator who protects the guest should know.
    let remarks = Guarded<[String]>([])
    private let rate = RateMeter()
    /// Of the engine `periodic`.
    var passes = Passes()
    /// What a swap is at, for whoever waits for it.
    let swapStep = Guarded<String?>(nil)
    /// Another interval than the configured one.
    let steering = Guarded<IntervalOrder?>(nil)
    private let carrier = DefinitionCarrier()

    /// A stop of the guest that was not ours.
    struct Suspension {
        /// Realtime nanoseconds.
        var at: UInt64
        /// That a user asked for it, by libvirt's own record; without it a stop is never repeated.
        var evidence: SuspendWatch.Evidence?
        var resumes = 0
        let notedAt = MonotonicTime.now
        /// The worker withholds epochs, and the guest stands still.
        var isConfirmed = false
        /// Known from libvirt's status file alone: the stop fell inside an epoch, whose end has undone it or will.
        var isInsideEpoch = false
    }

    /// - Parameter slots: the shadows, at least one. `demandsAll`: the first attempt fails unless all of them can be prepared.
    init(domain: LocalDomain, environment: HostEnvironment, slots: [ShadowSlot], request: ProtectRequest, engine: EngineDecision, demandsAll: Bool,
         onEnd: @escaping @Sendable (PrimaryProtection) -> Void) {
        self.domain = domain
        self.environment = environment
        self.demandsAll = demandsAll
        isResumed = false
        self.onEnd = onEnd
        slotBox = Guarded(slots)
        target = Guarded(slots[0])
        board = StatusBoard(.syncing, label: "\(domain.name) -> \(slots.map(\.peer.name).joined(separator: ", "))",
                            reporter: ProtectionReporter(domain: domain.name, uuid: domain.uuid, role: .primary, peer: slots[0].peer.name, environment: environment))
        record = ProtectionRecord(uuid: domain.uuid, domain: domain.name, role: .primary, phase: .protecting, peer: slots[0].peer.name,
                                  session: slots[0].session, intervalMs: request.intervalMs ?? engine.defaultIntervalMs(environment.configuration),
                                  withoutDisks: request.withoutDisks, savedParameters: [:])
        record.apply(request)
        record.shadows = slots.map(\.entry)
        record.chosenEngine = engine.engine
        record.engineReason = engine.reason
        if request.isGhost { ending.change { $0.deletesReplica = true } }
    }

    /// Takes up a protection that an earlier service left behind.
    /// `peer`: the one that the record names; its other shadows' hosts are looked up in the configuration.
    init(resuming record: ProtectionRecord, environment: HostEnvironment, peer: Peer, onEnd: @escaping @Sendable (PrimaryProtection) -> Void) {
        domain = LocalDomain(uuid: record.uuid, name: record.domain, connect: environment.connect)
        self.environment = environment
        self.onEnd = onEnd
        let entries = record.entries
        // It stands among the others, whatever became of these in the configuration; spelled as there.
        let place = entries.firstIndex { HostName.isSame($0.peer, peer.name) }
        let aimed = ShadowSlot(place.map { entries[$0] } ?? ShadowEntry(peer: peer.name, session: record.session, multiple: 1), peer: peer, environment: environment)
        let slots = entries.indices.compactMap { index in
            index == place ? aimed : environment.configuration.peer(named: entries[index].peer).map { ShadowSlot(entries[index], peer: $0, environment: environment) }
        }
        slotBox = Guarded(place == nil ? slots + [aimed] : slots)
        target = Guarded(aimed)
        board = StatusBoard(record.phase == .handedOver ? .failedOver : .syncing, label: "\(record.domain) -> \(record.entries.map(\.peer).joined(separator: ", "))",
                            reporter: ProtectionReporter(domain: record.domain, uuid: record.uuid, role: .primary, peer: peer.name, environment: environment))
        self.record = record
        (self.record.peer, self.record.session) = (peer.name, aimed.session)
        isResumed = true
        // What an earlier service ordered, no other host may have.
        if record.phase != .protecting { claimant.change { $0 = record.peer } }
        if record.isGhost == true { ending.change { $0.deletesReplica = true } }
    }

    /// The session of the shadow here that became the guest; before the start.
    func note(cameBy session: UUID?) { record.cameBy = session }

    /// Starts the protection's thread.
    public func start() {
        isProtecting.change { $0 = record.phase == .protecting }
        startThread("qemu-watch") { [weak self] in self?.watchForDeadlock() }
        startThread("primary") { [self] in
            run()
            isOver.change { $0 = $0 ?? "" }
            onEnd(self)
        }
    }

    // MARK: Events

    /// QEMU's RESUME events, in their order, on the event loop's thread: the worker waits for them.
    func noteResume(at moment: UInt64) {
        worker?.statistics.noteResume(at: moment)
        post(.resumed(moment))
    }

    /// Libvirt's and QEMU's words about block jobs, on the event loop's thread. A mirror that ends leaves epochs without disk writes: as
    /// with a foreign resume, what is captured from here on is never committed.
    func noteBlockJob(_ event: BlockJobEvent) {
        currentDisks.read { $0 }?.note(event)
        post(.blockJob(event))
    }

    func noteJobEnd() {
        guard currentDisks.read({ $0?.stage }) == .following else { return }
        worker?.statistics[.torn] = SharedStatistics.mirrorEnded
    }

    /// Without libvirt no events come, and nobody can order QEMU about either.
    func noteLibvirt(isThere: Bool) {
        libvirtIsAway.change { $0 = !isThere }
        worker?.statistics[.eventsAway] = isThere ? 0 : 1
        if isThere { post(.libvirtReconnected) }
    }

    func post(_ event: PrimaryEvent) { mailbox.change { $0.append(event) } }

    /// The next event, whatever it is.
    func next(until deadline: MonotonicTime?) -> PrimaryEvent? {
        mailbox.wait(until: deadline) { events in
            events.removeAll(where: \.isAbandoned)
            return events.isEmpty ? nil : events.removeFirst()
        }
    }

    /// The first event for which `body` has an answer; the others keep their place.
    func select<R>(until deadline: MonotonicTime?, _ body: (PrimaryEvent) -> R?) -> R? {
        mailbox.wait(until: deadline) { events in
            events.removeAll(where: \.isAbandoned)
            for (index, event) in events.enumerated() {
                if let result = body(event) {
                    events.remove(at: index)
                    return result
                }
            }
            return nil
        }
    }

    var worker: WorkerProcess? { currentWorker.read { $0 } }
    var replicaNotes: ReplicaProvisioner { ReplicaProvisioner(uuid: domain.uuid, domain: domain.name, environment: environment) }
    var currentGeneration: Int { generation }
    var isSuspended: Bool { suspension != nil || passes.isSuspended }
    var libvirtAway: Bool { libvirtIsAway.read { $0 } }
    /// Where the engine `periodic` says that it reads a pass.
    private var passLock: String { PassLock.path(of: "\(environment.configuration.runtimeDirectory)/\(domain.uuid)/colo.sock") }

    // MARK: Life

    private func run() {
        var failures = 0
        do { try environment.records.write(record) } catch { Log.error("\(domain.name): \(error)") }
        if record.phase == .removing { finishHandover() }
        // Also when nobody can tell whether the copy here is gone: the guest is over there.
        if record.phase == .handedOver || record.phase == .removing { return waitForRemoval() }
        var outcome = attempt()
        while true {
            switch outcome {
            case .ended(let reason):
                cleanUp(keepGuard: false)
                environment.records.remove(domain.uuid)
                if record.isGhost == true { forgetGhost(ended: pendingUnprotect == nil) }
                Log.info("\(domain.name): protection ended: \(reason)")
                board.reporter?.ended(reason)
                isOver.change { $0 = reason }
                pendingUnprotect?.give(.success(()))
                return
            case .handedOver:
                return waitForRemoval()
            case .serviceStops(let reply):
                leaveBehind()
                return reply.give(.success(()))
            case .retry(let reason):
                if !wasEverProtected { firstFailure.change { $0 = $0 ?? reason } }
                failures = wasProtected ? 1 : failures + 1
                wasProtected = false
                board.set(waitsForResume ? .suspended : .degraded, reason)
                cleanUp(keepGuard: true)
                // The first retry at once: a worker that was killed is replaced before anybody notices.
                let pause = failures == 1 ? 0 : min(10_000.0, 100 * pow(2, Double(min(failures, 7))))
                do {
                    outcome = try pauseBetweenAttempts(pause) ?? attempt()
                } catch {
                    outcome = .retry("\(error)")
                }
            }
        }
    }

    private func attempt() -> Outcome {
        do {
            if record.phase == .committing { return resolveDoubt() }
            if let outcome = try standBackIfTakenOver() { return outcome }
            try begin()
            return try follow()
        } catch {
            // A question that QEMU died over: what was captured must still go to the shadow, not be thrown away for a new attempt.
            if wasProtected, hasQEMUEnded() {
                do { return try failover() } catch { return .retry("\(error)") }
            }
            return .retry("\(error)")
        }
    }

    /// Waits before the next attempt; returns how the protection ends instead, when it does.
    private func pauseBetweenAttempts(_ milliseconds: Double) throws -> Outcome? {
        let until = MonotonicTime.now.adding(milliseconds: milliseconds)
        while let event = next(until: until) {
            switch event {
            case .unprotect(let reply):
                pendingUnprotect = reply
                return .ended("by request")
            case .addShadows(let fresh, let reply):
                if let outcome = add(fresh, reply) { return outcome }
            case .removeShadow(let host, let deleteReplica, let reply):
                remove(host, deleteReplica: deleteReplica, reply)
            case .swap(let reply, _):
                reply.give(.failure(ControlFailure("Domain \(domain.name) is not protected at the moment: \(board.current.reason)",
                                                   advice: "Wait until `shadow-virt status` shows it protected")))
            case .yield(let reply, let host):
                return yield(reply, to: host)
            case .lifecycle(.stopped(let detail)):
                stopDetail = detail
                return try guestEnded()
            case .resumed where waitsForResume:
                return nil
            case .shutdown(let reply):
                return .serviceStops(reply)
            default: break
            }
        }
        // Events may have been missed while libvirt was away.
        if (try? domain.handle().isActive()) == false { return try guestEnded() }
        return nil
    }

    /// The domain is not active any more, for whatever reason.
    private func guestEnded() throws -> Outcome {
        if let stopDetail, stopDetail != .failed { return .ended("the guest ended (\(stopDetail))") }
        return try failover()
    }

    /// After a hand-over nothing is left to do here but to say so, until somebody protects the guest anew or removes the entry.
    private func waitForRemoval() {
        board.set(.failedOver, "The guest runs on \(peer.name)")
        // Of a ghost nothing is to stay here, not even the memory of it.
        guard record.isGhost != true else { return environment.records.remove(domain.uuid) }
        while let event = next(until: nil) {
            switch event {
            case .unprotect(let reply):
                ending.change { ending in
                    if ending.deletesReplica { ending.remarks = ["The guest runs on \(peer.name): its disks are there, and nothing was deleted"] }
                }
                environment.records.remove(domain.uuid)
                return reply.give(.success(()))
            case .swap(let reply, _):
                reply.give(.failure(ControlFailure("Domain \(domain.name) runs on \(peer.name) already", advice: "Run `shadow-virt swap` there")))
            case .yield(let reply, _):
                reply.give(.success(()))
            case .addShadows(_, let reply):
                reply.give(.failure(ControlFailure("Domain \(domain.name) runs on \(peer.name)", advice: "Protect it there")))
            case .removeShadow(_, _, let reply):
                reply.give(.failure(ControlFailure("Domain \(domain.name) runs on \(peer.name)", advice: "Its shadows are kept from there")))
            case .shutdown(let reply):
                return reply.give(.success(()))
            default: break
            }
        }
    }

    /// The service ends in an orderly way: the guest runs on without COLO, what we changed in QEMU is put back, the shadow stays
    /// where it is until the next service replaces it.
    private func leaveBehind() {
        // Where the guest is to run is not known: it stands still until that is.
        guard record.phase == .protecting, !isSuspended || isPeriodic else { return }
        cleanUp(keepGuard: true)
        if isPeriodic { try? passControl.end(restoring: record.savedParameters) } else { try? COLOControl(domain: domain).clean(restoring: record.savedParameters) }
        ForeignMigrationGuard(domain: domain, directory: environment.configuration.stateDirectory)
            .lower(disk: record.guardDisk, file: record.guardFile)
        record.guardDisk = nil
        record.guardFile = nil
        try? environment.records.write(record)
    }

    /// While this side was cut off, an administrator may have started the guest at the peer by force. Then the copy here is the
    /// stale one: it is stopped at once, and kept for whoever wants to look at it.
    private func standBackIfTakenOver() throws -> Outcome? {
        guard let taker = slots.first(where: { slot in
            slot.isWorthAsking && (try? slot.client.ask(PeerRequest(.query, host: environment.hostName, session: slot.session, uuid: domain.uuid)))?.phase == .running
        }) else { return nil }
        aim(at: taker)
        cleanUp(keepGuard: true)
        do {
            let handle = try domain.handle()
            if try handle.isActive() {
                try handle.suspend()
                try replicaNotes.noteStale("the guest ran on here after it had been started on \(peer.name)")
                Log.error("\(domain.name) was started on \(peer.name) while this host was cut off: the copy here is suspended for good. "
                    + "Look at its data if you need to, then `virsh destroy \(domain.name)` here")
            }
        } catch let error as LibvirtError where error.isNoDomain {
            // It has ended. Any other error is no answer: it is tried again.
        }
        record.phase = .handedOver
        try environment.records.write(record)
        return .handedOver
    }

    // MARK: Beginning

    private func begin() throws {
        board.set(.syncing, "preparing the shadow on \(slots.map(\.peer.name).joined(separator: ", "))")
        generation += 1
        suspension = nil
        stopDetail = nil
        let handle = try domain.handle()
        guard try handle.isActive() else { throw ControlFailure("Domain \(domain.name) does not run") }
        // Left over from a worker or a service that died: the guest first.
        passes = Passes()
        try passControl.recover(lock: passLock)
        waitsForResume = try !isPeriodic && COLOControl(domain: domain).thaw() == COLOControl.suspended
        guard !waitsForResume else { throw ControlFailure("The guest is suspended; protection begins anew when it is resumed") }
        let (state, reason) = try handle.state()
        guard state == .running else {
            throw ControlFailure("Domain \(domain.name) is \(state.describe(reason: reason)), not running", advice: "Resume it; protection begins then")
        }
        let definition = try DomainDefinition(forShadowOf: handle)
        let plan = try planDisks(handle)
        let hasReplicas = plan?.replicas.isEmpty == false
        record.phase = .protecting
        claimant.change { $0 = nil }
        record.sharedDisks = plan?.shared.isEmpty == false ? plan?.shared : nil
        if record.savedParameters.isEmpty { record.savedParameters = try COLOControl(domain: domain).currentParameters() }

        var request = try PeerRequest(.prepare, host: environment.hostName, uuid: domain.uuid, domain: domain.name,
                                      xml: definition.shadowXML(), intervalMs: record.intervalMs, memoryBytes: definition.memoryBytes,
                                      disks: plan?.replicas, media: plan?.media, pool: record.pool, discardStale: record.discardStale)
        request.engine = record.engine.rawValue
        request.carried = try CarriedDefinition.read(handle)
        request.nvram = try NVRAM.read(definition)
        request.onFailure = record.onFailure
        request.hasSharedDisks = record.sharedDisks == nil ? nil : true
        let replicas = try prepareShadows { [request] slot in
            var request = request
            request.session = slot.session
            request.family = family
            return request
        }
        carrier.noteSent(request.carried)
        // Said of what lay there then.
        record.discardStale = nil
        try environment.records.write(record)
        if !hasReplicas { try raiseGuard() }

        let pid = try domain.processID()
        processWatch = processDescriptor(pid)
        watchedProcess = pid
        let owner = try LocalDomain.owner(of: pid)
        let folder = try environment.socketDirectory(domain.uuid, owner: owner)
        streamPath = "\(folder)/colo.sock"
        if let plan, hasReplicas {
            currentDisks.change { $0 = DiskSession(plan: plan, replicas: replicas, domain: domain, socket: "\(folder)/disks.sock") }
        }
        try startWorker(path: streamPath, owner: owner, plan, diskPath: "\(folder)/disks.sock")
        if !hasReplicas { try startStream() } else { board.set(.syncing, "comparing the disks with their replicas on \(slots.filter(\.isIn).map(\.peer.name).joined(separator: ", "))") }
    }

    private func startStream() throws {
        board.set(.syncing, "copying the guest's memory")
        guard !isPeriodic else { return passes.mayBegin = true }
        try COLOControl(domain: domain).start(path: streamPath, intervalMs: orderedIntervalMs)
    }

    /// What becomes of the disks; nil when they are left alone.
    private func planDisks(_ handle: Domain) throws -> DiskPlan? {
        guard !record.withoutDisks else { return nil }
        let folder = "\(environment.configuration.runtimeDirectory)/\(domain.uuid)"
        try DiskMirror.abortLeftOvers(of: domain, folder: folder)
        let plan = try DiskPlan.make(handle, DomainDefinition(xml: handle.xml()), ownFolders: environment.ownFolders)
        try plan.checkNoneIsRefused()
        // Whoever wants to overwrite them one day has to know that the guest ran on them.
        if !plan.replicas.isEmpty { try replicaNotes.notePrimary(plan) }
        return plan
    }

    // MARK: Disks

    /// The disks' way to the first epoch, one step when it is time for it.
    private func advanceDisks() throws -> Outcome? {
        guard let disks = currentDisks.read({ $0 }), disks.stage == .copying || disks.stage == .following else { return nil }
        do {
            let ready = try disks.areReady()
            if let changed = try disks.plan.sizeChanges(domain.handle()).first { return .retry("\(changed)") }
            if disks.stage == .copying {
                if ready {
                    disks.settle()
                    worker?.order(WorkerCommand(.disksReady))
                }
            }
        } catch let failure as ControlFailure {
            if wasProtected, hasQEMUEnded() { return try failover() }
            return .retry("\(failure)")
        }
        return nil
    }


    private func raiseGuard() throws {
        let migrationGuard = ForeignMigrationGuard(domain: domain, directory: environment.configuration.stateDirectory)
        if let disk = record.guardDisk {
            // Still standing from an earlier attempt?
            if let job = try? domain.handle().blockJobInfo(disk: disk), job.type == .copy { return }
            migrationGuard.lower(disk: nil, file: record.guardFile)
        }
        let current = try DomainDefinition(xml: domain.handle().xml(flags: []))
        let raised = try migrationGuard.raise(current)
        record.guardDisk = raised?.disk
        record.guardFile = raised?.file
        try environment.records.write(record)
        if raised == nil {
            Log.warning("\(domain.name): the guest has no disk, so nothing keeps `virsh save`, `dump` or `migrate` away from it: do not use them while it is protected")
        }
    }

    private func startWorker(path: String, owner: (user: uid_t, group: gid_t), _ plan: DiskPlan?, diskPath: String) throws {
        let configuration = environment.configuration
        var options = SourceWorkerOptions(
            domain: domain.name, host: environment.hostName, peers: sourcePeers, secret: environment.secretBytes, streamPath: path,
            streamOwner: owner.user, streamGroup: owner.group, intervalMs: orderedIntervalMs, intervalLimitMs: Double(configuration.intervalLimitMs), ceilingBytes: configuration.unsentCeilingBytes,
            keepaliveMs: Double(configuration.keepaliveMs), peerTimeoutMs: Double(configuration.peerTimeoutMs))
        options.diskPath = diskPath
        options.engine = record.engine
        options.disks = (plan?.replicas ?? []).enumerated().map { CapturedDisk(index: $0.offset, target: $0.element.target, byteCount: $0.element.capacityBytes) }
        let mine = generation
        let process = try WorkerProcess(name: domain.name, start: WorkerCommand(.startSource, source: options)) { [weak self] event in
            self?.post(.worker(event, generation: mine))
        } onEnd: { [weak self] status in
            self?.post(.workerEnded(status, generation: mine))
        }
        process.statistics[.eventsAway] = libvirtIsAway.read { $0 } ? 1 : 0
        currentWorker.change { $0 = process }
        let ready: Bool? = select(until: MonotonicTime.now.adding(milliseconds: 10_000)) { event in
            switch event {
            case .worker(let event, mine) where event.kind == .ready: true
            case .workerEnded(_, mine): false
            default: nil
            }
        }
        guard ready == true else { throw ControlFailure("The source worker did not start") }
    }

    // MARK: Following

    private func follow() throws -> Outcome {
        savesSettled = 0
        suspendWatch = SuspendWatch(domain: domain.name) { [weak self] in
            self?.post(.suspendNoted($0))
        } onJob: { [weak self] isActive in
            self?.worker?.order(WorkerCommand(isActive ? .standBack : .goOn))
            self?.post(.libvirtJob(isActive))
        }
        defer {
            suspendWatch?.stop()
            suspendWatch = nil
        }
        var lastProgress: (epochs: UInt64, at: MonotonicTime) = (0, .now)
        while true {
            rate.sample(worker?.statistics[.epochsTotal] ?? 0)
            if !isPeriodic { try proveByQuestion() }
            if let outcome = try lookAround() { return outcome }
            if isPeriodic, let outcome = try advancePasses() { return outcome }
            let pause = MonotonicTime.now.adding(milliseconds: 1000)
            guard let event = next(until: min(nextPassAt ?? pause, pause)) else {
                if !isPeriodic, let outcome = try watchProgress(&lastProgress) { return outcome }
                continue
            }
            switch event {
            case .worker(let event, let number) where number == generation:
                if let outcome = try handle(event) { return outcome }
            case .workerEnded(let status, let number) where number == generation:
                return .retry("The source worker ended unexpectedly (\(status))")
            case .migration(let status) where isPeriodic:
                passMigration(status)
            case .stopped(let moment) where isPeriodic:
                passStopped(at: moment)
            case .resumed(let moment) where isPeriodic:
                passResumed(at: moment)
            case .libvirtJob(let isActive):
                passes.isStandingBack = isActive
            case .suspendNoted where isPeriodic:
                passes.run?.noteSuspend()
            case .migration("colo"):
                worker?.order(WorkerCommand(.firstCopyDone))
            case .migration("failed"), .migration("completed"), .migration("cancelled"):
                let reason = try domain.monitor(QueryMigrate()).errorDescription ?? "QEMU ended the migration without entering COLO"
                return .retry(reason)
            case .coloExit(let reason):
                if hasQEMUEnded(orWorker: worker) { return try failover() }
                return .retry("QEMU left COLO (\(reason))")
            case .stopped(let moment):
                stopped(at: moment)
            case .resumed(let moment):
                if worker?.statistics.isInsideCapture(moment) == true { return torn() }
                resumed(at: moment)
            case .suspendNoted(let evidence):
                suspendNoted(evidence)
            case .lifecycle(let event):
                if let outcome = try handle(event) { return outcome }
            case .libvirtReconnected:
                guard try domain.handle().isActive() else { return try guestEnded() }
            case .swap(let reply, let host) where isPeriodic && passes.run != nil && passes.swap == nil:
                passes.swap = (reply, host)
                swapStep.change { $0 = "a pass is under way" }
            case .swap(let reply, let host):
                if let outcome = swap(reply, to: host) { return outcome }
            case .addShadows(let fresh, let reply):
                if let outcome = add(fresh, reply) { return outcome }
            case .removeShadow(let host, let deleteReplica, let reply):
                remove(host, deleteReplica: deleteReplica, reply)
            case .shadowIsBack(let host):
                // Not in the middle of a pass: what it brings is wanted by the others.
                if isPeriodic, passes.run != nil { passes.newcomer = host } else if let outcome = takeIn(host) { return outcome }
            case .unprotect(let reply):
                if isSuspended, !isPeriodic {
                    reply.give(.failure(ControlFailure("Domain \(domain.name) is suspended, and ending COLO would start it",
                                                       advice: "Run `virsh resume \(domain.name)` first")))
                    continue
                }
                pendingUnprotect = reply
                return .ended("by request")
            case .yield(let reply, let host):
                return yield(reply, to: host)
            case .shutdown(let reply):
                return .serviceStops(reply)
            case .blockJob:
                lastLook = .now
            case .interval:
                applyInterval()
            case .worker, .workerEnded, .migration:
                continue
            }
        }
    }

    /// Somebody resumed the guest while an epoch was captured: part of it is from before, part from after, so the shadow never gets
    /// to commit it. QEMU may have locked itself up over it; the watch sees to that.
    private func torn() -> Outcome {
        let isMirror = worker?.statistics[.torn] == SharedStatistics.mirrorEnded
        worker?.kill()
        return .retry(isMirror ? "The mirror of a disk was ended" : "Somebody resumed the guest while an epoch was captured")
    }

    /// Looks every second whether QEMU is deadlocked, and ends it then: only that gets the guest going again, from the shadow. On a
    /// thread of its own, because whoever asks a deadlocked QEMU anything waits for ever. The same with a source worker that stands still:
    /// QEMU waits for its mirrors then, and one question of anybody, a monitoring program's for one, keeps all others waiting in libvirt for 30 s.
    private func watchForDeadlock() {
        while isOver.wait(until: MonotonicTime.now.adding(milliseconds: 1000), { $0 }) == nil {
            endSilentWorker()
            guard isProtecting.read({ $0 }), let pid = try? domain.processID(), QEMUDeadlock.isPresent(in: pid) else { continue }
            Log.error("\(domain.name): QEMU is deadlocked (its main loop and its migration wait for one lock); ending it, so that the shadow takes over")
            kill(pid, SIGKILL)
        }
    }

    /// When QEMU's RESUME events do not come for a while, though epochs wait for them: ask. QEMU's answer comes after all events that
    /// it sent before, so an epoch that was over by then, with no foreign resume heard of, is sound.
    private func proveByQuestion() throws {
        guard let statistics = worker?.statistics, !isSuspended, statistics[.linkUp] == 1 else { return }
        let proven = statistics[.provenUntil]
        let committed = statistics[.committedEpoch]
        if proven != lastProof.proven || committed != lastProof.committed || statistics[.epoch] <= committed {
            lastProof = (proven, committed, .now)
            return
        }
        guard MonotonicTime.now.milliseconds(since: lastProof.at) > 1000 else { return }
        let epoch = statistics[.epoch]
        lastProof.at = .now
        guard try domain.monitor(QueryStatus()).running, try currentDisks.read({ $0 })?.areReady() ?? true, statistics[.torn] == 0 else { return }
        Log.debug("\(domain.name): libvirt's events lag; QEMU was asked about epoch \(epoch)")
        statistics[.provenEpoch] = epoch
    }

    private func handle(_ event: WorkerEvent) throws -> Outcome? {
        switch event.kind {
        case .following:
            // The link's state does not change that the user suspended the guest.
            wasProtected = true
            wasEverProtected = true
            shadowFollows(event.peer)
        case .linkLost:
            shadowLostItsLink(event.peer, event.reason ?? "The connection to the shadow broke")
        case .memoryKnown:
            memoryIsKnown(event)
        case .disksPrepared:
            board.set(.syncing, "copying the guest's disks")
            try currentDisks.read { $0 }?.start(bytesPerSecond: record.diskRateBytesPerSecond)
        case .disksFollowing:
            currentDisks.read { $0 }?.follow()
            try startStream()
        case .sessionLost where worker?.statistics[.torn] != 0:
            return torn()
        case .sessionLost where shadowIsLost(event.peer, event.reason ?? "The shadow cannot follow"):
            break
        case .sessionLost, .failed:
            return .retry(event.reason ?? "The source worker gave up")
        case .streamEnded:
            if hasQEMUEnded() { return try failover() }
            return .retry(event.reason ?? "QEMU closed the stream")
        case .suspended:
            try confirmSuspension()
        case .passRead, .passCommitted, .passFailed:
            if event.kind == .passCommitted { (wasProtected, wasEverProtected) = (true, true) }
            try handlePass(event)
        default:
            break
        }
        return nil
    }

    /// About once a second, whatever else happens.
    private func lookAround() throws -> Outcome? {
        guard lastLook <= .now else { return nil }
        lastLook = MonotonicTime.now.adding(milliseconds: board.state == .syncing ? 250 : 1000)
        // A worker process that somebody stopped keeps the guest's disk writes waiting, which its mirrors have to hear of.
        if endSilentWorker() { return .retry("The source worker stood still; it was ended") }
        if board.state == .protected { carrier.refresh(domain, send: carryOver) }
        lookForAbsent()
        return try advanceDisks()
    }

    private func carryOver(_ definition: CarriedDefinition) throws {
        for slot in slots where slot.follows {
            var request = PeerRequest(.carry, host: environment.hostName, session: slot.session, uuid: domain.uuid, domain: domain.name)
            request.carried = definition
            _ = try slot.client.ask(request)
        }
    }

    private func handle(_ event: LifecycleEvent.Event) throws -> Outcome? {
        guard case .stopped(let detail) = event else { return nil }
        stopDetail = detail
        return try guestEnded()
    }

    /// A stream that has been silent for long while nobody suspended the guest: QEMU's migration state may be broken.
    private func watchProgress(_ last: inout (epochs: UInt64, at: MonotonicTime)) throws -> Outcome? {
        let epochs = worker?.statistics[.epochsTotal] ?? 0
        // The first copy takes as long as the guest is large; it ends by itself or with an error.
        if board.state == .syncing || epochs != last.epochs || (isSuspended && suspension?.isConfirmed == true) || worker?.statistics[.linkUp] == 0 {
            last = (epochs, .now)
            return nil
        }
        guard MonotonicTime.now.milliseconds(since: last.at) > max(5000, record.intervalMs * 20) else { return nil }
        last.at = .now
        let migration = try domain.monitor(QueryMigrate()).status ?? "none"
        let status = try domain.monitor(QueryStatus()).status
        if migration == "colo" {
            guard status == "colo" else {
                // Nothing is wrong with QEMU, and yet nothing moves: begin anew rather than stand still.
                return worker?.statistics[.linkUp] == 1 ? .retry("No epoch was captured for a while") : nil
            }
            // The guest stands still because of a worker that does not move: no courtesy.
            worker?.kill()
            return .retry("An epoch did not end; its worker was ended")
        }
        return .retry("QEMU stopped sending epochs: its migration is `\(migration)`, the guest `\(status)`")
    }

    // MARK: Suspension by the user

    /// QEMU stopped the guest. Epochs do that, too; what lies outside an epoch's window is somebody else's stop.
    private func stopped(at moment: UInt64) {
        guard let worker, board.state != .syncing, !worker.statistics.isInsideWindow(moment) else { return }
        if suspension == nil {
            suspension = Suspension(at: moment)
            worker.order(WorkerCommand(.suspend))
        } else if suspension?.isInsideEpoch == true, suspension?.isConfirmed == false {
            // The status file was quicker than the event: an ordinary stop after all.
            suspension?.isInsideEpoch = false
            suspension?.at = moment
        }
    }

    /// Libvirt noted a user's suspend.
    private func suspendNoted(_ evidence: SuspendWatch.Evidence) {
        guard let worker, board.state != .syncing, evidence.save > savesSettled,
              MonotonicTime.now.milliseconds(since: settledAt) > Self.settleMilliseconds else { return }
        if suspension == nil {
            suspension = Suspension(at: SharedStatistics.realtimeNanoseconds, isInsideEpoch: true)
            worker.order(WorkerCommand(.suspend))
        }
        if suspension?.evidence == nil { suspension?.evidence = evidence }
    }

    private func resumed(at moment: UInt64) {
        // The end of the epoch before the suspension may be heard of after it.
        guard let current = suspension, moment > current.at else { return }
        suspension?.resumes += 1
        if current.isConfirmed { endSuspension() }
    }

    private func endSuspension() {
        suspension = nil
        savesSettled = suspendWatch?.saves ?? 0
        settledAt = .now
        worker?.order(WorkerCommand(.resume))
        board.set(.protected)
        showShadows()
    }

    /// The worker withholds epochs. One that began before it heard of it has undone the user's stop: repeat that, unless somebody
    /// resumed the guest in the meantime. A resume that libvirt accepted came either before that epoch, and shows as one RESUME more
    /// than epochs explain, or within it, and then the epoch is torn (`torn`). Later ones libvirt refuses: the guest runs.
    private func confirmSuspension() throws {
        guard var current = suspension, !current.isConfirmed, let worker else { return }
        if try domain.monitor(QueryStatus()).running {
            let epochs = worker.statistics.windowsBegun(after: current.at)
            guard MonotonicTime.now.milliseconds(since: current.notedAt) < max(Self.repeatMilliseconds, record.intervalMs * 3),
                  current.evidence != nil, current.isInsideEpoch || (epochs > 0 && current.resumes <= epochs) else { return endSuspension() }
            Log.info("\(domain.name): a suspend met an epoch, which undid it; suspending again")
            try domain.handle().suspend()
        }
        current.isConfirmed = true
        suspension = current
        // The guest stands still, and every event about the epochs so far has come: none of them is torn.
        worker.statistics[.provenEpoch] = worker.statistics[.epoch]
        board.set(.suspended, "The guest is suspended; the shadow holds its last epoch")
    }

    // MARK: Ending

    /// Leaves the guest running and QEMU as it was. Safe to repeat, and when half of it is not there.
    func cleanUp(keepGuard: Bool) {
        endSilentWorker()
        keepCommitted()
        if isPeriodic {
            endMirrors()
            worker?.stop(milliseconds: passes.run == nil ? 2000 : Self.longestPassMs)
            endPasses(restoring: keepGuard ? [:] : record.savedParameters)
        } else {
            endCOLO(keepGuard: keepGuard)
        }
        currentWorker.change { $0 = nil }
        for slot in slots { slot.leave() }
        currentDisks.change { $0 = nil }
        processWatch = nil
        let active = (try? domain.handle().isActive()) ?? false
        if !keepGuard {
            ForeignMigrationGuard(domain: domain, directory: environment.configuration.stateDirectory)
                .lower(disk: active ? record.guardDisk : nil, file: record.guardFile)
            unlink("\(environment.configuration.runtimeDirectory)/\(domain.uuid)/colo.sock")
            unlink("\(environment.configuration.runtimeDirectory)/\(domain.uuid)/disks.sock")
            rmdir("\(environment.configuration.runtimeDirectory)/\(domain.uuid)")
            let deletes = ending.read { $0.deletesReplica }
            let told = slots.flatMap { discard($0, deleteReplica: deletes) }
            ending.change { $0.remarks = told }
        }
    }

    private func endCOLO(keepGuard: Bool) {
        let control = COLOControl(domain: domain)
        endEpochs(control)
        // Before the worker: a mirror whose other end is gone complains in libvirt's log.
        endMirrors()
        // A worker that lives ends its epoch by itself; one that died may have left the guest standing still: that goes next.
        worker?.stop()
        thaw(control)
        guard !isSuspended, !waitsForResume, (try? domain.handle().isActive()) == true else { return }
        do {
            try control.clean(restoring: keepGuard ? [:] : record.savedParameters)
        } catch {
            Log.warning("\(domain.name): COLO could not be switched off: \(error)")
        }
    }

    /// One that does not answer any more would keep the guest's writes, and the orders to end its mirrors, waiting.
    /// True: it was so.
    @discardableResult
    private func endSilentWorker() -> Bool {
        guard let worker, !worker.hasEnded else { return false }
        let beat = worker.statistics[.heartbeat]
        guard beat > 0, MonotonicTime.now.milliseconds(since: MonotonicTime(nanoseconds: beat)) > Self.longestBreathMilliseconds else { return false }
        Log.warning("\(domain.name): the source worker stands still; ending it")
        worker.kill()
        return true
    }

    private func endMirrors() { currentDisks.read { $0 }?.end() }

    /// QEMU leaves COLO before the mirrors end: it (7.2 seen) may otherwise finish a mirror inside the drain that stops the guest for an epoch,
    /// and then the mirror's filter stays on the disk for good. "Need a root block node" is what every later mirror hears.
    private func endEpochs(_ control: COLOControl) {
        guard let worker, currentDisks.read({ $0 })?.stage == .following else { return }
        worker.order(WorkerCommand(.endStream))
        let limit = MonotonicTime.now.adding(milliseconds: Self.endOfStreamMilliseconds)
        while worker.statistics[.streamEnded] == 0, !worker.hasEnded, limit > .now { usleep(1000) }
        thaw(control)
        guard !isSuspended, !waitsForResume, (try? domain.handle().isActive()) == true else { return }
        do { try control.clean(restoring: [:]) } catch { Log.debug("\(domain.name): \(error)") }
    }

    private func thaw(_ control: COLOControl) {
        guard !isSuspended else { return }
        do { waitsForResume = try control.thaw() == COLOControl.suspended } catch { Log.debug("\(domain.name): \(error)") }
    }

    // MARK: Status

    /// How a fresh protection turned out.
    public enum Settled: Sendable {
        case protected
        /// The first attempt failed; without an order the protection would go on trying.
        case refused(String)
        case ended(String)
    }

    /// The hosts of its shadows, for a sentence.
    public var peerName: String { slots.map(\.peer.name).joined(separator: " and ") }
    public var warnings: [String] { remarks.read { $0 } }

    /// How many shadows it has on other hosts than these.
    public func slots(besides hosts: [String]) -> Int { slots.filter { slot in !hosts.contains { HostName.isSame($0, slot.peer.name) } }.count }

    /// Waits until it is clear how the protection to these hosts, ordered at `begin`, turned out; nil at the deadline.
    public func settled(_ hosts: [String], since begin: MonotonicTime, until deadline: MonotonicTime) -> Settled? {
        if slots.count > 1, isOver.read({ $0 }) == nil, firstFailure.read({ $0 }) == nil, board.state != .failedOver {
            return shadowsSettled(hosts, since: begin, until: deadline)
        }
        return settled(until: deadline)
    }

    /// Waits until it is clear how the protection began; nil at the deadline.
    public func settled(until deadline: MonotonicTime) -> Settled? {
        let state = board.wait(for: [.protected, .degraded, .failedOver, .suspended], until: deadline)
        if let reason = firstFailure.read({ $0 }) { return .refused(reason) }
        if let reason = isOver.read({ $0 }), !reason.isEmpty { return .ended(reason) }
        return switch state {
        case .protected, .suspended: .protected
        case .failedOver: .ended("the guest runs on \(peer.name)")
        case .degraded, .syncing, .swapping, .inDoubt, nil: nil
        }
    }

    private let isOver = Guarded<String?>(nil)

    public var status: DomainStatus {
        var status = figures
        if status.state != .failedOver { status.shadows = slots.map { $0.status(worker?.statistics, domain: status) } }
        return status
    }

    private var figures: DomainStatus {
        let now = board.current
        var status = DomainStatus(domain: domain.name, uuid: domain.uuid, role: .primary, peer: peer.name, engine: record.engine.rawValue, state: now.state,
                                  reason: now.reason, since: now.since, configuredIntervalMs: record.intervalMs)
        status.engineReason = record.engineReason
        guard let statistics = worker?.statistics else { return status }
        status.fill(from: statistics)
        status.epochsPerSecond = rate.perSecond
        explainInterval(&status)
        if let disks = currentDisks.read({ $0 }) {
            status.disks = disks.status
            status.diskBytesSent = statistics[.diskBytesSent]
            status.diskWrites = statistics[.diskWrites]
            if disks.stage == .copying { (status.syncBytesDone, status.syncBytesTotal) = disks.progress }
        }
        return status
    }
}
