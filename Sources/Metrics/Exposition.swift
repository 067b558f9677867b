/// One metric with its samples, and how it becomes text.
///
/// Formats: Prometheus text 0.0.4 (https://prometheus.io/docs/instrumenting/exposition_formats) and OpenMetrics 1.0.0. They differ in a counter's
/// family name, which OpenMetrics has without `_total`, in what is escaped in a HELP line, and in the closing `# EOF`.
public struct MetricFamily: Sendable, Equatable {
    public enum Kind: String, Sendable { case gauge, counter, summary }

    public struct Sample: Sendable, Equatable {
        /// `_sum` and `_count` of a summary; else empty.
        public var suffix: String
        public var labels: [Label]
        public var value: Double

        public init(_ value: Double, labels: [Label] = [], suffix: String = "") {
            self.value = value
            self.labels = labels
            self.suffix = suffix
        }
    }

    public struct Label: Sendable, Equatable {
        public var name: String
        public var value: String

        public init(_ name: String, _ value: String) {
            self.name = name
            self.value = value
        }
    }

    /// As queries have it: a counter's ends with `_total`.
    public var name: String
    public var kind: Kind
    public var help: String
    public var samples: [Sample]

    public init(_ name: String, _ kind: Kind, _ help: String, _ samples: [Sample]) {
        self.name = name
        self.kind = kind
        self.help = help
        self.samples = samples
    }
}

public enum ExpositionFormat: Sendable {
    case text, openMetrics

    public var contentType: String {
        switch self {
        case .text: "text/plain; version=0.0.4; charset=utf-8"
        case .openMetrics: "application/openmetrics-text; version=1.0.0; charset=utf-8"
        }
    }

    /// What an `Accept` header asks for: OpenMetrics 1.0.0 where it is among the wanted, else text, which every scraper takes.
    public static func preferred(accept: String) -> ExpositionFormat {
        for range in accept.lowercased().split(separator: ",") {
            let parts = range.split(separator: ";").map { $0.filter { $0 != " " && $0 != "\t" } }
            guard parts.first == "application/openmetrics-text", parts.contains("version=1.0.0") else { continue }
            let quality = parts.first { $0.hasPrefix("q=") }.map { Double($0.dropFirst(2)) ?? 0 } ?? 1
            if quality > 0 { return .openMetrics }
        }
        return .text
    }

    /// Families without samples are left out.
    public func render(_ families: [MetricFamily]) -> String {
        var text = ""
        for family in families where !family.samples.isEmpty {
            let name = self == .openMetrics && family.kind == .counter ? String(family.name.dropLast("_total".count)) : family.name
            text += "# HELP \(name) \(escape(family.help, quotes: self == .openMetrics))\n# TYPE \(name) \(family.kind.rawValue)\n"
            for sample in family.samples {
                text += family.name + sample.suffix
                if !sample.labels.isEmpty {
                    text += "{" + sample.labels.map { "\($0.name)=\"\(escape($0.value, quotes: true))\"" }.joined(separator: ",") + "}"
                }
                text += " \(number(sample.value))\n"
            }
        }
        return self == .openMetrics ? text + "# EOF\n" : text
    }

    private func escape(_ text: String, quotes: Bool) -> String {
        var escaped = ""
        for scalar in text.unicodeScalars {
            switch scalar {
            case "\\": escaped += "\\\\"
            case "\n": escaped += "\\n"
            case "\"" where quotes: escaped += "\\\""
            default: escaped.unicodeScalars.append(scalar)
            }
        }
        return escaped
    }

    private func number(_ value: Double) -> String {
        if value.isNaN { return "NaN" }
        if value.isInfinite { return value > 0 ? "+Inf" : "-Inf" }
        // Below 2^53 a whole number is exact.
        if value == value.rounded(), abs(value) < 9_007_199_254_740_992 { return "\(Int64(value))" }
        return "\(value)"
    }
}
