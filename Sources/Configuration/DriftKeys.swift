import ControlProtocol

/// How the service steers epochs and hand-overs by what it measures.
public struct DriftSettings: Sendable, Equatable {
    /// For domains whose policy says nothing of it.
    public var onDrift = DomainPolicy.DriftAction.notify
    /// Seconds, 0...3600, for which drift must accuse the primary's host before a guest goes by itself.
    public var swapAfter = 60
    /// The shortest interval in doubt, milliseconds; 0: a quarter of the configured one, but 10 ms or more.
    public var intervalMinMs = 0
    /// The same for the engine periodic; 0: a sixth of the configured one, but 1 s or more.
    public var periodicIntervalMinMs = 0

    public init() {}
}

extension ConfigurationKey {
    static let drift: [ConfigurationKey] = [
        ConfigurationKey("on_drift") { input, configuration throws(ConfigurationError) in
            let word = try input.string()
            guard let action = DomainPolicy.DriftAction(rawValue: word) else { throw input.error("'\(word)' is nothing that drift can lead to", advice: "Use \"notify\" or \"swap\"") }
            configuration.drift.onDrift = action
        },
        ConfigurationKey("drift_swap_after") { input, configuration throws(ConfigurationError) in
            configuration.drift.swapAfter = try input.integer(in: 0...3600)
        },
        ConfigurationKey("interval_min_ms") { input, configuration throws(ConfigurationError) in
            configuration.drift.intervalMinMs = try bound(input, in: 5...60_000)
        },
        ConfigurationKey("periodic_interval_min_ms") { input, configuration throws(ConfigurationError) in
            configuration.drift.periodicIntervalMinMs = try bound(input, in: 1000...3_600_000)
        },
    ]

    /// 0: the service chooses.
    private static func bound(_ input: Input, in range: ClosedRange<Int>) throws(ConfigurationError) -> Int {
        let value = try input.integer(in: 0...range.upperBound)
        guard value == 0 || range.contains(value) else {
            throw input.error("\(value) is out of range", advice: "Use \(range.lowerBound) to \(range.upperBound), or 0 to leave the choice to the service")
        }
        return value
    }
}
