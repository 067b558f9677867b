import Foundation

/// Usual magnitude of a quantity while there is something going on: the mean of |value| weighted by |value| itself. For a steady quantity that is its mean; one that
/// idles most of the time and is busy now and then gets the level of its busy times, so that the noise of idling stays small beside it.
struct WorkingLevel: Codable, Sendable, Equatable {
    private var first = 0.0, second = 0.0, weight = 0.0

    var level: Double { first > 0 ? second / first : 0 }

    /// `memory` in samples of a pair; the two sides' values are learned one after the other.
    mutating func learn(_ value: Double, memory: Double) {
        weight = min(weight + 0.5, memory)
        // One absurd sample must not set the scale.
        let bounded = weight > 30 ? min(abs(value), 10 * max(level, 1e-12)) : min(abs(value), 1e150)
        first += 0.5 / weight * (bounded - first)
        second += 0.5 / weight * (bounded * bounded - second)
    }
}
