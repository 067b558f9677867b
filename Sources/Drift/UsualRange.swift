import Foundation

/// Where a quantity usually lies: running mean and mean absolute deviation.
struct UsualRange: Codable, Sendable, Equatable {
    private var mean = 0.0, deviation = 0.0, weight = 0.0

    /// How far a value lies beyond 2.5 mean deviations (two standard deviations).
    func excess(_ value: Double) -> Double { weight < 10 ? 0 : max(0, abs(value - mean) - 2.5 * deviation) }

    mutating func learn(_ value: Double, memory: Double) {
        weight = min(weight + 1, memory)
        deviation += (abs(value - mean) - deviation) / weight
        mean += (value - mean) / weight
    }
}
