import Foundation

/// Scores one series without a partner, row by row: how surprising is a row given all before it, on a scale where 0.5 is an alarm.
///
/// Five statistics, each judged against its own tail: the error of a one-step forecast, the shift of a short mean from a long one, the distance
/// from what is usual at this time of day, the change of variation, and the distance from the range seen so far. Constant memory.
public struct SeriesAnalyzer: Codable, Sendable, Equatable {
    private let settings: SeriesConfiguration
    private var rows = 0.0
    private var level = 0.0, short = 0.0, long = 0.0, deviation = 0.0, last = 0.0
    private var roughShort = 0.0, roughLong = 0.0
    private var low = 0.0, high = 0.0
    private var profile = [Double](repeating: 0, count: 48), profileRows = [Double](repeating: 0, count: 48)
    private var seasonError = 0.0
    private var tails: [TailModel]
    private var bar = 0.0, quiet = 0.0

    public init(configuration: SeriesConfiguration = .init()) {
        settings = configuration
        tails = (0..<5).map { _ in TailModel(quantile: 1, meanExcess: 0.5, priorWeight: 20, share: configuration.tailShare, cap: configuration.tailCap) }
    }

    /// Adds a row and returns its score, 0...1. `time` is in seconds since 1970, for the time of day. A value that is not a number scores 0.
    public mutating func add(time: Double, value: Double) -> Double {
        guard value.isFinite else { return 0 }
        if rows == 0 { (level, short, long, last, low, high) = (value, value, value, value, value, value) }
        let statistics = statistics(time, value)
        rows += 1
        var surprise = 0.0
        let weights = [settings.errorWeight, settings.shiftWeight, settings.seasonWeight, settings.variationWeight, settings.rangeWeight]
        for (index, statistic) in statistics.enumerated() {
            if rows > settings.learningRows / 2 { surprise = max(surprise, weights[index] * min(tails[index].surprise(statistic), 200)) }
            tails[index].learn(min(statistic, 1e4), speed: 1, memory: settings.memoryRows)
        }
        guard rows > settings.learningRows else { return 0 }
        bar *= 1 - 1 / settings.refractoryRows
        let needed = max(settings.surprise, settings.refractoryShare * bar)
        quiet = max(0, quiet - 1)
        if quiet > 0 { return min(0.49, surprise / (surprise + needed)) }
        if surprise > needed {
            bar = max(bar, surprise)
            quiet = settings.quietRows
            return surprise / (surprise + needed)
        }
        return min(0.499, surprise / (surprise + needed))
    }

    private mutating func statistics(_ time: Double, _ value: Double) -> [Double] {
        let scale = max(deviation, 1e-9 * max(abs(long), 1e-9), 1e-12)
        let error = abs(value - level) / max(roughLong, 0.05 * scale, 1e-12)
        let slot = min(47, max(0, Int((time / 1800).truncatingRemainder(dividingBy: 48))))
        var season = 0.0
        if profileRows[slot] >= 3 {
            let miss = value - profile[slot]
            seasonError += 0.2 * (miss / scale - seasonError)
            season = abs(seasonError)
        }
        let shift = abs(short - long) / scale
        let variation = abs(log((roughShort + 0.02 * scale) / (roughLong + 0.02 * scale)))
        let span = max(high - low, 1e-12)
        let range = max(0, value - high, low - value) / span * 10
        let early = 1 / (rows + 1)
        let rough = abs(value - level)
        level += max(settings.levelWeight, early) * (value - level)
        short += max(settings.meanWeight, early) * (value - short)
        let bounded = rows > 100 ? max(-8 * scale, min(8 * scale, value - long)) : value - long
        long += max(settings.trendWeight, early) * bounded
        deviation += max(settings.trendWeight, early) * (abs(bounded) - deviation)
        roughShort += max(settings.meanWeight, early) * (min(rough, rows > 100 ? 10 * max(roughLong, 1e-12) : rough) - roughShort)
        roughLong += max(settings.trendWeight, early) * (min(rough, rows > 100 ? 8 * max(roughLong, 0.01 * scale) : rough) - roughLong)
        // The range forgets slowly, so that an old outlier does not hide a new one for ever.
        let shrink = span / settings.memoryRows
        low = min(value, low + shrink)
        high = max(value, high - shrink)
        profileRows[slot] += 1
        profile[slot] += max(settings.profileWeight, 1 / profileRows[slot]) * (value - profile[slot])
        last = value
        return [error, shift, season, variation, range]
    }
}
