import Foundation

/// Accumulates standardised residuals of one KPI over several time scales: a running median (glitches of two samples do not reach it) and exponential
/// means for shifts and creeps, a likelihood ratio for intermittent spikes. Each mean is judged against its own past.
struct Evidence: Codable, Sendable, Equatable {
    struct Reading: Codable, Sendable, Equatable {
        /// 1 = alarm.
        var score = 0.0
        /// -ln of the tail probability.
        var surprise = 0.0
        /// Of the residuals: +1 the primary is above its expectation.
        var sign = 1.0
        var pattern = DriftContribution.Pattern.shift
    }

    private var recent: [Double] = []
    private var calm = 0
    private var means = [0.0, 0.0, 0.0]
    private var tails: [TailModel]
    private var spikeUp: SpikeTest, spikeDown: SpikeTest

    init(_ settings: DriftConfiguration) {
        spikeUp = SpikeTest(settings)
        spikeDown = SpikeTest(settings)
        let scales = [(settings.fastWeight, settings.fastScatter), (settings.mediumWeight, settings.mediumScatter), (settings.slowWeight, settings.slowScatter)]
        tails = scales.map { weight, scatter in
            // What independent noise would give, times what is usual.
            let deviation = scatter * (weight / (2 - weight)).squareRoot()
            return TailModel(quantile: settings.tailQuantile * deviation, meanExcess: (0.25 + settings.tailPrior) * deviation,
                             priorWeight: settings.tailPriorWeight, share: settings.tailShare, cap: settings.tailCap)
        }
    }

    mutating func add(_ z: Double, _ settings: DriftConfiguration) {
        func bounded(_ limit: Double) -> Double { max(-limit, min(limit, z)) }
        recent.append(bounded(settings.fastClip))
        if recent.count > 5 { recent.removeFirst() }
        let median = recent.count < 5 ? 0 : recent.sorted()[2]
        means[0] += settings.fastWeight * (median - means[0])
        means[1] += settings.mediumWeight * (bounded(settings.clip) - means[1])
        means[2] += settings.slowWeight * (bounded(settings.slowClip) - means[2])
        // Trouble that is over is history: the means need not fade at their own pace.
        calm = abs(median) < settings.calmLevel && abs(z) < settings.calmLevel ? calm + 1 : 0
        if calm >= 4 {
            for index in means.indices { means[index] *= settings.calmDecay }
        }
        spikeUp.add(z, settings)
        spikeDown.add(-z, settings)
    }

    /// A sample that could not be judged: the evidence fades, slowly.
    mutating func miss(_ settings: DriftConfiguration) {
        means[0] *= 1 - settings.fastWeight / 8
        means[1] *= 1 - settings.mediumWeight / 8
        means[2] *= 1 - settings.slowWeight / 8
        spikeUp.miss()
        spikeDown.miss()
    }

    mutating func learn(speed: Double, _ settings: DriftConfiguration) {
        for index in tails.indices { tails[index].learn(abs(means[index]), speed: speed, memory: settings.memorySamples) }
        spikeUp.learn(speed: speed, settings)
        spikeDown.learn(speed: speed, settings)
    }

    /// The strongest evidence for residuals of this sign.
    func reading(_ settings: DriftConfiguration, sign: Double) -> Reading {
        var best = Reading(sign: sign)
        for index in means.indices where means[index] * sign > 0 {
            // A slow mean that the faster one no longer supports is history.
            if index == 2, means[1] * sign < 0.3 * means[2] * sign { continue }
            let surprise = tails[index].surprise(abs(means[index]))
            guard surprise / settings.surprise > best.score else { continue }
            best = Reading(score: surprise / settings.surprise, surprise: surprise, sign: sign, pattern: index == 2 ? .creep : .shift)
        }
        let spikes = sign > 0 ? spikeUp : spikeDown, score = spikes.score(settings)
        if score > best.score { best = Reading(score: score, surprise: spikes.ratio, sign: sign, pattern: .spikes) }
        return best
    }
}
