import Configuration
import ControlProtocol
import Foundation
import Platform
import Replication

/// One of a guest's shadows, as its primary sees it. All of them are fed from one capture; each comes and goes by itself.
///
///     absent --prepare--> in: syncing --first commit--> protected <--link--> degraded
///        ^                              |                                       |
///        '---- the session is lost -----'---------------------------------------'      and is tried again after a while
final class ShadowSlot: @unchecked Sendable {
    let peer: Peer
    let client: PeerClient
    let board: StatusBoard
    private let state: Guarded<State>

    private struct State {
        var session: UUID
        /// The last one that its host is known to have begun.
        var former: UUID?
        var multiple: Int
        /// Its place among the source worker's shadows; nil: it is not part of the present capture.
        var index: Int?
        /// The last epoch known to be committed there, of the present or the last capture.
        var committed: UInt64 = 0
        var failures = 0
        var nextTry = MonotonicTime(nanoseconds: 0)
        var followsSince: MonotonicTime?
        var isLooking = false
        var failedAt = MonotonicTime(nanoseconds: 0)
        /// Its host did not answer.
        var isAway = false
        /// It does not follow since then; nil: it does, or its first copy was never cut off.
        var lackingSince: MonotonicTime?
        /// Another one has its place.
        var isReplaced = false
    }

    /// Between two attempts to bring back one that was lost: each costs a new first copy.
    private static let firstPauseMs = 5000.0
    private static let longestPauseMs = 600_000.0
    /// One that followed for so long was all right. Shorter, and a line that is too slow for the guest would cost everybody a first copy again and again.
    private static let steadyMs = 600_000.0

    init(_ entry: ShadowEntry, peer: Peer, environment: HostEnvironment, state: ProtectionState = .syncing) {
        self.peer = peer
        client = environment.client(of: peer)
        // What happens to it is said with the domain's own state.
        board = StatusBoard(state, label: "")
        self.state = Guarded(State(session: entry.session, former: entry.former ?? entry.session, multiple: entry.multiple, isReplaced: entry.isReplaced ?? false))
    }

    var session: UUID { state.read { $0.session } }
    var multiple: Int { state.read { $0.multiple } }
    var index: Int? { state.read { $0.index } }
    var isIn: Bool { index != nil }
    var committed: UInt64 { state.read { $0.committed } }
    /// The session before the present one, while nothing is known to have begun there since; nil otherwise.
    var former: UUID? { state.read { $0.former == $0.session ? nil : $0.former } }
    var entry: ShadowEntry { ShadowEntry(peer: peer.name, session: session, multiple: multiple, former: former, isReplaced: isReplaced ? true : nil) }
    var follows: Bool { isIn && board.state == .protected }

    func begin(_ session: UUID) {
        state.change { state in
            (state.session, state.index, state.committed, state.followsSince) = (session, nil, 0, nil)
        }
    }

    /// The present session goes by this name: its host has answered to it.
    func takeBack(_ session: UUID) { state.change { ($0.session, $0.isAway) = (session, false) } }

    func enter(_ index: Int) {
        state.change { ($0.index, $0.isAway, $0.former) = (index, false, $0.session) }
        board.set(.syncing)
    }

    /// The capture is over, or goes on without it.
    func leave() { state.change { $0.index = nil } }

    func noteCommitted(_ epoch: UInt64) { state.change { $0.committed = max($0.committed, epoch) } }

    func noteFollowing() {
        state.change { ($0.followsSince, $0.lackingSince) = ($0.followsSince ?? .now, nil) }
        board.set(.protected)
    }

    /// It is out of the capture, and is tried again later. `isAway`: its host did not answer.
    func failed(_ reason: String, isAway: Bool = false) {
        board.set(.degraded, reason)
        state.change { state in
            state.index = nil
            state.isAway = isAway
            state.failedAt = .now
            state.lackingSince = state.lackingSince ?? .now
            if let since = state.followsSince, MonotonicTime.now.milliseconds(since: since) > Self.steadyMs { state.failures = 0 }
            state.followsSince = nil
            state.nextTry = MonotonicTime.now.adding(milliseconds: min(Self.longestPauseMs, Self.firstPauseMs * pow(2, Double(min(state.failures, 8)))))
            state.failures += 1
        }
    }

    func hasFailed(since begin: MonotonicTime) -> Bool { state.read { $0.failedAt > begin } }

    /// It is worth asking something now.
    var isWorthAsking: Bool { state.read { !$0.isAway || $0.nextTry <= .now } }

    var isDue: Bool { state.read { $0.nextTry <= .now && !$0.isReplaced } }

    // MARK: Lost for good

    /// The connection to it broke; it may come back by itself.
    func noteLinkLost() { state.change { $0.lackingSince = $0.lackingSince ?? .now } }

    /// It has not followed for so long, and no copy to it is under way. Nil: it is waited for as long as it takes.
    func isLost(afterMs limit: Double?) -> Bool {
        guard let limit, let since = state.read({ $0.lackingSince }), MonotonicTime.now.milliseconds(since: since) > limit else { return false }
        return !isIn || board.state == .degraded
    }

    /// Another one was begun in its place: it does not take part any more, and goes when its host answers.
    var isReplaced: Bool { state.read { $0.isReplaced } }
    func setReplaced(_ isReplaced: Bool) { state.change { $0.isReplaced = isReplaced } }


    /// Calls `found` on a thread of its own when an absent one's host answers again. Over a connection of its own: nobody waits for it.
    func lookAgain(_ environment: HostEnvironment, uuid: String, found: @escaping @Sendable () -> Void) {
        let mayLook = state.change { state in
            guard state.index == nil, state.nextTry <= .now, !state.isLooking else { return false }
            state.isLooking = true
            return true
        }
        guard mayLook else { return }
        startThread("shadow-look") { [self] in
            let answer = try? environment.client(of: peer).ask(PeerRequest(.query, host: environment.hostName, session: session, uuid: uuid))
            state.change { state in
                state.isLooking = false
                // The attempt that follows has to find it due.
                state.nextTry = answer == nil ? MonotonicTime.now.adding(milliseconds: Self.firstPauseMs) : MonotonicTime(nanoseconds: 0)
            }
            if answer != nil { found() }
        }
    }

    /// For `status`. `statistics`: of the source worker.
    func status(_ statistics: SharedStatistics?, domain: DomainStatus) -> ShadowStatus {
        let now = board.current
        var status = ShadowStatus(peer: peer.name, state: now.state, reason: now.reason, since: now.since, multiple: multiple)
        guard let statistics, let index else {
            status.committedEpoch = committed
            return status
        }
        func age(_ field: SharedStatistics.PeerField) -> Double? {
            let moment = statistics[index, field]
            return moment > 0 ? MonotonicTime.now.milliseconds(since: MonotonicTime(nanoseconds: moment)) : nil
        }
        status.committedEpoch = statistics[index, .committedEpoch]
        status.lagEpochs = domain.epoch - min(domain.epoch, status.committedEpoch)
        status.lagBytes = status.lagEpochs > 0 ? statistics[index, .heldBytes] : 0
        status.lastCommitAgeMs = age(.lastCommitAt)
        status.rpoMs = age(.lastCommitCaptured)
        status.bytesSent = statistics[index, .bytesSent]
        return status
    }
}
