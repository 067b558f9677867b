import Platform

/// Counters that become rates. A counter that fell began anew (a restarted guest, another worker): it gives nothing until the next look.
public struct RateTable: Sendable {
    private var last: [String: (count: UInt64, at: MonotonicTime)] = [:]
    /// Names beyond this are not followed: what reports so many counters is out of order.
    private static let most = 4096
    /// Domains come and go: what was not counted for so long makes room, once that is needed.
    private static let keepMs = 600_000.0

    public init() {}

    /// How much it grew since the last look, and in how many seconds; nil at the first look, after a reset, and for a counter that was not reported.
    public mutating func growth(_ name: String, _ count: UInt64?, at now: MonotonicTime) -> (count: Double, seconds: Double)? {
        guard let count else { return nil }
        if last.count >= Self.most, last[name] == nil {
            last = last.filter { now.milliseconds(since: $0.value.at) < Self.keepMs }
            guard last.count < Self.most else { return nil }
        }
        let before = last.updateValue((count, now), forKey: name)
        guard let before, count >= before.count, now > before.at else { return nil }
        return (Double(count - before.count), now.milliseconds(since: before.at) / 1000)
    }

    /// The same per second.
    public mutating func perSecond(_ name: String, _ count: UInt64?, at now: MonotonicTime) -> Double? {
        growth(name, count, at: now).map { $0.count / $0.seconds }
    }
}
