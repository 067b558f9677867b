import Platform

/// What kind of thing happened. An open set: each part of the service names its own, in lower case with underscores, past or state.
public struct EventKind: RawRepresentable, Codable, Hashable, Sendable, ExpressibleByStringLiteral {
    public var rawValue: String

    public init(rawValue: String) { self.rawValue = rawValue }
    public init(stringLiteral value: String) { rawValue = value }

    /// A protection begins, or begins anew with the service; the steps of its first copy; the shadow follows.
    public static let began: EventKind = "began", firstCopy: EventKind = "first_copy", protected: EventKind = "protected"
    /// The shadow does not follow: for any reason, or because the connection broke; that connection is back.
    public static let degraded: EventKind = "degraded", peerLost: EventKind = "peer_lost", peerBack: EventKind = "peer_back"
    /// The guest's user suspended and resumed it.
    public static let suspended: EventKind = "suspended", resumed: EventKind = "resumed"
    /// A hand-over begins; it is done.
    public static let swapBegan: EventKind = "swap_began", failoverBegan: EventKind = "failover_began"
    public static let swap: EventKind = "swap", failover: EventKind = "failover"
    /// A swap was cut off; (shadow's side) the guest runs here since.
    public static let inDoubt: EventKind = "in_doubt", activated: EventKind = "activated"
    /// A protection ended; one was not begun.
    public static let unprotected: EventKind = "unprotected", refused: EventKind = "refused"
    public static let serviceStarted: EventKind = "service_started", serviceStopping: EventKind = "service_stopping"
    /// Not kept: a follower was too slow, or the journal too short, for so many events.
    public static let lost: EventKind = "events_lost"

    /// Those that every service counts from 0, so that the first one is seen as an increase.
    public static let counted: [EventKind] = [.began, .protected, .degraded, .peerLost, .peerBack, .suspended, .resumed, .swap, .failover, .inDoubt, .activated,
                                              .unprotected, .refused]
}

/// One thing that happened on a host, as `shadow-virt events` prints it: one JSON object a line.
public struct ServiceEvent: Codable, Sendable, Equatable {
    /// Counts up by one, over restarts of the service as well. 0 for what is not kept.
    public var sequence: UInt64
    /// ISO 8601 UTC.
    public var time: String
    public var kind: EventKind
    /// Absent when it is about the service as a whole.
    public var domain: String?
    public var uuid: String?
    /// For a person.
    public var message: String
    /// For programs; names in snake_case, units in the name.
    public var details: [String: String]?

    public init(sequence: UInt64, time: String, kind: EventKind, domain: String?, uuid: String?, message: String, details: [String: String]) {
        self.sequence = sequence
        self.time = time
        self.kind = kind
        self.domain = domain
        self.uuid = uuid
        self.message = message
        self.details = details.isEmpty ? nil : details
    }
}

/// Which events `events` asks for. The domain stands in the request.
public struct EventQuery: Codable, Sendable, Equatable {
    /// Those to come as well, until the client goes away.
    public var follow: Bool?
    /// Of the last so many seconds; absent: all that are kept or, with `follow`, the last ten.
    public var sinceSeconds: Double?
    /// Those after this sequence number, for a follower that comes back; counts more than `sinceSeconds`.
    public var after: UInt64?

    enum CodingKeys: String, CodingKey {
        case follow, after
        case sinceSeconds = "since_seconds"
    }

    public init(follow: Bool? = nil, sinceSeconds: Double? = nil, after: UInt64? = nil) {
        self.follow = follow
        self.sinceSeconds = sinceSeconds
        self.after = after
    }
}

/// Part of the answer to `events`: parts come until one is the last. A part without events is a sign of life.
public struct EventBatch: Codable, Sendable {
    public var events: [ServiceEvent]
    public var isLast: Bool

    enum CodingKeys: String, CodingKey {
        case events
        case isLast = "last"
    }

    public init(_ events: [ServiceEvent], isLast: Bool) {
        self.events = events
        self.isLast = isLast
    }
}

extension ControlClient {
    /// Sends an `events` request and hands on what comes, until the last part. `wake`: once it is readable this returns, with what was asked for going
    /// on to nobody. Throws the service's refusal as `ControlFailure`.
    public func events(_ request: ControlRequest, wake: WakeUp?, _ body: ([ServiceEvent]) throws -> Void) throws {
        let channel = try begin(request)
        defer { channel.shutDown() }
        while let response = try nextResponse(channel, wake: wake?.raw ?? -1) {
            if let failure = response.failure { throw failure }
            guard let batch = response.events else { throw ControlClientError.badAnswer(path: path, detail: "no events") }
            if !batch.events.isEmpty { try body(batch.events) }
            if batch.isLast { return }
        }
    }
}
