import Foundation
import Glibc

/// What was measured at one moment. A KPI that could not be measured is not in `values`: absent is not 0.
public struct Sample: Codable, Sendable, Equatable {
    /// Milliseconds since 1970, UTC.
    public var time: UInt64
    /// By KPI name; the unit stands at the name's end (`_percent`, `_ms`, `_ns`, `_bytes_per_second`, `_per_second`, `_count`, ...). What is after an
    /// `@` tells one of several: `host_storage_write_ms@/srv/images`; without it stands the worst of them.
    public var values: [String: Double]

    public init(time: UInt64, values: [String: Double] = [:]) {
        self.time = time
        self.values = values
    }

    public subscript(kpi: String) -> Double? { values[kpi] }

    /// Milliseconds since 1970, UTC.
    public static var now: UInt64 {
        var time = timespec()
        clock_gettime(CLOCK_REALTIME, &time)
        return UInt64(max(0, time.tv_sec)) * 1000 + UInt64(time.tv_nsec) / 1_000_000
    }
}

/// A protected domain on both sides at one moment: the domain and its host here, its shadow and that host there. Names are equal on
/// both sides for what exists on both.
public struct PairSample: Sendable, Equatable {
    public var uuid: String
    public var domain: String
    /// The shadow's host.
    public var peer: String
    public var primary: Sample
    /// Nil: the peer did not answer in time, or measures nothing.
    public var shadow: Sample?

    public init(uuid: String, domain: String, peer: String, primary: Sample, shadow: Sample?) {
        self.uuid = uuid
        self.domain = domain
        self.peer = peer
        self.primary = primary
        self.shadow = shadow
    }

    /// In front of names where both sides stand in one row, as in CSV.
    public static let primaryPrefix = "p_"
    public static let shadowPrefix = "s_"

    /// Both sides as one row.
    public var flat: Sample { Self.flat(primary: primary, shadow: shadow) }

    private static func flat(primary: Sample, shadow: Sample?) -> Sample {
        var row = Sample(time: primary.time)
        row.values.reserveCapacity(primary.values.count + (shadow?.values.count ?? 0))
        for (name, value) in primary.values { row.values[primaryPrefix + name] = value }
        for (name, value) in shadow?.values ?? [:] { row.values[shadowPrefix + name] = value }
        return row
    }
}

extension [String: Double] {
    /// Sets what is finite; anything else stays absent.
    public mutating func note(_ name: String, _ value: Double?) {
        if let value, value.isFinite { self[name] = value }
    }

    /// Sets the member of several, and the worst (largest) of them under the name alone.
    public mutating func noteWorst(_ name: String, of instance: String, _ value: Double?) {
        guard let value, value.isFinite else { return }
        self["\(name)@\(instance)"] = value
        self[name] = Swift.max(self[name] ?? value, value)
    }
}
