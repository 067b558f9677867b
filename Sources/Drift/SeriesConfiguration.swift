/// The settings of a `SeriesAnalyzer`; the defaults are what the product ships.
public struct SeriesConfiguration: Codable, Sendable, Equatable {
    /// Rows that are only learned from.
    public var learningRows = 60.0
    /// Rows over which tails are remembered.
    public var memoryRows = 8000.0
    /// Share of rows that count as tail.
    public var tailShare = 0.1
    /// Cap of one excess when a tail is learned, in mean excesses.
    public var tailCap = 3.0
    /// -ln of the tail probability at which a row alarms on its own: score 0.5.
    public var surprise = 10.0
    /// Share of the last alarm's surprise that the next one has to exceed, and the rows over which that fades.
    public var refractoryShare = 0.5
    public var refractoryRows = 200.0
    /// Weights of the exponential means: forecast, short mean, long mean and scatter, and what is usual at a time of day.
    public var levelWeight = 0.9
    public var meanWeight = 0.08
    public var trendWeight = 0.001
    public var profileWeight = 0.1
    /// How much each statistic counts: forecast error, shift, time of day, variation, range. 0 takes it out.
    public var errorWeight = 1.0
    public var shiftWeight = 1.3
    public var seasonWeight = 0.0
    public var variationWeight = 0.5
    public var rangeWeight = 1.0

    /// Rows after an alarm that cannot alarm again: one alarm an episode.
    public var quietRows = 200.0

    public init() {}
}
