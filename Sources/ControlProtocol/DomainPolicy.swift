/// What a domain wants of the shadow-virt services wherever it runs. It stands in the domain's own `<metadata>`, as one element of one versioned
/// namespace; `DomainPolicy+XML.swift` has the grammar.
public struct DomainPolicy: Codable, Sendable, Equatable {
    public enum Lifetime: String, Codable, Sendable, CaseIterable {
        /// What protection made stays for the next time: replicas, records.
        case permanent
        /// For batch jobs and transient domains: when the guest ends, nothing is left of it on either side.
        case ghost
    }

    /// What drift beyond a threshold leads to.
    public enum DriftAction: String, Codable, Sendable, CaseIterable {
        case notify, swap
    }

    /// One wish about where the shadow stands, compared with where the guest stands.
    public struct Rule: Codable, Sendable, Equatable {
        public enum Relation: String, Codable, Sendable, CaseIterable { case differ, same }
        public enum Level: String, Codable, Sendable, CaseIterable { case preferred, required }
        public var relation: Relation
        public var label: HostLabel
        public var level: Level

        public init(_ relation: Relation, _ label: HostLabel, _ level: Level) {
            (self.relation, self.label, self.level) = (relation, label, level)
        }
    }

    public static let shadowsRange = 1...8
    /// Entries of any list, and bytes of any name in it.
    public static let mostEntries = 64, longestName = 64
    public static let thresholdRange: ClosedRange<Double> = 0...1e12

    /// Off: what is written stays, and nothing is done about it (`unprotect`).
    public var isEnabled = true
    public var lifetime = Lifetime.permanent
    public var shadows = 1
    public var engine = EngineChoice.auto
    /// Nil: as the configuration of the guest's host has it.
    public var intervalMs: Double?
    /// Where the guest and its shadows may be; empty: on all hosts.
    public var hosts: [String] = []
    /// Beyond these a host that differs in rack, power and network is preferred.
    public var rules: [Rule] = []
    public var withoutDisks = false
    public var pool: String?
    public var diskRateBytesPerSecond: UInt64?
    /// Targets (`vda`) that have to be part of the epochs: without them there is no protection.
    public var criticalDisks: [String] = []
    public var onFailure = OnFailure.leave
    public var onDrift = DriftAction.notify
    /// Limits of drift, by the name of the figure.
    public var thresholds: [String: Double] = [:]

    enum CodingKeys: String, CodingKey {
        case lifetime, shadows, engine, hosts, rules, pool, thresholds
        case isEnabled = "enabled"
        case intervalMs = "interval_ms"
        case withoutDisks = "without_disks"
        case diskRateBytesPerSecond = "disk_rate_bytes_per_second"
        case criticalDisks = "critical_disks"
        case onFailure = "on_failure"
        case onDrift = "on_drift"
    }

    public init() {}

    /// All rules that are in force: those written down, and for a label they don't speak of the usual preference.
    public var effectiveRules: [Rule] {
        let usual = [HostLabel.rack, .power, .network].filter { label in !rules.contains { $0.label == label } }
        return rules + usual.map { Rule(.differ, $0, .preferred) }
    }

    /// What is wrong with it, and the way out; nil when nothing is.
    public var problem: ControlFailure? {
        if !Self.shadowsRange.contains(shadows) { return ControlFailure("\(shadows) is no number of shadows", advice: "Use \(Self.shadowsRange.lowerBound) to \(Self.shadowsRange.upperBound)") }
        let range = engine == .continuous ? Interval.continuousRangeMs : engine == .periodic ? Interval.periodicRangeMs : Interval.rangeMs
        if let intervalMs, !range.contains(intervalMs) {
            return ControlFailure("An interval of \(intervalMs) ms is out of range for the engine \(engine.rawValue)", advice: "Use \(Int(range.lowerBound)) to \(Int(range.upperBound)) ms")
        }
        if let rate = diskRateBytesPerSecond, !DataRate.range.contains(rate) { return ControlFailure("A disk rate of \(rate) bytes per second is out of range", advice: "Use 64KiB/s to 1024GiB/s") }
        for (what, names) in [("host", hosts), ("critical disk", criticalDisks), ("threshold", Array(thresholds.keys)), ("pool", pool.map { [$0] } ?? [])] {
            if names.count > Self.mostEntries { return ControlFailure("The policy has \(names.count) entries for \(what)", advice: "Use at most \(Self.mostEntries)") }
            if let bad = names.first(where: { !Self.isName($0) }) {
                return ControlFailure("'\(bad.prefix(Self.longestName))' is no name of a \(what)", advice: "Use 1 to \(Self.longestName) letters, digits, '.', '-', '_'")
            }
            if let twice = Dictionary(grouping: names, by: { $0.lowercased() }).first(where: { $1.count > 1 }) { return ControlFailure("The \(what) '\(twice.value[0])' is given twice", advice: "Remove one of the two") }
        }
        if let twice = Dictionary(grouping: rules, by: \.label).first(where: { $1.count > 1 }) {
            return ControlFailure("There are two rules about the label '\(twice.key.rawValue)'", advice: "Remove one of the two")
        }
        if let bad = thresholds.first(where: { !Self.thresholdRange.contains($0.value) }) { return ControlFailure("Threshold '\(bad.key)' is out of range", advice: "Use 0 to 1e12") }
        if withoutDisks, let stray = criticalDisks.first { return ControlFailure("Disk \(stray) is critical, but no disk is to be copied", advice: "Copy the disks, or take it off the critical ones") }
        if withoutDisks, pool != nil || diskRateBytesPerSecond != nil { return ControlFailure("The policy names a pool or a rate, but no disk is to be copied", advice: "Copy the disks, or leave both out") }
        return nil
    }

    private static func isName(_ text: String) -> Bool {
        (1...longestName).contains(text.utf8.count) && text.utf8.allSatisfy { byte in
            (0x30...0x39).contains(byte) || (0x41...0x5A).contains(byte) || (0x61...0x7A).contains(byte) || [0x2E, 0x2D, 0x5F].contains(byte)
        }
    }
}
