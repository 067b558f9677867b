import Foundation

/// Scores one series without a partner, row by row: how surprising is a row given all before it, on a scale where 0.5 is an alarm.
///
/// Three statistics, each judged against its own tail: the step from the row before, the shift of a short mean from a long one, and the distance from
/// the range seen so far. Steps and distances count as logarithms: an exponential tail of these is a power law, which is what
/// loads have. A surprise that comes every day at the same time is none (`DailyHabit`). Constant memory.
public struct SeriesAnalyzer: Codable, Sendable, Equatable {
    private let settings: SeriesConfiguration
    private var rows = 0.0
    private var last = 0.0, short = 0.0, long = 0.0, deviation = 0.0
    /// Mean size of a step.
    private var rough = 0.0
    private var low = 0.0, high = 0.0
    private var habit = DailyHabit()
    private var tails: [TailModel]
    private var quiet = 0.0

    public init(configuration: SeriesConfiguration = .init()) {
        settings = configuration
        tails = (0..<3).map { _ in TailModel(quantile: 1, meanExcess: 0.5, priorWeight: 20, share: configuration.tailShare, cap: configuration.tailCap) }
    }

    /// Adds a row and returns its score, 0...1. `time` is in seconds since 1970, for the time of day. A value that is not a number scores 0.
    public mutating func add(time: Double, value: Double) -> Double {
        guard value.isFinite else { return 0 }
        if rows == 0 { (last, short, long, low, high) = (value, value, value, value, value) }
        let statistics = statistics(value)
        rows += 1
        var surprise = 0.0
        let weights = [1, settings.shiftWeight, 1]
        for (index, statistic) in statistics.enumerated() {
            if rows > settings.learningRows / 2 { surprise = max(surprise, weights[index] * min(tails[index].surprise(statistic), 200)) }
            tails[index].learn(min(statistic, 1e4), speed: 1, memory: settings.memoryRows)
        }
        let usual = habit.usual(time)
        habit.learn(time, surprise, decay: settings.habitDecay)
        guard rows > settings.learningRows else { return 0 }
        let needed = max(settings.surprise, settings.habitShare * usual), score = surprise / (surprise + needed)
        quiet = max(0, quiet - 1)
        guard quiet == 0, surprise > needed else { return min(0.499, score) }
        quiet = settings.quietRows
        return score
    }

    private mutating func statistics(_ value: Double) -> [Double] {
        let scale = max(deviation, 1e-9 * max(abs(long), 1e-9), 1e-12)
        let jump = abs(value - last) / max(rough, 0.05 * scale, 1e-12)
        let shift = abs(short - long) / scale
        let span = max(high - low, 1e-12)
        let range = max(0, value - high, low - value) / span * 10
        let early = 1 / (rows + 1)
        let miss = abs(value - last)
        last = value
        short += max(settings.meanWeight, early) * (value - short)
        let bounded = rows > 100 ? max(-8 * scale, min(8 * scale, value - long)) : value - long
        long += max(settings.trendWeight, early) * bounded
        deviation += max(settings.trendWeight, early) * (abs(bounded) - deviation)
        rough += max(settings.trendWeight, early) * (min(miss, rows > 100 ? 8 * max(rough, 0.01 * scale) : miss) - rough)
        // The range forgets slowly, so that an old outlier does not hide a new one for ever.
        let shrink = span / settings.memoryRows
        low = min(value, low + shrink)
        high = max(value, high - shrink)
        return [log1p(jump), shift, log1p(range)]
    }
}
