import ControlProtocol
import Libvirt
import Platform
import Replication

/// A swap with the engine `periodic`: one more pass, as a live migration, that ends with the guest stopped, and is handed over from there.
///
///     migrate into the worker, the guest runs     any failure: cancelled, it never stopped
///     pre-switchover: it stands still             take the last disk writes, end the mirrors
///     migrate-continue: the last pages, devices   any failure: it runs on here
///     sealed, committed                           then as every swap: load, commit, run
///
/// Only what changed since the last pass crosses the wire.
extension PrimaryProtection {
    /// A guest that changes its memory faster than it is copied never gets there.
    private static let convergenceMs = 120_000.0
    /// The guest stands still meanwhile. The rest is at most what QEMU's downtime limit lets it be.
    private var lastPagesMs: Double { Double(environment.configuration.peerTimeoutMs) }

    func swapByPass(_ reply: Reply<HandoverReport>, _ worker: WorkerProcess) -> Outcome? {
        var mirrorsEnded = false
        defer { swapStep.change { $0 = nil } }
        do {
            try beginPass(.migration)
            guard passes.run != nil else { throw ControlFailure("The guest is suspended", advice: "Resume it first") }
            try awaitPass(milliseconds: Self.convergenceMs, "The guest changes its memory faster than it can be copied") { $0.migration == "pre-switchover" }
            board.set(.swapping)
            mirrorsEnded = true
            try endDisks(worker)
            try domain.monitor(MigrateContinue())
            try awaitPass(milliseconds: lastPagesMs, "QEMU did not send the guest's last pages") { $0.migration == "completed" && $0.isWhole != nil }
            guard let run = passes.run, run.isWhole == true else { throw ControlFailure("The last pass was not whole") }
            let process = try HeldProcess(domain, expected: "postmigrate", disks: nil)
            do {
                let committed = try seal(run, worker)
                passes.heldSince = run.stoppedAt
                passes.run = nil
                return handOver(reply, worker, epoch: committed.epoch, stoppedAt: committed.stoppedAt)
            } catch {
                process.letGo()
                throw error
            }
        } catch {
            undo(error)
            reply.give(.failure(ControlFailure("\(domain.name) could not be swapped: \(error)", advice: "It runs on here; try again")))
            // Without its mirrors the session is over; otherwise passes go on.
            return mirrorsEnded ? .retry("A swap failed: \(error)") : nil
        }
    }

    private func undo(_ error: any Error) {
        Log.warning("\(domain.name): a swap came to nothing: \(error)")
        worker?.order(WorkerCommand(.dropPass))
        guard passes.run != nil else { return }
        _ = try? domain.monitor(MigrateCancel())
        do {
            _ = try passControl.awaitEnd(milliseconds: lastPagesMs)
            try passControl.letRun()
            try passControl.end()
        } catch {
            Log.error("\(domain.name): \(error)")
        }
        passes.run = nil
        passes.schedule.hurry()
    }

    /// Takes events until `isThere`, or QEMU or the worker gives up.
    private func awaitPass(milliseconds: Double, _ late: String, isThere: (PassRun) -> Bool) throws {
        let deadline = MonotonicTime.now.adding(milliseconds: milliseconds)
        let generation = currentGeneration
        while let run = passes.run {
            if isThere(run) { return }
            guard run.migration != "failed", run.migration != "cancelled" else {
                throw ControlFailure((try? domain.monitor(QueryMigrate()).errorDescription) ?? "QEMU ended the migration")
            }
            guard deadline > .now else { throw ControlFailure(late) }
            if run.stoppedAt == nil, let ram = try? domain.monitor(QueryMigrate()).ram {
                swapStep.change { $0 = "\(ram.remaining >> 20) of \(ram.total >> 20) MiB to be looked at" }
            }
            let failure: String?? = select(until: min(deadline, MonotonicTime.now.adding(milliseconds: 1000))) { event in
                switch event {
                case .migration(let status): passes.run?.migration(status)
                case .stopped(let moment): passes.run?.stopped(moment)
                case .worker(let event, generation) where event.kind == .passRead: passes.run?.isWhole = event.isWhole ?? false
                case .worker(let event, generation) where [.passFailed, .sessionLost, .failed].contains(event.kind) && concernsTarget(event):
                    return .some(event.reason ?? "The source worker gave up")
                case .workerEnded(let status, generation): return .some("The source worker ended (\(status))")
                case .lifecycle(.stopped(let detail)):
                    stopDetail = detail
                    return .some("The guest ended (\(detail))")
                default: return nil
                }
                return .some(nil)
            }
            if case .some(.some(let reason)) = failure { throw ControlFailure(reason) }
        }
        throw ControlFailure("The pass is over")
    }

    /// What becomes of another shadow meanwhile is looked at later.
    private func concernsTarget(_ event: WorkerEvent) -> Bool { event.peer.map { $0 == target.read { $0.index } } ?? true }

    /// Nothing writes to the disks any more: what the mirrors brought is the epoch's, and they end, for QEMU to give the disks up.
    private func endDisks(_ worker: WorkerProcess) throws {
        guard let disks = currentDisks.read({ $0 }) else { return }
        guard try disks.areReady() else { throw ControlFailure("A disk's mirror is not ready") }
        // Their end is our own doing from here on.
        disks.settle()
        worker.order(WorkerCommand(.cutDisks))
        let generation = currentGeneration
        let cut: Bool? = select(until: MonotonicTime.now.adding(milliseconds: 5000)) { event in
            switch event {
            case .worker(let event, generation) where event.kind == .disksCut: true
            case .worker(let event, generation) where event.kind == .failed: false
            case .workerEnded(_, generation): false
            default: nil
            }
        }
        guard cut == true else { throw ControlFailure("The last writes to the guest's disks could not be taken") }
        disks.end()
    }

    private func seal(_ run: PassRun, _ worker: WorkerProcess) throws -> (epoch: UInt64, stoppedAt: MonotonicTime) {
        let stoppedAt = run.stoppedAt ?? SharedStatistics.realtimeNanoseconds
        worker.order(WorkerCommand(.seal, stoppedAt: stoppedAt))
        let generation = currentGeneration
        let end: WorkerEvent? = select(until: MonotonicTime.now.adding(milliseconds: lastPagesMs)) { event in
            switch event {
            case .worker(let event, generation) where [.passCommitted, .passFailed, .sessionLost, .failed].contains(event.kind) && concernsTarget(event): event
            case .workerEnded(let status, generation): WorkerEvent(.failed, reason: "The source worker ended (\(status))")
            default: nil
            }
        }
        guard let end, end.kind == .passCommitted, let epoch = end.epoch else {
            throw ControlFailure(end?.reason ?? "\(peer.name) did not commit the last pass in time")
        }
        return (epoch, MonotonicTime(nanoseconds: end.at ?? MonotonicTime.now.nanoseconds))
    }
}
