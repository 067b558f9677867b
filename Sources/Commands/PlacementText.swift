import ControlProtocol

/// Placement and drains as tables.
enum PlacementText {
    static func table(_ report: PlacementReport, colour: Bool) -> String {
        var text = "Shadow of \(report.domain.printable), which runs on \(report.host.printable)\(labels(report.labels).isEmpty ? "" : " (\(labels(report.labels)))")\n"
        text += "Rules: \(report.rules.map { "\($0.relation.rawValue) \($0.label.rawValue) \($0.level.rawValue)" }.joined(separator: ", "))\n\n"
        var table = TextTable(columns: [.init("HOST"), .init("VERDICT"), .init("RULES", .right), .init("DIFFERS"), .init("LABELS"), .init("FREE", .right), .init("RESERVED", .right), .init("COST", .right)])
        for candidate in report.candidates {
            let style: TextStyle = switch candidate.verdict {
            case .chosen: .good
            case .fits: .plain
            case .excluded: .bad
            }
            table.add([
                .init(candidate.host.printable), .init(candidate.verdict.rawValue, style), .init("\(candidate.score)/\(report.rules.count)"),
                .init(candidate.differs.isEmpty ? "-" : candidate.differs.joined(separator: ",").printable),
                .init(candidate.labels.map(labels).flatMap { $0.isEmpty ? nil : $0 } ?? "-"), .init(candidate.freeBytes.map(Quantity.bytes) ?? "-"),
                .init(candidate.reservedBytes.map(Quantity.bytes) ?? "-"), .init(candidate.labels.map { "\($0.cost)" } ?? "-"),
            ], notes: candidate.reasons.map(\.printable))
        }
        return text + table.render(colour: colour)
    }

    private static func labels(_ labels: HostLabels) -> String {
        HostLabel.allCases.compactMap { label in labels[label].map { "\(label.rawValue)=\($0.printable)" } }.joined(separator: " ")
    }

    private static func style(_ result: DrainReport.Step.Result) -> TextStyle {
        switch result {
        case .moved, .replaced: .good
        case .planned, .notTried: .caution
        case .failed: .bad
        }
    }

    static func table(_ report: DrainReport, colour: Bool) -> String {
        guard !report.steps.isEmpty else { return "" }
        var table = TextTable(columns: [.init("DOMAIN"), .init("ROLE"), .init("RESULT"), .init("HOST")])
        for step in report.steps {
            table.add([.init(step.domain.printable), .init(step.role.rawValue), .init(step.result.rawValue, style(step.result)),
                       .init(step.host?.printable ?? "-")], notes: [step.detail.printable])
        }
        return table.render(colour: colour)
    }
}
