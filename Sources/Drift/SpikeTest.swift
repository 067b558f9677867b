import Foundation

/// Sequential test of "spikes come more often": log likelihood ratio of a Bernoulli rate against the learned one, floored at 0 (Page's test).
/// Spikes within a few samples count once, so that a glitch of a few samples is one spike. Spikes that are larger than is natural are more evidence than
/// their number, but a size counts only once it came twice: of two spikes that follow each other the smaller tells, and a single glitch tells nothing.
struct SpikeTest: Codable, Sendable, Equatable {
    private(set) var ratio = 0.0
    /// Mean of the peaks of past excursions from 0 to 0. Bursts come in clusters where they are natural: then more is asked for.
    private var usualPeak: Double
    private var peak = 0.0, peaks = 0.0
    /// Learned size that 2 % of the samples exceed.
    private var level: Double
    private var rate: Double
    private var count = 0.0
    /// Mean excess of spikes beyond the level, what it rests on, the excess of the newest sample and the evidence in the size of the last spike.
    private var meanExcess: Double
    private var excessCount = 0.0, excess = 0.0, lastSize = 0.0
    private var sinceSpike = 1000
    private var isSpike = false, exceeded = false

    init(_ settings: DriftConfiguration) {
        level = settings.spikeLevel
        rate = settings.spikePrior
        meanExcess = settings.spikeExcess
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
        excess = max(0, z - level)
        if ratio == 0 { lastSize = 0 }
        if isSpike {
            let size = size(settings)
            ratio += log(share / usual) + min(size, lastSize)
            lastSize = size
        } else {
            ratio += log((1 - share) / (1 - usual))
        }
        ratio = max(0, min(ratio, 1.15 * needed(settings)))
        peak = max(peak, ratio)
        if ratio == 0, peak > 0 {
            peaks = min(peaks + 1, 50)
            usualPeak += (peak - usualPeak) / (peaks + 10)
            peak = 0
        }
    }

    /// Log likelihood ratio of the excess under an exponential distribution of any larger mean, the best of them, against the learned mean.
    private func size(_ settings: DriftConfiguration) -> Double {
        let multiple = max(1, min(excess / meanExcess, settings.spikeCap))
        return multiple - 1 - log(multiple) - settings.spikeDoubt
    }

    mutating func miss() {
        sinceSpike = min(sinceSpike + 1, 1000)
        ratio = max(0, ratio - 0.02)
    }

    mutating func learn(speed: Double, _ settings: DriftConfiguration) {
        count = min(count + speed, settings.memorySamples)
        rate = min(rate + speed / (count + 100) * ((isSpike ? 1 : 0) - rate), 0.1)
        if isSpike {
            // The prior weighs ten spikes; 0.3 is the mean excess of a normal distribution beyond three deviations.
            excessCount = min(excessCount + speed, 50)
            meanExcess += speed * (min(excess, 4 * meanExcess) - meanExcess) / (excessCount + 10)
            meanExcess = max(meanExcess, 0.3)
        }
        level += speed * 4 * level / (count + 30) * (exceeded ? 0.98 : -0.02)
        level = min(max(level, settings.spikeLevel), 50)
    }
}
