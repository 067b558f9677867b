import Glibc
import Platform

/// Several shadows of one capture.
extension SourceWorker {
    /// How much of the captures' memory may be in use for another epoch to begin. With several shadows the slow ones give way first
    /// (`cutOffLaggards`), so that none of them keeps the others' epochs from beginning.
    var roomBytes: Int { options.ceilingBytes / 4 * (followers.count == 1 ? 2 : 3) }

    func startFollowers() {
        for follower in followers {
            let shipper = Shipper(worker: self, follower: follower)
            startThread("shipper") { shipper.run() }
            // One that commits every Nth epoch holds as many meanwhile.
            guard options.engine == .continuous, followers.count > 1 || follower.target.multiple > 1 else { continue }
            startThread("compact") { [self] in
                while !follower.keepCompact() {
                    // The one that all the others lag behind makes the capture wait instead.
                    if isBehind(follower) { return lost(follower, "It lags too far behind: \(follower.backlog.counts.unsent) epochs wait for it") }
                    usleep(50_000)
                }
            }
        }
    }

    /// Gives an epoch, or a piece of one, to every shadow.
    func pass(on epoch: CapturedEpoch) {
        let living = followers.filter { !$0.isLost }
        // Before the first of them has it, which may begin to work on it at once.
        let twins = living.dropFirst().map { _ in epoch.share() }
        living.first?.backlog.append(epoch)
        for (follower, twin) in zip(living.dropFirst(), twins) { follower.backlog.append(twin) }
    }

    // MARK: Lag

    /// How far the capture is ahead of the shadow that follows best; every shadow's figures are noted on the way.
    /// - holding: the shadow that is to take the guest over, which must not wait for its multiple; `hurried`: none is to.
    func load(holding: Int?, hurried: Bool) -> (lag: Int, follower: Follower?) {
        var best: (lag: Int, follower: Follower)?
        for follower in followers where !follower.isLost {
            follower.noteHeld()
            follower.backlog.hurry(hurried || holding == follower.index)
            // One that is not connected leads only when none is.
            let lag = follower.backlog.lag + (follower[.linkUp] == 1 ? 0 : 1 << 20)
            if best.map({ lag < $0.lag }) ?? true { best = (lag, follower) }
        }
        guard let best else { return (0, nil) }
        return (best.follower.backlog.lag, best.follower)
    }

    /// Whether another shadow follows better.
    func isBehind(_ follower: Follower) -> Bool {
        followers.contains { $0 !== follower && !$0.isLost && $0[.linkUp] == 1 && $0.backlog.lag < max(1, follower.backlog.lag) }
    }

    /// A shadow that keeps half of the captures' memory, while others need it no more, is given up; its host gets it anew later.
    func cutOffLaggards() {
        guard followers.count > 1 else { return }
        for follower in followers where !follower.isLost && follower.backlog.held.captured > options.ceilingBytes / 2 && isBehind(follower) {
            lost(follower, "It lags too far behind: \(options.ceilingBytes >> 21) MiB wait for it (unsent_ceiling_mib)")
        }
    }

    // MARK: Commits and ends

    /// A shadow holds this epoch. What the guest as a whole has is what the best of them has.
    func committed(_ epoch: UInt64, capturedAt: UInt64, at now: UInt64) {
        if statistics.raise(.committedEpoch, to: epoch) {
            statistics[.lastCommitCaptured] = capturedAt
            statistics[.lastCommitAt] = now
        }
        noteCommit()
    }

    func setLink(_ follower: Follower, up: Bool) {
        follower[.linkUp] = up ? 1 : 0
        statistics[.linkUp] = followers.contains { $0[.linkUp] == 1 } ? 1 : 0
    }

    /// This shadow cannot go on. The others do.
    func lost(_ follower: Follower, _ reason: String) {
        guard follower.lose() else { return }
        giveUp(follower, reason)
        tell(WorkerEvent(.sessionLost, reason: reason, peer: follower.index))
    }

    /// By order.
    func drop(_ follower: Follower) {
        guard follower.lose() else { return }
        giveUp(follower, "The shadow was taken away")
        follower.close()
    }

    private func giveUp(_ follower: Follower, _ reason: String) {
        setLink(follower, up: false)
        guard !followers.allSatisfy(\.isLost) else {
            // The guest must not wait for room, and the mirrors end when the epochs have.
            disks?.abandon(reason)
            return
        }
        follower.close()
        if disks?.drop(follower.index) == true { tell(WorkerEvent(.disksPrepared)) }
    }
}
