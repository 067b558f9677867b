import ControlProtocol
import Foundation
import Glibc
import Libvirt
import Platform
import Replication

/// A held guest's QEMU, stopped as a process: whatever somebody orders with virsh meanwhile, the guest does not run.
struct HeldProcess {
    private let pid: pid_t

    /// Stops the process after a look at the guest: it must stand still, in COLO (`colo`) or behind its migration (`postmigrate`).
    init(_ domain: LocalDomain, expected: String, disks: DiskSession?) throws {
        pid = try domain.processID()
        let status = try domain.monitor(QueryStatus()).status
        guard status == expected else { throw ControlFailure("Somebody resumed the guest (it is `\(status)`)") }
        // With a mirror that has ended the last writes never came.
        guard try disks?.areReady() ?? true else { throw ControlFailure("A disk's mirror is not ready") }
        guard kill(pid, SIGSTOP) == 0 else { throw SystemError("kill", "QEMU's process \(pid)") }
    }

    func letGo() { kill(pid, SIGCONT) }

    /// The same for one that an earlier attempt, or an earlier service, left stopped; harmless to any other.
    static func letGo(_ domain: LocalDomain) {
        if let pid = try? domain.processID() { kill(pid, SIGCONT) }
    }
}

/// Moving the guest to its shadow, and what keeps it from ever running twice.
///
///     hold     the guest stands still here, its exact state is committed there     any failure: let it run on here
///     load     the peer's QEMU has the state, paused                               any failure: let it run on here
///     commit   a record on disk: from now on this side never lets it run by itself
///     run      the peer lets it run                                                no answer: in doubt, ask until there is one
///     finish   remove the copy here
///
/// The peer keeps a loaded shadow paused for as long as nobody tells it; it never decides by itself. Of several shadows one is aimed at before
/// the commit, whose record names it: no other is ever told to run.
extension PrimaryProtection {
    /// Nil: nothing happened, the protection goes on.
    func swap(_ reply: Reply<HandoverReport>, to host: String? = nil) -> Outcome? {
        guard board.state == .protected, let worker else {
            let now = board.current
            reply.give(.failure(ControlFailure("Domain \(domain.name) is \(now.state.rawValue)" + (now.reason.isEmpty ? "" : " (\(now.reason))") + ", so it cannot be swapped now",
                                               advice: now.state == .suspended ? "Resume it first" : "Wait until `shadow-virt status` shows it protected")))
            return nil
        }
        do { try aim(atShadowOn: host) } catch {
            reply.give(.failure(error))
            return nil
        }
        guard !isPeriodic else { return swapByPass(reply, worker) }
        worker.order(WorkerCommand(.hold, peer: target.read { $0.index }))
        var process: HeldProcess?
        var held = awaitHold([.captured, .held, .holdFailed, .streamEnded])
        if let captured = held, captured.kind == .captured, let epoch = captured.epoch {
            do {
                process = try HeldProcess(domain, expected: "colo", disks: currentDisks.read { $0 })
                worker.statistics[.provenEpoch] = epoch
            } catch {
                worker.order(WorkerCommand(.release))
                reply.give(.failure(ControlFailure("The guest could not be held for the swap: \(error)", advice: "It runs on here; try again")))
                return .retry("A swap failed: \(error)")
            }
            held = awaitHold([.held, .holdFailed, .streamEnded])
        }
        guard let held, held.kind == .held, let epoch = held.epoch, process != nil else {
            process?.letGo()
            if held == nil { worker.order(WorkerCommand(.release)) }
            reply.give(.failure(ControlFailure("The guest could not be held for the swap: \(held?.reason ?? "no answer from the worker")",
                                               advice: "It runs on here; try again")))
            switch held?.kind {
            case .failed: return .retry(held?.reason ?? "The source worker ended")
            case .streamEnded: return .retry("QEMU closed the stream")
            default: return nil
            }
        }
        return handOver(reply, worker, epoch: epoch, stoppedAt: MonotonicTime(nanoseconds: held.at ?? MonotonicTime.now.nanoseconds))
    }

    private func aim(atShadowOn host: String?) throws {
        guard let host else {
            if let freshest = slotsByFreshness.first(where: \.follows) { aim(at: freshest) }
            return
        }
        guard let slot = slot(host) else { throw ControlFailure("Domain \(domain.name) has no shadow on \(host)", advice: "`shadow-virt status \(domain.name)` shows its shadows") }
        guard slot.follows else {
            throw ControlFailure("The shadow of \(domain.name) on \(host) is \(slot.board.state.rawValue)" + (slot.board.current.reason.isEmpty ? "" : " (\(slot.board.current.reason))"),
                                 advice: "Wait until `shadow-virt status \(domain.name)` shows it protected, or swap to another")
        }
        aim(at: slot)
    }

    /// The guest stands still here, its QEMU stopped as a process, and its exact state is committed at the peer as `epoch`.
    func handOver(_ reply: Reply<HandoverReport>, _ worker: WorkerProcess, epoch: UInt64, stoppedAt: MonotonicTime) -> Outcome {
        board.set(.swapping)
        do {
            let loaded = try client.ask(PeerRequest(.load, host: environment.hostName, session: record.session, uuid: domain.uuid), timeoutMs: 15_000)
            guard loaded.phase == .loaded, loaded.epoch == epoch else {
                throw ControlFailure("\(peer.name) loaded epoch \(loaded.epoch ?? 0), the guest was stopped at \(epoch)")
            }
            let wasResumed: Bool? = select(until: .now) { event in
                if case .resumed(let moment) = event, worker.statistics.isInsideCapture(moment) || moment >= passes.heldSince ?? .max { true } else { nil }
            }
            guard wasResumed == nil else { throw ControlFailure("Somebody resumed the guest during the swap") }
            let outcome = try commitAndRun()
            switch outcome {
            case .running(let runMs):
                let report = HandoverReport(domain: domain.name, from: environment.hostName, to: peer.name, epoch: epoch, epochsLost: 0,
                                            activationMs: (loaded.milliseconds ?? 0) + runMs, outageMs: MonotonicTime.now.milliseconds(since: stoppedAt))
                board.reporter?.noteHandover(report.figures)
                finishHandover()
                reply.give(.success(report))
                return .handedOver
            case .inDoubt(let reason):
                reply.give(.failure(ControlFailure("The connection broke after \(peer.name) was told to run the guest: \(reason)",
                                                   advice: "The guest stands still here until \(peer.name) answers; see `shadow-virt status`")))
                return resolveDoubt()
            }
        } catch {
            // Before the commit, or the peer said itself that it does not run the guest.
            uncommit()
            letHeldGuestRun()
            reply.give(.failure(ControlFailure("The guest did not come up on \(peer.name): \(error)", advice: "It runs on here; protection begins anew")))
            return .retry("A swap failed: \(error)")
        }
    }

    /// A guest that was held for a swap goes on here.
    func letHeldGuestRun() {
        HeldProcess.letGo(domain)
        guard isPeriodic else {
            worker?.order(WorkerCommand(.release))
            return
        }
        do { try passControl.letRun() } catch { Log.error("\(domain.name): \(error)") }
    }

    /// The worker's next word on the way to a held guest.
    private func awaitHold(_ kinds: Set<WorkerEvent.Kind>) -> WorkerEvent? {
        let generation = currentGeneration
        return select(until: MonotonicTime.now.adding(milliseconds: 15_000)) { event in
            switch event {
            case .worker(let event, generation) where kinds.contains(event.kind): event
            case .workerEnded(let status, generation): WorkerEvent(.failed, reason: "The source worker ended (\(status))")
            default: nil
            }
        }
    }

    private enum CommitOutcome { case running(Double), inDoubt(String) }

    /// Writes the commit and tells the peer. Throws only when the guest certainly does not run there.
    private func commitAndRun() throws -> CommitOutcome {
        guard claim(peer.name) else {
            throw ControlFailure("\(claimant.read { $0 } ?? "") takes the guest over by its administrator's order")
        }
        if isResumed, let other = slots.first(where: { $0.peer.name != peer.name && $0.isWorthAsking && isTaking(over: $0) }) {
            throw ControlFailure("\(other.peer.name) takes the guest over by its administrator's order")
        }
        let order = runOrder
        record.phase = .committing
        try environment.records.write(record)
        do {
            let answer = try client.ask(order, timeoutMs: 15_000)
            return .running(answer.milliseconds ?? 0)
        } catch let error as PeerUnreachable where error.mayHaveArrived {
            return .inDoubt(error.reason)
        }
    }

    /// The word that the guest is to run, with what its new host needs to know of its siblings.
    private var runOrder: PeerRequest {
        let persistent = persistentDefinition()
        var order = PeerRequest(.run, host: environment.hostName, session: record.session, uuid: domain.uuid, domain: domain.name,
                                xml: persistent?.xml, autostart: persistent?.autostart)
        order.family = family
        return order
    }

    private func uncommit() {
        giveBackClaim(peer.name)
        guard record.phase == .committing else { return }
        record.phase = .protecting
        do { try environment.records.write(record) } catch { Log.error("\(domain.name): \(error)") }
    }

    /// The definition to keep at the peer; nil for a transient domain. Without an answer from libvirt the guest goes over all the
    /// same: it running matters more than its definition.
    private func persistentDefinition() -> CarriedDefinition? {
        do {
            return try CarriedDefinition.read(domain.handle())
        } catch let error as LibvirtError where error.isNoDomain {
            return nil
        } catch {
            Log.warning("\(domain.name): its persistent definition could not be read (\(error)); \(peer.name) keeps the one it was told of last")
            return nil
        }
    }

    /// A hand-over was committed and nobody knows whether the guest runs there. Until the peer says so, it runs nowhere.
    func resolveDoubt() -> Outcome {
        var told = false
        while true {
            do {
                let answer = try client.ask(PeerRequest(.query, host: environment.hostName, session: record.session, uuid: domain.uuid))
                switch answer.phase {
                case .running:
                    finishHandover()
                    return .handedOver
                case .loaded:
                    if let taker = slots.first(where: { $0.session != record.session && runs(on: $0) }) {
                        // By force, while this side was away.
                        aim(at: taker)
                        finishHandover()
                        return .handedOver
                    }
                    _ = try client.ask(runOrder, timeoutMs: 15_000)
                    continue
                case .unknown where answer.hasRun == true:
                    // It has gone on from there, or ended there: the copy here is of an earlier time.
                    finishHandover()
                    return .handedOver
                case .receiving, .failed, .unknown, nil:
                    // It does not run there, and without an order it never will.
                    uncommit()
                    letHeldGuestRun()
                    return .retry("A swap was cut off; the guest did not come up on \(peer.name)")
                }
            } catch {
                // Also an answer that does not tell, because libvirt is away there.
                if !told {
                    told = true
                    let reason = (error as? PeerUnreachable)?.reason ?? "\(error)"
                    board.set(.inDoubt, "Swap cut off: whether the guest runs on \(peer.name) is unknown (\(reason)). It stands still here until \(peer.name) answers")
                }
            }
            let until = MonotonicTime.now.adding(milliseconds: 500)
            while let event = next(until: until) {
                let failure = ControlFailure("A swap of \(domain.name) is in doubt: whether it runs on \(peer.name) is unknown",
                                             advice: "Bring \(peer.name) or the network back; it resolves itself")
                switch event {
                case .swap(let reply, _): reply.give(.failure(failure))
                case .unprotect(let reply): reply.give(.failure(failure))
                case .addShadows(_, let reply): reply.give(.failure(failure))
                case .removeShadow(_, _, let reply): reply.give(.failure(failure))
                case .yield(let reply, let host):
                    if case .handedOver = yield(reply, to: host) { return .handedOver }
                case .shutdown(let reply): return .serviceStops(reply)
                default: break
                }
            }
        }
    }

    private func runs(on slot: ShadowSlot) -> Bool { (try? sibling(slot))?.runs == true }

    /// An earlier service may have given its word for that, which this one does not know of. One that was asked and says nothing may be about to.
    private func isTaking(over slot: ShadowSlot) -> Bool {
        do {
            return try sibling(slot).map { $0.runs || $0.isTakingOver } ?? false
        } catch {
            return (error as? PeerUnreachable)?.mayHaveArrived ?? true
        }
    }

    private func sibling(_ slot: ShadowSlot) throws -> SiblingState? {
        try slot.client.ask(PeerRequest(.sibling, host: environment.hostName, uuid: domain.uuid, domain: domain.name), timeoutMs: Self.siblingMs).sibling
    }

    private static let siblingMs = 3000.0

    /// The guest runs on the peer: remove the copy here.
    func finishHandover() {
        let moment = Int64(SharedStatistics.realtimeNanoseconds)
        note(.removing)
        board.set(.failedOver, "The guest runs on \(peer.name)")
        guard removeLocalCopy() else {
            return Log.error("\(domain.name) runs on \(peer.name), and nobody can tell whether QEMU's process here is gone: see that it is. The next start of this service tries again")
        }
        noteDisks(wentOverAt: moment)
        note(.handedOver)
    }

    /// The disks here may become the guest's replicas.
    private func noteDisks(wentOverAt moment: Int64) {
        guard !record.withoutDisks else { return }
        do { try replicaNotes.noteFormerPrimary(wentOverAt: moment) } catch { Log.error("\(domain.name): \(error)") }
    }

    /// A record that cannot be written is reported; the guest's whereabouts do not depend on it any more.
    private func note(_ phase: ProtectionRecord.Phase) {
        record.phase = phase
        do { try environment.records.write(record) } catch { Log.error("\(domain.name): \(error)") }
    }

    /// False: QEMU's process may still be there.
    func removeLocalCopy() -> Bool {
        worker?.kill()
        let isGone = endLocalQEMU()
        do {
            let handle = try domain.handle()
            if try handle.isActive() { try? handle.destroy() }
            if (try? handle.isPersistent()) == true { try handle.undefine(flags: [.managedSave, .snapshotsMetadata, .checkpointsMetadata, .keepNVRAM]) }
        } catch let error as LibvirtError where error.isNoDomain {
            // A transient domain is gone with its QEMU.
        } catch {
            Log.warning("\(domain.name): the old copy could not be removed: \(error). " + (isGone ? "It does not run; undefine it by hand" : "Look whether it runs"))
        }
        if let file = record.guardFile { unlink(file) }
        unlink("\(environment.configuration.runtimeDirectory)/\(domain.uuid)/colo.sock")
        unlink("\(environment.configuration.runtimeDirectory)/\(domain.uuid)/disks.sock")
        rmdir("\(environment.configuration.runtimeDirectory)/\(domain.uuid)")
        return isGone
    }

    /// Without libvirt, which may be away, and whose polite attempt would take 15 s: QEMU waits in COLO for a word that never comes.
    /// False: nobody can tell whether it is gone.
    private func endLocalQEMU() -> Bool {
        if let pid = try? domain.processID() { return endProcess(pid, waitMs: Self.exitMilliseconds) }
        if let watch = processWatch?.raw, awaitEnd(watch, milliseconds: 0) { return true }
        do {
            return try !domain.handle().isActive()
        } catch let error as LibvirtError where error.isNoDomain {
            return true
        } catch {
            return false
        }
    }

    /// The peer's administrator forces the guest over there. From then on its shadow is the only copy: it is not to be discarded.
    func yield(_ reply: Reply<Void>, to host: String) -> Outcome {
        do {
            try yieldToPeer(host)
            reply.give(.success(()))
            return .handedOver
        } catch {
            reply.give(.failure(error))
            return .retry("The guest could not be given up to \(host): \(error)")
        }
    }

    /// The peer starts the guest on our word that it does not run here any more.
    private func yieldToPeer(_ host: String) throws {
        let (before, aimed) = (record.phase, target.read { $0 })
        if let slot = slot(host) { aim(at: slot) }
        record.phase = .removing
        do {
            try environment.records.write(record)
            guard removeLocalCopy() else {
                throw ControlFailure("Nobody can tell whether QEMU's process of \(domain.name) is gone on \(environment.hostName)", advice: "See that libvirtd runs there, or end the process")
            }
        } catch {
            // In doubt, the host that was ordered is the one whose answer counts.
            aim(at: aimed)
            note(before)
            throw error
        }
        noteDisks(wentOverAt: Int64(SharedStatistics.realtimeNanoseconds))
        note(.handedOver)
    }

    // MARK: QEMU's death

    /// Looks no further once `worker` has ended: then that is why the stream closed, and a living QEMU's guest stands still until it is
    /// let go.
    func hasQEMUEnded(orWorker worker: WorkerProcess? = nil) -> Bool {
        guard let watch = processWatch?.raw else { return false }
        // The stream closes a moment before the process is gone; on a busy host that moment takes seconds, and what was captured must
        // not be given up meanwhile.
        return awaitEnd(watch, milliseconds: 1000, orWorker: worker) || isProcessExiting(watchedProcess) && awaitEnd(watch, milliseconds: Self.exitMilliseconds)
    }

    /// A process that has begun to exit is gone by then, or the host is past help.
    private static let exitMilliseconds = 30_000.0

    private func awaitEnd(_ watch: Int32, milliseconds: Double, orWorker worker: WorkerProcess? = nil) -> Bool {
        let ready = try? wait(watch, for: .readable, wake: worker?.endedDescriptor ?? -1, until: MonotonicTime.now.adding(milliseconds: milliseconds))
        return ready?.isEmpty == false
    }

    /// QEMU is dead: its guest runs nowhere. When libvirt says that it crashed, not that somebody ended it, the shadow takes over.
    ///
    /// Nothing here gives the shadow up while it may be the only copy: an unreachable peer, or a libvirt that is away, is waited for.
    func failover() throws -> Outcome {
        guard qemuIsGone(waitMs: 5000) else { return .retry("Libvirt reports the guest's end, but its QEMU still runs") }
        let died = MonotonicTime.now
        var lost = drain()
        // Destroyed or shut down is known by now in most cases, and no shadow is loaded in vain.
        if let ended = endedOnPurpose(takeVerdict(waitMs: 0)) { return ended }
        if let outcome = takenOverByHand() { return outcome }
        if let shared = record.sharedDisks { return try failoverWithoutMemory(shared.joined(separator: ", ")) }
        board.set(.swapping, "QEMU died; loading the shadow on \(peer.name)", cause: .failover)
        let loaded: PeerResponse
        switch try loadHoweverLongItTakes() {
        case .loaded(let response):
            loaded = response
            // The freshest may not have answered.
            if let best = worker?.statistics[.committedEpoch], let epoch = response.epoch, best > epoch { lost += best - epoch }
        case .outcome(let outcome): return outcome
        }
        let verdict = takeVerdict(waitMs: nil)
        if let ended = endedOnPurpose(verdict) { return ended }
        guard case .crashed = verdict else { return .ended("by request, after QEMU died") }
        Log.warning("\(domain.name): QEMU died; failing over to \(peer.name) at epoch \(loaded.epoch ?? 0), \(lost) captured epochs lost")
        let outcome: CommitOutcome
        do { outcome = try commitAndRun() } catch {
            // The order did not get there: another shadow may have it.
            uncommit()
            throw error
        }
        switch outcome {
        case .running:
            Log.info("\(domain.name): runs on \(peer.name), \(Int(MonotonicTime.now.milliseconds(since: died))) ms after QEMU's end was noticed")
            board.reporter?.noteHandover(["epoch": "\(loaded.epoch ?? 0)", "epochs_lost": "\(lost)",
                                          "since_death_ms": "\(Int(MonotonicTime.now.milliseconds(since: died)))"])
            finishHandover()
            return .handedOver
        case .inDoubt:
            return resolveDoubt()
        }
    }

    /// An administrator has made another shadow the guest while we wanted to (`claim`).
    private func takenOverByHand() -> Outcome? {
        guard let slot = claimant.read({ $0 }).flatMap({ self.slot($0) }) else { return nil }
        let answer = try? slot.client.ask(PeerRequest(.query, host: environment.hostName, session: slot.session, uuid: domain.uuid))
        guard answer?.phase == .running else { return nil }
        aim(at: slot)
        finishHandover()
        return .handedOver
    }

    /// Disks on shared storage went on after the last epoch, so the guest's memory must not be set back against them.
    private func failoverWithoutMemory(_ shared: String) throws -> Outcome {
        let verdict = takeVerdict(waitMs: nil)
        if let ended = endedOnPurpose(verdict) { return ended }
        guard case .crashed = verdict else { return .ended("by request, after QEMU died") }
        guard record.onFailure == .restart else {
            Log.error("\(domain.name): QEMU died. Its disks \(shared) are on shared storage, so nothing is resumed from the shadow: start it anew with `virsh start \(domain.name)`")
            return .ended("QEMU died, and disks on shared storage (\(shared)) forbid to resume its memory")
        }
        while true {
            do {
                board.set(.swapping, "QEMU died; booting the guest cold on \(peer.name)", cause: .failover)
                let persistent = persistentDefinition()
                guard claim(peer.name) else { throw ControlFailure("\(claimant.read { $0 } ?? "") takes the guest over by its administrator's order") }
                record.phase = .committing
                try environment.records.write(record)
                _ = try client.ask(PeerRequest(.restart, host: environment.hostName, session: record.session, uuid: domain.uuid, domain: domain.name,
                                               xml: persistent?.xml, autostart: persistent?.autostart), timeoutMs: 30_000)
                Log.info("\(domain.name): boots cold on \(peer.name)")
                finishHandover()
                return .handedOver
            } catch let error as PeerUnreachable {
                // Asked again it says that the guest runs, or boots it.
                board.set(.degraded, "QEMU died, and \(peer.name) cannot boot the guest: \(error)")
            } catch let failure as ControlFailure {
                uncommit()
                Log.error("\(domain.name): QEMU died, and \(peer.name) did not boot the guest: \(failure)")
                return .ended("QEMU died, and \(peer.name) did not boot the guest: \(failure)")
            }
            if takeUnprotect(waitMs: 500) {
                uncommit()
                return .ended("by request, after QEMU died")
            }
        }
    }

    private func qemuIsGone(waitMs: Double) -> Bool {
        if let watch = processWatch?.raw {
            let ready = (try? wait(watch, for: .readable, until: MonotonicTime.now.adding(milliseconds: waitMs))) ?? []
            return !ready.isEmpty
        }
        // No process was watched: it ended between two attempts. Libvirt forgets a QEMU only after it is gone.
        return (try? domain.handle().isActive()) == false
    }

    /// Lets the worker deliver what it holds. Returns the epochs that were captured and did not arrive.
    private func drain() -> UInt64 {
        guard let worker else { return 0 }
        guard !isPeriodic else { return drainPass(worker) }
        let generation = currentGeneration
        let drained: Bool? = select(until: MonotonicTime.now.adding(milliseconds: Double(environment.configuration.peerTimeoutMs))) { event in
            switch event {
            case .worker(let event, generation) where event.kind == .drained: true
            case .worker(let event, generation) where event.kind == .sessionLost || event.kind == .failed: false
            case .workerEnded(_, generation): false
            default: nil
            }
        }
        let statistics = worker.statistics
        return drained == true ? 0 : statistics[.epoch] - min(statistics[.epoch], statistics[.committedEpoch])
    }

    /// A pass that was read and found sound still becomes an epoch; one that QEMU was in the middle of does not.
    private func drainPass(_ worker: WorkerProcess) -> UInt64 {
        let limit = MonotonicTime.now.adding(milliseconds: Double(environment.configuration.peerTimeoutMs))
        let statistics = worker.statistics
        while statistics[.epoch] > statistics[.committedEpoch], statistics[.linkUp] == 1, !worker.hasEnded, limit > .now { usleep(1000) }
        return statistics[.epoch] - min(statistics[.epoch], statistics[.committedEpoch])
    }

    /// Why the guest ended, by libvirt's word.
    private enum Verdict {
        case crashed
        case onPurpose(String)
        /// An administrator wants no more of it.
        case givenUp
    }

    private func endedOnPurpose(_ verdict: Verdict?) -> Outcome? {
        guard case .onPurpose(let how) = verdict else { return nil }
        return .ended("the guest ended (\(how))")
    }

    /// Libvirt's verdict: from its event or, when that was missed, from the domain's state. `waitMs` nil: for as long as it takes.
    private func takeVerdict(waitMs: Double?) -> Verdict? {
        let deadline = waitMs.map { MonotonicTime.now.adding(milliseconds: $0) }
        while true {
            if stopDetail == nil {
                stopDetail = select(until: min(deadline ?? .now.adding(milliseconds: 1000), .now.adding(milliseconds: 1000))) { event in
                    if case .lifecycle(.stopped(let detail)) = event { detail } else { nil }
                }
            }
            if let stopDetail { return stopDetail == .failed ? .crashed : .onPurpose("\(stopDetail)") }
            if let deadline {
                if deadline <= .now { return nil }
                continue
            }
            if let verdict = verdictFromState() { return verdict }
            board.set(.degraded, "QEMU died, and libvirt does not say why; the shadow on \(peer.name) waits. "
                + "`shadow-virt failover \(domain.name)` there starts it")
            if takeUnprotect(waitMs: 500) { return .givenUp }
        }
    }

    private func verdictFromState() -> Verdict? {
        guard let (state, reason) = try? domain.handle().state(), state == .shutoff else { return nil }
        switch ShutoffReason(rawValue: reason) {
        // `daemon`: libvirtd found QEMU dead when it came back.
        case .crashed, .failed, .daemon: return .crashed
        case .unknown: return nil
        default: return .onPurpose(state.describe(reason: reason))
        }
    }

    private func takeUnprotect(waitMs: Double) -> Bool {
        let unprotect: Reply<Void>? = select(until: MonotonicTime.now.adding(milliseconds: waitMs)) { event in
            if case .unprotect(let reply) = event { reply } else { nil }
        }
        guard let unprotect else { return false }
        pendingUnprotect = unprotect
        return true
    }

    private enum Load { case loaded(PeerResponse), outcome(Outcome) }

    /// The guest is dead here, so giving up would lose it: of several shadows the freshest that answers, and when none does they are asked
    /// until one answers. A loaded one stays paused; who runs is decided by the commit.
    private func loadHoweverLongItTakes() throws -> Load {
        var candidates = slotsByFreshness
        while true {
            for slot in candidates {
                aim(at: slot)
                do {
                    return .loaded(try client.ask(PeerRequest(.load, host: environment.hostName, session: record.session, uuid: domain.uuid), timeoutMs: 15_000))
                } catch let error as PeerUnreachable {
                    board.set(.degraded, "QEMU died, and the shadow cannot take over: \(error)")
                } catch let failure as ControlFailure {
                    candidates.removeAll { $0 === slot }
                    if let ended = endedOnPurpose(takeVerdict(waitMs: candidates.isEmpty ? 2000 : 0)) { return .outcome(ended) }
                    guard candidates.isEmpty else {
                        Log.error("\(domain.name): QEMU died, and the shadow on \(peer.name) cannot take over: \(failure)")
                        continue
                    }
                    Log.error("\(domain.name): QEMU died, and there is no shadow to take over: \(failure)")
                    return .outcome(.ended("QEMU died, and there is no shadow to take over: \(failure)"))
                }
            }
            if let ended = endedOnPurpose(takeVerdict(waitMs: 500)) { return .outcome(ended) }
            if takeUnprotect(waitMs: 500) { return .outcome(.ended("by request, after QEMU died")) }
        }
    }
}
