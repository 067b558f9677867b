/// One shadow that is wanted.
public struct ShadowChoice: Codable, Sendable, Equatable {
    /// The peer's name in the configuration.
    public var host: String
    /// It commits every so many epochs, 1 to 1000.
    public var multiple: Int

    public static let multipleRange = 1...1000

    public init(host: String, multiple: Int = 1) {
        self.host = host
        self.multiple = multiple
    }

    /// Reads `HOST` or `HOST:MULTIPLE`. Nil: it is neither.
    public init?(_ text: String) {
        let parts = text.split(separator: ":", omittingEmptySubsequences: false)
        guard let host = parts.first, !host.isEmpty, parts.count <= 2 else { return nil }
        self.init(host: String(host))
        guard parts.count == 2 else { return }
        guard parts[1].utf8.allSatisfy({ (0x30...0x39).contains($0) }), let multiple = Int(parts[1]), Self.multipleRange.contains(multiple) else { return nil }
        self.multiple = multiple
    }
}

/// One shadow of a protected domain, as its primary sees it.
public struct ShadowStatus: Codable, Sendable, Equatable {
    public var peer: String
    public var state: ProtectionState
    /// Why the state is what it is, for a person; empty when there is nothing to say.
    public var reason: String
    /// ISO 8601 UTC: since when the state holds.
    public var since: String
    /// Epochs to a commit there.
    public var multiple: Int
    /// The last epoch that it holds.
    public var committedEpoch: UInt64 = 0
    public var lagEpochs: UInt64 = 0
    public var lagBytes: UInt64 = 0
    /// Milliseconds since its last commit, and since the capture of what it committed; absent before the first.
    public var lastCommitAgeMs: Double?
    public var rpoMs: Double?
    /// Bytes that went to it since the present capture began.
    public var bytesSent: UInt64 = 0

    enum CodingKeys: String, CodingKey {
        case peer, state, reason, since, multiple
        case committedEpoch = "committed_epoch"
        case lagEpochs = "lag_epochs"
        case lagBytes = "lag_bytes"
        case lastCommitAgeMs = "last_commit_age_ms"
        case rpoMs = "rpo_ms"
        case bytesSent = "bytes_sent"
    }

    public init(peer: String, state: ProtectionState, reason: String, since: String, multiple: Int) {
        self.peer = peer
        self.state = state
        self.reason = reason
        self.since = since
        self.multiple = multiple
    }
}
