import Configuration
import ControlProtocol
import Foundation

/// A shadow as its primary's record keeps it.
struct ShadowEntry: Codable, Sendable, Equatable {
    var peer: String
    var session: UUID
    var multiple: Int
    /// The last session that its host is known to have begun, when that is another.
    var former: UUID?
    /// Another one has its place since its host does not answer; absent: it takes part.
    var isReplaced: Bool?
}

/// What every shadow knows of the others, for when their primary's host is gone: whom to ask before it becomes the guest, and whom to protect
/// the guest to afterwards.
public struct ShadowFamily: Codable, Sendable, Equatable {
    /// Of the capture: numbers of epochs compare within it.
    public var generation: UUID
    /// All shadows of the guest, this one included.
    public var members: [ShadowChoice]
    /// How the guest is protected.
    public var request: ProtectRequest

    func others(than host: String) -> [ShadowChoice] { members.filter { !HostName.isSame($0.host, host) } }
}

/// Where a shadow stands, for another shadow of the same guest that is about to become the guest.
public struct SiblingState: Codable, Sendable {
    public var phase: ShadowPhase
    public var epoch: UInt64
    public var generation: UUID?
    /// Milliseconds since its last commit; absent before the first.
    public var commitAgeMs: Double?
    /// Its administrator is making it the guest at this moment.
    public var isTakingOver: Bool
    /// A domain of that UUID runs there as the guest.
    public var runs: Bool

    /// Whether it is behind `other`; where numbers do not compare, the later commit counts.
    func isFresher(than other: SiblingState) -> Bool {
        guard epoch > 0 else { return false }
        guard other.epoch > 0 else { return true }
        if let generation, generation == other.generation { return epoch > other.epoch }
        guard let mine = commitAgeMs, let theirs = other.commitAgeMs else { return false }
        return mine + Self.ageToleranceMs < theirs
    }

    /// Two hosts were asked one after the other.
    private static let ageToleranceMs = 500.0
}
