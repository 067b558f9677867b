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
    /// Why it is over; nil: it is not.
    let isOver = Guarded<String?>(nil)

    // The current attempt; touched by the protection's thread only, but for `worker`, which `status` reads.
    let currentWorker = Guarded<WorkerProcess?>(nil)
    /// Nil for a guest without disks in its epochs.
    let currentDisks = Guarded<DiskSession?>(nil)
    var streamPath = ""
    var generation = 0
    var processWatch: Descriptor?
    var watchedProcess: pid_t = 0
    var suspension: Suspension?
    var suspendWatch: SuspendWatch?
    /// Saves of libvirt's status file that say nothing new: they belong to a suspension that is over.
    var savesSettled = 0
    var settledAt = MonotonicTime(nanoseconds: 0)
    private var lastLook = MonotonicTime(nanoseconds: 0)
    let libvirtIsAway = Guarded(false)
    /// Its user suspended the guest, and an earlier attempt's COLO is still on: nothing can be done before it runs again.
    var waitsForResume = false
    private var lastProof: (proven: UInt64, committed: UInt64, at: MonotonicTime) = (0, 0, .now)
    var wasProtected = false
    private(set) var wasEverProtected = false
    let firstFailure = Guarded<String?>(nil)
    var stopDetail: StoppedDetail?
    var pendingUnprotect: Reply<Void>?
    /// What the administrator who ends it wants, and is told.
    let ending = Guarded<(deletesReplica: Bool, remarks: [String])>((false, []))
    /// What an administrator who protects the guest should know.
    let remarks = Guarded<[String]>([])
    let rate = RateMeter()
    /// Of the engine `periodic`.
    var passes = Passes()
    /// What a swap is at, for whoever waits for it.
    let swapStep = Guarded<String?>(nil)
    /// Another interval than the configured one.
    let steering = Guarded<IntervalOrder?>(nil)
    let carrier = DefinitionCarrier()

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
}
