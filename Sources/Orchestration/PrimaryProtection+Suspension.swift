import Glibc
import Libvirt
import Platform
import Replication

/// Suspension by the user: it holds though it meets an epoch, whose end would undo it.
extension PrimaryProtection {
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

    /// Saves come through inotify on a thread of its own; those of a suspension that is over, our own repetition included, may
    /// still be on their way for this long. A suspend by the user in that time, if it meets an epoch, is missed: better than a
    /// guest that stands still although its user resumed it.
    private static let settleMilliseconds = 300.0
    /// A suspend is repeated at once or not at all.
    private static let repeatMilliseconds = 250.0

    /// QEMU stopped the guest. Epochs do that, too; what lies outside an epoch's window is somebody else's stop.
    func stopped(at moment: UInt64) {
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
    func suspendNoted(_ evidence: SuspendWatch.Evidence) {
        guard let worker, board.state != .syncing, evidence.save > savesSettled,
              MonotonicTime.now.milliseconds(since: settledAt) > Self.settleMilliseconds else { return }
        if suspension == nil {
            suspension = Suspension(at: SharedStatistics.realtimeNanoseconds, isInsideEpoch: true)
            worker.order(WorkerCommand(.suspend))
        }
        if suspension?.evidence == nil { suspension?.evidence = evidence }
    }

    func resumed(at moment: UInt64) {
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
    func confirmSuspension() throws {
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
}
