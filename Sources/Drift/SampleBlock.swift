/// Averages the samples of one block of time, KPI by KPI and side by side, so that a short step neither shortens what is learned nor makes a hiccup evidence.
struct SampleBlock: Codable, Sendable, Equatable {
    private struct Mean: Codable, Sendable, Equatable {
        var value = 0.0, count = 0.0

        mutating func add(_ sample: Double) {
            count += 1
            value += sample / count - value / count
        }
    }

    private(set) var start: Double
    /// Time of the newest sample.
    private(set) var end: Double
    private var primary: [String: Mean] = [:], shadow: [String: Mean] = [:]

    init(start: Double) {
        self.start = start
        end = start
    }

    /// At most `limit` names a side are kept.
    mutating func add(time: Double, primary: [String: Double?], shadow: [String: Double?], limit: Int) {
        end = time
        Self.add(primary, to: &self.primary, limit: limit)
        Self.add(shadow, to: &self.shadow, limit: limit)
    }

    /// Means of what was measured; a name without a single value is a lost sample.
    var means: (primary: [String: Double?], shadow: [String: Double?]) { (primary.mapValues(Self.value), shadow.mapValues(Self.value)) }

    private static func value(_ mean: Mean) -> Double? { mean.count > 0 ? mean.value : nil }

    private static func add(_ values: [String: Double?], to means: inout [String: Mean], limit: Int) {
        for (name, value) in values where means[name] != nil || means.count < limit {
            if let value, value.isFinite { means[name, default: Mean()].add(value) } else if means[name] == nil { means[name] = Mean() }
        }
    }
}
