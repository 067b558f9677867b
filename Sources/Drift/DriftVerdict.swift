import Foundation

/// A side of a protected pair.
public enum PairSide: String, Codable, Sendable {
    case primary, shadow
}

/// What one KPI has to say.
public struct DriftContribution: Codable, Sendable, Equatable {
    public enum Direction: String, Codable, Sendable {
        case primaryWorse = "primary_worse", shadowWorse = "shadow_worse"
        /// The KPI differs, and neither its name nor the two trajectories tell which side is at fault.
        case differs
    }

    public enum Pattern: String, Codable, Sendable {
        case shift, creep, spikes
    }

    public var kpi: String
    public var kind: KPIClass
    /// 1 would alarm alone.
    public var score: Double
    public var direction: Direction
    public var pattern: Pattern
    /// Start of the present evidence, in the caller's seconds.
    public var since: Double
    /// 0...1: one minus the tail probability of evidence this strong, given this KPI's own past.
    public var confidence: Double
    /// The primary's value over what the shadow lets expect, minus 1; smoothed over a few samples.
    public var relativeChange: Double

    /// The side that is at fault; nil: not known.
    public var side: PairSide? {
        switch direction {
        case .primaryWorse: .primary
        case .shadowWorse: .shadow
        case .differs: nil
        }
    }
}

/// The state of a pair after a sample.
public struct DriftVerdict: Codable, Sendable, Equatable {
    public var time: Double
    /// 0 and up; an alarm from 1.
    public var score: Double
    /// The side that most of the evidence accuses; nil: not known, or nothing to accuse anybody of.
    public var side: PairSide?
    /// Nothing is judged yet: the baseline is being learned.
    public var isLearning: Bool
    /// Samples (blocks, where the step is short) by which the shadow lags behind the primary.
    public var lag: Int
    /// KPIs with a score of 0.3 or more, the strongest first.
    public var contributions: [DriftContribution]
    /// Sensors that reported trouble on the accused side within the window.
    public var hardware: [HardwareEvent]

    public var isAlarm: Bool { score >= 1 }
    /// What the warm swap asks: the primary drifts, or somebody does and the shadow is not accused.
    public var accusesPrimary: Bool { isAlarm && side != .shadow }

    /// Lines for people: the verdict, and one a contribution.
    public var explanation: [String] {
        let shown = String(format: "%.2f", score)
        if isLearning { return ["Learning the baseline: nothing is judged yet"] }
        guard let first = contributions.first else { return ["No drift: score \(shown)"] }
        let who = side.map { "the \($0.rawValue) side" } ?? "one side, it is not known which"
        var lines = [isAlarm ? "Drift of \(who): score \(shown), led by \(first.kpi)" : "Suspicion, no alarm: score \(shown), led by \(first.kpi)"]
        lines += contributions.map(\.line)
        lines += hardware.map { "Hardware on the \($0.side.rawValue) side: \($0.sensor) (less evidence is asked for)" }
        return lines
    }
}

extension DriftContribution {
    fileprivate var line: String {
        let change = String(format: "%+.0f %%", max(-1, min(relativeChange, 99)) * 100)
        let what = switch pattern {
        case .shift: "shifted by \(change)"
        case .creep: "creeps, \(change)"
        case .spikes: "spikes more often than usual"
        }
        let who = switch direction {
        case .primaryWorse: "primary worse"
        case .shadowWorse: "shadow worse"
        case .differs: "side unknown"
        }
        let stamp = Date(timeIntervalSince1970: since).formatted(.iso8601)
        return "\(kpi) \(what) since \(stamp): \(who), score \(String(format: "%.2f", score)), sure to \(String(format: "%.4f", confidence))"
    }
}

/// Trouble that a host's own hardware reports.
public struct HardwareEvent: Codable, Sendable, Equatable {
    /// In the caller's seconds.
    public var time: Double
    public var side: PairSide
    /// As the BMC names it.
    public var sensor: String

    public init(time: Double, side: PairSide, sensor: String) {
        self.time = time
        self.side = side
        self.sensor = sensor
    }
}
