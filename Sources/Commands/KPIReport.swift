import ControlProtocol
import Foundation
import Platform

/// What `kpi` prints: samples by row, each side with its own KPIs.
struct KPIReport: Encodable {
    struct Sample: Encodable {
        /// Milliseconds since 1970.
        var time: UInt64
        var sides: [String: [String: Double]]

        private struct Key: CodingKey {
            var stringValue: String
            var intValue: Int? { nil }
            init(_ text: String) { stringValue = text }
            init?(stringValue: String) { self.stringValue = stringValue }
            init?(intValue: Int) { nil }
        }

        func encode(to encoder: any Encoder) throws {
            var container = encoder.container(keyedBy: Key.self)
            try container.encode(KPIReport.text(time), forKey: Key("time"))
            for (side, values) in sides { try container.encode(values, forKey: Key(side)) }
        }
    }

    var schema = ControlProtocolVersion.schema
    var host: String
    var domain: String?
    var uuid: String?
    var intervalSeconds: Int
    var samples: [Sample] = []

    enum CodingKeys: String, CodingKey {
        case schema, host, domain, uuid, samples
        case intervalSeconds = "interval_seconds"
    }

    /// What a column's prefix means; a host's own columns have none.
    static let sides = [("p_", "primary"), ("s_", "shadow")]

    init(_ first: KPIPage) {
        (host, domain, uuid, intervalSeconds) = (first.host, first.domain, first.uuid, first.intervalSeconds)
    }

    mutating func add(_ page: KPIPage) {
        let places = page.columns.map { Self.place($0, ofPair: uuid != nil) }
        for (time, row) in zip(page.times, page.rows) {
            var sample = Sample(time: time, sides: [:])
            for (place, value) in zip(places, row) {
                if let value { sample.sides[place.side, default: [:]][place.name] = value }
            }
            samples.append(sample)
        }
    }

    private static func place(_ column: String, ofPair: Bool) -> (side: String, name: String) {
        if ofPair, let (prefix, side) = sides.first(where: { column.hasPrefix($0.0) }) { return (side, String(column.dropFirst(prefix.count))) }
        return ("host", column)
    }

    /// KPI names of a side, in order; a host's without those of one of several.
    func names(_ side: String) -> [String] {
        samples.reduce(into: Set<String>()) { names, sample in names.formUnion((sample.sides[side] ?? [:]).keys) }.sorted()
    }

    static func text(_ milliseconds: UInt64) -> String {
        Timestamp.format(seconds: Int(milliseconds / 1000), milliseconds: Int(milliseconds % 1000))
    }
}
