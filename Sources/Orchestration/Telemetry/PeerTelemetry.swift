import Telemetry

/// What one host tells another of its last look.
struct PeerTelemetry: Codable, Sendable, Equatable {
    /// How old it is, milliseconds: the two hosts' clocks need not agree.
    var ageMs: Double
    /// Of the host.
    var values: [String: Double]
    /// Of its shadows, by UUID.
    var shadows: [String: [String: Double]]

    /// As many as a host may have: what a peer sends beyond that is not looked at.
    private static let mostValues = 2048

    /// The shadow's side of a pair: KPIs of the host and of what the shadow's worker knows. Nil when it is older than `limitMs`.
    func sample(uuid: String, primaryHost: String, now: UInt64, limitMs: Double) -> Sample? {
        guard ageMs.isFinite, ageMs >= 0, ageMs <= limitMs, values.count <= Self.mostValues else { return nil }
        var side = HostSide.values(values, towards: primaryHost)
        for (name, value) in shadows[uuid] ?? [:] { side[name] = value }
        return Sample(time: now - min(now, UInt64(ageMs)), values: side)
    }
}

/// A host's KPIs as one side of a pair has them.
enum HostSide {
    static let roundTrip = "peer_round_trip_ms", othersRoundTrip = "others_round_trip_ms"

    /// Without what is of one of several, except the way to the other side, and the quickest of the ways to all others: between the two sides a line is both's,
    /// so only third hosts tell whose it is that got worse. The quickest, because one of the others may be in trouble itself.
    static func values(_ host: [String: Double], towards other: String) -> [String: Double] {
        var side = host.filter { !$0.key.contains("@") }
        side[roundTrip] = host["\(roundTrip)@\(other)"]
        side[othersRoundTrip] = host.filter { $0.key.hasPrefix("\(roundTrip)@") && $0.key != "\(roundTrip)@\(other)" }.values.min()
        return side
    }

    /// Peers besides those of its pairs that a host asks for the round trip: the same ones on both sides, as far as may be.
    static func witnesses(_ peers: [String]) -> Set<String> { Set(peers.sorted().prefix(mostWitnesses)) }
    private static let mostWitnesses = 4
}
