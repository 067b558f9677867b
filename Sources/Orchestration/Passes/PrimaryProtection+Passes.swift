import ControlProtocol
import Glibc
import Libvirt
import Platform
import Replication

/// The engine `periodic`, on the protection's thread: one pass at a time, none while the guest is suspended.
///
///     idle --due--> run: QEMU sends, the worker reads --both say it is over--> sealed --committed--> idle
///                        |                               |
///                        '------ failed, not whole ------'--> idle, due again soon
extension PrimaryProtection {
    /// The engine's own state within one attempt.
    struct Passes {
        var run: PassRun?
        var schedule = PassSchedule()
        /// The worker was told to make an epoch of the pass.
        var isSealed = false
        /// Its user suspended the guest.
        var isSuspended = false
        /// Libvirt works on the guest.
        var isStandingBack = false
        /// A swap that waits for the pass under way, to the shadow on that host; nil: the freshest.
        var swap: (reply: Reply<HandoverReport>, host: String?)?
        /// The host of an absent shadow that answers again, and waits for the end of the pass under way.
        var newcomer: String?
        var mayBegin = false
        /// The shadows of which is known what they hold of an earlier session, by their place: a pass cannot wait for that once it is under way.
        var known: Set<Int> = []
        var knownSince: MonotonicTime?
        /// Since then the guest stands still for a swap; nanoseconds on the realtime clock.
        var heldSince: UInt64?
    }

    /// QEMU and the worker say that a pass is over at almost the same time; events may lag behind on a busy host.
    private static let eventsMs = 5000.0
    /// A pass may hold up a quarter of the memory for disk writes: the next ones come while it is under way.
    private static let diskShare: UInt64 = 4

    /// One shadow does not wait for longer for what another has to tell; that one joins a later pass.
    private static let knowledgeMs = 10_000.0

    /// `protect` gives up after so many first passes that came to nothing.
    private static let mostFirstFailures = 3

    var passControl: PassControl { PassControl(domain: domain) }
    var isPeriodic: Bool { record.engine == .periodic }

    /// About once a second, and after every event.
    func advancePasses() throws -> Outcome? {
        guard mayBeginPasses, let worker else { return nil }
        if passes.run != nil {
            endWaitOfSwap()
            return try advanceRun()
        }
        if let (reply, host) = passes.swap {
            passes.swap = nil
            return swap(reply, to: host)
        }
        if let host = passes.newcomer {
            passes.newcomer = nil
            if let outcome = takeIn(host) { return outcome }
        }
        guard mayTakePass(worker) else { return nil }
        if worker.statistics[.diskOpenBytes] > UInt64(environment.configuration.unsentCeilingBytes) / Self.diskShare { passes.schedule.hurry() }
        guard passes.schedule.nextAt <= .now else { return nil }
        do {
            try beginPass(.snapshot)
        } catch {
            if hasQEMUEnded() { return hasEpoch ? try failover() : .retry("\(error)") }
            passFailed("\(error)")
        }
        return nil
    }

    /// A swap does not wait for a shadow that takes nothing of a pass which is over, nor for one that never is.
    private func endWaitOfSwap() {
        guard let (reply, _) = passes.swap, let run = passes.run else { return }
        let isLate = run.readAt.map { MonotonicTime.now.milliseconds(since: $0) > Self.eventsMs + Double(environment.configuration.peerTimeoutMs) }
        guard isLate ?? (MonotonicTime.now.milliseconds(since: run.begunAt) > Self.longestPassMs) else { return }
        passes.swap = nil
        swapStep.change { $0 = nil }
        reply.give(.failure(ControlFailure("\(peerName) did not take the pass that is under way", advice: "The guest runs on here; see `shadow-virt status \(domain.name)`")))
    }

    /// What the shadows hold already is known, of all of them or of some for long.
    private var mayBeginPasses: Bool {
        guard passes.mayBegin, let since = passes.knownSince else { return false }
        return slots.allSatisfy { $0.index.map(passes.known.contains) ?? true } || MonotonicTime.now.milliseconds(since: since) > Self.knowledgeMs
    }

    func noteMemory(of shadow: Int?) {
        passes.known.insert(shadow ?? 0)
        passes.knownSince = passes.knownSince ?? .now
    }

    /// Nobody is to be asked, and a shadow can be reached; before the first epoch the worker is connected by the pass itself.
    private func mayTakePass(_ worker: WorkerProcess) -> Bool {
        guard !passes.isSuspended, !passes.isStandingBack, !libvirtAway else { return false }
        // A pass that nobody can take would cost the guest something for nothing.
        return slots.compactMap(\.index).contains { index in
            let statistics = worker.statistics
            return statistics[index, .committedEpoch] == 0 || (statistics[index, .linkUp] == 1 && statistics[index, .unsentEpochs] == 0)
        }
    }

    /// A shadow of this attempt holds an epoch.
    private var hasEpoch: Bool { (worker?.statistics[.committedEpoch] ?? 0) > 0 }

    /// When `advancePasses` has something to do; nil: not before an event.
    var nextPassAt: MonotonicTime? {
        guard isPeriodic, mayBeginPasses, passes.run == nil, let worker, mayTakePass(worker) else { return nil }
        return passes.schedule.nextAt
    }

    func beginPass(_ kind: PassKind) throws {
        guard try domain.monitor(QueryStatus()).running else {
            passes.isSuspended = true
            board.set(.suspended, "The guest is suspended; the shadow holds its last epoch")
            return
        }
        passes.run = PassRun(kind)
        passes.isSealed = false
        // The others get nothing of a swap: they follow from the guest's new host.
        worker?.order(WorkerCommand(.takePass, pass: kind, peer: kind == .migration ? target.read { $0.index } : nil))
        do {
            try passControl.start(kind, path: streamPath)
        } catch {
            worker?.order(WorkerCommand(.cancelPass))
            passes.run = nil
            throw error
        }
    }

    // MARK: The run

    private func advanceRun() throws -> Outcome? {
        guard let run = passes.run, run.kind == .snapshot, !passes.isSealed, let isWhole = run.isWhole, let readAt = run.readAt else { return nil }
        let isLate = MonotonicTime.now.milliseconds(since: readAt) > Self.eventsMs
        guard run.isOverInQEMU || isLate else { return nil }
        passes.isSealed = true
        if isWhole, run.migration == "completed", let stoppedAt = run.stoppedAt, let resumedAt = run.resumedAt {
            worker?.order(WorkerCommand(.seal, stoppedAt: stoppedAt, resumedAt: resumedAt))
        } else {
            worker?.order(WorkerCommand(.dropPass))
        }
        return nil
    }

    func handlePass(_ event: WorkerEvent) throws {
        switch event.kind {
        case .passRead:
            passes.run?.isWhole = event.isWhole ?? false
            passes.run?.readAt = .now
        case .passCommitted:
            guard let run = passes.run else { return }
            try endRun()
            passes.schedule.committed(run, intervalMs: orderedIntervalMs)
            // One of several shadows has a part of its first copy only.
            if event.isWhole == false { passes.schedule.hurry() }
            showShadows()
        case .passFailed:
            let run = passes.run
            try endRun()
            if run?.isWhole == false, run?.migration == "completed" {
                passes.schedule.wasPartial()
                notePartial()
            } else {
                passFailed(event.reason ?? "no reason given")
            }
        default: break
        }
    }

    /// What a partial pass means depends on whether there is an epoch already.
    private func notePartial() {
        // The first copy of a guest with much memory comes in parts.
        guard hasEpoch, passes.schedule.partial >= 3 else { return }
        board.set(.degraded, "The guest changes more memory between two passes than \(peer.name) takes meanwhile: \(passes.schedule.partial) passes in a row were not whole. "
            + "Raise unsent_ceiling_mib (\(environment.configuration.unsentCeilingBytes >> 20)) or give the hosts a faster network")
    }

    private func passFailed(_ reason: String) {
        passes.schedule.failed(intervalMs: orderedIntervalMs)
        Log.warning("\(domain.name): a pass came to nothing: \(reason)")
        if passes.schedule.failures > 1 || !wasEverProtected {
            // Before that it may have been chance.
            if !wasEverProtected, passes.schedule.failures >= Self.mostFirstFailures { firstFailure.change { $0 = $0 ?? reason } }
            if !passes.isSuspended { board.set(wasEverProtected ? .degraded : .syncing, "A pass came to nothing: \(reason)") }
        }
    }

    /// QEMU is as before the pass, and the guest as its user wants it.
    private func endRun() throws {
        guard let run = passes.run else { return }
        passes.run = nil
        guard try passControl.awaitEnd(milliseconds: Self.eventsMs) != nil else { throw ControlFailure("QEMU does not end a pass of \(domain.name)") }
        try passControl.end()
        if run.wasSuspended, run.resumedAt != nil {
            // QEMU lets the guest run after its snapshot, whatever it was before.
            Log.info("\(domain.name): a suspend met the beginning of a pass, which undid it; suspending again")
            try domain.handle().suspend()
        } else if run.resumedAt == nil {
            try passControl.letRun()
        }
    }

    // MARK: Events

    func passStopped(at moment: UInt64) {
        if passes.run != nil, passes.run?.stoppedAt == nil {
            passes.run?.stopped(moment)
            if passes.run?.wasSuspended != true { return }
        }
        passes.isSuspended = true
        if board.state != .syncing { board.set(.suspended, "The guest is suspended; the shadow holds its last epoch") }
    }

    func passResumed(at moment: UInt64) {
        if passes.run != nil, passes.run?.resumedAt == nil, passes.run?.stoppedAt != nil { return passes.run?.resumed(moment) ?? () }
        passes.run?.resumed(moment)
        guard passes.isSuspended else { return }
        passes.isSuspended = false
        if board.state == .suspended {
            board.set(.protected)
            showShadows()
        }
    }

    func passMigration(_ status: String) { passes.run?.migration(status) }

    // MARK: Ending

    /// Leaves the guest running and QEMU as it was, whatever a pass is at. Safe to repeat.
    func endPasses(restoring parameters: [String: UInt64]) {
        passes.mayBegin = false
        if let (reply, _) = passes.swap {
            passes.swap = nil
            reply.give(.failure(ControlFailure("The protection of \(domain.name) ended before the swap", advice: "It runs on here; see `shadow-virt status`")))
        }
        guard (try? domain.handle().isActive()) == true else { return }
        do {
            // The worker read its pass to the end before it ended, or the connection's second holder does; but one that was killed before
            // it had a connection leaves a pass that nobody reads.
            let releaser = passes.run?.kind == .snapshot ? MemoryReleaser(domain) : nil
            defer { releaser?.stop() }
            if passes.run?.kind == .migration { _ = try? domain.monitor(MigrateCancel()) }
            guard try passControl.awaitEnd(milliseconds: Self.longestPassMs) != nil else { throw ControlFailure("A pass does not end") }
            if passes.run != nil { try passControl.letRun() }
            passes.run = nil
            try passControl.end(restoring: parameters)
        } catch {
            Log.warning("\(domain.name): QEMU could not be put back as it was: \(error)")
        }
    }

    /// 64 GiB at the speed at which QEMU sends to a local socket.
    static let longestPassMs = 120_000.0
}
