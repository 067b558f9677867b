import Foundation

/// Sequential test of "spikes come more often": log likelihood ratio of a Bernoulli rate against the learned one, floored at 0 (Page's test).
/// Spikes within a few samples count once, so that a glitch of a few samples is one spike.
struct SpikeTest: Codable, Sendable, Equatable {
    private(set) var ratio = 0.0
    /// Mean of the peaks of past excursions from 0 to 0. Bursts come in clusters where they are natural: then more is asked for.
    private var usualPeak: Double
    private var peak = 0.0, peaks = 0.0
    /// Learned size that 2 % of the samples exceed.
    private var level: Double
    private var rate: Double
    private var count = 0.0
    private var sinceSpike = 1000
    private var isSpike = false, exceeded = false

    init(_ settings: DriftConfiguration) {
        level = settings.spikeLevel
        rate = settings.spikePrior
        usualPeak = settings.spikeThreshold / settings.spikePeaks
    }

    /// 1 = alarm.
    func score(_ settings: DriftConfiguration) -> Double { ratio / needed(settings) }

    private func needed(_ settings: DriftConfiguration) -> Double { max(settings.spikeThreshold, settings.spikePeaks * usualPeak) }

    mutating func add(_ z: Double, _ settings: DriftConfiguration) {
        exceeded = z > level
        sinceSpike = min(sinceSpike + 1, 1000)
        isSpike = exceeded && sinceSpike > 2
        if exceeded { sinceSpike = 0 }
        let usual = max(settings.spikeMargin * rate, settings.spikeLeast), share = max(settings.spikeShare, 4 * usual)
        ratio += isSpike ? log(share / usual) : log((1 - share) / (1 - usual))
        ratio = max(0, min(ratio, 1.15 * needed(settings)))
        peak = max(peak, ratio)
        if ratio == 0, peak > 0 {
            peaks = min(peaks + 1, 50)
            usualPeak += (peak - usualPeak) / (peaks + 10)
            peak = 0
        }
    }

    mutating func miss() {
        sinceSpike = min(sinceSpike + 1, 1000)
        ratio = max(0, ratio - 0.02)
    }

    mutating func learn(speed: Double, _ settings: DriftConfiguration) {
        count = min(count + speed, settings.memorySamples)
        rate = min(rate + speed / (count + 100) * ((isSpike ? 1 : 0) - rate), 0.1)
        level += speed * 4 * level / (count + 30) * (exceeded ? 0.98 : -0.02)
        level = min(max(level, settings.spikeLevel), 50)
    }
}
