/// What a host may share with others, and fails together with them.
public enum HostLabel: String, Codable, Sendable, CaseIterable {
    case rack, power, network, zone
}

/// Where a host stands, as its configuration says; for placement.
public struct HostLabels: Codable, Sendable, Equatable {
    public static let costRange = 0...1_000_000
    /// Bytes of one label's value.
    static let longestValue = 64

    public var rack: String?
    public var power: String?
    public var network: String?
    public var zone: String?
    /// What a shadow costs there, in whatever unit its administrator likes; decides between hosts that are equal otherwise.
    public var cost = 0

    public init() {}

    public struct ParseError: Error, Sendable, Equatable, CustomStringConvertible {
        public let message: String
        public let advice: String
        public var description: String { "\(message). \(advice)" }
    }

    /// Parses `rack=r1 power=p1 network=n1 zone=z1 cost=3`: any of them, in any order.
    public init(_ text: String) throws(ParseError) {
        var seen = Set<String>()
        for word in text.split(separator: " ") {
            let parts = word.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false).map(String.init)
            guard parts.count == 2, !parts[1].isEmpty else {
                throw ParseError(message: "'\(word)' is no label", advice: "Write NAME=VALUE, for instance rack=r1")
            }
            guard seen.insert(parts[0]).inserted else { throw ParseError(message: "Label '\(parts[0])' is given twice", advice: "Remove one of the two") }
            if parts[0] == "cost" {
                guard let cost = Int(parts[1]), Self.costRange.contains(cost) else {
                    throw ParseError(message: "'\(parts[1])' is no cost", advice: "Use a whole number from 0 to \(Self.costRange.upperBound)")
                }
                self.cost = cost
            } else if let label = HostLabel(rawValue: parts[0]) {
                guard parts[1].utf8.count <= Self.longestValue else {
                    throw ParseError(message: "The value of label '\(parts[0])' has \(parts[1].utf8.count) bytes", advice: "Use at most \(Self.longestValue)")
                }
                self[label] = parts[1]
            } else {
                throw ParseError(message: "Unknown label '\(parts[0])'", advice: "The known labels are \(HostLabel.allCases.map(\.rawValue).joined(separator: ", ")) and cost")
            }
        }
    }

    public subscript(label: HostLabel) -> String? {
        get {
            switch label {
            case .rack: rack
            case .power: power
            case .network: network
            case .zone: zone
            }
        }
        set {
            switch label {
            case .rack: rack = newValue
            case .power: power = newValue
            case .network: network = newValue
            case .zone: zone = newValue
            }
        }
    }
}
