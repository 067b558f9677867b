import ControlProtocol
import Foundation

struct DriftCommand: Command {
    let spec = CommandSpec(
        name: "drift", summary: "show whether this host drifts from its shadows' hosts",
        operands: [.init(name: "DOMAIN", isRequired: false)],
        options: CommandSpec.Option.client,
        description: [
            "Compares the KPIs of a protected domain and its host with those of the shadow's side, against what is normal for this pair: which KPI differs, "
                + "since when, how sure that is, and which side it accuses. A score of 1 is an alarm; from 0.5 on epochs come more often.",
            "The baseline is learned in the first 20 minutes (telemetry_interval below 5: from 60 samples), kept over restarts of the service, and learned "
                + "anew when the shadow's host or the domain's CPUs, memory or disks change.",
            "What follows is the policy's to say: `on-drift` of the domain's policy, else on_drift in the configuration.",
        ],
        examples: [
            .init("shadow-virt drift web1", "One domain, and why"),
            .init("shadow-virt drift --quiet > /dev/null; test $? != 2 || alert", "For a monitor"),
        ],
        exitCodes: [(ExitCode.found, "a score is 1 or more")])

    func run(_ arguments: ParsedArguments, _ context: CommandContext) throws -> Int32 {
        let response = try context.ask(ControlRequest(.drift, domain: arguments.operands.first), arguments, command: spec.name, notice: "")
        guard let report = response.drift else { throw context.unexpected(spec.name) }
        try context.print(.drift(report), arguments, command: spec.name)
        if report.domains.isEmpty { context.remark("No domain is protected on \(report.host.printable), or nothing was measured yet", arguments) }
        return report.domains.contains(where: \.isAlarm) ? ExitCode.found : ExitCode.ok
    }
}

/// What `drift` prints for people.
struct DriftText {
    var colour: Bool

    func text(_ report: DriftReport) -> String { report.domains.map(text).joined(separator: "\n") }

    private func text(_ drift: DomainDrift) -> String {
        let rows: [(String, String?)] = [
            ("Domain", drift.domain.printable),
            ("Peer", drift.peer.printable),
            ("Score", score(drift)),
            ("Accused", drift.score.map { _ in drift.side.map { "the \($0.printable)'s side" } ?? "nobody" }),
            ("Alarm since", drift.alarmSince?.printable),
            ("Baseline", "\(Quantity.count(UInt64(max(0, drift.samples)), "sample")), since \(drift.baselineSince.printable)"),
            ("Interval", "\(Quantity.duration(milliseconds: drift.intervalMs)) (\(drift.intervalReason.printable))"),
            ("On drift", "\(drift.onDrift.printable): \(drift.decision.printable)"),
        ]
        var text = ""
        for case (let label, let value?) in rows { text += "\(label):".padding(toLength: 13, withPad: " ", startingAt: 0) + value + "\n" }
        return text + drift.explanation.map { "  \($0.printable)\n" }.joined()
    }

    private func score(_ drift: DomainDrift) -> String {
        guard let score = drift.score else { return "learning" }
        let shown = String(format: "%.2f", score)
        guard colour else { return shown }
        return (score >= 1 ? TextStyle.bad : score >= 0.5 ? .caution : .good).apply(shown)
    }
}
