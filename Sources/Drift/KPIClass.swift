/// What a measured quantity is, as far as drift is concerned: which way is worse, and whether it tells how much work there is.
/// Derived from the quantity's name; an unknown name is `generic`.
public enum KPIClass: String, Codable, Sendable, CaseIterable {
    /// Time per operation: more is worse.
    case latency
    /// Share of a resource in use. A slowed-down host shows more of it (the same work takes longer) or less (it gets less done), so both ways count.
    case utilisation
    /// Work done per second: less than the other side is worse.
    case throughput
    /// Memory held: more is worse (a leak).
    case memory
    /// Errors, drops, retries: more is worse.
    case errors
    case generic

    /// +1: a primary above its expectation is worse; -1: below; 0: the name does not tell.
    public var worseSign: Double {
        switch self {
        case .latency, .memory, .errors: 1
        case .throughput: -1
        case .utilisation, .generic: 0
        }
    }

    /// Whether the quantity grows with the amount of work.
    var isLoad: Bool { self == .utilisation || self == .throughput }

    /// Classifies a name such as `disk_write_latency_us`, `memlat`, `cpu`, `net_rx_errors`. The first class with a matching word wins, and
    /// the order matters: `memlat` is a latency although it names memory, `net_drops` are errors although they name the network.
    public init(name: String) {
        let lowered = name.lowercased()
        let match = Self.words.first { entry in entry.words.contains { lowered.contains($0) } }
        // A unit of time says that it is one, unless the name says what is counted (`cpu_time_seconds` does not).
        let isTime = Self.timeUnits.contains { lowered.hasSuffix($0) }
        self = match.map { $0.kind == .throughput && isTime ? .latency : $0.kind } ?? (isTime ? .latency : .generic)
    }

    private static let timeUnits = ["_ns", "_us", "_ms"]

    private static let words: [(kind: KPIClass, words: [String])] = [
        (.errors, ["err", "drop", "retr", "fail", "loss", "lost", "timeout", "ecc", "throttl"]),
        (.latency, ["lat", "delay", "rtt", "wait", "steal", "stall", "pressure", "psi", "response", "await", "duration", "pause"]),
        (.throughput, ["thr", "rate", "bps", "bytes", "iops", "kbs", "mbs", "net", "disk", "tx", "rx", "req", "ops", "freq", "mhz", "bandwidth"]),
        (.utilisation, ["cpu", "util", "busy", "load", "percent", "pct"]),
        (.memory, ["mem", "rss", "heap", "swap", "balloon", "cache"]),
    ]
}
