import Foundation

/// How unusual a non-negative statistic is against its own past, in constant memory: the 90 % quantile by stochastic approximation, and the mean
/// excess above it; beyond the quantile the tail is taken as exponential (peaks over threshold with shape 0, Pickands 1975). A heavy-tailed statistic
/// raises its own mean excess, and with it the evidence that it takes to be surprising.
struct TailModel: Codable, Sendable, Equatable {
    private let share: Double
    private let cap: Double
    private(set) var quantile: Double
    private(set) var meanExcess: Double
    private(set) var count = 0.0
    private var excessWeight: Double

    init(quantile: Double, meanExcess: Double, priorWeight: Double, share: Double, cap: Double) {
        self.share = share
        self.cap = cap
        self.quantile = quantile
        self.meanExcess = meanExcess
        excessWeight = priorWeight
    }

    /// -ln of the estimated probability of a value at least this large; from 0 at or below the quantile's neighbourhood.
    func surprise(_ value: Double) -> Double {
        guard value > quantile else { return -log(share) * value / max(quantile, 1e-9) }
        return -log(share) + (value - quantile) / max(meanExcess, 1e-9)
    }

    /// Learns one value; `speed` 0...1 slows learning, `memory` is in samples.
    mutating func learn(_ value: Double, speed: Double, memory: Double) {
        guard speed > 0 else { return }
        count = min(count + speed, memory)
        let step = speed / (count + 20) * 4 * max(quantile, 1e-6)
        if value > quantile {
            let excess = min(value - quantile, cap * meanExcess)
            excessWeight = min(excessWeight + speed, memory * share)
            meanExcess += speed * (excess - meanExcess) / excessWeight
            quantile += step * (1 - share)
        } else {
            quantile = max(quantile - step * share, 1e-6)
        }
    }
}
