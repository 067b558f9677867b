/// The settings of a `SeriesAnalyzer`; the defaults are what the product ships.
public struct SeriesConfiguration: Codable, Sendable, Equatable {
    /// Rows that are only learned from.
    public var learningRows = 120.0
    /// Rows over which tails are remembered.
    public var memoryRows = 4000.0
    /// Share of rows that count as tail.
    public var tailShare = 0.05
    /// Cap of one excess when a tail is learned, in mean excesses.
    public var tailCap = 6.0
    /// -ln of the tail probability at which a row alarms on its own: score 0.5.
    public var surprise = 14.0
    /// Share of the last alarm's surprise that the next one has to exceed, and the rows over which that fades.
    public var refractoryShare = 1.0
    public var refractoryRows = 300.0
    public var levelWeight = 0.3
    public var meanWeight = 0.08
    public var trendWeight = 0.003
    public var profileWeight = 0.15
    public var errorWeight = 1.0, shiftWeight = 1.0, seasonWeight = 1.0, variationWeight = 0.7, rangeWeight = 1.0

    /// Rows after an alarm that cannot alarm again: one alarm an episode.
    public var quietRows = 60.0

    public init() {}
}
