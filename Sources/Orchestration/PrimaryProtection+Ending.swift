import Glibc
import Libvirt
import Platform
import Replication

/// The end of an attempt, or of the protection.
extension PrimaryProtection {
    /// A worker without a beat for so long, eight of them, was stopped, or the host is past help. The guest may stand still meanwhile.
    private static let longestBreathMilliseconds = 2000.0
    /// An epoch that is under way is over in a few milliseconds, the first one in some hundred.
    private static let endOfStreamMilliseconds = 2000.0

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
    func endSilentWorker() -> Bool {
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
}
