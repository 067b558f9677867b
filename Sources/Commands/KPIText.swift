import Foundation

/// Tables and CSV of KPIs.
enum KPIText {
    /// One line a KPI: the last value, mean and largest over the time asked for, each side beside the other.
    static func table(_ report: KPIReport, colour: Bool) -> String {
        guard !report.samples.isEmpty else { return "" }
        let isPair = report.uuid != nil
        let sides = isPair ? ["primary", "shadow"] : ["host"]
        let titles = sides.flatMap { side in [side.uppercased(), "MEAN", "MAX"] }
        var table = TextTable(columns: [.init("KPI")] + titles.map { .init($0, .right) })
        let names = Set(sides.flatMap { report.names($0) }).sorted()
        for name in names {
            let cells = sides.flatMap { side -> [TextTable.Cell] in
                let values = report.samples.compactMap { $0.sides[side]?[name] }
                // Absent now is absent, whatever was before.
                let last = report.samples.last?.sides[side]?[name]
                let mean = values.isEmpty ? nil : values.reduce(0, +) / Double(values.count)
                return [last, mean, values.max()].map { .init(figure($0)) }
            }
            table.add([.init(name.printable)] + cells)
        }
        return table.render(colour: colour)
    }

    /// `timestamp` in seconds since 1970, then a column for each KPI of each side (`p_`, `s_`); what is absent is empty. A row for each sample, the
    /// form that `analyze pairs` reads.
    static func csv(_ report: KPIReport) -> String {
        let prefixes = report.uuid != nil ? KPIReport.sides : [("", "host")]
        let columns = prefixes.flatMap { prefix, side in report.names(side).map { (title: prefix + $0, side: side, name: $0) } }
        var lines = [(["timestamp"] + columns.map { quoted($0.title) }).joined(separator: ",")]
        for sample in report.samples {
            let cells = columns.map { column in sample.sides[column.side]?[column.name].map { "\($0)" } ?? "" }
            lines.append(([String(format: "%.3f", Double(sample.time) / 1000)] + cells).joined(separator: ","))
        }
        return lines.joined(separator: "\n") + "\n"
    }

    /// The name of a folder may hold a comma (RFC 4180).
    private static func quoted(_ text: String) -> String {
        guard text.contains(where: { ",\"\n\r".contains($0) }) else { return text }
        return "\"" + text.replacingOccurrences(of: "\"", with: "\"\"") + "\""
    }

    /// Four digits that count; large ones with their thousands.
    static func figure(_ value: Double?) -> String {
        guard let value, value.isFinite else { return "-" }
        let size = abs(value)
        if size >= 1e15 { return String(format: "%.3g", value) }
        if size >= 1000 || value == value.rounded() { return String(format: "%.0f", value) }
        return String(format: size >= 100 ? "%.1f" : size >= 10 ? "%.2f" : "%.3f", value)
    }
}
