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
    /// Larger ones would be infinite in single precision, in which they are kept.
    private static let largest = Double(Float.greatestFiniteMagnitude) / 2

    /// A name that can stand in a file, a table and a terminal.
    private static func isKPI(_ name: String) -> Bool {
        !name.isEmpty && name.utf8.count <= 100 && name.utf8.allSatisfy { (0x61...0x7A).contains($0) || (0x30...0x39).contains($0) || $0 == 0x5F }
    }

    /// The shadow's side of a pair: KPIs of the host and of what the shadow's worker knows. Nil when it is older than `limitMs`.
    func sample(uuid: String, primaryHost: String, now: UInt64, limitMs: Double) -> Sample? {
        guard ageMs.isFinite, ageMs >= 0, ageMs <= limitMs, values.count <= Self.mostValues, (shadows[uuid] ?? [:]).count <= Self.mostValues else { return nil }
        var side = HostSide.values(values, towards: primaryHost)
        for (name, value) in shadows[uuid] ?? [:] { side[name] = value }
        side = side.filter { Self.isKPI($0.key) && abs($0.value) <= Self.largest }
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
