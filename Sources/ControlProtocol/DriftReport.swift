/// What the two sides of a protected domain say of each other, as `drift` shows it.
public struct DomainDrift: Codable, Sendable, Equatable {
    /// One KPI's part in it.
    public struct Contribution: Codable, Sendable, Equatable {
        public var kpi: String
        /// 1 would alarm alone.
        public var score: Double
        /// `primary`, `shadow`; absent: not known.
        public var side: String?
        /// `shift`, `creep`, `spikes`.
        public var pattern: String
        /// ISO 8601 UTC.
        public var since: String
        /// 0...1.
        public var confidence: Double
        /// The primary's value over what the shadow lets expect, minus 1.
        public var relativeChange: Double

        enum CodingKeys: String, CodingKey {
            case kpi, score, side, pattern, since, confidence
            case relativeChange = "relative_change"
        }

        public init(kpi: String, score: Double, side: String?, pattern: String, since: String, confidence: Double, relativeChange: Double) {
            (self.kpi, self.score, self.side, self.pattern) = (kpi, score, side, pattern)
            (self.since, self.confidence, self.relativeChange) = (since, confidence, relativeChange)
        }
    }

    public var domain: String
    public var uuid: String
    /// The shadow's host.
    public var peer: String
    /// The baseline is being learned: there is no score yet.
    public var isLearning: Bool
    /// Pairs of samples that the baseline rests on.
    public var samples: Int
    /// ISO 8601 UTC: since when there is this baseline, and the last pair of samples.
    public var baselineSince: String
    public var lastSample: String?
    /// 0 and up, an alarm from 1; absent while learning.
    public var score: Double?
    /// Whom the evidence accuses: `primary`, `shadow`; absent: nobody, or not known.
    public var side: String?
    /// Since when it is an alarm that accuses the primary's side.
    public var alarmSince: String?
    public var contributions: [Contribution]
    /// Sensors that report trouble, on the accused side.
    public var hardware: [String]
    /// For a person, line by line.
    public var explanation: [String]
    /// `notify` or `swap`, and what follows from all this at the moment.
    public var onDrift: String
    public var decision: String
    public var intervalMs: Double
    public var intervalReason: String

    enum CodingKeys: String, CodingKey {
        case domain, uuid, peer, samples, score, side, contributions, hardware, explanation, decision
        case isLearning = "learning"
        case baselineSince = "baseline_since"
        case lastSample = "last_sample"
        case alarmSince = "alarm_since"
        case onDrift = "on_drift"
        case intervalMs = "interval_ms"
        case intervalReason = "interval_reason"
    }

    public init(domain: String, uuid: String, peer: String, isLearning: Bool, samples: Int, baselineSince: String, lastSample: String?, score: Double?,
                side: String?, alarmSince: String?, contributions: [Contribution], hardware: [String], explanation: [String], onDrift: String,
                decision: String, intervalMs: Double, intervalReason: String) {
        (self.domain, self.uuid, self.peer, self.isLearning, self.samples) = (domain, uuid, peer, isLearning, samples)
        (self.baselineSince, self.lastSample, self.score, self.side, self.alarmSince) = (baselineSince, lastSample, score, side, alarmSince)
        (self.contributions, self.hardware, self.explanation) = (contributions, hardware, explanation)
        (self.onDrift, self.decision, self.intervalMs, self.intervalReason) = (onDrift, decision, intervalMs, intervalReason)
    }

    public var isAlarm: Bool { (score ?? 0) >= 1 }
}

/// The answer to `drift`.
public struct DriftReport: Codable, Sendable, Equatable {
    public var schema = ControlProtocolVersion.schema
    public var host: String
    /// ISO 8601 UTC.
    public var time: String
    public var domains: [DomainDrift]

    public init(host: String, time: String, domains: [DomainDrift]) {
        (self.host, self.time, self.domains) = (host, time, domains)
    }
}
