/// The settings of a `SeriesAnalyzer`; the defaults are what the product ships.
public struct SeriesConfiguration: Codable, Sendable, Equatable {
    /// Rows that are only learned from.
    public var learningRows = 60.0
    /// Rows over which tails are remembered.
    public var memoryRows = 8000.0
    /// Share of rows that count as tail.
    public var tailShare = 0.05
    /// Cap of one excess when a tail is learned, in mean excesses.
    public var tailCap = 3.0
    /// -ln of the tail probability at which a row alarms on its own: score 0.5.
    public var surprise = 7.0
    /// Times the largest surprise of earlier days at this time of day that a row has to reach, and what a day counts for a day later.
    public var habitShare = 1.1
    public var habitDecay = 0.8
    /// Weights of the exponential means: short mean, long mean and scatter.
    public var meanWeight = 0.1
    public var trendWeight = 0.001
    /// How much the shift counts; step and range count as they are.
    public var shiftWeight = 1.4
    /// Rows after an alarm that cannot alarm again: one alarm an episode.
    public var quietRows = 200.0

    public init() {}
}
