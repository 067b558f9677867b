import ControlProtocol
import Foundation

/// Whether a guest should leave its host by itself: pure, so that every rule has a test.
///
/// A cause is drift that accused the primary's side for a set time, or hardware of this host that reports the end. What stands against a swap is looked
/// at only when there is one.
struct WarmSwapLaw: Equatable, Sendable {
    struct Look: Sendable {
        /// Seconds since 1970.
        var now: Double
        /// Nil: nothing is judged yet.
        var score: Double?
        var isShadowAccused = false
        /// What is critical about this host's hardware.
        var hardware: String?
        var onDrift = DomainPolicy.DriftAction.notify
        var swapAfter = 60.0
        var state = ProtectionState.protected
        /// Of the last commit's capture, milliseconds; nil: there was none.
        var commitAgeMs: Double?
        var intervalMs = 20.0
        var lagEpochs: UInt64 = 0
        /// The last automatic swap of this domain, anywhere, and until when none is tried again after one that failed.
        var lastSwap: Double?
        var retryAt: Double?
        /// What is known against the shadow's host.
        var peerObstacle: String?
    }

    /// What stands against a swap. The kind alone decides whether that is news.
    enum Obstacle: Equatable, Sendable {
        case policy, notCurrent(String), hourly(Double), failed(Double), peer(String)

        var kind: String {
            switch self {
            case .policy: "policy"
            case .notCurrent: "not_current"
            case .hourly: "hourly"
            case .failed: "failed"
            case .peer: "peer"
            }
        }

        /// For a person.
        var text: String {
            switch self {
            case .policy: "the policy says notify; `shadow-virt swap` moves it"
            case .notCurrent(let why): "its shadow is not current: \(why)"
            case .hourly(let seconds): "it was swapped by itself \(Int(seconds / 60)) min ago, and at most one such swap an hour is made"
            case .failed(let seconds): "a swap failed; the next one is tried in \(Int(seconds / 60) + 1) min at the earliest"
            case .peer(let why): why
            }
        }
    }

    enum Decision: Equatable, Sendable {
        case stay
        /// The alarm is not old enough; seconds to go.
        case wait(Double)
        case held(cause: String, Obstacle)
        case swap(cause: String)

        var text: String {
            switch self {
            case .stay: "no reason to swap"
            case .wait(let seconds): "a swap is considered in \(Int(seconds.rounded(.up))) s, if it goes on"
            case .held(let cause, let obstacle): "no swap though \(cause): \(obstacle.text)"
            case .swap(let cause): "swap: \(cause)"
            }
        }
    }

    static let secondsBetweenSwaps = 3600.0
    /// An alarm is over only below this: a score that dances about 1 is one alarm.
    static let over = 0.8
    /// A shadow that is nearer than this counts as current; a guest with a long interval is given two and a half of them.
    static let currentMs = 2000.0
    static let mostLag: UInt64 = 64

    /// Since when drift accuses this side.
    private(set) var alarmSince: Double?

    mutating func decide(_ look: Look) -> Decision {
        if let score = look.score, score >= 1, !look.isShadowAccused {
            alarmSince = alarmSince ?? look.now
        } else if (look.score ?? 0) < Self.over || look.isShadowAccused {
            alarmSince = nil
        }
        guard let cause = cause(look) else {
            return alarmSince.map { .wait(max(0, look.swapAfter - (look.now - $0))) } ?? .stay
        }
        return obstacle(look).map { .held(cause: cause, $0) } ?? .swap(cause: cause)
    }

    private func cause(_ look: Look) -> String? {
        if let hardware = look.hardware { return hardware }
        guard let alarmSince, look.now - alarmSince >= look.swapAfter, let score = look.score else { return nil }
        return "this host drifts (score \(String(format: "%.2f", score)) for \(Int(look.now - alarmSince)) s)"
    }

    private func obstacle(_ look: Look) -> Obstacle? {
        if look.onDrift == .notify { return .policy }
        if look.state != .protected { return .notCurrent("it is \(look.state.rawValue)") }
        guard let age = look.commitAgeMs else { return .notCurrent("it holds no epoch") }
        if age > max(Self.currentMs, look.intervalMs * 2.5) { return .notCurrent("its last epoch is \(Int(age)) ms old") }
        if look.lagEpochs > Self.mostLag { return .notCurrent("it lags \(look.lagEpochs) epochs behind") }
        // One that is far ahead was noted by a clock that was wrong.
        if let last = look.lastSwap, abs(look.now - last) < Self.secondsBetweenSwaps { return .hourly(max(0, look.now - last)) }
        if let retryAt = look.retryAt, retryAt > look.now { return .failed(retryAt - look.now) }
        if look.isShadowAccused { return .peer("the shadow's host drifts itself") }
        return look.peerObstacle.map { .peer($0) }
    }
}
